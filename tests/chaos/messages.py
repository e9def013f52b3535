"""Deaths at every message between a hub and its sites: at either side, before and after each send and each receive.

The grid is a double in one process, so every message is reached in seconds; `sites.py` and `wire.py` do it with real processes.
The hub dies and its run is resumed on new nodes, or a site dies and comes back; all that is left must be equal to an unbroken run.
"""

from __future__ import annotations

import os
import random
import re
import shutil
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .points import DIED
from .runs import COMMON, Farm, differences, left

SEED = 21
NAMES = ("client-000", "client-001", "client-002")
# Of the hub's server: before a task goes out, once it has, when its answer is there, once it has been taken. Of a site: before it works,
# once it has worked and has not answered; or it answers and the answer is lost.
HUB = ("unsent", "sent", "answered", "taken")
SITE = ("idle", "worked", "unheard")
WAYS = (*HUB, *SITE)
AGAIN = 0.25  # share of resumes that die too
CONFIGS = {
    "quantised": ("codec.up=int8", "codec.down=int8", "codec.error_feedback=true"),
    "udec": ("method.name=udec", "local.pieces=scaffold", "training.fraction_train=0.7"),
}


def settings(config: str) -> list[str]:
    """The options of `osmotic run` for one of CONFIGS, across sites."""
    keys = [key for key in COMMON if not key.startswith("engine.")]
    keys += [*CONFIGS[config], "engine.name=sites", "engine.deadline_seconds=60"]
    return [part for key in keys for part in ("--set", key)]


@dataclass(frozen=True)
class Death:
    """One death of a run: configuration, number of the message, from 1, and how."""

    config: str
    message: int
    way: str

    @property
    def command(self) -> str:
        """What repeats it."""
        return (
            f"python -m tests.chaos messages --config {self.config} --number {self.message} --way {self.way}"
        )


def befall(sites: str, at: int, way: str, nodes: int, log: str | None) -> None:
    """In the child: it stands where Flower would have started it, and message `at` comes to grief."""
    from flower_grid import SitesGrid, failed

    from osmotic import plugins
    from osmotic.engines import flower
    from osmotic.sites import roster

    plugins.registered_here = lambda config: (
        None
    )  # the sites of a grid in this process find the small network, too

    class Counted(SitesGrid):
        """Counts messages by their answers' turn: pushed and pulled alike, each has one number."""

        numbers: dict[str, int]
        after = False  # whether the answer was taken after which the hub is to die

        def gone_on(self) -> None:
            """A site's first word is no task's answer: whoever has taken it shows by going on."""
            _die(self.after)

        def push_messages(self, messages: Iterable[Any]) -> list[str]:
            found = []
            self.gone_on()
            for message in messages:
                self.count = getattr(self, "count", 0) + 1
                _die(way == "unsent" and self.count == at)
                [number] = super().push_messages([message])
                self.numbers = {**getattr(self, "numbers", {}), number: self.count}
                found.append(number)
                if log is not None:
                    with open(log, "a") as file:
                        file.write(f"{message.metadata.message_type}\n")
                _die(way == "sent" and self.count == at)
            return found

        def pull_messages(self, message_ids: Iterable[str]) -> list[Any]:
            self.gone_on()
            wanted = list(message_ids)
            hit = any(self.numbers.get(number) == at for number in wanted)
            if hit and way in SITE and not getattr(self, "done", False):
                self.done = True
                message = self.waiting[wanted[0]]
                node = message.metadata.dst_node_id
                if way != "idle":
                    self.app(message, self.contexts[node])
                del self.waiting[wanted[0]]
                return [failed(message, 5)]
            found = super().pull_messages(wanted)
            _die(way == "answered" and hit and bool(found))
            self.after = hit and way == "taken"
            return found

    roster.LOOK = 0.0
    folders = [Path(sites) / name for name in NAMES]
    grid = Counted(folders, seed=nodes)
    if way == "taken":  # once the engine has handed the answer on, and the server has done with it
        exchange = flower.Flower.exchange

        def watched(self: Any, tasks: Any, deadline_seconds: float) -> Any:
            for answer in exchange(self, tasks, deadline_seconds):
                yield answer
                grid.gone_on()

        flower.Flower.exchange = watched  # type: ignore[method-assign]
    flower._loans.append(flower.Loan(grid, roster.across_sites))


