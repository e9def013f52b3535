"""Answers on their way from a task's process to its site's SuperNode: a locked file each, so that one which is broken off is noticed.

Flower's SuperNode (1.41) waits for the rest of an answer for ever, and does nothing else meanwhile.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

FOLDER = "answers"  # of these files, in the site's own


def broken_off(answers: Path, since: float) -> bool:
    """Whether a task's process died while it handed its answer over. True once for each such answer.

    Args:
        answers: folder of those that are on their way.
        since: when the SuperNode was started, in seconds since 1970: what is older was meant for the one before it.
    """
    found = False
    for file in answers.glob("*.answer"):
        # Gone: it has just been handed over. Locked: it is being. A file system without locks tells nothing.
        with suppress(OSError), open(file, "r+b") as opened:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
            found |= file.stat().st_mtime >= since
            file.unlink()
    return found


def marked(push_message: Callable[..., None], answers: Path) -> Callable[..., None]:
    """Flower's function that hands an answer to the SuperNode, beside a file in `answers` that is locked until it has all of it."""

    def push(client: Any, message: Any, context: Any) -> None:
        file = answers / f"{os.getpid()}.answer"
        new = file.with_suffix(".new")
        with ExitStack() as held:
            # Without locks or room on the disk the answer is handed over all the same.
            with suppress(OSError):
                opened = held.enter_context(open(new, "wb"))
                fcntl.flock(opened, fcntl.LOCK_EX)  # the system lets go of it, however this process ends
                new.rename(file)
            push_message(client, message, context)
            file.unlink(missing_ok=True)

    return push
