"""One client's share of a round: receive, merge with what is its own, train, return the change.

A step is a pure function of (packet, the client's images, its private state after the round in which the server last
counted it). So it may be repeated after a crash, and gives the same bits.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from osmotic import codecs, seeds
from osmotic.codecs.base import BadPacket
from osmotic.config.schema import Config, TrainingConfig
from osmotic.diffusion.ema import Ema
from osmotic.federation.downlink import held, receive
from osmotic.models import dropout
from osmotic.models import parts as network_parts
from osmotic.protocol.messages import SCORING, Client, Packet, Tensors
from osmotic.protocol.participation import batch_plan
from osmotic.storage.store import StateLost, Store

if TYPE_CHECKING:
    from osmotic.diffusion.process import Process
    from osmotic.methods import Method
    from osmotic.models import NetworkSpec

log = logging.getLogger("osmotic.federation.client")


class Cancelled(RuntimeError):
    """The run is being stopped; the step is dropped and will be repeated."""


@dataclass
class Images:
    """Images on the device: 8-bit ones stay uint8 and are normalised per batch.

    pixels: [N, C, H, W], uint8 or float32 in [0, 1]; labels: int64 [N] or None.
    """

    pixels: torch.Tensor
    labels: torch.Tensor | None

    @classmethod
    def of(cls, images: np.ndarray, labels: np.ndarray | None, device: torch.device) -> Images:
        """From [N, H, W, C] arrays."""
        pixels = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))).to(device)
        return cls(pixels, None if labels is None else torch.from_numpy(labels.astype(np.int64)).to(device))

    def __len__(self) -> int:
        return len(self.pixels)

    def batch(self, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Images in [-1, 1], float32 [B, C, H, W] channels-last, and their labels."""
        x = self.pixels[index]
        x = x.float().div_(127.5).sub_(1) if x.dtype == torch.uint8 else x * 2 - 1
        return x.contiguous(memory_format=torch.channels_last), None if self.labels is None else self.labels[
            index
        ]


@dataclass
class Site:
    """What one client owns."""

    client: Client
    images: Images
    store: Store


@dataclass
class Local:
    """What the client half of a method sees of the step under way.

    `state` is the method's private memory on this client (names are its own); `extras` are the tensors it was sent;
    `returns` are the parts whose change is asked for; `received` are the weights training started from, `steps` the optimiser steps taken so far.
    """

    client: Client
    server_round: int
    control: Mapping[str, Any]
    training: TrainingConfig
    learning_rate: float
    extras: Tensors
    state: Tensors
    returns: tuple[str, ...] = ()
    received: dict[str, torch.Tensor] = field(default_factory=dict)
    model: torch.nn.Module | None = None
    steps: int = 0


def fit(
    model: torch.nn.Module,
    images: Images,
    process: Process,
    training: TrainingConfig,
    *,
    steps: int,
    learning_rate: float,
    rng: np.random.Generator,
    method: Method | None = None,
    local: Local | None = None,
    moments: Tensors | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> tuple[float, int]:
    """The one training loop, of clients, of the server and of the centralised baseline.

    Args:
        model: changed in place.
        steps: optimiser steps to take; the images are walked in a new random order each pass.
        rng: order of the images, and seed of the noise.
        method, local: hooks of the client half; None on the server.
        moments: optimiser state to start from; the state at the end comes over it in place. None: start fresh, keep nothing.
        stop: asked before every step; True raises Cancelled.
    Returns: (mean loss over steps, images seen).
    """
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    chosen = method.trainable(local) if method and local else None
    named = {n: p for n, p in model.named_parameters() if chosen is None or n in chosen}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in named)
        parameter.grad = (
            None  # a worker's network served another client before, that may have trained other parts
        )
    optimizer = make_optimizer(list(named.values()), training.optimizer, learning_rate)
    if moments:
        _load_moments(optimizer, named, moments)
    model.train()
    dropout.seed(model, generator)
    loss_sum, seen, size = (
        torch.zeros((), dtype=torch.float64, device=images.pixels.device),
        0,
        training.batch_size,
    )
    order = torch.empty(0, dtype=torch.long)
    device = images.pixels.device
    for _ in range(steps):
        if stop():
            raise Cancelled
        if len(order) == 0:
            order = torch.from_numpy(rng.permutation(len(images)))
        index, order = order[:size].to(device), order[size:]
        x, y = images.batch(index)
        loss = process.loss(model, x, y, generator)
        objective = method.local_loss(local, loss, model) if method and local else loss
        optimizer.zero_grad(set_to_none=True)
        objective.backward()
        if method and local:
            method.after_backward(local, model)
            local.steps += 1
        if training.grad_clip:
            torch.nn.utils.clip_grad_norm_(list(named.values()), training.grad_clip)
        optimizer.step()
        loss_sum += loss.detach()  # read once at the end: a read per step would wait for the GPU
        seen += len(index)
    if moments is not None:  # those of parts that were frozen this time stay
        moments.update(_moments(optimizer, named))
    return float(loss_sum) / steps, seen


