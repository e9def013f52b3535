"""Two processes on one folder: exactly one works, the other is told so in one line, and the folder comes out right."""

from __future__ import annotations

import random
import shutil
import threading
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from .deaths import befall, points
from .points import DIED
from .runs import Ended, Farm, differences, left, settings

SEED = 20


@dataclass(frozen=True)
class Pair:
    """A command that is held at a point, and a second one that comes meanwhile."""

    config: str
    first: str  # "run" or "resume"
    second: str
    point: int

    @property
    def command(self) -> str:
        """What repeats it."""
        return f"python -m tests.chaos twice --config {self.config} --pair {self.first}+{self.second} --point {self.point}"


def meet(farm: Farm, pair: Pair) -> list[str]:
    """The second comes while the first stands at a point of its own."""
    expected = farm.unbroken(pair.config)
    folder = farm.folder / f"twice-{pair.config}-{pair.first}-{pair.second}-{pair.point}"
    held = folder.with_suffix(".held")
    commands = {
        "run": ["run", *settings(pair.config), "--out", str(folder)],
        "resume": ["resume", str(folder)],
    }
    try:
        if pair.first == "resume":  # of a run that died just before its last checkpoint
            at = next(
                n for n, p in enumerate(points(farm, pair.config), 1) if p.startswith("replace samples")
            )
            assert farm.run(commands["run"], befall, str(folder), at, "die", None).code == DIED
        ends: list[Ended] = []
        first = threading.Thread(
            target=lambda: ends.append(
                farm.run(commands[pair.first], befall, str(folder), pair.point, "wait", str(held))
            )
        )
        first.start()
        while not held.exists() and first.is_alive():
            time.sleep(0.01)
        if not first.is_alive():
            return [f"the first ended before point {pair.point}: {ends}"]
        before = left(folder)
        second = farm.run(commands[pair.second])
        changed = differences(before, left(folder))
        held.unlink()
        first.join()
        wrong = [f"the second changed the folder: {line}" for line in changed]
        if second.code != 2 or len(second.said) != 1:
            wrong.append(f"the second ended with {second.code}: {second.said[-3:]}")
        if ends[0].code:
            return [*wrong, f"the first ended with {ends[0].code}: {ends[0].said[-3:]}"]
        return wrong + differences(expected, left(folder))
    finally:
        held.unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)


def race(farm: Farm, number: int) -> list[str]:
    """Two of the same command at nearly the same time, as it comes."""
    draw = random.Random(SEED * 1000 + number)
    config, again = draw.choice(("fedavg", "udec")), draw.random() < 0.5
    expected, folder = farm.unbroken(config), farm.folder / f"race-{number}"
    command = ["run", *settings(config), "--out", str(folder)]
    try:
        if again:
            at = draw.randint(20, len(points(farm, config)) - 30)
            assert farm.run(command, befall, str(folder), at, "die", None).code == DIED
            command = ["resume", str(folder)]
        pause = draw.uniform(0, 0.2)

        def start(late: bool) -> Ended:
            time.sleep(pause if late else 0)
            return farm.run(command)

        with ThreadPoolExecutor(2) as pool:
            ends = list(pool.map(start, (False, True)))
        codes = sorted(e.code for e in ends)
        wrong = [
            f"{e.code}: {e.said[-3:]}"
            for e in ends
            if e.code not in (0, 2) or (e.code == 2 and len(e.said) != 1)
        ]
        # Whoever comes when the other is done finds a finished run: to sum it up again is right.
        if codes != [0, 2] and not (again and codes == [0, 0]):
            wrong.append(f"exit codes {codes}")
        return wrong + differences(expected, left(folder))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def pairs(farm: Farm, step: int = 20) -> list[Pair]:
    """All pairs of commands, the first held at every `step`th of its points."""
    found = []
    for config in ("fedavg", "udec"):
        # With its summary a run is over, and two may write its report.
        last = next(n for n, p in enumerate(points(farm, config), 1) if p.startswith("replace .summary"))
        for second in ("run", "resume"):
            # The first two make the folder and the lock.
            found += [Pair(config, "run", second, n) for n in range(3, last, step)]
            found += [Pair(config, "resume", second, n) for n in range(2, 30, step)]
    return found


def check(farm: Farm, some: Iterable[Pair], races: int, workers: int = 2) -> list[str]:
    """What went wrong, a line each."""
    with ThreadPoolExecutor(workers) as pool:
        told = [
            f"{pair.command}: {line}"
            for pair, wrong in pool.map(lambda p: (p, meet(farm, p)), some)
            for line in wrong
        ]
    for number in range(races):
        told += [f"python -m tests.chaos twice --race {number}: {line}" for line in race(farm, number)]
    return told
