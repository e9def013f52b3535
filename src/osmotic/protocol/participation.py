"""Decisions that the server makes and `osmotic plan` replays: who takes part, and how much work a task is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from osmotic import seeds
from osmotic.config.schema import Config, TrainingConfig
from osmotic.protocol.messages import TRAIN, Client, Phase, Task

# A few images are watched many times: their noise levels, and not they, are what makes a single look uncertain.
WATCHED = 512


def choose(config: Config, phase: Phase, clients: Sequence[Client]) -> list[Client]:
    """The clients of a phase, sorted by name: a fraction of them, drawn anew for every round."""
    if not phase.asks:
        return []
    count = asked(1.0 if phase.everybody else config.training.fraction_train, len(clients))
    rng = seeds.rng(config.seed, seeds.SAMPLING, phase.server_round)
    # Drawn by place in the sorted list, so the same names and seed give the same clients on every transport.
    return [clients[i] for i in sorted(rng.choice(len(clients), size=count, replace=False))]


def asked(share: float, clients: int) -> int:
    """How many of so many clients a share is: one at least, as a round of nobody would be none."""
    return max(1, round(share * clients))


def weights_sent(
    task: Task, layout: Mapping[str, tuple[int, ...]], part_names: Mapping[str, list[str]]
) -> int:
    """Weights a task sends, one per value whatever the codec.

    Float extras [...] of pieces count, a codec's own weights do not.
    """
    parts = sum(math.prod(layout[n]) for part in task.send for n in part_names[part])
    # A codec's own weights are how a codec works, not what is conveyed; `bytes` has them all the same.
    extras = sum(
        int(t.size) for n, t in task.extras.items() if not n.startswith("codec/") and t.dtype.kind == "f"
    )
    return parts + extras


def batch_plan(num_images: int, batch_size: int, epochs: float) -> int:
    """Optimiser steps of `epochs` passes: the last, smaller batch of a pass is kept, and at least one step is made."""
    return max(1, round(epochs * math.ceil(num_images / batch_size)))


def images_planned(num_images: int, batch_size: int, epochs: float) -> int:
    """Images that the steps of `batch_plan` see, repeats counted: whole passes, then the first batches of another."""
    passes, rest = divmod(batch_plan(num_images, batch_size, epochs), math.ceil(num_images / batch_size))
    return passes * num_images + rest * batch_size


def looked_at(watched: int) -> int:
    """Noisy images behind one look at so many watched ones: at least `WATCHED`, as a few are looked at many times; 0 of none."""
    return max(WATCHED, watched) if watched else 0


def score_due(config: Config, phases: Sequence[Phase], index: int) -> bool:
    """Whether models are scored after the phase at `index`: every few rounds, after the last one, and at the end."""
    phase, every = phases[index], int(config.score.every)
    last = phase.server_round == config.training.rounds or index == len(phases) - 1
    return last or (phase.name == TRAIN and every > 0 and phase.server_round % every == 0)


def learning_rate(training: TrainingConfig, server_round: int) -> float:
    """Local learning rate of a round: constant, or half a cosine over the rounds of the run.

    Source of the cosine: arXiv:1608.03983, eq. 5, without restarts; 0 would come after the last round.
    """
    if training.lr_schedule == "constant":
        return training.learning_rate
    # Phases before the rounds train at the first rate, those after them at the last.
    done = (min(max(server_round, 1), training.rounds) - 1) / training.rounds
    return training.learning_rate * 0.5 * (1 + float(np.cos(np.pi * done)))
