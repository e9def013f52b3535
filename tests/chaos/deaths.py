"""Deaths at every point at which a run changes its folder, and power cuts there; resumed, everything must be equal.

Some resumes die as well, at a point drawn from the seed.
"""

from __future__ import annotations

import random
import shutil
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from .points import DIED, Points
from .runs import Farm, differences, left, settings

SEED = 20
WAYS = ("die", "torn", "cut")
# A process may die anywhere; half a write needs a write; a power cut takes what these calls were to make safe.
WHERE = {"torn": ("write",), "cut": ("fsync", "replace", "rename", "unlink")}
AGAIN = 0.25  # share of resumes that die too


@dataclass(frozen=True)
class Death:
    """One death of a run: configuration, number of the point, and how (`points.py`)."""

    config: str
    point: int
    way: str

    @property
    def command(self) -> str:
        """What repeats it."""
        return f"python -m tests.chaos deaths --config {self.config} --point {self.point} --way {self.way}"


def befall(folder: str, at: int, way: str, log: str | None) -> None:
    """In the child: from now on points are counted."""
    Points(Path(folder), at, way, Path(log) if log else None).install()


def points(farm: Farm, config: str) -> list[str]:
    """All points of an unbroken run: "CALL FILE" each."""
    farm.unbroken(config)  # trains the encoder, so that it is found by all that follow

    def count(folder: Path) -> list[str]:
        log = folder.with_suffix(".points")
        farm.finished(config, folder, befall, str(folder), 0, "die", str(log))
        return log.read_text().splitlines()

    return farm.once(f"counted-{config}", count)


def outlive(farm: Farm, death: Death) -> list[str]:
    """Dies, resumes until the run is finished, and says what differs from the unbroken run."""
    draw = random.Random(f"{SEED} {death}")
    expected = farm.unbroken(death.config)
    folder = farm.folder / f"{death.config}-{death.point}-{death.way}"
    try:
        begin = ["run", *settings(death.config), "--out", str(folder)]
        ended = farm.run(begin, befall, str(folder), death.point, death.way, None)
        if ended.code != DIED:
            return [f"did not die: exit code {ended.code}, {ended.said[-1:]}"]
        again = draw.random() < AGAIN
        for _ in range(6):
            # A run that died before it wrote its configuration has not begun: the same command begins it.
            command = ["resume", str(folder)] if (folder / "config.toml").is_file() else begin
            at = draw.randint(1, 40) if again else 0
            ended = farm.run(command, befall, str(folder), at, death.way, None)
            if ended.code != DIED:
                break
            again = draw.random() < AGAIN
        if ended.code:
            return [f"{command[0]} ended with {ended.code}: {ended.said[-3:]}"]
        return differences(expected, left(folder))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@dataclass
class Result:
    """What was tried and what went wrong."""

    tried: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


def every(farm: Farm, ways: Iterable[str] = WAYS) -> list[Death]:
    """All deaths there are, in each way where it makes a difference."""
    found = []
    for config in ("fedavg", "udec", "scaffold", "correction"):
        for number, point in enumerate(points(farm, config), 1):
            found += [Death(config, number, way) for way in ways if point.split()[0] in WHERE.get(way, point)]
    return found


def check(farm: Farm, deaths: Iterable[Death], workers: int = 2) -> Result:
    """Outlives them all."""
    result = Result()

    def one(death: Death) -> tuple[Death, list[str]]:
        return death, outlive(farm, death)

    with ThreadPoolExecutor(workers) as pool:
        for death, wrong in pool.map(one, deaths):
            result.tried[f"{death.config} {death.way}"] += 1
            result.wrong += [f"{death.command}: {line}" for line in wrong[:5]]
    return result
