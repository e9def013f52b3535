"""A write beside what goes on: one at a time, on a thread of its own; what it raises is raised where it is awaited."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Beside(Generic[T]):
    """Begins one piece of work at a time, and waits for it before the next.

    >>> beside = Beside()
    >>> beside.begin(lambda: 6 * 7)
    >>> beside.wait(), beside.wait()
    (42, None)
    """

    def __init__(self) -> None:
        self._ended: threading.Event | None = None
        self._found: T | None = None
        self._error: BaseException | None = None

    def begin(self, work: Callable[[], T]) -> None:
        """Starts `work`, once what was begun before it has ended.

        Raises: what the work before has raised, unless that was awaited; `work` is then not begun.
        """
        self.wait()
        # Not the thread's own end: Python 3.11 takes a `join` that a signal breaks off for the end of the thread.
        ended = threading.Event()

        def run() -> None:
            try:
                self._found = work()
            except BaseException as error:  # raised by `wait`, on the thread that has begun it
                self._error = error
            finally:
                ended.set()

        # No daemon: the interpreter does not end in the middle of a write either.
        threading.Thread(target=run, name="osmotic-beside").start()
        self._ended = ended

    def wait(self) -> T | None:
        """What the work gave, once it has ended; None where nothing is under way.

        A signal waits too: who waits gives the folder's lock back next, and nobody may be writing there then.
        Raises: what the work has raised; KeyboardInterrupt after its end, if one came.
        """
        interrupted = False
        while self._ended is not None:
            try:
                self._ended.wait()
                self._ended = None
            except KeyboardInterrupt:
                interrupted = True
        found, error, self._found, self._error = self._found, self._error, None, None
        if interrupted:
            raise KeyboardInterrupt from error
        if error is not None:
            raise error
        return found
