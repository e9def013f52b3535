"""Every point at which a process changes its folder: counted, and at one of them something happens.

Points are opening a file to write, each write(2), fsync of a file or folder, rename, delete, truncate, making a folder.
What happens there is one of

    die     the process is gone before the call
    torn    half of what was to be written is written, then the process is gone
    cut     a power cut before the call: what was not forced to disk is lost, and renames and deletions in folders
            that were not forced to disk are undone
    full    the call fails, and so does every later one that needs room: the disk is full
    wait    the process stops there until the file `log` that it writes is deleted
"""

from __future__ import annotations

import builtins
import errno
import io
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

DIED = 137  # as a shell tells of SIGKILL


class Points:
    """Counts points below `folder`; calls itself what `what` says when number `at` is reached.

    Args:
        folder: what lies elsewhere is no point.
        at: number of the point, from 1; 0 lets all pass.
        what: "die", "torn", "cut", "full" or "wait".
        log: file that every point is written to, a line each; for "wait" only that one.
    """

    def __init__(self, folder: Path, at: int = 0, what: str = "die", log: Path | None = None) -> None:
        self.folder, self.at, self.what, self.log = str(Path(folder).absolute()), at, what, log
        self.seen = 0
        self.lost = Losable(Path(self.folder)) if what == "cut" else None
        self.real = {name: getattr(os, name) for name in CALLS}
        self.real_open = builtins.open

    def install(self) -> None:
        """From now on, until the process ends."""
        for name in CALLS:
            setattr(os, name, self._watched(name))
        builtins.open = io.open = self._open  # type: ignore[assignment]
        os.fdopen = self._fdopen

    def hit(self, call: str, path: str, data: Any = None, handle: int = -1) -> None:
        """One point; does not come back if the process dies at it."""
        self.seen += 1
        if self.log is not None and (self.what != "wait" or self.seen == self.at):
            with io.FileIO(str(self.log), "a") as file:
                file.write(f"{call} {os.path.relpath(path, self.folder)}\n".encode())
        if not self.at or self.seen < self.at:
            return
        if self.what == "full":
            if call in NEED_ROOM:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
            return
        if self.what == "wait":
            while self.seen == self.at and self.log is not None and self.log.exists():
                time.sleep(0.01)
            return
        if self.what == "torn" and data is not None:
            self.real["write"](handle, bytes(data)[: len(data) // 2])
        if self.lost is not None:
            self.lost.lose(self.real)
        os._exit(DIED)

    def _mine(self, path: str) -> bool:
        return path.startswith(self.folder + os.sep) or path == self.folder

    def _watched(self, name: str) -> Callable[..., Any]:
        real = self.real[name]

        def call(first: Any, *rest: Any, **named: Any) -> Any:
            path = _path(first, named.get("dir_fd") or named.get("src_dir_fd"))
            reads = name == "open" and not rest[0] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            if reads or not self._mine(path) or (name == "mkdir" and os.path.isdir(path)):
                return real(first, *rest, **named)
            self.hit(name, path, *((rest[0], first) if name == "write" else ()))
            if self.lost is None:
                return real(first, *rest, **named)
            return self.lost.done(name, path, lambda: real(first, *rest, **named), first, *rest)

        return call

    def _open(self, file: Any, mode: str = "r", *rest: Any, **named: Any) -> Any:
        path = _path(file)
        if set(mode) <= set("rbtU") or not self._mine(path):
            return self.real_open(file, mode, *rest, **named)
        if not isinstance(file, int):
            self.hit("open", path)
        raw = Raw(self, path, file, "".join(c for c in mode if c in "rwax+"), named.get("closefd", True))
        buffered = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        if "b" in mode:
            return buffered
        return io.TextIOWrapper(buffered, named.get("encoding"), named.get("errors"), named.get("newline"))

    def _fdopen(self, handle: int, mode: str = "r", *rest: Any, **named: Any) -> Any:
        return self._open(handle, mode, *rest, **named)


class Raw(io.FileIO):
    """A file whose every write(2) and truncate(2) is a point."""

    def __init__(self, points: Points, path: str, file: Any, mode: str, closefd: bool) -> None:
        super().__init__(file, mode, closefd=closefd)
        self._points, self._path = points, path

    def write(self, data: Any) -> int:
        self._points.hit("write", self._path, data, self.fileno())
        return super().write(data) or 0

    def truncate(self, size: int | None = None) -> int:
        self._points.hit("truncate", self._path)
        return super().truncate(size)


class Losable:
    """What a power cut would take: contents and names that were not forced to disk since `folder` was first looked at."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.safe = {_inode(p): p.stat().st_size for p in folder.rglob("*") if p.is_file()}
        self.names: list[
            tuple[str, str | None, int | None]
        ] = []  # (path, where it came from, its old content)

    def done(self, name: str, path: str, real: Callable[[], Any], first: Any, *rest: Any) -> Any:
        """Makes a call, and remembers what of it is not safe yet."""
        if name == "fsync":
            made = real()
            state = os.fstat(first)
            self.safe[(state.st_dev, state.st_ino)] = state.st_size
            if os.path.isdir(path):  # the names in it are safe, older ones before newer ones
                self.names = [n for n in self.names if os.path.dirname(n[0]) != path]
            return made
        target = _path(rest[0]) if name in ("replace", "rename") else path
        if name not in ("replace", "rename", "unlink", "remove") or os.path.isdir(target):
            return real()
        kept = os.open(target, os.O_RDONLY) if os.path.isfile(target) else None
        made = real()
        self.names.append((target, path if target != path else None, kept))
        return made

    def lose(self, real: dict[str, Callable[..., Any]]) -> None:
        """The power cut."""
        for path, origin, kept in reversed(self.names):
            if not os.path.isdir(os.path.dirname(path)):
                continue
            if origin is not None and os.path.exists(path):
                real["rename"](path, origin)
            if kept is not None:
                content = os.pread(kept, os.fstat(kept).st_size, 0)
                with io.FileIO(path, "w") as file:
                    file.write(content)
                self.safe[_inode(Path(path))] = len(content)
        for path in self.folder.rglob("*"):
            if path.is_file() and path.stat().st_size > self.safe.get(_inode(path), 0):
                real["truncate"](path, self.safe.get(_inode(path), 0))


def _inode(path: Path) -> tuple[int, int]:
    state = path.stat()
    return state.st_dev, state.st_ino


def _path(file: Any, folder: int | None = None) -> str:
    """Where a path, or an open file, lies."""
    if isinstance(file, int):
        return os.readlink(f"/proc/self/fd/{file}")
    path = os.fsdecode(file)
    return (
        os.path.join(os.readlink(f"/proc/self/fd/{folder}"), path)
        if folder is not None
        else os.path.abspath(path)
    )


CALLS = ("open", "write", "fsync", "replace", "rename", "unlink", "remove", "truncate", "mkdir", "rmdir")
NEED_ROOM = ("open", "write", "fsync", "mkdir")  # fsync: where room is only found to be missing then
