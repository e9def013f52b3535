"""The books of a phase: what was asked and answered, and the ledger entries and metrics line that come of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Set
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from osmotic.federation import ledger
from osmotic.flat import Flat, chunks
from osmotic.protocol.gate import Expectation
from osmotic.protocol.messages import Answer, Failure, Phase, Task
from osmotic.tensors import Tensors


@dataclass
class Tally:
    """What one phase has seen so far; thrown away if the phase does not count."""

    asked: dict[str, Task] = field(default_factory=dict)
    expected: dict[str, Expectation] = field(default_factory=dict)
    posted: dict[str, int] = field(default_factory=dict)  # bytes of what each was sent
    answers: dict[str, Mapping[str, Any]] = field(default_factory=dict)  # metrics of counted clients
    weights: dict[str, int] = field(default_factory=dict)
    failures: dict[str, Failure] = field(default_factory=dict)
    entries: list[ledger.Entry] = field(default_factory=list)
    draw_otherwise: set[str] = field(default_factory=set)  # clients that draw other initial weights

    def forgotten(self, names: Set[str]) -> Set[str]:
        """These clients, no longer as asked: they can be asked once more. What went back and forth stays in the books."""
        for held in (self.asked, self.expected, self.posted, self.failures):
            for name in names:
                held.pop(name, None)
        return names

    def share(self) -> float:
        """Images behind the good answers, as a share of those asked for, in [0, 1]."""
        asked = sum(task.client.num_examples for task in self.asked.values())
        return sum(self.weights.values()) / asked if asked else 1.0

    def failed(self, phase: Phase) -> list[dict[str, Any]]:
        """The failures as the summary lists them, by client name."""
        return [
            {
                "round": phase.server_round,
                "client_id": self.asked[name].client.client_id,
                "kind": self.failures[name].kind,
                "reason": self.failures[name].reason,
            }
            for name in sorted(self.failures)
        ]


@dataclass
class Outcome:
    """What a phase would change, before it counts: weights, name -> float32 [...], and the pieces' state.

    `moved` names the parameters that somebody has returned, or that the server has trained; `server_images` are those in its
    steps where no client trains.
    """

    phase: Phase
    tally: Tally
    quorum: bool
    weights: Flat
    pieces: Tensors
    moved: Set[str] = frozenset()
    server_steps: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    server_images: int = 0


def entries(
    phase: Phase,
    answer: Answer,
    failure: Failure | None,
    metrics: Mapping[str, Any],
    *,
    weights: tuple[int, int],
    travels: bool,
    flops_per_image: int,
) -> list[ledger.Entry]:
    """The two ledger entries of one exchange.

    Args:
        weights: conveyed (down, up), one per weight whatever the codec.
        travels: False where nothing goes over a network.
    """
    sent, packet = answer.sent, answer.packet
    # A packet that only says that its client failed holds no blobs, so it is 0 bytes like one that is lost.
    came = packet.num_bytes if packet is not None else 0
    images = int(metrics.get("images", 0))
    down = ledger.Entry(
        round=phase.server_round,
        phase=phase.name,
        client=sent.task.client.name,
        direction="down",
        parameters=weights[0] if travels else 0,
        bytes=sent.packet.num_bytes if travels else 0,
        status="counted" if failure is None else "refused" if came else "failed",
        total=phase.totals,
    )
    up = replace(
        down,
        direction="up",
        # Bytes were spent whatever became of the reply; weights are conveyed only by one that counted.
        parameters=weights[1] if travels and failure is None else 0,
        bytes=came if travels else 0,
        images=images,
        steps=int(metrics.get("steps", 0)),
        flops=images * flops_per_image,
    )
    return [down, up]


def server_entry(phase: Phase, images: int, steps: int, flops: int) -> ledger.Entry:
    """The server's own work in a phase: images in its optimiser steps, those steps, and what they and what it drew cost."""
    return ledger.Entry(
        round=phase.server_round,
        phase=phase.name,
        client="server",
        direction="server",
        parameters=0,
        bytes=0,
        status="counted",
        total=True,
        images=images,
        steps=steps,
        flops=flops,
    )


def without_quorum(entry: ledger.Entry) -> ledger.Entry:
    """An entry of a round that does not count: its bytes were spent, but no work was done."""
    if entry.status != "counted":
        return entry
    # What went down was conveyed all the same; what came up was not used.
    parameters = entry.parameters if entry.direction == "down" else 0
    return replace(entry, status="unused", parameters=parameters, images=0, steps=0, flops=0)


def line(
    phase: Phase,
    tally: Tally,
    totals: ledger.Totals,
    *,
    quorum: bool,
    update_norm: float | None,
    learning_rate: float | None,
    metrics: Mapping[str, float],
) -> dict[str, Any]:
    """One line of metrics.jsonl, time and quality yet to come; sums run over clients sorted by name, whoever came first.

    Args:
        update_norm: length of the step of the global weights; None where there are none.
        learning_rate: the clients' in this phase; None where nobody is asked.
        metrics: the pieces' own figures, "PIECE/NAME".
    """
    # A float sum depends on its order, and replies come in any.
    losses = {n: float(tally.answers[n]["loss"]) for n in sorted(tally.answers) if "loss" in tally.answers[n]}
    weight = sum(tally.weights[n] for n in losses)
    return {
        "round": phase.server_round,
        "phase": phase.name,
        "loss": sum(losses[n] * tally.weights[n] for n in losses) / weight if weight else None,
        "client_loss": losses,
        "images_seen": totals.images_seen,
        "client_steps": totals.client_steps,
        "bytes_up": totals.bytes_up,
        "bytes_down": totals.bytes_down,
        "learning_rate": learning_rate if losses else None,
        "num_counted": len(tally.answers),
        "num_failed": len(tally.failures),
        "kept_old_weights": not quorum,
        "update_norm": update_norm,
        "wall_seconds": None,
        **metrics,
        "quality": None,
        "unscored": None,
    }


def distance(new: Flat, old: Flat) -> float:
    """Euclidean norm of the change of weights, name -> float32 [...], in float64."""
    pieces = chunks(new.buffer.size)
    return math.sqrt(
        sum(float(np.square(new.buffer[p] - old.buffer[p], dtype=np.float64).sum()) for p in pieces)
    )
