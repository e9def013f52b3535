"""Files of a stopped run altered, torn, swapped, copied, deleted: it resumes to the right bits or says why it cannot."""

from __future__ import annotations

import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from .deaths import befall, points
from .points import DIED
from .runs import Farm, differences, left, settings

SEED = 20
# Where the run is stopped: while round 3 is booked, before its model is there, and not at all.
STOPPED = ("in round 3", "before the model", "finished")
Damage = Callable[
    [Path, Path, random.Random], None
]  # (the run, a run of another seed at the same point, draw)


def _flip(path: Path, draw: random.Random) -> None:
    data = bytearray(path.read_bytes())
    data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    path.write_bytes(bytes(data))


def _cut(path: Path, draw: random.Random) -> None:
    path.write_bytes(path.read_bytes()[: draw.randrange(path.stat().st_size)])


def _longer(path: Path, draw: random.Random) -> None:
    path.write_bytes(path.read_bytes() + draw.randbytes(draw.randint(1, 100)))


def _gone(path: Path, draw: random.Random) -> None:
    path.unlink()


def checkpoints(run: Path) -> list[Path]:
    """Older first."""
    return sorted(run.glob("checkpoints/*.safetensors"))


def states(run: Path) -> list[Path]:
    """Private states of the clients."""
    return sorted(run.glob("clients/*/state-*"))


def one(
    which: Callable[[Path], list[Path]], index: int | None, how: Callable[[Path, random.Random], None]
) -> Damage:
    """To one of these files, or to a random one."""

    def damage(run: Path, other: Path, draw: random.Random) -> None:
        if found := which(run):
            how(draw.choice(found) if index is None else found[index], draw)

    return damage


def all_of(which: Callable[[Path], list[Path]], how: Callable[[Path, random.Random], None]) -> Damage:
    """To all of these files."""

    def damage(run: Path, other: Path, draw: random.Random) -> None:
        for path in which(run):
            how(path, draw)

    return damage


def named(name: str) -> Callable[[Path], list[Path]]:
    """The file of this name."""
    return lambda run: [run / name] if (run / name).is_file() else []


def swapped(which: Callable[[Path], list[Path]]) -> Damage:
    """Two of these files change their names."""

    def damage(run: Path, other: Path, draw: random.Random) -> None:
        if len(found := which(run)) > 1:
            a, b = draw.sample(found, 2)
            a_data, b_data = a.read_bytes(), b.read_bytes()
            a.write_bytes(b_data)
            b.write_bytes(a_data)

    return damage


def copied(which: Callable[[Path], list[Path]], source: int, target: int) -> Damage:
    """One of these files over another."""

    def damage(run: Path, other: Path, draw: random.Random) -> None:
        if len(found := which(run)) > 1:
            shutil.copyfile(found[source], found[target])

    return damage


def _moved(by: int) -> Damage:
    def damage(run: Path, other: Path, draw: random.Random) -> None:
        newest = checkpoints(run)[-1]
        step = int(newest.stem.rpartition("-")[2]) + by
        newest.rename(newest.with_name(f"checkpoint-{step:06d}.safetensors"))

    return damage


def foreign(which: Callable[[Path], list[Path]]) -> Damage:
    """These files are those of another run."""

    def damage(run: Path, other: Path, draw: random.Random) -> None:
        for mine, theirs in zip(which(run)[::-1], which(other)[::-1], strict=False):
            shutil.copyfile(theirs, mine)

    return damage


def _digit(path: Path, draw: random.Random) -> None:
    data = bytearray(path.read_bytes())
    # Beside times, which nothing depends on.
    lines = [i for i, c in enumerate(data) if chr(c).isdigit() and b"wall" not in data[max(0, i - 24) : i]]
    place = draw.choice(lines)
    data[place] = ord("0") + (data[place] - ord("0") + draw.randint(1, 9)) % 10
    path.write_bytes(bytes(data))


METRICS, LEDGER = named("metrics.jsonl"), named("ledger.jsonl")
DAMAGES: dict[str, Damage] = {
    "a bit of the newest checkpoint": one(checkpoints, -1, _flip),
    "a bit of the oldest checkpoint": one(checkpoints, 0, _flip),
    "a bit of every checkpoint": all_of(checkpoints, _flip),
    "the newest checkpoint torn": one(checkpoints, -1, _cut),
    "every checkpoint torn": all_of(checkpoints, _cut),
    "bytes behind the newest checkpoint": one(checkpoints, -1, _longer),
    "the newest checkpoint deleted": one(checkpoints, -1, _gone),
    "the oldest checkpoint deleted": one(checkpoints, 0, _gone),
    "every checkpoint deleted": all_of(checkpoints, _gone),
    "checkpoints swapped": swapped(checkpoints),
    "the older checkpoint over the newer": copied(checkpoints, 0, -1),
    "the newer checkpoint over the older": copied(checkpoints, -1, 0),
    "the newest checkpoint renamed to a later step": _moved(1),
    "the newest checkpoint renamed to an earlier step": _moved(-1),
    "checkpoints of another run": foreign(checkpoints),
    "the newest checkpoint of another run": foreign(lambda run: checkpoints(run)[-1:]),
    "a bit of a private state": one(states, None, _flip),
    "a private state torn": one(states, None, _cut),
    "a private state deleted": one(states, None, _gone),
    "every private state deleted": all_of(states, _gone),
    "private states swapped": swapped(states),
    "private states of another run": foreign(states),
    "metrics deleted": one(METRICS, 0, _gone),
    "metrics torn": one(METRICS, 0, _cut),
    "a digit of metrics": one(METRICS, 0, _digit),
    "bytes behind metrics": one(METRICS, 0, _longer),
    "ledger deleted": one(LEDGER, 0, _gone),
    "ledger torn": one(LEDGER, 0, _cut),
    "a digit of the ledger": one(LEDGER, 0, _digit),
    "ledger of another run": foreign(LEDGER),
    "config.toml torn": one(named("config.toml"), 0, _cut),
    "partition.json torn": one(named("partition.json"), 0, _cut),
    "partition.json deleted": one(named("partition.json"), 0, _gone),
    "partition.json of another run": foreign(named("partition.json")),
}
# A site that lost its state cannot answer as before. The run then may end otherwise, and says so.
MAY_BE_TOLD = {name for name in DAMAGES if "private state" in name}


