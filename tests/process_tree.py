"""Who descends from whom among this machine's processes, for tests that kill; Linux."""

from __future__ import annotations

from pathlib import Path


def descendants(of: int) -> set[int]:
    """All processes that descend from one, by id."""
    found: set[int] = set()
    waiting = [of]
    while waiting:
        for file in Path(f"/proc/{waiting.pop()}/task").glob("*/children"):
            try:
                children = [int(word) for word in file.read_text().split()]
            except OSError:
                continue
            found.update(children)
            waiting += children
    return found


def command(pid: int) -> str:
    """A process's command; empty once it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def alive(pid: int) -> bool:
    """Whether a process runs, and is not only not yet buried."""
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
