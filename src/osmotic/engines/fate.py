"""A process that ends with the one that started it, however that ends."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # linux/prctl.h
# Loaded now: between fork and exec nothing may be.
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


def end_with_parent(parent: int | None = None) -> None:
    """From here on this process is killed when the thread that started it ends; on Linux alone.

    Args:
        parent: process id of the one that started it: if that has ended already, nothing else would tell.
    """
    if _libc is not None:
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if parent is not None and os.getppid() != parent:
            os._exit(1)
