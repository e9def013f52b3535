"""One client's share of a round: open -> train (or sample, or give its model) -> close.

A step is a pure function of (packet, the client's images, its private state after the round in which the server last
counted it). So it may be repeated after a crash, and gives the same bits.

Next on the reader's path: `training/loop.py`.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch

from osmotic import seeds
from osmotic.codecs import BadPacket, Codec, described
from osmotic.config.schema import TrainingConfig
from osmotic.diffusion.ema import Ema
from osmotic.diffusion.sampler import NotFinite
from osmotic.errors import plain
from osmotic.federation.blueprint import Blueprint
from osmotic.federation.downlink import OtherDraw, held, receive
from osmotic.federation.interfaces import Work
from osmotic.federation.memory import ClientState
from osmotic.flat import Flat
from osmotic.pieces.base import PieceError
from osmotic.pieces.chain import Chain, LocalRule
from osmotic.pieces.personalise import KEPT_PASS, PERSONALISE
from osmotic.protocol.messages import ADDRESS, SCORING, TRAIN, Client, Packet
from osmotic.protocol.participation import batch_plan, looked_at
from osmotic.protocol.view import Step
from osmotic.storage.store import StateLost, Store
from osmotic.tensors import Tensors, group
from osmotic.training.images import Images
from osmotic.training.loop import Cancelled, fit
from osmotic.training.network import FlatNetwork

log = logging.getLogger("osmotic.client")

T = TypeVar("T")

SHOWN = 16  # digits of a hash that a line tells


@dataclass
class Site:
    """What one client owns: who it is, its images [N, C, H, W] on the device, and its private store.

    `watched` are images that it holds out, for what training itself watches.
    """

    client: Client
    images: Images
    store: Store
    watched: Images | None = None


@dataclass
class Opened:
    """A task once opened: the network holds the weights that the step starts from.

    Args:
        site: whose step it is.
        header: of the packet.
        state: the client's private state; the step works on it, `close` saves it.
        step: what pieces see.
        uplink: the codec of the way up, ready to encode.
    """

    site: Site
    header: Mapping[str, Any]
    state: ClientState
    step: Step
    uplink: Codec


@dataclass
class Begun:
    """A step of training whose optimiser steps are yet to be taken.

    Args:
        opened: the task.
        steps: optimiser steps to take.
        rng: order of the images, and seed of their noise.
        rule: what bends the loop.
        moments: optimiser state, "NAME|SLOT" -> float32 [...]; None where none is kept.
    """

    opened: Opened
    steps: int
    rng: np.random.Generator
    rule: LocalRule
    moments: Tensors | None


@dataclass
class Result:
    """What a step brought: tensors [...] for the codec ("model/NAME"), exact ones, figures beside them."""

    coded: Mapping[str, np.ndarray] = field(default_factory=dict)
    exact: Mapping[str, np.ndarray] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)


class StoreFailed(OSError):
    """The disk under a client's private state refused: full, no permission."""


@contextmanager
def _disk() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreFailed(error.errno, error.strerror or str(error), error.filename) from error


