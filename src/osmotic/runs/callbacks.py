"""What a user's own code is told while a run goes on, beside the progress bar and the trackers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from osmotic.federation.interfaces import Observer, Work
from osmotic.protocol.messages import Phase

if TYPE_CHECKING:
    from osmotic.runs.announce import Start


class Callback:
    """Base of all callbacks: every method does nothing. They are called in the thread that called `run` or `resume`.

    >>> class Losses(osmotic.Callback):
    ...     def __init__(self):
    ...         self.seen = []
    ...     def phase_done(self, line):
    ...         self.seen.append(line["loss"])
    >>> losses = Losses()
    >>> run = osmotic.run(training={"rounds": 2}, out=folder, callbacks=[losses])
    >>> losses.seen == [line["loss"] for line in run.metrics]
    True

    An exception in a callback ends the run, and `run` or `resume` raises it. What had counted by then is on disk: the
    run can be resumed, and comes to the same bits as one that was never stopped.
    """

    def run_started(self, start: Start) -> None:
        """All is read and built, and the first phase is to come, or on resuming the next: `start` has the facts, and
        `start.estimate().left()` is the seconds that the run will take, after some seconds of timing.
        """

    def phase_started(self, phase: Phase, index: int, count: int) -> None:
        """A phase (`name`, `server_round`) begins, as number `index` (from 0) of `count`."""

    def answered(self, client: str) -> None:
        """A client has answered, or failed to; in order of arrival, which differs from run to run."""

    def phase_done(self, line: Mapping[str, Any]) -> None:
        """A phase has counted: its line of metrics.jsonl, scores under "quality" where there were any."""

    def worked(self, work: Work, amount: float) -> None:
        """So much of one kind of work is done: optimiser steps of clients ("train") or of the encoder ("encoder"), images
        drawn ("draw", in fractions) or looked at ("score"). For every batch, from several threads at once: be quick.
        """

    def run_done(self, run: Any) -> None:
        """All is written, the report too; `run` is the `osmotic.Run`. Not called where the run was stopped."""


class RunObserver(Observer, Protocol):
    """An observer of a run as a whole: what the server's loop tells, and the beginning."""

    def run_started(self, start: Start) -> None:
        """The first phase is to come, or on resuming the next."""


class Observers:
    """Several observers as one, called in their order; the first that raises keeps it from those after it."""

    def __init__(self, observers: Iterable[RunObserver]) -> None:
        self.observers = tuple(observers)
        self._raised: Exception | None = None

    def run_started(self, start: Start) -> None:
        for observer in self.observers:
            observer.run_started(start)

    def phase_started(self, phase: Phase, index: int, count: int) -> None:
        for observer in self.observers:
            observer.phase_started(phase, index, count)

    def answered(self, client: str) -> None:
        self._raise()
        for observer in self.observers:
            observer.answered(client)

    def worked(self, work: Work, amount: float) -> None:
        try:
            for observer in self.observers:
                observer.worked(work, amount)
        except (
            Exception
        ) as error:  # in a client's thread it would be that client's failure, and the run would go on
            self._raised = self._raised or error

    def _raise(self) -> None:
        if self._raised is not None:
            raise self._raised

    def phase_done(self, line: Mapping[str, Any]) -> None:
        self._raise()
        for observer in self.observers:
            observer.phase_done(line)


def gathered(callbacks: Any) -> tuple[Callback, ...]:
    """One callback or several as a tuple. Raises: TypeError for what is none, before a run begins."""
    found = (callbacks,) if isinstance(callbacks, Callback) or callable(callbacks) else tuple(callbacks)
    for callback in found:
        if not isinstance(callback, Callback):
            told = callback.__name__ if isinstance(callback, type) else type(callback).__name__
            raise TypeError(f"callbacks must be objects of classes derived from osmotic.Callback, not {told}")
    return found