def make_optimizer(
    parameters: list[torch.nn.Parameter], name: str, learning_rate: float
) -> torch.optim.Optimizer:
    """adamw, adam or sgd with torch's defaults, fused where torch can."""
    if name == "sgd":
        return torch.optim.SGD(parameters, lr=learning_rate)
    return {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}[name](
        parameters, lr=learning_rate, fused=True
    )


def _moments(optimizer: torch.optim.Optimizer, named: Mapping[str, torch.nn.Parameter]) -> Tensors:
    return {
        f"{name}|{key}": value.detach().cpu().numpy().astype(np.float32).copy()
        for name, p in named.items()
        for key, value in optimizer.state[p].items()
        if isinstance(value, torch.Tensor)
    }


def _load_moments(
    optimizer: torch.optim.Optimizer, named: Mapping[str, torch.nn.Parameter], moments: Tensors
) -> None:
    for key, value in moments.items():
        name, _, slot = key.partition("|")
        if name not in named:
            continue
        p = named[name]
        # Moments take the memory format of their weight: a fused step mixes both element by element.
        tensor = torch.from_numpy(value.copy()).to(p.device)
        optimizer.state[p][slot] = torch.empty_like(p).copy_(tensor) if tensor.shape == p.shape else tensor


class Trainer:
    """One worker: a network and everything the configuration says; serves client after client, weights copied in.

    Args:
        initial: the run's initial weights, which every participant can draw from the seed.
        contract: hash that a packet must carry.
        stop: set when the run is being stopped.
    """

    def __init__(
        self,
        config: Config,
        spec: NetworkSpec,
        method: Method,
        process: Process,
        model: torch.nn.Module,
        initial: Tensors,
        contract: str,
        stop: threading.Event | None = None,
    ) -> None:
        self.config, self.spec, self.method, self.process, self.model = config, spec, method, process, model
        self.initial, self.contract, self.stop = initial, contract, stop or threading.Event()
        self.named = dict(model.named_parameters())  # walking the modules takes a millisecond
        self.shapes = {name: tuple(p.shape) for name, p in self.named.items()}
        self.part_names = {
            part: network_parts.names(self.shapes, [part]) for part in ("encoder", "bottleneck", "decoder")
        }

    def serve(self, site: Site, packet: Packet) -> Packet:
        """The answer to one task. What goes wrong is told in one short line; its details stay in the client's own log."""
        try:
            return self._serve(site, packet)
        except Cancelled:
            raise
        except (StateLost, BadPacket) as error:
            reason = str(error)
        except Exception as error:  # whatever a site runs into must not stop the others
            log.warning("%s could not do its task", site.client.name, exc_info=True)
            reason = type(error).__name__
        return Packet({"failure": ["raised", reason]})

    def _serve(self, site: Site, packet: Packet) -> Packet:
        header = packet.header
        if header["contract"] != self.contract:
            return Packet(
                {"failure": ["refused", "model contract differs: other network, process or data shape"]}
            )
        actions = {"train": self._train, "sample": self._sample}
        if header["action"] not in actions:
            return Packet({"failure": ["refused", "is asked for an action that it does not know"]})
        counted, server_round = header["counted_round"], int(header["server_round"])
        state = site.store.load(counted) if self.stateful else {}
        down, up = self._codecs(state)
        blobs = list(packet.blobs)
        extras = (
            {n: t.copy() for n, t in codecs.make("fp32").decode(blobs.pop(), {})} if header["extras"] else {}
        )
        if trained := {n: t for n, t in extras.items() if n.startswith("codec/")}:
            state |= trained
            down, up = self._codecs(state)
        received = receive(
            header["down"], blobs, down, state, self.shapes, keep=self.config.codec.changed_only
        )
        received |= held(header["held"], self.part_names, state)
        # Images are drawn from the average of a personal model, training goes on from the weights themselves.
        own = under(state, "personal") | (under(state, "average") if header["action"] == "sample" else {})
        self.load({**self.initial, **own, **received})
        local = Local(
            site.client,
            server_round,
            header["control"],
            self.config.training,
            float(header["learning_rate"]),
            extras,
            under(state, "method"),
            tuple(header["returns"]),
        )
        tensors, metrics = actions[header["action"]](site, local, state, header)
        for key in [k for k in state if k.startswith("method/")]:
            del state[key]
        state |= {f"method/{k}": v for k, v in local.state.items()}
        memory = under(state, "memory")
        blob = up.encode(tensors, memory) if tensors else b""
        state |= {f"memory/{k}": v for k, v in memory.items()}
        if self.stateful and header["phase"] not in SCORING:  # these change nothing that the server counts
            durable = header["durable_round"]
            metrics["state_sha256"] = site.store.save(state, server_round, durable)
        return Packet({"num_examples": len(site.images), "metrics": metrics}, (blob,) if blob else ())

    @property
    def stateful(self) -> bool:
        """Whether clients keep anything between rounds."""
        c = self.config
        return (
            self.method.stateful
            or bool(self.method.keep())
            or c.codec.error_feedback
            or c.codec.changed_only
            or not codecs.make(c.codec.down).absolute
            or self.keeps_moments
            or codecs.make(c.codec.up).remembers
            or codecs.make(c.codec.up).trained
        )

    @property
    def keeps_moments(self) -> bool:
        """Whether optimiser moments live from round to round; the centralised baseline always keeps them."""
        return self.config.training.optimizer_state == "keep" or self.method.pools_data

    def _codecs(self, state: Tensors) -> tuple[codecs.Codec, codecs.Codec]:
        c = self.config.codec
        down, up = codecs.make(c.down), codecs.make(c.up, c.error_feedback)
        if trained := under(state, "codec"):
            down.adopt(trained)
            up.adopt(trained)
        return down, up

    def load(self, weights: Mapping[str, np.ndarray]) -> None:
        """Copies weights into the network."""
        copy_weights(self.named, weights)

    def weights(self, names: list[str] | None = None) -> Tensors:
        """Copies of the network's weights, all or those named, float32."""
        return {
            n: self.named[n].detach().cpu().contiguous().numpy().copy()
            for n in sorted(self.named if names is None else names)
        }

    def _train(
        self, site: Site, local: Local, state: Tensors, header: Mapping[str, Any]
    ) -> tuple[Tensors, dict[str, Any]]:
        """Local training; returns the change of the parts asked for, and what the method adds."""
        training = self.config.training
        local.model = self.model
        local.received = {n: p.detach().clone() for n, p in self.named.items()}
        self.method.begin(local)
        moments = under(state, "optimizer") if self.keeps_moments else None
        rng = seeds.rng(self.config.seed, seeds.TRAINING, local.server_round, site.client.name)
        epochs = float(header["control"].get("epochs", training.local_epochs))
        steps = batch_plan(len(site.images), training.batch_size, epochs)
        loss, seen = fit(
            self.model,
            site.images,
            self.process,
            training,
            steps=steps,
            learning_rate=local.learning_rate,
            rng=rng,
            method=self.method,
            local=local,
            moments=moments,
            stop=self.stop.is_set,
        )
        added = self.method.end(local)
        if moments is not None:
            state |= {f"optimizer/{k}": v for k, v in moments.items()}
        kept = [n for part in self.method.keep() for n in self.part_names[part]]
        state |= {f"personal/{n}": t for n, t in self.weights(kept).items()}
        self._average(state, seen)
        asked = [n for part in header["returns"] for n in self.part_names[part]]
        update = {
            f"model/{n}": (self.named[n].detach() - local.received[n]).cpu().contiguous().numpy()
            for n in sorted(asked)
        }
        return {**update, **added}, {"loss": loss, "images": seen, "steps": steps}

    def _average(self, state: Tensors, images: int) -> None:
        """Where no global model exists, the client keeps the average of its own model that the recipe asks for."""
        half_lives = self.config.recipe.ema_half_lives[:1]
        if self.method.global_model or not half_lives:
            return
        ema = Ema(half_lives)
        if (mass := state.get("ema-mass")) is not None:
            ema.restore(under(state, "ema"), {"half_lives": list(half_lives), "mass": mass.tolist()})
        ema.update(self.weights(), images)
        tensors, notes = ema.state()
        state |= {f"ema/{n}": t for n, t in tensors.items()} | {"ema-mass": np.array(notes["mass"])}
        state |= {f"average/{n}": t for n, t in ema.average(half_lives[0]).items()}

    def _sample(
        self, site: Site, local: Local, state: Tensors, header: Mapping[str, Any]
    ) -> tuple[Tensors, dict[str, Any]]:
        """Images drawn from the client's own model, "image/samples" uint8 [N, H, W, C], labels as the control says."""
        from osmotic.diffusion.sampler import sample

        control, score = header["control"], self.config.score
        labels = None if control.get("labels") is None else torch.tensor(control["labels"])
        images, nfe = sample(
            self.model,
            self.process,
            labels,
            (int(control["samples"]), self.spec.channels, self.spec.image_size, self.spec.image_size),
            score.sampler,
            score.steps,
            int(control["seed"]),
            float(control["guidance"]),
            device=next(iter(self.named.values())).device,
        )
        return {"image/samples": to_uint8(images)}, {"nfe": nfe}


def copy_weights(named: Mapping[str, torch.Tensor], weights: Mapping[str, np.ndarray]) -> None:
    """Copies weights into parameters of the same names; arrays may be read-only views of a file or packet."""
    with torch.no_grad():
        for name, parameter in named.items():
            array = weights[name]
            parameter.copy_(torch.from_numpy(array if array.flags.writeable else array.copy()))


def under(state: Mapping[str, np.ndarray], group: str) -> Tensors:
    """Entries "GROUP/NAME" of a state, by NAME."""
    return {k.removeprefix(f"{group}/"): v for k, v in state.items() if k.startswith(f"{group}/")}


def to_uint8(images: torch.Tensor) -> np.ndarray:
    """[-1, 1] float [N, C, H, W] as uint8 [N, H, W, C], rounded."""
    pixels = images.clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8)
    return pixels.permute(0, 2, 3, 1).contiguous().cpu().numpy()
