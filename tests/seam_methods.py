"""An exchange, pieces and codecs that use every hook which nothing in the product uses yet. They are tests, not products."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from osmotic.codecs.base import Entry
from osmotic.codecs.fp16 import Fp16
from osmotic.codecs.fp32 import Fp32
from osmotic.config.keys import key
from osmotic.flat import Flat, FlatLayout
from osmotic.methods.base import Method
from osmotic.methods.fedavg import FedAvg
from osmotic.models.parts import PARTS
from osmotic.pieces import Piece
from osmotic.pieces.base import Metrics, Section
from osmotic.protocol.messages import TRAIN, Client, Phase, Reply, Spec, Task
from osmotic.protocol.view import Extension, Lab, Step, View
from osmotic.tensors import Tensors, group, grouped

if TYPE_CHECKING:
    from torch import Tensor, nn


# --- an exchange ---


@dataclass(frozen=True, kw_only=True)
class DecoderOnly(FedAvg):
    """Freezing: clients train and return the decoder alone, and keep nothing."""

    shared: ClassVar[tuple[str, ...]] = ("decoder",)

    def tasks(self, view: View, phase: Phase, clients: Iterable[Client]) -> Iterator[Task]:
        for client in clients:
            yield Task(client, "train", send=PARTS, returns=self.shared if phase.name == TRAIN else ())

    def trainable(self, step: Step) -> set[str]:
        return set(step.names(self.shared))

    def keep(self) -> tuple[str, ...]:
        return ()  # what is not returned is the server's, unchanged


# --- pieces ---


@dataclass(frozen=True, kw_only=True)
class Anchor(Piece):
    """A bent loss: the last layer is pulled towards what the client received."""

    left: ClassVar[str] = ""

    strength: float = key(0.5, "weight of the pull", 0)

    def client_begin(self, step: Step, state: Tensors) -> Any:
        return [(p, step.received[n]) for n, p in step.parameters.items() if n.startswith("conv_out")]

    def local_loss(self, step: Step, work: Any, loss: Tensor, model: nn.Module) -> Tensor:
        pull = sum((parameter - start).square().sum() for parameter, start in work)
        return loss + self.strength * pull


@dataclass(frozen=True, kw_only=True)
class Clipped(Piece):
    """The shape of private averaging: changes are clipped to a bound that the server adapts, and noise is added.

    Clients return the norm of each part's change through the lossy codec; their noise shrinks with the rounds that
    they remember, which the server never learns.
    """

    left: ClassVar[str] = "the norms of the changes of encoder, bottleneck and decoder"
    bound: float = key(1.0, "largest norm of a change in the first round", 0, above=True)
    noise: float = key(1e-4, "standard deviation of the noise of a client's first round", 0)

    def server_start(self, view: View) -> Tensors:
        return {"bound": np.array([self.bound], np.float32)}

    def extend(self, view: View, state: Tensors, phase: Phase, task: Task) -> Extension:
        if phase.name != TRAIN:
            return Extension()
        back = {"norms": Spec((len(PARTS), 1), wire="codec", max_abs=1e4)}
        return Extension(extras={"bound": state["bound"]}, expects=back, control={"noise": self.noise})

    def gather(self, view: View, gathered: Any, reply: Reply) -> Any:
        if not reply.tensors:
            return gathered
        total = gathered or view.accumulator(len(view.clients), 1e4)
        total.add({"norms": reply.tensors["norms"]}, 1)
        return total

    def change(
        self, view: View, state: Tensors, gathered: Any, phase: Phase, mean: Tensors
    ) -> tuple[Tensors, Tensors, Metrics]:
        if gathered is None:
            return mean, state, {}
        norm = np.sqrt(np.square(gathered.mean()["norms"]).sum(), dtype=np.float32)
        bound = (np.float32(0.5) * (state["bound"] + norm)).astype(np.float32)
        return mean, {**state, "bound": bound}, {"bound": float(bound[0])}

    def client_end(self, step: Step, work: Any, state: Tensors) -> tuple[Tensors, Tensors]:
        if not step.control:
            return {}, state
        norms = [
            sum(float((step.parameters[n].detach() - step.received[n]).square().sum()) for n in names) ** 0.5
            for names in step.part_names.values()
        ]
        rounds = state.get("rounds", np.zeros(1, np.int64)) + 1
        return {"norms": np.array(norms, np.float32).reshape(-1, 1)}, {"rounds": rounds}

    def filter(self, step: Step, state: Tensors, change: Tensors) -> Tensors:
        if not step.control:
            return change
        norm = sum(float(np.square(t, dtype=np.float64).sum()) for _, t in sorted(change.items())) ** 0.5
        factor = np.float32(min(1.0, float(step.extras["bound"][0]) / max(norm, 1e-12)))
        rng, size = step.rng("clipped"), np.float32(step.control["noise"] / state["rounds"][0])
        return {n: factor * t + size * rng.standard_normal(t.shape, np.float32) for n, t in change.items()}


@dataclass(frozen=True, kw_only=True)
class Census(Piece):
    """A question before the rounds: nothing is sent, and clients say how many images of which class they hold."""

    left: ClassVar[str] = "how many images of which class a client holds"

    def phases(self, rounds: int) -> Iterator[Phase]:
        yield Phase("census", 0, totals=False, everybody=True)

    def extend(self, view: View, state: Tensors, phase: Phase, task: Task) -> Extension:
        if phase.name != "census":
            return Extension()
        back = {"counts": Spec((None,), "int64")}
        return Extension(
            expects=back, control={"classes": 10}, send=(), returns=(), keep=(), local_epochs=0.01
        )

    def client_end(self, step: Step, work: Any, state: Tensors) -> tuple[Tensors, Tensors]:
        if not step.control:
            return {}, state
        labels = step.images.labels.cpu().numpy()
        return {"counts": np.bincount(labels, minlength=step.control["classes"])}, state

    def gather(self, view: View, gathered: Any, reply: Reply) -> Any:
        if not reply.tensors:
            return gathered
        return {**(gathered or {}), reply.task.client.name: reply.tensors["counts"].copy()}

    def change(
        self, view: View, state: Tensors, gathered: Any, phase: Phase, mean: Tensors
    ) -> tuple[Tensors, Tensors, Metrics]:
        found = {name: gathered[name] for name in sorted(gathered or {})}
        return mean, {**state, **found}, {}


@dataclass(frozen=True, kw_only=True)
class Auxiliary(Piece):
    """The shape of FedDDPM: clients train alone first, the server samples their models and trains on the images later.

    In the first phase clients return all of what they trained; the state holds it only until images are drawn of it.
    """

    section: ClassVar[Section] = "after"
    left: ClassVar[str] = "the weights of a model that each client trained alone"
    samples: int = key(8, "images drawn of each client's model", 1)

    def misfit(self, method: Method) -> str | None:
        return None if method.global_model else "there is no global model that the server could train"

    def phases(self, rounds: int) -> Iterator[Phase]:
        yield Phase("alone", 0, everybody=True)

    def extend(self, view: View, state: Tensors, phase: Phase, task: Task) -> Extension:
        if phase.name != "alone":
            return Extension()
        return Extension(returns=PARTS, local_epochs=2.0)

    def gather(self, view: View, gathered: Any, reply: Reply) -> Any:
        if reply.task.local_epochs is None:  # a round
            return gathered
        local = {n: view.weights[n] + t for n, t in reply.change.items()}
        return {**(gathered or {}), reply.task.client.name: local}

    def change(
        self, view: View, state: Tensors, gathered: Any, phase: Phase, mean: Tensors
    ) -> tuple[Tensors, Tensors, Metrics]:
        held: Tensors = {}
        for name in sorted(gathered or {}):
            held |= grouped(f"local/{name}", gathered[name])
        return mean, {**state, **held}, {}

    def after(self, lab: Lab, state: Tensors, phase: Phase) -> tuple[Tensors, Metrics]:
        if phase.name == "alone":
            local = group(state, "local")
            labels = np.arange(self.samples) % 10
            names = sorted({k.split("/")[0] for k in local})
            drawn = {n: lab.sample(group(local, n), labels, self.samples, n) for n in names}
            return grouped("image", drawn), {"images": float(sum(map(len, drawn.values())))}
        if phase.name == TRAIN and state:
            pool = np.concatenate([state[k] for k in sorted(state)])
            lab.train(pool, np.arange(len(pool)) % self.samples % 10, 2, 1e-3)
        return state, {}

    def auxiliary(self, state: Tensors) -> dict[str, Any] | None:
        images = group(state, "image")
        return {"images": sum(map(len, images.values())), "filtered": 0, "sha256": "0" * 64}


# --- codecs ---


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
        self.seen, self.renewed = np.int64(0), np.int64(0)
        self.peak = np.float32(0.0)

    def encode(
        self, tensors: Mapping[str, np.ndarray], memory: Tensors, rng: np.random.Generator | None = None
    ) -> bytes:
        sent = {n: self._code(n, t, memory) for n, t in tensors.items()}
        # In the order of the buffer where there is one: the reader knows no other.
        return super().encode(
            Flat.of(tensors.layout, sent) if isinstance(tensors, Flat) else sent, memory, rng
        )

    def _code(self, name: str, tensor: np.ndarray, memory: Tensors) -> np.ndarray:
        if tensor.dtype != np.float32:
            return tensor
        coded = tensor / self.scale - memory.get(name, np.float32(0))
        memory[name] = (coded * np.float32(0.5)).astype(np.float32)
        return coded.astype(np.float32)

    def decode(self, data: bytes, memory: Tensors, wanted: Any = None) -> Iterator[tuple[str, np.ndarray]]:
        yield from self.read(data, memory, wanted).items()

    def read(
        self, data: bytes, memory: Tensors, wanted: Any = None, layout: FlatLayout | None = None
    ) -> Mapping[str, np.ndarray]:
        coded = super().read(data, memory, wanted, layout)
        found = {n: self._value(n, t, memory) for n, t in coded.items()}
        return found if layout is None else Flat.of(layout, found)

    def _value(self, name: str, coded: np.ndarray, memory: Tensors) -> np.ndarray:
        if coded.dtype != np.float32:
            return coded
        value = (coded + memory.get(name, np.float32(0))) * self.scale
        memory[name] = (coded * np.float32(0.5)).astype(np.float32)
        return value.astype(np.float32)

    def observe(self, tensors: Mapping[str, np.ndarray], client: str = "") -> Tensors:
        peaks = [np.abs(t).max() for n, t in tensors.items() if n.startswith("model/")]
        return {"peak": np.array([max(peaks, default=0.0)], np.float32)}

    def learn(self, observed: Mapping[str, Tensors]) -> None:
        self.seen = self.seen + len(observed)
        for found in observed.values():  # the last one weighs most, so that their order would show
            self.peak = np.float32(0.5) * (self.peak + found["peak"][0])

    def refresh(self, server_round: int, rng: np.random.Generator | None = None) -> Tensors | None:
        if server_round < 2:
            return None
        assert rng is not None
        # Training goes on from where it was, so an abandoned one must be undone.
        self.renewed = self.renewed + 1
        known = int(self.seen) + int(self.renewed) + int(self.peak > 0.01) + int(rng.integers(3))
        self.scale = np.float32(2.0 ** (known % 5))  # a power of two: dividing by it is exact
        return {"scale": np.array([self.scale])}

    def adopt(self, tensors: Mapping[str, np.ndarray]) -> None:
        self.scale = np.float32(tensors["scale"][0])

    def state(self) -> Tensors:
        held = {"scale": self.scale, "seen": self.seen, "renewed": self.renewed, "peak": self.peak}
        return {name: np.array([value]) for name, value in held.items()}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        self.scale, self.peak = np.float32(state["scale"][0]), np.float32(state["peak"][0])
        self.seen, self.renewed = np.int64(state["seen"][0]), np.int64(state["renewed"][0])


class HalfCodec(Fp16):
    """Half precision after a division by a scale that the server learns; for both ways, so it remembers nothing."""

    name = "half"
    trained = True

    def __init__(self) -> None:
        self.scale = np.float32(1.0)
        self.seen = 0

    def encode_tensor(
        self, entry: Entry, tensor: np.ndarray, rng: np.random.Generator | None = None
    ) -> bytes:
        return super().encode_tensor(entry, tensor / self.scale if entry.form == "f2" else tensor, rng)

    def decode_tensor(self, entry: Entry, data: memoryview) -> np.ndarray:
        value = super().decode_tensor(entry, data)
        return value * self.scale if entry.form == "f2" else value

    def observe(self, tensors: Mapping[str, np.ndarray], client: str = "") -> Tensors:
        return {"one": np.array([1])}

    def learn(self, observed: Mapping[str, Tensors]) -> None:
        self.seen += sum(int(found["one"][0]) for found in observed.values())

    def refresh(self, server_round: int, rng: np.random.Generator | None = None) -> Tensors | None:
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


METHODS: dict[str, type[Method]] = {"decoder-only": DecoderOnly}
PIECES: dict[str, type[Piece]] = {
    "anchor": Anchor,
    "clipped": Clipped,
    "census": Census,
    "auxiliary": Auxiliary,
}
CODECS = {"trained": TrainedCodec, "half": HalfCodec}
