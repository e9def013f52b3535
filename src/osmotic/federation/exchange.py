"""Tasks out, answers in: packets are made as the engine asks for them, and every answer goes through the gate.

One way for all questions: the phases of a run, the sampling for scores, the fetching of personal models.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np

from osmotic.codecs import BadPacket, described
from osmotic.errors import plain, shown
from osmotic.federation import bookkeeping, ledger
from osmotic.federation.blueprint import Blueprint
from osmotic.federation.bookkeeping import Tally
from osmotic.federation.interfaces import Engine, Observer
from osmotic.federation.journal import Journal
from osmotic.federation.state import ServerState
from osmotic.flat import Flat
from osmotic.protocol.aggregate import Accumulator, OutOfRange
from osmotic.protocol.gate import Gate, Refused
from osmotic.protocol.messages import (
    ADDRESS,
    KINDS,
    Answer,
    Failure,
    Packet,
    Phase,
    Reply,
    Sent,
    Task,
    changes,
)
from osmotic.protocol.participation import images_planned, learning_rate, weights_sent

log = logging.getLogger("osmotic.server")


class Exchange:
    """The server's end of every exchange with clients.

    Args:
        blueprint: network, exchange, codecs.
        state: the server's; its links encode and decode.
        engine: where clients run.
        contract: hash that every packet carries and every client checks.
        run_id: of this run; packets carry it, and answers say it again.
        flops_per_image: training cost of one image, for the ledger.
        observer: is told of every answer.
    """

    def __init__(
        self,
        blueprint: Blueprint,
        state: ServerState,
        engine: Engine,
        contract: str,
        run_id: str,
        flops_per_image: int,
        observer: Observer,
    ) -> None:
        self.config, self.state, self.engine, self.contract = blueprint.config, state, engine, contract
        self.run_id = run_id
        self.flops_per_image, self.observer = flops_per_image, observer
        self.travels = blueprint.method().travels
        self.layout, self.part_names = blueprint.layout, blueprint.part_names
        self.gate = Gate(self.layout, self.part_names, self.config.training)
        self.checkpoints: dict[
            int, dict[str, int]
        ] = {}  # step of a checkpoint on disk -> who was counted when

    def post(
        self,
        phase: Phase,
        tasks: Iterable[Task],
        tally: Tally,
        weights: Mapping[str, np.ndarray] | None = None,
    ) -> Iterator[Sent]:
        """Tasks as packets, made one at a time as the engine asks for them.

        Args:
            weights: name -> float32 [...]; by default the global ones.
        Raises: ValueError, when its turn comes, for a client that is asked twice.
        """
        state, tasks = self.state, list(tasks)
        round_images = self._images(tasks)
        whole_weights = state.weights if weights is None else state.weights.with_(weights)
        for whole in tasks:
            name = whole.client.name
            if name in tally.asked:
                raise ValueError(f"method {self.config.method.name} asks {name} twice in one phase")
            # Other weights than the global ones are nothing that a client has heard before.
            held = {} if weights is not None else state.down.unmoved(name, whole.send, state.changed)
            task = replace(whole, send=tuple(p for p in whole.send if p not in held))
            # Who only samples encodes nothing that is coded.
            codec_weights = state.up.extras(name) if task.action == "train" else {}
            extras = {**task.extras, **codec_weights}
            entries, blobs = state.down.message(
                name,
                task.send,
                phase.server_round,
                whole_weights,
                state.changed if weights is None else None,
                {0, state.up.heard.get(name, 0)} | ({state.down.version} if codec_weights else set()),
            )
            if extras:
                blobs.append(described.encode(extras))
            header = {
                "contract": self.contract,
                "run": self.run_id,
                "client": name,
                "action": task.action,
                "phase": phase.name,
                "server_round": phase.server_round,
                "counted_round": state.counted.get(name),
                "counted_state": state.state_hashes.get(name),
                "durable_round": self._durable(name),
                "learning_rate": self.rate(phase, task),
                "local_epochs": task.local_epochs,
                "round_images": round_images,
                "down": entries,
                "held": held,
                "extras": bool(extras),
                "returns": list(task.returns),
                "keep": None if task.keep is None else list(task.keep),
                "coded": [n for n, s in task.expects.items() if s.wire == "codec"],
                "control": dict(task.control),
            }
            tally.asked[name], tally.expected[name] = task, self.gate.expect(task)
            packet = Packet(header, tuple(blobs))
            tally.posted[name] = packet.num_bytes
            yield Sent(task, packet, tally.expected[name].most_bytes)

    def _images(self, tasks: Iterable[Task]) -> int:
        """Images that these tasks train on together, repeats counted: the clock of all averages over rounds."""
        training = self.config.training
        return sum(
            images_planned(
                t.client.num_examples,
                training.batch_size,
                training.local_epochs if t.local_epochs is None else t.local_epochs,
            )
            for t in tasks
            if t.action == "train"
        )

    def rate(self, phase: Phase, task: Task) -> float:
        """The learning rate of a task: that of the round, unless a piece has given another one."""
        if task.learning_rate is not None:
            return task.learning_rate
        return learning_rate(self.config.training, phase.server_round)

    def _durable(self, name: str) -> int | None:
        """The round whose private state the client must not delete: that of the oldest checkpoint still on disk."""
        return self.checkpoints[min(self.checkpoints)].get(name) if self.checkpoints else None

    def collect(
        self,
        phase: Phase,
        tasks: Iterator[Sent],
        tally: Tally,
        total: Accumulator | None,
        accept: Callable[[Reply], None],
        object_to: Callable[[Reply], str | None] = lambda reply: None,
        journal: Journal | None = None,
    ) -> None:
        """Every answer: decoded, gated and accepted, or written down as a failure of its client.

        Args:
            total: the sum that a reply must still fit into; None where nothing is summed.
            accept: takes a reply, "model/NAME" and extras -> array [...], before the next one is decoded.
            object_to: why a reply that passed the gate must not count all the same, or None.
            journal: what answers are kept in until the phase counts, and taken from if it was cut off before.
        """
        answers = self._answers(tasks, journal)
        try:
            self._take(phase, answers, tally, total, accept, object_to, journal)
        finally:
            # Now, not when the traceback of an error is forgotten: clients under way may not go on beside a resumed run.
            answers.close()
        for name in sorted(tally.asked):
            if name not in tally.answers and name not in tally.failures:
                # An engine is to answer for everybody; one that forgets somebody must not make him unseen.
                tally.failures[name] = Failure("lost", "nothing came back")
                answer = Answer(Sent(tally.asked[name], Packet({})), failure=tally.failures[name])
                down, up = self._entries(phase, answer, tally.failures[name], {}, tally)
                tally.entries += [replace(down, bytes=tally.posted[name] if self.travels else 0), up]

    def _answers(self, tasks: Iterator[Sent], journal: Journal | None) -> Generator[Answer]:
        """The engine's answers, and those that the journal holds already, for which nobody is asked."""
        known: list[Sent] = []

        def unanswered() -> Iterator[Sent]:
            # As an engine cuts them: the last bits of clients trained as one depend on who is among them.
            while group := list(islice(tasks, self.config.engine.batched_clients)):
                if journal is not None and all(journal.answer(sent) is not None for sent in group):
                    known.extend(group)
                else:
                    yield from group

        def answered() -> Iterator[Answer]:
            # Read only now: one packet at a time, however many there are.
            while known and journal is not None:
                sent = known.pop()
                yield Answer(sent, journal.answer(sent))

        answers = self.engine.exchange(unanswered(), self.config.engine.deadline_seconds)
        try:
            for answer in answers:
                yield answer
                del answer  # or its packet would lie beside the next one
                yield from answered()
            yield from answered()
        finally:
            if isinstance(answers, Generator):
                answers.close()

    def _take(
        self,
        phase: Phase,
        answers: Iterator[Answer],
        tally: Tally,
        total: Accumulator | None,
        accept: Callable[[Reply], None],
        object_to: Callable[[Reply], str | None],
        journal: Journal | None,
    ) -> None:
        for came in answers:
            answer = _well_formed(came)
            del came
            task = answer.sent.task
            name = task.client.name
            if tally.asked.get(name) is not task:
                # Of nobody's asking in this phase: an engine that mixes up its answers. The real one may yet come.
                log.warning("an answer of %s to a task that was not posted is dropped", plain(name))
                continue
            if name in tally.answers or name in tally.failures:
                continue  # one answer per client and phase; a transport may repeat itself
            failure, metrics = _misdirected(answer) or _failure(answer), {}
            if failure is None and answer.packet is not None:
                reply = self._decode(phase, task, answer.packet, tally, total, object_to)
                if isinstance(reply, Failure):
                    failure = reply
                else:
                    accept(reply)
                    metrics = dict(reply.metrics)
                    tally.answers[name], tally.weights[name] = metrics, reply.weight
                    del reply
                    if journal is not None:
                        # Of its header what was checked alone: the rest may be anything.
                        header = {k: answer.sent.packet.header[k] for k in ADDRESS}
                        header |= {"num_examples": tally.weights[name], "metrics": metrics}
                        journal.keep_answer(answer.sent, Packet(header, answer.packet.blobs))
            if failure is not None:
                tally.failures[name] = failure
                told = {} if answer.packet is None else answer.packet.header
                if self.config.codec.first_contact == "seed" and told.get("first_contact") == "weights":
                    tally.draw_otherwise.add(name)
            tally.entries += self._entries(phase, answer, failure, metrics, tally)
            self.observer.answered(name)
            del answer  # or its packet would lie beside the next one

    def _entries(
        self, phase: Phase, answer: Answer, failure: Failure | None, metrics: Mapping[str, Any], tally: Tally
    ) -> list[ledger.Entry]:
        task = answer.sent.task
        conveyed = weights_sent(task, self.layout, self.part_names), tally.expected[task.client.name].weights
        return bookkeeping.entries(
            phase,
            answer,
            failure,
            metrics,
            weights=conveyed,
            travels=self.travels,
            flops_per_image=self.flops_per_image,
        )

    def _decode(
        self,
        phase: Phase,
        task: Task,
        packet: Packet,
        tally: Tally,
        total: Accumulator | None,
        object_to: Callable[[Reply], str | None],
    ) -> Reply | Failure:
        """A packet as a reply that passed the gate, or why it did not."""
        name, expected = task.client.name, tally.expected[task.client.name]
        try:
            tensors = self.state.up.decode(name, packet, expected, phase.server_round)
            if self.config.codec.up_sends == "weights" and expected.changes:
                tensors = self._as_change(task, tensors)
            weight = expected.check(tensors, packet.header.get("num_examples"))
            if total is not None:
                # Before `accept`: a reply that does not fit the sum is refused whole, not half folded.
                total.check_weight(changes(tensors), weight)
            reply = Reply(task, tensors, weight, expected.check_metrics(packet.header.get("metrics", {})))
            reason = object_to(reply)
            return reply if reason is None else Failure("bad", plain(reason))
        except Refused as error:
            return Failure(error.kind, str(error))
        except OutOfRange as error:
            return Failure("range", plain(error))
        except BadPacket as error:
            return Failure("bad", str(error))
        except Exception as error:  # a reply is data from outside: whatever it breaks is its client's failure
            return Failure("bad", f"cannot be read ({type(error).__name__})")

    def _as_change(self, task: Task, tensors: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        """A reply of weights as the change against what the client was sent."""
        received = self.state.down.received(task.returns, self.state.weights).named("model/")
        if isinstance(tensors, Flat):
            return Flat(received.layout, tensors.buffer - received.buffer)
        return {n: t - received[n] if n in received else t for n, t in tensors.items()}


def _well_formed(answer: Answer) -> Answer:
    """The answer, or one whose packet is left out as `bad` where it is not even a header and byte strings."""
    packet = answer.packet
    if packet is None:
        return answer
    fits = isinstance(packet, Packet) and isinstance(packet.header, Mapping)
    if fits and isinstance(packet.blobs, list | tuple) and all(_is_bytes(b) for b in packet.blobs):
        return answer
    return Answer(answer.sent, failure=answer.failure or Failure("bad", "is no header and byte strings"))


def _is_bytes(blob: object) -> bool:
    """Whether it is a byte string, or a view of one: its length is then that of its bytes."""
    return isinstance(blob, bytes) or (
        isinstance(blob, memoryview) and blob.format == "B" and blob.ndim == 1 and blob.c_contiguous
    )


def _misdirected(answer: Answer) -> Failure | None:
    """Why a packet is not the answer to what was sent: it does not say, or says wrongly, what it belongs to."""
    if answer.failure is not None or answer.packet is None:
        return None
    for field in ADDRESS:
        found, asked = answer.packet.header.get(field), answer.sent.packet.header[field]
        if type(found) is not type(asked) or found != asked:
            return Failure("bad", f"answers for {field} {shown(found, 40)}, not {shown(asked, 40)}")
    return None


def _failure(answer: Answer) -> Failure | None:
    """Why an answer is none: the transport's reason, or the client's own word in its packet."""
    if answer.failure is not None:
        return Failure(answer.failure.kind, plain(answer.failure.reason))
    if answer.packet is None:
        return Failure("lost", "nothing came back")
    told = answer.packet.header.get("failure")
    if told is None:
        return None
    # Only kinds we know: the summary and its plots are not a place for a client's own words.
    if isinstance(told, list | tuple) and len(told) == 2 and isinstance(told[0], str) and told[0] in KINDS:
        return Failure(told[0], plain(told[1]) if isinstance(told[1], str) else shown(told[1]))
    return Failure("bad", "says that it failed, and not how")