def _die(now: bool) -> None:
    if now:
        os._exit(DIED)


def made_sites(farm: Farm) -> Path:
    """Three sites with what the clients of a simulation hold, made once."""

    def make(folder: Path) -> Path:
        from osmotic.sites import site

        sets = [part for key in COMMON if key.startswith("data.") for part in ("--set", key)]
        assert farm.run(["split", *sets, "--out", str(folder / "parts")]).code == 0
        for name in NAMES:
            site.init(
                folder / "sites" / name,
                name,
                f"npz:{folder / 'parts' / name}.npz",
                "localhost:1",
                None,
                9094,
            )
            file = folder / "sites" / name / "site.toml"
            file.write_text(file.read_text().replace("own_model = false", "own_model = true"))
        return folder / "sites"

    return farm.once("made-sites", make)


def all_left(folder: Path, sites: Path) -> dict[str, Any]:
    """What a run left at its hub and at its sites."""
    found = {f"hub/{name}": content for name, content in left(folder).items()}
    for name in NAMES:
        found |= {f"{name}/{file}": content for file, content in left(sites / name / "state").items()}
    return {_nameless(name): content for name, content in found.items()}


def _nameless(file: str) -> str:
    """A path without the name that a run gave itself, which is another each time."""
    return re.sub(r"(?<=/)[0-9a-f]{16}(?=[./])", "run", file)


def unbroken(farm: Farm, config: str) -> tuple[dict[str, Any], list[str]]:
    """What a run leaves to which nothing happens, and its messages by type."""

    def make(folder: Path) -> tuple[dict[str, Any], list[str]]:
        sites = _copy(farm, folder.with_name(f"{folder.name}-sites"))
        log = folder.with_suffix(".messages")
        words = ["run", *settings(config), "--out", str(folder)]
        ended = farm.run(words, befall, str(sites), 0, "", 0, str(log))
        assert ended.code == 0, ended.said
        return all_left(folder, sites), log.read_text().splitlines()

    return farm.once(f"unbroken-messages-{config}", make)


def _copy(farm: Farm, sites: Path) -> Path:
    shutil.copytree(made_sites(farm), sites)
    return sites


def outlive(farm: Farm, death: Death) -> list[str]:
    """Dies, goes on until the run is finished, and says what differs from the unbroken run."""
    draw = random.Random(f"{SEED} {death}")
    expected, messages = unbroken(farm, death.config)
    folder = farm.folder / f"message-{death.config}-{death.message}-{death.way}"
    sites = _copy(farm, folder.with_name(f"{folder.name}-sites"))
    try:
        begin = ["run", *settings(death.config), "--out", str(folder)]
        ended = farm.run(begin, befall, str(sites), death.message, death.way, 1, None)
        if death.way in HUB:
            if ended.code != DIED:
                return [f"did not die: exit code {ended.code}, {ended.said[-1:]}"]
            again = draw.random() < AGAIN
            for turn in range(2, 8):
                command = ["resume", str(folder)] if (folder / "config.toml").is_file() else begin
                at = draw.randint(1, len(messages)) if again else 0
                ended = farm.run(command, befall, str(sites), at, draw.choice(HUB), turn, None)
                if ended.code != DIED:
                    break
                again = draw.random() < AGAIN
        if ended.code:
            return [f"ended with {ended.code}: {ended.said[-3:]}"]
        return differences(expected, all_left(folder, sites))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(sites, ignore_errors=True)


def every(farm: Farm) -> list[Death]:
    """All deaths there are."""
    return [
        Death(config, number, way)
        for config in CONFIGS
        for number in range(1, len(unbroken(farm, config)[1]) + 1)
        for way in WAYS
    ]


def check(farm: Farm, deaths: Iterable[Death], workers: int = 2) -> tuple[Counter[str], list[str]]:
    """Outlives them all: (how many in each way, what went wrong)."""
    deaths, tried = list(deaths), Counter[str]()
    with ThreadPoolExecutor(workers) as pool:
        results = list(pool.map(lambda death: outlive(farm, death), deaths))
    wrong = []
    for death, lines in zip(deaths, results, strict=True):
        tried[death.way] += 1
        wrong += [f"{death.command}: {line}" for line in lines[:5]]
    return tried, wrong
