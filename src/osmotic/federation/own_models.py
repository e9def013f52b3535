"""The clients' own models: scored through images that clients draw, fetched by an action that a site may refuse, or left where they are."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np

from osmotic.federation.interfaces import Scorer, Stage
from osmotic.pieces.personalise import KEPT_PASS
from osmotic.protocol.messages import MERGE, TRAIN, Client, Phase, Reply, Spec, Task
from osmotic.tensors import Tensors, group

# Asks clients, beside the phases: (phase, tasks, what takes a reply, weights to send instead of the global ones).
Ask = Callable[[Phase, Sequence[Task], Callable[[Reply], None], Mapping[str, np.ndarray] | None], None]

GIVE, KEEP = "model", "keep-model"  # actions: to give the own model; to keep it as a folder of the site's own

# What the server learns from either, for a site that decides whether to join.
REVEALS = (
    "images drawn from a model that was trained on one site's images can be near-copies of them, and its weights hold what it "
    "has memorised (arXiv 2301.13188)"
)


def sample_task(
    client: Client, send: tuple[str, ...], wanted: Mapping[str, Any], shape: tuple[int, int, int, int]
) -> Task:
    """Asks for images drawn from the client's own model, "image/samples" uint8 of this shape [N, H, W, C]."""
    expects = {"image/samples": Spec(shape, "uint8")}
    return Task(client, "sample", send=send, control={"score": wanted}, expects=expects)


def model_task(client: Client, layout: Mapping[str, tuple[int, ...]]) -> Task:
    """Asks for the client's own model, "own/NAME" float32 [...]."""
    # Any finite value: a personal model is not summed, so no range has to hold it.
    expects = {f"own/{n}": Spec(s, counts=True, max_abs=np.inf) for n, s in layout.items()}
    return Task(client, GIVE, expects=expects)


def keep_task(client: Client) -> Task:
    """Tells a site whose own model does not leave which of its states counted: that is the model, and nothing comes back."""
    return Task(client, KEEP)


def score(
    ask: Ask,
    scorer: Scorer,
    clients: Sequence[Client],
    samples: int,
    phase: Phase,
    shared: tuple[str, ...],
    merged: Mapping[str, np.ndarray],
    image: tuple[int, int, int],
) -> dict[str, Any]:
    """Every client draws from its own model; the images come back outside the four totals, and are scored.

    In the phase MERGE the shared parts as the server would publish them are put into each model beforehand.
    Args:
        clients: those that have a model of their own.
        samples: images per client.
        shared: parts that the server averages.
        merged: the weights as the server would publish them, name -> float32 [...].
        image: height, width and channels of an image.
    """
    merging = phase.name == MERGE
    pools: dict[str, np.ndarray] = {}
    send = shared if merging else ()
    tasks = [sample_task(client, send, scorer.wanted(client), (samples, *image)) for client in clients]

    def keep(reply: Reply) -> None:
        # A copy: the reply is a view of its packet.
        pools[reply.task.client.name] = reply.tensors["image/samples"].copy()

    scoring = Phase(MERGE if merging else "score", phase.server_round, totals=False, everybody=True)
    ask(scoring, tasks, keep, merged if merging else None)
    # After a round a client's model stands as it left its own training: the average of that round is not in it yet.
    stage: Stage = "before" if shared and phase.name == TRAIN else "after"
    return scorer.score_personal(pools, stage, phase.server_round)


def fetch(
    ask: Ask,
    clients: Sequence[Client],
    layout: Mapping[str, tuple[int, ...]],
    server_round: int,
    keeping: Collection[str] = (),
) -> tuple[dict[str, Tensors], dict[str, int]]:
    """The clients' own models as they are scored, client -> name -> float32 [...]; and, of those that watched images, which pass it is of.

    A client that does not give its own is left out, and is among the failures.
    Args:
        server_round: a number above all phases, under which the traffic is booked as "models".
        keeping: names of those that have said beforehand that theirs does not leave: they are told to keep it, and are left out.
    """
    found: dict[str, Tensors] = {}
    kept: dict[str, int] = {}

    def take(reply: Reply) -> None:
        if reply.task.action == KEEP:
            return
        found[reply.task.client.name] = {n: t.copy() for n, t in group(reply.tensors, "own").items()}
        # A client's word, which a page may show: only what can be a pass.
        if type(told := reply.metrics.get(KEPT_PASS)) is int and told >= 0:
            kept[reply.task.client.name] = told

    tasks = [keep_task(c) if c.name in keeping else model_task(c, layout) for c in clients]
    ask(Phase("models", server_round, totals=False, everybody=True), tasks, take, None)
    return {name: found[name] for name in sorted(found)}, kept
