"""What a user's own code is told while a run goes on, beside the progress bar and the trackers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from osmotic.protocol.messages import Phase

if TYPE_CHECKING:
    from osmotic.federation.interfaces import Observer


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

    def phase_started(self, phase: Phase, index: int, count: int) -> None:
        """A phase (`name`, `server_round`) begins, as number `index` (from 0) of `count`."""

    def answered(self, client: str) -> None:
        """A client has answered, or failed to; in order of arrival, which differs from run to run."""

    def phase_done(self, line: Mapping[str, Any]) -> None:
        """A phase has counted: its line of metrics.jsonl, scores under "quality" where there were any."""

    def run_done(self, run: Any) -> None:
        """All is written, the report too; `run` is the `osmotic.Run`. Not called where the run was stopped."""


class Observers:
    """Several observers as one, called in their order; the first that raises keeps it from those after it."""

    def __init__(self, observers: Iterable[Observer]) -> None:
        self.observers = tuple(observers)

    def phase_started(self, phase: Phase, index: int, count: int) -> None:
        for observer in self.observers:
            observer.phase_started(phase, index, count)

    def answered(self, client: str) -> None:
        for observer in self.observers:
            observer.answered(client)

    def phase_done(self, line: Mapping[str, Any]) -> None:
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
