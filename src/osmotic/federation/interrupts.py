"""Ctrl-C and SIGTERM, held back while a phase is being booked, so that a checkpoint never shows half of one."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupts:
    """Raises KeyboardInterrupt at once, or, inside `held`, when that ends. A second signal never waits."""

    def __init__(self) -> None:
        self._held = self._pending = False
        self.torn = False  # a second signal broke into a held section

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Handles the two signals inside the block; outside the main thread it changes nothing."""
        # Python lets only the main thread handle signals.
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {s: signal.signal(s, self._handle) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Inside the block a first signal waits for the end of the block.

        Raises: KeyboardInterrupt at the end, if one came.
        """
        self._held = True
        try:
            yield
        finally:
            self._held = False
        if self._pending:
            self._pending = False
            raise KeyboardInterrupt

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._held and not self._pending:
            self._pending = True
            return
        # Whoever presses twice is not kept waiting; what was being booked is then not to be saved.
        self.torn = self._held
        raise KeyboardInterrupt
