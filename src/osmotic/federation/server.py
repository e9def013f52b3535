"""The server: the round loop, readable from top to bottom.

    for every phase:  choose clients -> method.tasks -> encode -> engine -> decode -> gate -> method.fold
                      -> method.finish -> average, score -> metrics, ledger -> checkpoint

A phase counts as a whole or not at all: until its end nothing of the server's state has changed that a checkpoint
holds, so that a killed or failed phase is simply done again.
"""

from __future__ import annotations

import dataclasses
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from importlib import metadata
from typing import TYPE_CHECKING, Any

import numpy as np

from osmotic import codecs, seeds
from osmotic.codecs.base import BadPacket
from osmotic.config.schema import Config, refuse_changes, to_dict
from osmotic.diffusion.ema import Ema
from osmotic.errors import ConfigError
from osmotic.federation import bookkeeping, ledger
from osmotic.federation.bookkeeping import Tally
from osmotic.federation.downlink import DownLink
from osmotic.federation.interfaces import Lab, Observer, Scorer, Stage
from osmotic.federation.interrupts import Interrupts
from osmotic.models import parts as network_parts
from osmotic.protocol.aggregate import Accumulator, OutOfRange
from osmotic.protocol.messages import (
    MERGE,
    SCORING,
    Answer,
    Client,
    Failure,
    Packet,
    Phase,
    Refused,
    Reply,
    Sent,
    Spec,
    Task,
    Tensors,
    gate,
    gate_metrics,
)
from osmotic.protocol.participation import choose, conveyed, expected_tensors, work_bound
from osmotic.storage import checkpoint
from osmotic.storage.folder import RunDir

if TYPE_CHECKING:
    from osmotic.engines.base import Engine
    from osmotic.methods import Method

PARTS = ("encoder", "bottleneck", "decoder")


