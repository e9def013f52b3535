"""Small methods and a codec that use every hook that the papers need, once each. They are tests, not products."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from osmotic.codecs.base import Entry
from osmotic.codecs.fp16 import Fp16
from osmotic.codecs.fp32 import Fp32
from osmotic.methods.base import PARTS, Method
from osmotic.protocol.messages import Client, Phase, Reply, Spec, Task, Tensors


@dataclass(frozen=True, kw_only=True)
class PersonalEncoder(Method):
    """The shape of UDec, with a phase after the rounds in which clients train once more for themselves."""

    shared: ClassVar[tuple[str, ...]] = ("decoder",)
    global_model: ClassVar[bool] = False

    def phases(self, rounds: int) -> Iterator[Phase]:
        yield from super().phases(rounds)
        yield Phase("personalise", rounds + 1, totals=False, everybody=True)

    def tasks(self, server: Any, phase: Phase, clients: Iterable[Client]) -> Iterator[Task]:
        for client in clients:
            first = client.name not in server.state.counted
            returns = self.shared if phase.name == "train" else ()
            yield Task(client, "train", send=PARTS if first else self.shared, returns=returns)

    def finish(self, server: Any, phase: Phase) -> dict[str, float]:
        if phase.name == "train":
            server.apply(server.sum.drain())
        return {}


@dataclass(frozen=True, kw_only=True)
class Auxiliary(Method):
    """The shape of FedDDPM: clients train alone first, the server samples their models and trains on the images later."""

    images: dict[str, np.ndarray] = field(default_factory=dict)

    def phases(self, rounds: int) -> Iterator[Phase]:
        yield Phase("local", -1, everybody=True)
        yield from super().phases(rounds)

    def tasks(self, server: Any, phase: Phase, clients: Iterable[Client]) -> Iterator[Task]:
        for client in clients:
            yield Task(
                client,
                "train",
                send=PARTS,
                returns=PARTS,
                control={"epochs": 2.0 if phase.name == "local" else 1.0},
            )

    def fold(self, server: Any, reply: Reply) -> None:
        if phase_of(server).name == "train":
            return super().fold(server, reply)
        name = reply.task.client.name
        local = {n: w + reply.tensors[f"model/{n}"] for n, w in server.state.weights.items()}
        drawn = server.sample(local, np.arange(8) % 10, 8, phase_of(server), name)
        object.__setattr__(self, "images", {**self.images, name: drawn})
        return None

    def finish(self, server: Any, phase: Phase) -> dict[str, float]:
        if phase.name == "train":
            server.apply(server.sum.drain())
            pool = np.concatenate([self.images[n] for n in sorted(self.images)])
            server.train(pool, np.arange(len(pool)) % 8 % 10, 2, 1e-3, phase)
        return {"auxiliary_images": float(sum(map(len, self.images.values())))}

    def state(self) -> Tensors:
        return {f"image/{n}": pixels for n, pixels in self.images.items()}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        object.__setattr__(self, "images", {n.removeprefix("image/"): pixels for n, pixels in state.items()})


def phase_of(server: Any) -> Phase:
    """The phase under way."""
    return server.phases[server.state.step]


@dataclass(frozen=True, kw_only=True)
class Variates(Method):
    """The shape of SCAFFOLD on one tensor: control variates both ways, one kept by the client, gradients corrected."""

    stateful: ClassVar[bool] = True
    common: dict[str, np.ndarray] = field(default_factory=dict)
    NAME: ClassVar[str] = "conv_out.bias"

    def start(self, server: Any) -> None:
        self.restore({"c": np.zeros(server.layout[self.NAME], np.float32)})

    def tasks(self, server: Any, phase: Phase, clients: Iterable[Client]) -> Iterator[Task]:
        name = f"control/{self.NAME}"
        for client in clients:
            extras, expects = {name: self.common["c"]}, {name: Spec(self.common["c"].shape)}
            yield Task(client, "train", send=PARTS, returns=PARTS, extras=extras, expects=expects)

    def after_backward(self, local: Any, model: Any) -> None:
        import torch

        own = local.state.get("c", np.zeros_like(local.extras[f"control/{self.NAME}"]))
        dict(model.named_parameters())[self.NAME].grad.add_(
            torch.from_numpy(local.extras[f"control/{self.NAME}"] - own)
        )

    def end(self, local: Any) -> Tensors:
        common = local.extras[f"control/{self.NAME}"]
        own = local.state.get("c", np.zeros_like(common))
        moved = local.received[self.NAME] - dict(local.model.named_parameters())[self.NAME].detach()
        new = own - common + moved.numpy() / (local.steps * local.learning_rate)
        local.state["c"] = new.astype(np.float32)
        return {f"control/{self.NAME}": (new - own).astype(np.float32)}

    def finish(self, server: Any, phase: Phase) -> dict[str, float]:
        mean = server.sum.mean()
        moved = mean.pop(f"control/{self.NAME}")
        server.apply(mean.items())
        self.restore({"c": self.common["c"] + moved})
        return {}

    def state(self) -> Tensors:
        return dict(self.common)

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        object.__setattr__(self, "common", dict(state))


@dataclass(frozen=True, kw_only=True)
class DecoderOnly(Method):
    """Freezing and a bent loss: clients train and return the decoder alone, pulled towards what they received."""

    shared: ClassVar[tuple[str, ...]] = ("decoder",)

    def trainable(self, local: Any) -> set[str]:
        from osmotic.models import parts

        return set(parts.names(local.received, ["decoder"]))

    def local_loss(self, local: Any, loss: Any, model: Any) -> Any:
        pull = sum(
            (w - local.received[n]).square().sum()
            for n, w in model.named_parameters()
            if n.startswith("conv_out")
        )
        return loss + 0.5 * pull

    def keep(self) -> tuple[str, ...]:
        return ()  # what is not returned is the server's, unchanged

    def tasks(self, server: Any, phase: Phase, clients: Iterable[Client]) -> Iterator[Task]:
        for client in clients:
            yield Task(client, "train", send=PARTS, returns=("decoder",))


class TrainedCodec(Fp32):
    """Sends x divided by a scale that the server learns from what it sees; both ends remember the last packet.

    Floats travel as x / scale minus half of what was sent before, so that a lost or repeated step would show at once.
    """

    name = "trained"
    absolute = False
    remembers = True
    trained = True

    def __init__(self) -> None:
        self.scale = np.float32(1.0)
        self.seen = np.int64(0)

    def encode(self, tensors: Mapping[str, np.ndarray], memory: Tensors) -> bytes:
        sent = {n: self._code(n, t, memory) for n, t in tensors.items()}
        return super().encode(sent, memory)

    def _code(self, name: str, tensor: np.ndarray, memory: Tensors) -> np.ndarray:
        if tensor.dtype != np.float32 or not name.startswith("model/"):
            return tensor
        coded = tensor / self.scale - memory.get(name, np.float32(0))
        memory[name] = (coded * np.float32(0.5)).astype(np.float32)
        return coded.astype(np.float32)

    def decode(self, data: bytes, memory: Tensors) -> Iterator[tuple[str, np.ndarray]]:
        for name, coded in super().decode(data, memory):
            if coded.dtype != np.float32 or not name.startswith("model/"):
                yield name, coded
                continue
            value = (coded + memory.get(name, np.float32(0))) * self.scale
            memory[name] = (coded * np.float32(0.5)).astype(np.float32)
            yield name, value.astype(np.float32)

    def observe(self, tensors: Mapping[str, np.ndarray]) -> None:
        self.seen = self.seen + 1  # a count does not depend on the order of arrival

    def refresh(self, server_round: int) -> Tensors | None:
        if server_round < 2:
            return None
        self.scale = np.float32(2.0 ** (int(self.seen) % 5))  # a power of two: dividing by it is exact
        return {"scale": np.array([self.scale])}

    def adopt(self, tensors: Mapping[str, np.ndarray]) -> None:
        self.scale = np.float32(tensors["scale"][0])

    def state(self) -> Tensors:
        return {"scale": np.array([self.scale]), "seen": np.array([self.seen])}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        self.scale, self.seen = np.float32(state["scale"][0]), np.int64(state["seen"][0])


class HalfCodec(Fp16):
    """Half precision after a division by a scale that the server learns; for both ways, so it remembers nothing."""

    name = "half"
    trained = True

    def __init__(self) -> None:
        self.scale = np.float32(1.0)
        self.seen = 0

    def encode_tensor(self, entry: Entry, tensor: np.ndarray) -> bytes:
        return super().encode_tensor(entry, tensor / self.scale if entry.form == "f2" else tensor)

    def decode_tensor(self, entry: Entry, data: memoryview) -> np.ndarray:
        value = super().decode_tensor(entry, data)
        return value * self.scale if entry.form == "f2" else value

    def observe(self, tensors: Mapping[str, np.ndarray]) -> None:
        self.seen += 1

    def refresh(self, server_round: int) -> Tensors | None:
        if server_round not in (3, 5):
            return None
        self.scale = np.float32(2.0**-server_round)
        return {"scale": np.array([self.scale])}

    def adopt(self, tensors: Mapping[str, np.ndarray]) -> None:
        self.scale = np.float32(tensors["scale"][0])

    def state(self) -> Tensors:
        return {"scale": np.array([self.scale]), "seen": np.array([self.seen])}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        self.scale, self.seen = np.float32(state["scale"][0]), int(state["seen"][0])


SEAMS: dict[str, type[Method]] = {
    "personal-encoder": PersonalEncoder,
    "auxiliary": Auxiliary,
    "variates": Variates,
    "decoder-only": DecoderOnly,
}
