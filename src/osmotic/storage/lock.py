"""One writer per run folder: a file that is locked for the life of a run, and holds the run's id.

The lock is the operating system's, so it goes with the process that held it, however that died. The file stays: it is
no sign of a run under way.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from osmotic.errors import ConfigError

try:
    import fcntl
except ImportError:  # Windows: runs work, two of them in one folder are not told
    fcntl = None  # type: ignore[assignment]

NAME = "run.lock"


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Inside the block no other process, and nobody else in this one, can write to the run in `folder`.

    Raises: ConfigError naming the folder if somebody does; OSError if the file cannot be made.
    """
    handle = os.open(Path(folder) / NAME, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        if fcntl is not None:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                rule = "another process is writing to this run; wait for its end, or stop it first"
                raise ConfigError(str(folder), None, rule) from None
            except OSError:  # a file system without locks
                pass
        yield
    finally:
        os.close(handle)


def fresh_id() -> str:
    """An id that no other run has, 16 hexadecimal digits."""
    return secrets.token_hex(8)


def read_id(folder: Path) -> str | None:
    """The id of the run in `folder`; None where none was written down, as in runs of earlier versions."""
    try:
        text = (Path(folder) / NAME).read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return None
    return text if re.fullmatch("[0-9a-f]{16}", text) else None


def write_id(folder: Path, run_id: str) -> None:
    """Writes the id down, durably, unless there is one. Raises: OSError as the file system gives it."""
    if read_id(folder) is not None:
        return
    # In place: a file that is renamed here would be another one than the one that is locked.
    with open(Path(folder) / NAME, "r+" if (Path(folder) / NAME).exists() else "w", encoding="ascii") as file:
        file.truncate()
        file.write(run_id + "\n")
        file.flush()
        os.fsync(file.fileno())