class Server:
    """State and loop of one run.

    Args:
        layout: parameter name -> shape of the global network.
        initial: its weights at round 0, float32.
        contract: hash that every packet carries and every client checks.
        flops_per_image: training cost of one image, for the ledger.
    """

    def __init__(
        self,
        config: Config,
        method: Method,
        engine: Engine,
        run: RunDir,
        *,
        layout: Mapping[str, tuple[int, ...]],
        initial: Tensors,
        contract: str,
        flops_per_image: int,
        scorer: Scorer,
        lab: Lab,
        observer: Observer,
    ) -> None:
        self.config, self.method, self.engine, self.run_dir = config, method, engine, run
        self.layout, self.contract, self.flops_per_image = dict(layout), contract, flops_per_image
        self.scorer, self.lab, self.observer = scorer, lab, observer
        self.part_names = {part: network_parts.names(self.layout, [part]) for part in PARTS}
        self.phases = list(method.phases(config.training.rounds))
        # --- what a checkpoint holds ---
        self.step = 0  # phases done
        self.weights: Tensors = {n: initial[n].copy() for n in sorted(initial)}
        self.ema = Ema(config.recipe.ema_half_lives)
        self.codec = codecs.make(config.codec.up)
        self.codec_memory: dict[str, Tensors] = {}  # client -> decoder memory
        self.codec_weights: Tensors = {}
        self.codec_round: int | None = None
        self.codec_heard: dict[str, int] = {}
        self.down = DownLink(codecs.make(config.codec.down), self.part_names, config.codec.changed_only)
        self.changed: dict[str, int] = {}  # part -> round at whose end its global weights last moved
        self.counted: dict[str, int] = {}  # client -> round in which it was last counted
        self.state_hashes: dict[str, str] = {}
        self.totals = ledger.Totals()
        self.failures: list[dict[str, Any]] = []
        self.server_steps = 0
        self.wall_seconds = 0.0
        self.last_quality: dict[str, Any] | None = None
        # --- what it does not ---
        self.kept: dict[int, dict[str, int]] = {}  # step of a checkpoint on disk -> its `counted`
        self.sum = Accumulator(1, 1.0)
        self.clients: list[Client] = []
        self._clock = time.perf_counter()
        method.start(self)

    # --- the loop ---

    def run(self) -> None:
        """All phases that are not yet done. KeyboardInterrupt leaves the checkpoint of the last whole phase."""
        self.clients = self.engine.clients(1, 0.0)
        interrupts = Interrupts()
        with interrupts.installed():
            if not checkpoint.steps(self.run_dir.checkpoints):
                self.save()  # also a run stopped before its first round can be resumed
            try:
                while self.step < len(self.phases):
                    phase = self.phases[self.step]
                    self.observer.phase_started(phase, self.step, len(self.phases))
                    self._phase(phase, interrupts)
                    if self.step % self.config.checkpoint.every == 0 or self.step == len(self.phases):
                        self.save()
            except KeyboardInterrupt:
                if self.step not in checkpoint.steps(self.run_dir.checkpoints) and not interrupts.torn:
                    self.save()
                raise

    def _phase(self, phase: Phase, interrupts: Interrupts) -> None:
        started = time.perf_counter()
        chosen, tally = choose(self.config, phase, self.clients), Tally()
        before = self.method.state(), self.codec.state()
        self.sum = Accumulator(sum(c.num_examples for c in chosen), self.config.training.max_abs_update)
        try:
            # Clients that only sample are told no new codec.
            refreshed = None if phase.name in SCORING else self.codec.refresh(phase.server_round)
            trained = (
                (self.codec_weights, self.codec_round)
                if refreshed is None
                else (refreshed, phase.server_round)
            )
            if trained[0]:
                self.down.adopt(trained[0], trained[1] == phase.server_round)
            # All tasks are made before the first reply is folded, so that they cannot depend on its arrival.
            tasks = self._post(phase, list(self.method.tasks(self, phase, chosen)), tally, *trained)
            for answer in self.engine.exchange(tasks, 0.0):
                self._take(phase, answer, tally)
                del answer  # or its packet would lie beside the next one
        except BaseException:
            self._undo(*before)
            raise
        with interrupts.held():
            old, quorum = self.weights, self._quorum(tally)
            self.down.release()
            metrics = self.method.finish(self, phase) if quorum else {}
            self.sum = Accumulator(1, 1.0)
            if quorum:
                self._commit(phase, tally, old, *trained)
            else:
                self._undo(*before)
            self._book(tally, phase, quorum)
            quality = self._score(phase) if self._due(phase) else None
            line = bookkeeping.line(
                phase,
                tally,
                self.totals,
                quorum=quorum,
                update_norm=bookkeeping.distance(self.weights, old) if self.method.global_model else None,
                metrics=metrics,
                quality=quality,
                seconds=time.perf_counter() - started,
            )
            self.step += 1
            self.run_dir.append("metrics", [line])
            self.run_dir.append_text("ledger", ledger.lines(tally.entries))
            self.observer.phase_done(line)

    def _undo(self, method_state: Tensors, codec_state: Tensors) -> None:
        """Forgets what the answers of a phase that does not count have left behind."""
        self.method.restore(method_state)
        self.codec.restore(codec_state)
        self.down.abandon()

    def _post(
        self,
        phase: Phase,
        tasks: Iterable[Task],
        tally: Tally,
        codec_weights: Tensors,
        codec_round: int | None,
        weights: Tensors | None = None,
    ) -> Iterator[Sent]:
        """Tasks as packets of `weights` (default: the global ones), made one at a time as the engine asks for them."""
        for asked in tasks:
            name = asked.client.name
            held = {} if weights else self.down.unmoved(name, asked.send, self.changed)
            task = dataclasses.replace(asked, send=tuple(p for p in asked.send if p not in held))
            if name in tally.asked:
                raise ValueError(f"method {self.config.method.name} asks {name} twice in one phase")
            extras = dict(task.extras)
            if codec_round is not None and self.codec_heard.get(name) != codec_round:
                extras |= {f"codec/{n}": t for n, t in codec_weights.items()}
            entries, blobs = self.down.message(name, task.send, phase.server_round, weights or self.weights)
            if extras:
                blobs.append(codecs.make("fp32").encode(extras, {}))
            header = {
                "contract": self.contract,
                "action": task.action,
                "phase": phase.name,
                "server_round": phase.server_round,
                "counted_round": self.counted.get(name),
                "durable_round": self._durable(name),
                "learning_rate": self.learning_rate(phase.server_round),
                "down": entries,
                "held": held,
                "extras": bool(extras),
                "returns": list(task.returns),
                "control": dict(task.control),
            }
            tally.asked[name] = task
            yield Sent(task, Packet(header, tuple(blobs)))

    def _durable(self, name: str) -> int | None:
        """The round whose private state the client must not delete: that of the oldest checkpoint still on disk."""
        return self.kept[min(self.kept)].get(name) if self.kept else None

    def _take(self, phase: Phase, answer: Answer, tally: Tally) -> None:
        """One answer: decoded, gated and folded, or written down as a failure."""
        task, name = answer.sent.task, answer.sent.task.client.name
        if name in tally.answers or name in tally.failures:
            return  # one answer per client and round; a transport may repeat itself
        failure, metrics = answer.failure, {}
        if failure is None and answer.packet is None:
            failure = Failure("lost", "nothing came back")
        if failure is None and answer.packet is not None:
            try:
                reply, memory = self._decode(task, answer.packet)
                self.sum.check_weight(reply.tensors, reply.weight)
                self.method.fold(self, reply)
                self.codec.observe(reply.tensors)
                tally.memories[name], metrics = memory, dict(reply.metrics)
                tally.answers[name], tally.weights[name] = metrics, reply.weight
            except Refused as error:
                failure = Failure(error.kind, str(error))
            except OutOfRange as error:
                failure = Failure("range", str(error))
            except BadPacket as error:
                failure = Failure("bad", str(error))
        if failure is not None:
            tally.failures[name] = failure
        tally.entries += self._entries(phase, answer, failure, metrics)
        self.observer.answered(name)

    def _entries(
        self, phase: Phase, answer: Answer, failure: Failure | None, metrics: Mapping[str, Any]
    ) -> list[ledger.Entry]:
        weights = conveyed(answer.sent.task, self.layout, self.part_names)
        return bookkeeping.entries(
            phase,
            answer,
            failure,
            metrics,
            weights=weights,
            travels=self.method.travels,
            flops_per_image=self.flops_per_image,
        )

    def _decode(self, task: Task, packet: Packet) -> tuple[Reply, Tensors]:
        memory = {n: t.copy() for n, t in self.codec_memory.get(task.client.name, {}).items()}
        tensors: Tensors = {}
        for blob in packet.blobs:
            tensors |= dict(self.codec.decode(blob, memory))
        weight = gate(
            tensors,
            expected_tensors(self.layout, self.part_names, task),
            packet.header.get("num_examples"),
            task.client.num_examples,
            self.config.training.max_abs_update,
        )
        return Reply(
            task,
            tensors,
            weight,
            gate_metrics(packet.header.get("metrics", {}), *work_bound(task, self.config.training)),
        ), memory

    def _quorum(self, tally: Tally) -> bool:
        """Whether enough clients, and enough images, stand behind this phase; one that asks nobody always counts."""
        training = self.config.training
        enough = len(tally.weights) >= min(training.quorum_clients, len(tally.asked))
        return enough and tally.share() >= training.quorum_weight

    def _commit(
        self, phase: Phase, tally: Tally, old: Tensors, codec_weights: Tensors, codec_round: int | None
    ) -> None:
        """The phase counts: only here does anything move that the next phase builds on."""
        for part, names in self.part_names.items():
            if any(self.weights[n] is not old[n] for n in names):
                self.changed[part] = phase.server_round
        sent = {name: tally.asked[name].send for name in tally.answers}
        self.down.commit(sent, phase.server_round)
        self.codec_weights, self.codec_round = codec_weights, codec_round
        for name in sorted(tally.answers):
            if codec_round is not None:
                self.codec_heard[name] = codec_round
            if tally.memories[name]:
                self.codec_memory[name] = tally.memories[name]
            self.counted[name] = phase.server_round
            if state := tally.answers[name].get("state_sha256"):
                self.state_hashes[name] = str(state)
        seen = [int(m.get("images", 0)) for m in tally.answers.values()]
        if phase.name == "train" and self.method.shared and seen:
            # Beside personal averages, which follow the images of one client, the shared parts' must not run ahead.
            images = sum(seen) if self.method.global_model else round(sum(seen) / len(seen))
            shared = [n for part in self.method.shared for n in self.part_names[part]]
            self.ema.update({n: self.weights[n] for n in sorted(shared)}, images)

    def _book(self, tally: Tally, phase: Phase, quorum: bool) -> None:
        """Adds a phase to totals and failures."""
        if not quorum:
            tally.entries = [bookkeeping.without_quorum(e) for e in tally.entries]
        self.totals.add(tally.entries)
        self.failures += tally.failed(phase)

    # --- what methods may use ---

    def apply(self, changes: Iterable[tuple[str, np.ndarray]]) -> None:
        """Moves the global weights by ("model/NAME", float32 change) pairs, one at a time; the others stay."""
        moved = dict(self.weights)
        for key, change in changes:
            name = key.removeprefix("model/")
            moved[name] = moved[name] + change
        self.weights = moved

    def learning_rate(self, server_round: int) -> float:
        """Local learning rate of a round: constant, or half a cosine over the rounds of the run."""
        t = self.config.training
        if t.lr_schedule == "constant":
            return t.learning_rate
        done = (min(max(server_round, 1), t.rounds) - 1) / t.rounds
        return t.learning_rate * 0.5 * (1 + float(np.cos(np.pi * done)))

    def train(
        self, images: np.ndarray, labels: np.ndarray | None, steps: int, learning_rate: float, phase: Phase
    ) -> None:
        """Trains the global weights on images the server holds, uint8 [N, H, W, C], and counts the steps."""
        seed = seeds.integer(self.config.seed, seeds.METHOD, phase.server_round)
        self.weights = self.lab.fit(self.weights, images, labels, steps, learning_rate, seed)
        self.server_steps += steps

    def sample(
        self, weights: Tensors, labels: np.ndarray | None, samples: int, phase: Phase, client: str = ""
    ) -> np.ndarray:
        """Images drawn on the server from any weights of the network, uint8 [samples, H, W, C]."""
        seed = seeds.integer(self.config.seed, seeds.METHOD, phase.server_round, client)
        return self.lab.sample(weights, labels, samples, seed)

    def scored_weights(self) -> Tensors:
        """The average of the first half-life, or the raw weights where there is none."""
        half_lives = self.config.recipe.ema_half_lives
        return self.ema.average(half_lives[0]) if half_lives and not self.ema.empty else self.weights

    # --- scoring ---

    def _due(self, phase: Phase) -> bool:
        every, rounds = self.config.score.every, self.config.training.rounds
        of_round = every > 0 and phase.server_round % every == 0
        last_round = phase.server_round == rounds or self.step == len(self.phases) - 1
        return last_round or (phase.name == "train" and of_round)

    def _score(self, phase: Phase) -> dict[str, Any]:
        if self.method.global_model:
            quality = self.scorer.score_global(self.scored_weights(), phase.server_round)
        else:
            quality = self._score_personal(phase)
        if phase.name == MERGE and self.last_quality is not None:
            self.last_quality = self.scorer.with_after(self.last_quality, quality)
        else:
            self.last_quality = quality
        return {k: v for k, v in quality.items() if k != "per_client"}

    def _score_personal(self, phase: Phase) -> dict[str, Any]:
        """Every client that has trained samples from its own model; the images come back outside the four totals.

        In the phase MERGE the shared parts as the server would publish them are put into each model beforehand.
        """
        merging = phase.name == MERGE
        scoring = Phase(MERGE if merging else "score", phase.server_round, totals=False, everybody=True)
        tally, pools = Tally(), {}
        size = self.config.score.samples
        tasks = (
            Task(
                client,
                "sample",
                send=self.method.shared if merging else (),
                control=self.scorer.wanted(client),
                expects={"image/samples": Spec((size, None, None, None), "uint8")},
            )
            for client in self.clients
            if client.name in self.counted
        )
        weights = self.scored_weights() if merging else None
        for answer in self.engine.exchange(self._post(scoring, tasks, tally, {}, None, weights), 0.0):
            name, failure = answer.sent.task.client.name, answer.failure
            if failure is None and answer.packet is not None:
                try:
                    reply, _ = self._decode(answer.sent.task, answer.packet)
                    pools[name] = reply.tensors["image/samples"].copy()  # the reply is a view of its packet
                except Refused as error:
                    failure = Failure(error.kind, str(error))
                except BadPacket as error:
                    failure = Failure("bad", str(error))
            if failure is not None:
                tally.failures[name] = failure
            tally.entries += self._entries(scoring, answer, failure, {})
        self.down.abandon()  # no client keeps what it was sent for a score
        self._book(tally, scoring, True)
        self.run_dir.append_text("ledger", ledger.lines(tally.entries))
        # After a round a client's model stands as it left its own training: the average of that round is not in it yet.
        stage: Stage = "before" if self.method.shared and phase.name == "train" else "after"
        return self.scorer.score_personal(pools, stage, phase.server_round)

    # --- the checkpoint ---

    def save(self) -> None:
        """Writes the state after the last whole phase."""
        down_tensors, down_notes = self.down.state()
        ema_tensors, ema_notes = self.ema.state()
        tensors = {f"weights/{n}": t for n, t in self.weights.items()}
        tensors |= {f"down/{n}": t for n, t in down_tensors.items()} | {
            f"ema/{n}": t for n, t in ema_tensors.items()
        }
        tensors |= {f"method/{n}": t for n, t in self.method.state().items()}
        tensors |= {f"codec/{n}": t for n, t in self.codec.state().items()}
        tensors |= {f"codec_weights/{n}": t for n, t in self.codec_weights.items()}
        tensors |= {f"codec_memory/{c}/{n}": t for c, m in self.codec_memory.items() for n, t in m.items()}
        self.wall_seconds += time.perf_counter() - self._clock
        self._clock = time.perf_counter()
        notes = {
            "contract": self.contract,
            "config": to_dict(self.config),
            "versions": versions(),
            "down": down_notes,
            "ema": ema_notes,
            "codec_round": self.codec_round,
            "codec_heard": self.codec_heard,
            "counted": self.counted,
            "changed": self.changed,
            "state_hashes": self.state_hashes,
            "totals": vars(self.totals),
            "failures": self.failures,
            "server_steps": self.server_steps,
            "wall_seconds": self.wall_seconds,
            "last_quality": self.last_quality,
            "files": self.run_dir.sizes(),
        }
        left = checkpoint.save(
            self.run_dir.checkpoints, self.step, tensors, notes, self.config.checkpoint.keep
        )
        self.kept[self.step] = dict(self.counted)
        self.kept = {step: counted for step, counted in self.kept.items() if step in left}

    def restore(self) -> None:
        """Goes back to the newest whole checkpoint and cuts the run's files back to it."""
        if not checkpoint.steps(self.run_dir.checkpoints) and not checkpoint.damaged(
            self.run_dir.checkpoints
        ):
            return  # stopped before its first checkpoint: nothing was trained yet
        step, tensors, notes = checkpoint.load_latest(self.run_dir.checkpoints)
        if notes["contract"] != self.contract:
            raise ConfigError(
                str(self.run_dir.path),
                None,
                "was started with another network, process or image shape; nothing was changed",
            )

        refuse_changes(notes["config"], to_dict(self.config))
        if notes["versions"] != versions():
            warnings.warn(
                f"resumed with {versions()}, begun with {notes['versions']}: bits may differ", stacklevel=2
            )

        def group(name: str) -> Tensors:
            return {k.removeprefix(f"{name}/"): t for k, t in tensors.items() if k.startswith(f"{name}/")}

        self.step, self.weights = step, dict(sorted(group("weights").items()))
        self.ema.restore(group("ema"), notes["ema"])
        self.down.restore(group("down"), notes["down"])
        self.method.restore(group("method"))
        self.codec.restore(group("codec"))
        self.codec_weights, self.codec_round = group("codec_weights"), notes["codec_round"]
        self.codec_heard, self.counted = notes["codec_heard"], notes["counted"]
        self.changed = notes.get("changed", {})
        self.codec_memory = {}
        for key, tensor in group("codec_memory").items():
            client, _, name = key.partition("/")
            self.codec_memory.setdefault(client, {})[name] = tensor
        self.state_hashes, self.failures = notes["state_hashes"], notes["failures"]
        self.totals = ledger.Totals(**notes["totals"])
        self.server_steps, self.wall_seconds = notes["server_steps"], notes["wall_seconds"]
        self.last_quality = notes["last_quality"]
        self.run_dir.cut(notes["files"])
        self.kept = checkpoint.counted(self.run_dir.checkpoints)  # decides what clients may delete
        self._clock = time.perf_counter()


def versions() -> dict[str, str]:
    """What the bits of a run depend on beside its configuration."""
    return {name: metadata.version(name) for name in ("osmotic", "torch", "diffusers", "numpy")}
