"""A full disk, at every point at which something is written: the run stops with one line, and goes on to the same bits."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from .deaths import befall, points
from .points import NEED_ROOM
from .runs import Ended, Farm, differences, left, settings


@dataclass(frozen=True)
class Full:
    """The disk is full from this point on."""

    config: str
    point: int

    @property
    def command(self) -> str:
        """What repeats it."""
        return f"python -m tests.chaos disk --config {self.config} --point {self.point}"


def fill(farm: Farm, full: Full) -> list[str]:
    """Runs into the full disk, makes room, goes on."""
    folder = farm.folder / f"full-{full.config}-{full.point}"
    try:
        begin = ["run", *settings(full.config), "--out", str(folder)]
        ended = farm.run(begin, befall, str(folder), full.point, "full", None)
        return _told(ended) + _goes_on(farm, full.config, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _told(ended: Ended) -> list[str]:
    """A run that found no room ends with one line of error, and exit code 2 where not even its folder could be made."""
    errors = [line for line in ended.said if line.startswith(("osmotic: error: ", "Traceback"))]
    if ended.code in (1, 2) and errors == ended.said[-1:] and "No space left" in errors[0]:
        return []
    return [f"ended with {ended.code}: {' | '.join(ended.said[-5:])}"]


def _goes_on(farm: Farm, config: str, folder: Path) -> list[str]:
    begin = ["run", *settings(config), "--out", str(folder)]
    ended = farm.run(["resume", str(folder)] if (folder / "config.toml").is_file() else begin)
    if ended.code:
        return [f"went on, and ended with {ended.code}: {ended.said[-3:]}"]
    return differences(farm.unbroken(config), left(folder))


def every(farm: Farm, step: int = 1) -> list[Full]:
    """All points that need room, of fedavg; every `step`th of the others."""
    found = []
    for config in ("fedavg", "udec", "scaffold", "correction"):
        needing = [n for n, p in enumerate(points(farm, config), 1) if p.split()[0] in NEED_ROOM]
        found += [Full(config, n) for n in needing[:: 1 if config == "fedavg" else step]]
    return found


def mountable(farm: Farm) -> bool:
    """Whether a small file system of our own can be mounted here."""
    folder = farm.folder / "mounted"
    folder.mkdir()
    try:
        return (
            os.geteuid() == 0 and _mount(folder, "size=64k") and subprocess.call(["umount", str(folder)]) == 0
        )
    except FileNotFoundError:
        return False
    finally:
        folder.rmdir()


def _mount(folder: Path, options: str) -> bool:
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    return subprocess.call(command, stderr=subprocess.DEVNULL) == 0


def truly(farm: Farm, config: str, kilobytes: int) -> list[str]:
    """A run on a file system of so many kilobytes, which is then made larger."""
    disk = farm.folder / f"disk-{config}-{kilobytes}"
    disk.mkdir()
    assert _mount(disk, f"size={kilobytes}k")
    try:
        folder = disk / "run"
        ended = farm.run(["run", *settings(config), "--out", str(folder)])
        wrong = _told(ended) if ended.code else []  # a large one is enough
        assert _mount(disk, "remount,size=64m")
        return wrong + _goes_on(farm, config, folder)
    finally:
        subprocess.call(["umount", str(disk)])
        disk.rmdir()


def check(
    farm: Farm, some: Iterable[Full], real: Iterable[tuple[str, int]] = (), workers: int = 2
) -> list[str]:
    """What went wrong, a line each."""
    with ThreadPoolExecutor(workers) as pool:
        told = [
            f"{one.command}: {line}"
            for one, wrong in pool.map(lambda f: (f, fill(farm, f)), some)
            for line in wrong
        ]
    for config, size in real:
        told += [
            f"python -m tests.chaos disk --config {config} --kilobytes {size}: {line}"
            for line in truly(farm, config, size)
        ]
    return told