@dataclass(frozen=True)
class Case:
    """One damage to one stopped run; `number` draws where exactly."""

    config: str
    stopped: str
    damage: str
    number: int

    @property
    def command(self) -> str:
        """What repeats it."""
        return (
            f"python -m tests.chaos damage --config {self.config} --stopped {self.stopped!r} "
            f"--kind {self.damage!r} --number {self.number}"
        )


def stopped(farm: Farm, config: str, where: str, seed: int) -> Path:
    """A run that died there; made once."""
    found = points(farm, config)
    second = next(
        n for n, point in enumerate(found, 1) if point.startswith("replace checkpoints/.checkpoint-000002")
    )
    at = {
        # Where the checkpoint was written beside round 3, as late as it may be, what follows is the last one.
        "in round 3": next(
            (n for n, p in enumerate(found, 1) if n > second and p.startswith("write ledger")), second + 1
        ),
        "before the model": next(
            n for n, p in enumerate(found, 1) if p.startswith(("mkdir .model", "mkdir model"))
        ),
        "finished": 0,
    }[where]

    def stop(folder: Path) -> Path:
        begin = ["run", *settings(config), "--set", f"seed={seed}", "--out", str(folder)]
        ended = farm.run(begin, befall, str(folder), at, "die", None)
        assert ended.code == (DIED if at else 0), (config, where, ended)
        return folder

    return farm.once(f"stopped-{config}-{where}-{seed}", stop)


def harm(farm: Farm, case: Case) -> tuple[str, list[str]]:
    """(what became of the run: "right", "refused" or "told", what is wrong)."""
    draw = random.Random(f"{SEED} {case}")
    expected = farm.unbroken(case.config)
    folder = farm.folder / f"damaged-{abs(hash(case))}"
    shutil.copytree(stopped(farm, case.config, case.stopped, 0), folder)
    try:
        DAMAGES[case.damage](folder, stopped(farm, case.config, case.stopped, 1), draw)
        ended = farm.run(["resume", str(folder)])
        errors = [line for line in ended.said if line.startswith("osmotic: error: ")]
        if ended.code == 2 and len(errors) == 1 and ended.said[-1] == errors[0]:
            return "refused", []
        if ended.code:
            return "wrong", [f"ended with {ended.code}: {' | '.join(ended.said[-4:])[-300:]}"]
        found = left(folder)
        if case.damage in MAY_BE_TOLD and found["summary.json"][0]["failures"]:
            return "told", []
        # What nobody had to read may still be damaged: older checkpoints, and the states that they would go back to.
        newest = max(n for n in expected if n.startswith("checkpoints/"))
        unread = tuple(
            n for n in found | expected if n.startswith(("checkpoints/", "clients/")) and n != newest
        )
        if case.damage == "config.toml torn":
            # Cut after a whole line it is a configuration, of which only keys that change no bit may be missing.
            unread += ("config.toml", "tensorboard/", newest)
        wrong = [d for d in differences(expected, found) if not d.startswith(unread)]
        return "right", [f"resumed without a word, but {line}" for line in wrong[:4]]
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def every(numbers: int) -> list[Case]:
    """All damages to all stopped runs, `numbers` times where they are drawn."""
    return [Case(c, s, d, n) for c in ("fedavg", "udec") for s in STOPPED for d in DAMAGES
            for n in range(numbers) if not (c == "fedavg" and "private" in d)]  # fmt: skip


def check(farm: Farm, cases: Iterable[Case], workers: int = 2) -> tuple[Counter[str], list[str]]:
    """How many came out how, and what went wrong, a line each."""
    cases = list(cases)
    with ThreadPoolExecutor(workers) as pool:
        results = list(pool.map(lambda case: harm(farm, case), cases))
    counted = Counter(outcome for outcome, _ in results)
    return counted, [
        f"{c.command}: {line}" for c, (_, wrong) in zip(cases, results, strict=True) for line in wrong
    ]
