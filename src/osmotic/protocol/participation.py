"""Decisions that the server makes and `osmotic plan` replays: who takes part, what is expected back, what counts."""

from __future__ import annotations

import math
from collections.abc import Mapping

from osmotic import seeds
from osmotic.config.schema import Config, TrainingConfig
from osmotic.protocol.messages import Client, Phase, Spec, Task


def choose(config: Config, phase: Phase, clients: list[Client]) -> list[Client]:
    """The clients of a phase, sorted by name: a fraction of them, drawn anew for every round."""
    share = 1.0 if phase.everybody else config.training.fraction_train
    count = max(1, round(share * len(clients)))
    rng = seeds.rng(config.seed, seeds.SAMPLING, phase.server_round)
    return [clients[i] for i in sorted(rng.choice(len(clients), size=count, replace=False))]


def expected_tensors(
    layout: Mapping[str, tuple[int, ...]], part_names: Mapping[str, list[str]], task: Task
) -> dict[str, Spec]:
    """What the gate must see in the answer to a task: changes of the parts asked for, and the extras expected."""
    names = [n for part in task.returns for n in part_names[part]]
    return {f"model/{n}": Spec(layout[n]) for n in names} | dict(task.expects)


def conveyed(
    task: Task, layout: Mapping[str, tuple[int, ...]], part_names: Mapping[str, list[str]]
) -> tuple[int, int]:
    """Weights a task sends and asks back, one per weight whatever the codec; control variates count, images do not."""

    def weights(parts: tuple[str, ...]) -> int:
        return sum(math.prod(layout[n]) for part in parts for n in part_names[part])

    sent = sum(int(t.size) for n, t in task.extras.items() if n.startswith("control/"))
    asked = sum(
        math.prod(k or 0 for k in s.shape) for n, s in task.expects.items() if n.startswith("control/")
    )
    return weights(task.send) + sent, weights(task.returns) + asked


def batch_plan(num_images: int, batch_size: int, epochs: float) -> int:
    """Optimiser steps of `epochs` passes: the last, smaller batch of a pass is kept, and at least one step is made."""
    return max(1, round(epochs * math.ceil(num_images / batch_size)))


def work_bound(task: Task, training: TrainingConfig) -> tuple[int, int]:
    """Most optimiser steps and images that a client may claim for a task; both follow from its announced size."""
    epochs = float(task.control.get("epochs", training.local_epochs))
    steps = batch_plan(task.client.num_examples, training.batch_size, epochs)
    return steps, steps * training.batch_size
