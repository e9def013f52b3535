"""How long a run takes, and has still to go: amounts of work, times seconds per unit as measured; torch is not imported.

Work is counted in the units of `interfaces.Work`. Seconds are the process's own, with all its workers side by side.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence

from osmotic.config.schema import Config
from osmotic.federation.interfaces import Work
from osmotic.methods import Method
from osmotic.pieces import Chain
from osmotic.protocol.messages import MERGE, TRAIN, Client, Phase, Task
from osmotic.protocol.participation import batch_plan, choose, looked_at, score_due
from osmotic.protocol.view import View

Amounts = Mapping[Work, float]
Timed = Mapping[Work, tuple[float, float]]  # (seconds, units)
TRAINING: tuple[Work, ...] = ("train", "watch")
SCORING: tuple[Work, ...] = ("draw", "encoder", "score")


def workload(
    config: Config,
    method: Method,
    chain: Chain,
    view: View,
    encoder_steps: int,
    watched: Mapping[str, int],
) -> list[dict[Work, float]]:
    """The work of every phase.

    Args:
        view: the server at the start; its clients are those of the run.
        encoder_steps: optimiser steps that the first score waits for; 0 where the encoder is there.
        watched: client -> how many images it watches while it trains.
    """
    phases, clients = chain.phases(method, config.training.rounds), list(view.clients)
    known = sum(c.num_examples for c in clients)
    found: list[dict[Work, float]] = []
    trained: set[str] = set()  # who has a model to draw from
    for index, phase in enumerate(phases):
        chosen = choose(config, phase, clients)
        # A phase may ask nobody, and only keep what is there.
        epochs = _epochs(config, chain, view, phase, chosen[0]) if chosen else 0.0
        if method.server_trains and phase.name == TRAIN:
            epochs = 0.0
        batch = config.training.batch_size
        steps, drawn = chain.foreseen(view, phase)
        # A step of the server counts as one of a client, though it has no other worker beside it.
        steps += sum(batch_plan(c.num_examples, batch, epochs) for c in chosen if epochs)
        work: dict[Work, float] = {"train": steps}
        if looks := chain.looks(phase):
            work["watch"] = looks * sum(looked_at(watched.get(c.name, 0)) for c in chosen)
        trained |= {c.name for c in chosen}
        if score_due(config, phases, index):
            own = not method.global_model or (chain.personal and phase.name not in (TRAIN, MERGE))
            work |= scoring(config, len(trained) if own else 1, known, encoder_steps)
            known = encoder_steps = 0
        if drawn:
            work["draw"] = work.get("draw", 0) + drawn
        found.append(work)
    return found


def scoring(config: Config, pools: int, looked_at: int, encoder_steps: int) -> dict[Work, float]:
    """The work of one score.

    Args:
        pools: models that images are drawn from.
        looked_at: images that the drawn ones are held against, and that the encoder has not seen yet.
    """
    drawn = pools * int(config.score.samples)
    return {"draw": drawn, "encoder": encoder_steps, "score": drawn + looked_at}


def _epochs(config: Config, chain: Chain, view: View, phase: Phase, client: Client) -> float:
    """Passes of a client over its images in this phase."""
    if phase.name == MERGE:
        return 0.0
    if phase.name == TRAIN:
        return config.training.local_epochs
    # A piece's own phase: only the piece knows.
    task = chain.extend(view, chain.server_start(view), phase, Task(client, "train"))
    return config.training.local_epochs if task.local_epochs is None else task.local_epochs


def seconds(amounts: Sequence[Amounts], timed: Timed) -> tuple[float, float]:
    """Seconds of training and of scoring that these phases take."""
    total = {
        work: sum(a.get(work, 0.0) for a in amounts) * spent / units for work, (spent, units) in timed.items()
    }
    training, scores = (sum(total.get(work, 0.0) for work in kinds) for kinds in (TRAINING, SCORING))
    return training, scores


class Estimate:
    """The time that is left: what was measured beforehand gives way to what the run itself takes.

    Every event charges the seconds since the one before to its kind of work; what follows the last batch of a phase (sums,
    metrics, files) is charged to the scores where there were any, else to the training.

    Args:
        phases: the work of the phases to come.
        timed: seconds and units measured beforehand, taken as if the run had begun with them.
        clock: seconds, as `time.monotonic`.
    """

    def __init__(
        self, phases: Sequence[Amounts], timed: Timed, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock, self._lock = clock, threading.Lock()
        self._phases = [dict(amounts) for amounts in phases]
        self._spent = {work: spent for work, (spent, _) in timed.items()}
        self._units = {work: units for work, (_, units) in timed.items()}
        self._done: dict[Work, float] = {}
        self._begun = self._last = clock()
        self._kind: Work = "train"

    def begin(self) -> None:
        """The clock starts anew: what was done since the estimate was made is no work of the run."""
        with self._lock:
            self._begun = self._last = self._clock()

    def worked(self, work: Work, amount: float) -> None:
        """So much more of a kind of work is done; from any thread."""
        with self._lock:
            self._charge(work)
            self._kind = work
            self._units[work] = self._units.get(work, 0.0) + amount
            self._done[work] = self._done.get(work, 0.0) + amount

    def phase_done(self) -> None:
        """The first of the phases to come is done."""
        with self._lock:
            planned = self._phases.pop(0) if self._phases else {}
            self._charge("score" if "score" in self._done else "train")
            looked, expected = self._done.get("score"), planned.get("score")
            if (
                looked and expected
            ):  # which scores there are decides how often images are looked at: the last one tells
                for later in self._phases:
                    if "score" in later:
                        later["score"] *= looked / expected
            self._done, self._kind = {}, "train"

    def todo(self) -> tuple[list[Amounts], Timed]:
        """The work that is left, phase by phase, and seconds and units of every kind so far."""
        with self._lock:
            timed: Timed = {w: (self._spent[w], self._units[w]) for w in self._spent if self._units.get(w)}
            return [self._rest(), *self._phases[1:]], timed

    def left(self) -> float:
        """Seconds to go, >= 0."""
        return max(0.0, sum(seconds(*self.todo())) - (self._clock() - self._last))

    def gone(self) -> float:
        """Seconds since the beginning."""
        return self._clock() - self._begun

    def doing(self) -> tuple[Work, float, float]:
        """The kind of work under way in this phase, how much of it is done, and of how much."""
        with self._lock:
            rest, planned = self._rest(), self._phases[0] if self._phases else {}
            order: tuple[Work, ...] = (*TRAINING, *SCORING)
            # What is done is followed by the next that is to be done.
            kinds = [w for w in order[order.index(self._kind) :] if rest.get(w)]
            work = kinds[0] if kinds else self._kind
            return work, self._done.get(work, 0.0), max(planned.get(work, 0.0), self._done.get(work, 0.0))

    def _rest(self) -> dict[Work, float]:
        """What is left of the phase under way."""
        planned = self._phases[0] if self._phases else {}
        return {work: max(0.0, amount - self._done.get(work, 0.0)) for work, amount in planned.items()}

    def _charge(self, work: Work) -> None:
        now = self._clock()
        self._spent[work] = self._spent.get(work, 0.0) + now - self._last
        self._last = now


def about(span: float) -> str:
    """Seconds in words no finer than an estimate is: "20 s", "12 min", "3.5 h"."""
    if span < 90:
        return f"{max(1, round(span)) if span < 20 else 5 * round(span / 5)} s"
    return f"{round(span / 60)} min" if span < 5400 else f"{span / 3600:.1f} h"


def told(training: float, scoring: float) -> str:
    """An estimate in words: "about 12 min (8 min training, 4 min scoring)"."""
    return f"about {about(training + scoring)} ({about(training)} training, {about(scoring)} scoring)"
