"""How far a command is, on stderr: a bar on a terminal; elsewhere plain lines, at most one in `EVERY` seconds."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from osmotic.federation.interfaces import Work
from osmotic.runs.estimate import Estimate, about

EVERY = 30.0  # seconds between two plain lines that only say how far it is
REFRESH = 0.2  # seconds between two looks of the bar
WORDS: dict[Work, tuple[str, str]] = {
    "train": ("training", "steps"),
    "watch": ("watching", "images"),
    "draw": ("drawing", "images"),
    "encoder": ("training the encoder", "steps"),
    "score": ("scoring", "images"),
}


class Display:
    """One bar, or one trickle of lines. `tick` may be called from any thread and as often as one likes.

    Args:
        quiet: print nothing.
        clock: seconds, as `time.monotonic`.
    """

    def __init__(self, quiet: bool, clock: Callable[[], float] = time.monotonic) -> None:
        self.quiet, self._clock = quiet, clock
        self.estimate: Estimate | None = None
        self._label = ""
        self._note = ""
        self._share: tuple[float, float] | None = None  # done, and of how much, before there is an estimate
        self._last = clock()
        self._lock = threading.Lock()
        self._bar: Any = None
        self._task: Any = None
        if not quiet and sys.stderr.isatty():
            self._open_bar()

    def say(self, text: str, note: str | None = None) -> None:
        """A line that stays.

        Args:
            note: on a terminal this takes the place of the line, behind the bar.
        """
        with self._lock:
            self._last = self._clock()
        if self._bar is None:
            if not self.quiet:
                print(text, file=sys.stderr, flush=True)
        elif note is None:
            self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            self._note = note

    def read(self, done: int, count: int) -> None:
        """So many images of `count` are read."""
        if self.quiet:
            return
        self._label, self._share = f"reading images: {done:,} of {count:,}", (done, count)
        self.tick()

    def worked(self, work: Work, amount: float) -> None:
        """So much of one kind of work is done."""
        if self.estimate is not None:
            self.estimate.worked(work, amount)
            self.tick()

    def at(self, label: str) -> None:
        """What is being done, in words, where no estimate says more."""
        self._label, self._share = label, None

    def tick(self) -> None:
        """Something moved: the bar is moved, or a plain line printed if the last one is long ago."""
        if self.quiet:
            return
        with self._lock:
            now = self._clock()
            if now - self._last < (EVERY if self._bar is None else REFRESH):
                return
            self._last = now
        if self._bar is None:
            print(self.text(), file=sys.stderr, flush=True)
        else:
            done, total = self._share or (0, None)
            if self.estimate is not None:
                done, left = self.estimate.gone(), self.estimate.left()
                total = max(done + left, 1e-9)
            self._bar.update(self._task, completed=done, total=total)

    def text(self) -> str:
        """What is being done, how far it is, and how long all of it will still take."""
        if self.estimate is None:
            return self._label
        work, done, total = self.estimate.doing()
        parts = [f"{self._label}:"] if self._label else []
        if total:
            doing, unit = WORDS[work]
            parts.append(f"{doing} {int(done):,} of {int(total):,} {unit},")
        return " ".join([*parts, f"about {about(self.estimate.left())} left"])

    def __enter__(self) -> Display:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Leaves the terminal as it was."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
            self.quiet = True

    def _open_bar(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, ProgressColumn, TimeElapsedColumn
        from rich.progress import Progress as Bar
        from rich.text import Text

        class Doing(ProgressColumn):
            max_refresh = REFRESH

            def render(column, task: Any) -> Text:
                return Text("  ".join(filter(None, (self.text(), self._note))))

        columns = (BarColumn(bar_width=24), TimeElapsedColumn(), Doing())
        self._bar = Bar(*columns, console=Console(stderr=True), refresh_per_second=4)
        self._task = self._bar.add_task("", total=None)
        self._bar.start()