class Worker:
    """A network and everything a run's blueprint says; serves client after client, weights copied in.

    Args:
        blueprint: what server and clients have in common; it holds no images.
        initial: the run's initial weights, of the blueprint's layout; everybody can draw them from the seed.
        contract: hash that a packet must carry.
        stop: set when the run is being stopped.
        worked: is told of every batch that is trained on or drawn (`interfaces.Observer`).
        own_disk: False in a simulation, whose disk is the run's: what it refuses to write ends the run, and is no failure
            of one client.
    """

    def __init__(
        self,
        blueprint: Blueprint,
        model: torch.nn.Module | FlatNetwork,
        initial: Flat,
        contract: str,
        stop: threading.Event | None = None,
        worked: Callable[[Work, float], object] = lambda work, amount: None,
        own_disk: bool = True,
    ) -> None:
        self.blueprint, self.config = blueprint, blueprint.config
        self.network = model if isinstance(model, FlatNetwork) else FlatNetwork(model, blueprint.flat)
        self.model = self.network.model
        self.initial, self.contract, self.stop = initial, contract, stop or threading.Event()
        self.worked, self.own_disk = worked, own_disk
        # Exchange and pieces of this worker's own: a hook on a client can then not read what the server's have seen.
        self.method, self.chain = blueprint.method(), blueprint.chain()
        self.named = self.network.parameters
        self.part_names = blueprint.part_names
        self.stateful = keeps_state(blueprint, self.chain)

    def serve(self, site: Site, packet: Packet) -> Packet:
        """The answer to one task. What goes wrong is told in one short line; its details stay in the client's own log.

        Raises: StoreFailed, without `own_disk`, if the disk refuses the private state.
        """
        return self.guarded(site, packet, lambda: self._serve(site, packet))

    def serve_all(self, tasks: Sequence[tuple[Site, Packet]]) -> list[Packet]:
        """The answers to several tasks, one after the other; errors as `serve`."""
        return [self.serve(site, packet) for site, packet in tasks]

    def guarded(self, site: Site, packet: Packet, work: Callable[[], Packet | T]) -> Packet | T:
        """What `work` on a task gives, or the answer that tells what went wrong with it; raises as `serve`."""
        answer: Packet | T
        try:
            answer = work()
        except Cancelled:
            raise
        except StoreFailed as error:
            if not self.own_disk:
                raise
            log.warning("%s could not reach its state", site.client.name, exc_info=True)
            answer = Packet({"failure": ["raised", type(error.__cause__).__name__]})
        except (StateLost, BadPacket, PieceError, NotFinite) as error:
            answer = Packet({"failure": ["raised", str(error)]})
        except OtherDraw as error:
            answer = Packet({"failure": ["refused", str(error)], "first_contact": "weights"})
        except Exception as error:  # whatever a site runs into must not stop the others
            log.warning("%s could not do its task", site.client.name, exc_info=True)
            # Its text may name a path or hold a value of the site's own data.
            answer = Packet({"failure": ["raised", type(error).__name__]})
        if not isinstance(answer, Packet):
            return answer
        # What it answers to, and its own name: the server takes nothing for another run, phase or client.
        address = {k: packet.header.get(k) for k in ADDRESS} | {"client": site.client.name}
        return Packet({**address, **answer.header}, answer.blobs)

    def _serve(self, site: Site, packet: Packet) -> Packet:
        actions = {"train": self.train, "sample": self.sample, "model": self.give_model}
        if refused := self._refusal(site, packet, actions):
            return refused
        opened = self.open(site, packet)
        return self.close(opened, actions[packet.header["action"]](opened))

    def _refusal(self, site: Site, packet: Packet, actions: Container[str]) -> Packet | None:
        if packet.header["contract"] != self.contract:
            here, asked = self.contract[:SHOWN], plain(packet.header["contract"], SHOWN)
            told = f"model contract differs ({here} here, {asked} asked for): other network, process or data shape"
            if self.blueprint.autoencoder is not None:
                told += f"; the autoencoder here is {self.blueprint.autoencoder.sha256[:SHOWN]}"
            return Packet({"failure": ["refused", told]})
        if packet.header["client"] != site.client.name:
            return Packet({"failure": ["refused", "is asked for what another client is asked"]})
        if packet.header["action"] not in actions:
            return Packet({"failure": ["refused", "is asked for an action that it does not know"]})
        return None

    # --- in two halves, for those who train several clients as one (`team.py`) ---

    def begin(self, site: Site, packet: Packet) -> Packet | Begun:
        """Local training up to its first step, or the answer where that is not what is asked for.

        Raises: as `open`.
        """
        if packet.header["action"] != "train" or self._refusal(site, packet, ("train",)):
            return self._serve(site, packet)
        return self.prepare(self.open(site, packet))

    def end(self, begun: Begun, trained: tuple[float, int]) -> Packet:
        """The answer, given what `fit` gave, once the network is trained; errors as `close`."""
        return self.close(begun.opened, self.result(begun, *trained))

    # --- open ---

    def open(self, site: Site, packet: Packet) -> Opened:
        """Loads the private state, decodes the packet, and puts the weights to start from into the network.

        The packet holds the parts sent, name -> float32 [...], and extras, "GROUP/NAME" -> array [...].

        Raises: StateLost if the state that the server counts on is not here; BadPacket for what is no packet of ours.
        """
        header, codec_config = packet.header, self.config.codec
        kept: Tensors = {}
        if self.stateful:
            with _disk():
                kept = site.store.load(header["counted_round"], header["counted_state"])
        state, blobs = ClientState.of(kept), list(packet.blobs)
        # The last blob. Copied: read-only views of it would also keep all of the packet in memory.
        extras = {n: t.copy() for n, t in described.decode(blobs.pop()).items()} if header["extras"] else {}
        # What is lost of something else than a round's change is not owed to the next round.
        owes = codec_config.error_feedback and header["phase"] == TRAIN
        down, up = self.blueprint.codec("down"), self.blueprint.codec("up", owes)
        if new := group(extras, "codec"):
            state.codec = up.kept(state.codec, new)
        if state.codec:
            down.adopt(state.codec)
            up.adopt(state.codec)
        received = receive(
            header["down"],
            blobs,
            down,
            state,
            self.network.layout,
            codec_config.changed_only,
            self.initial,
        )
        received |= held(header["held"], self.part_names, state)
        # Images are drawn from the average of a personal model, training goes on from the weights themselves.
        own = state.personal | (state.average if header["action"] != "train" else {})
        self._start(own, received)
        step = Step(
            client=site.client,
            phase=header["phase"],
            server_round=int(header["server_round"]),
            seed=self.config.seed,
            training=self.config.training,
            learning_rate=float(header["learning_rate"]),
            returns=tuple(header["returns"]),
            part_names=self.part_names,
            control=header["control"],
            extras=extras,
            model=self.model,
            received=self.network.received,
            parameters=self.named,
            images=site.images,
            draw=self._draw,
            watch=partial(self.watch, site.client.name, site.watched) if site.watched else None,
        )
        return Opened(site, header, state, step, up.in_round(step.server_round))

    def _start(self, own: Tensors, received: Mapping[str, Mapping[str, np.ndarray]]) -> None:
        """Puts the weights that a step starts from, name -> float32 [...], into the network.

        Later ones win: what the server sent, by part, is newer than what the client kept, and that newer than round 0.
        """
        start = self.network.start
        for part, names in self.part_names.items():
            if part in received:
                start.put(received[part], part)
                continue
            start.put(self.initial.part(part), part)
            for name in names:
                if name in own:
                    np.copyto(start[name], own[name])
        self.network.begin()

    def _draw(self, labels: np.ndarray | None, samples: int, seed: int) -> np.ndarray:
        """Images of the network as it stands, uint8 [samples, H, W, C], with the sampler and guidance of the scores."""
        given = labels if self.blueprint.spec.num_classes else None
        return self.blueprint.draw(self.model, given, samples, seed, drawn=partial(self.worked, "draw"))[0]

    def watch(self, client: str, images: Images) -> float:
        """Mean denoising loss of the network as it stands, by noise that is the same each time."""
        generator = torch.Generator().manual_seed(seeds.integer(self.config.seed, seeds.WATCHED, 0, client))
        self.model.eval()
        rows = torch.arange(looked_at(len(images)), device=images.pixels.device) % len(images)
        total = 0.0
        with torch.no_grad():
            for index in rows.split(self.config.training.batch_size):
                x, y = images.batch(index, None)
                loss = self.blueprint.process.loss(self.model, x, y, generator)
                total += float(loss) * len(index)
                self.worked("watch", len(index))
        self.model.train()
        return total / len(rows)

    # --- the actions ---

    def train(self, opened: Opened) -> Result:
        """Local training: "model/NAME" float32 [...], the change of the parts asked for, and what pieces add.

        Raises: Cancelled if the run is being stopped.
        """
        begun = self.prepare(opened)
        trained = fit(
            self.network,
            opened.site.images,
            self.blueprint.process,
            self.config.training,
            steps=begun.steps,
            learning_rate=opened.step.learning_rate,
            rng=begun.rng,
            rule=begun.rule,
            moments=begun.moments,
            stop=self.stop.is_set,
            stepped=partial(self.worked, "train", 1),
        )
        return self.result(begun, *trained)

    def prepare(self, opened: Opened) -> Begun:
        """What local training starts from, the weights apart."""
        state, step = opened.state, opened.step
        return Begun(
            opened,
            steps=steps_asked(opened.header, opened.site, self.config.training),
            # Of this round and client alone: neither order, nor workers, nor a restart move it.
            rng=seeds.rng(self.config.seed, seeds.TRAINING, step.server_round, step.client.name),
            rule=self.chain.open(self.method, step, state.pieces),
            # A model of the client's own, before the rounds, leaves the rounds no moments.
            moments=dict(state.optimizer) if self.blueprint.keeps_moments and step.server_round > 0 else None,
        )

    def result(self, begun: Begun, loss: float, seen: int) -> Result:
        """What training brought, as `train`, given its mean loss and the images that it saw."""
        opened, rule, moments = begun.opened, begun.rule, begun.moments
        state, step = opened.state, opened.step
        change, extras, state.pieces = rule.close(lambda: self.network.change(step.returns))
        if moments is not None:
            state.optimizer = moments
        # A piece's phase may keep other parts than the exchange does (`personalise` keeps all).
        kept = opened.header["keep"]
        state.personal |= self.network.copy(self.method.keep() if kept is None else kept)
        if not self.method.global_model:
            self._average(state, int(opened.header["round_images"]))
        wire = opened.header["coded"]  # extras that a piece lets through the lossy codec
        # In one buffer, as the server reads it, also where pieces gave arrays by name.
        whole = Flat.over(self.network.layout.of_parts(step.returns), change)
        if self.config.codec.up_sends == "weights":
            whole = Flat(whole.layout, whole.buffer + self.network.start.parts(step.returns).buffer)
        coded: Mapping[str, np.ndarray] = whole.named("model/")
        if wire:
            coded = dict(coded) | {n: t for n, t in extras.items() if n in wire}
        exact = {n: t for n, t in extras.items() if n not in wire}
        return Result(coded, exact, {"loss": loss, "images": seen, "steps": begun.steps})

    def _average(self, state: ClientState, images: int) -> None:
        """Where no global model exists, the client keeps the average of its own model that the recipe asks for.

        Args:
            images: seen in this round by all clients that were asked. By its own share of them, the half-life would span
                as many times the rounds as there are clients.
        """
        # One of them: it is what is scored, and each would cost the site 8 bytes per weight.
        half_lives = self.config.recipe.ema_half_lives[:1]
        if not half_lives:
            return
        ema = Ema(half_lives)
        if state.ema_mass is not None:
            ema.restore(state.ema, {"half_lives": list(half_lives), "mass": state.ema_mass.tolist()})
        ema.update(self.network.copy(), images)
        state.ema, notes = ema.state()
        state.ema_mass = np.array(notes["mass"])
        state.average = dict(ema.average(half_lives[0]))

    def sample(self, opened: Opened) -> Result:
        """Images drawn from the client's own model, "image/samples" uint8 [N, H, W, C], labels as the control says."""
        asked = opened.header["control"]["score"]
        labels = None if asked.get("labels") is None else np.array(asked["labels"], np.int64)
        images, nfe = self.blueprint.draw(
            self.model,
            labels,
            int(asked["samples"]),
            int(asked["seed"]),
            float(asked["guidance"]),
            drawn=partial(self.worked, "draw"),
        )
        return Result(exact={"image/samples": images}, metrics={"nfe": nfe})

    def give_model(self, opened: Opened) -> Result:
        """The client's own model as it is scored, "own/NAME" float32 [...], and which pass of its fine-tuning that is.

        So the server gets it where policy allows.
        """
        kept = opened.state.pieces.get(f"{PERSONALISE}/{KEPT_PASS}")
        metrics = {} if kept is None else {KEPT_PASS: int(kept[0])}
        return Result(exact=self.network.copy().named("own/"), metrics=metrics)

    # --- close ---

    def close(self, opened: Opened, result: Result) -> Packet:
        """Encodes what goes back, name -> array [...], and saves the state that the next step starts from.

        Raises: ValueError for a change that the codec cannot hold; StoreFailed if the state cannot be written.
        """
        state, step, metrics = opened.state, opened.step, result.metrics
        blobs = []
        if result.coded:
            # Apart from training: a codec that draws must not move the noise of the images.
            rng = seeds.rng(self.config.seed, seeds.CODEC, step.server_round, step.client.name)
            blobs.append(opened.uplink.encode(result.coded, state.residual, rng))
        if result.exact:
            # After the coded ones: the server takes them apart by what it expects, in this order.
            blobs.append(described.encode(result.exact))
        # Clients that only sample or give their model change nothing that the server counts.
        if self.stateful and opened.header["action"] == "train" and step.phase not in SCORING:
            durable = opened.header["durable_round"]
            with _disk():
                metrics["state_sha256"] = opened.site.store.save(state.tensors(), step.server_round, durable)
        return Packet({"num_examples": len(opened.site.images), "metrics": metrics}, tuple(blobs))


def steps_asked(header: Mapping[str, Any], site: Site, training: TrainingConfig) -> int:
    """Optimiser steps that a packet's header asks of a client."""
    epochs = header["local_epochs"]
    epochs = training.local_epochs if epochs is None else float(epochs)
    return batch_plan(len(site.images), training.batch_size, epochs)


def keeps_state(blueprint: Blueprint, chain: Chain) -> bool:
    """Whether clients keep anything between rounds: personal parts, moments, residuals, replicas, pieces."""
    codec = blueprint.config.codec
    up, down = blueprint.codec("up"), blueprint.codec("down")
    return (
        chain.stateful
        or bool(blueprint.method().keep())
        or codec.error_feedback
        or codec.changed_only
        or not down.absolute
        or blueprint.keeps_moments
        or up.remembers
        or up.trained
    )
