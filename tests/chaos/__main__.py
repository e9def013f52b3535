"""`python -m tests.chaos` does all of it and writes its figures into docs/reliability.md; with a kind, one case again."""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from . import damage, deaths, disk, kills, messages, packets, replies, runs, twice

PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"
BEGIN, END = "<!-- figures: written by `make chaos` -->", "<!-- end of figures -->"
Row = tuple[str, str, list[str]]  # what was done, figures, what went wrong


def all_deaths(farm: runs.Farm, workers: int) -> Iterator[Row]:
    """Every configuration its own row."""
    for config in runs.CONFIGS:
        result = deaths.check(farm, [d for d in deaths.every(farm) if d.config == config], workers)
        tried = {way: result.tried[f"{config} {way}"] for way in deaths.WAYS}
        figures = (
            f"{len(deaths.points(farm, config))} points: {tried['die']} deaths, {tried['torn']} in the middle of a write, "
            f"{tried['cut']} power cuts"
        )
        yield f"deaths, `{config}`", figures, result.wrong


def all_packets(farm: runs.Farm, workers: int, total: int) -> list[Row]:
    """One row for all codecs."""
    result = packets.check_all(total, workers)
    bombs = sum(n for way, n in result.tried.items() if way.endswith(" bomb"))
    figures = (
        f"{result.tried.total():,} packets over {len(packets.CODECS)} codecs, {bombs:,} of them bombs; {result.taken:,} were harmless "
        f"and taken; slowest {1000 * result.slowest:.1f} ms of processor time; of {result.traced:,} traced the largest "
        f"allocation was {100 * result.largest:.0f} % of what the contract allows"
    )
    return [("mutated packets", figures, result.wrong)]


def all_replies(farm: runs.Farm, workers: int) -> Iterator[Row]:
    """One row per configuration."""
    for config in replies.CODEC:
        wrong = replies.check(farm, [(config, kind) for kind in replies.KINDS], workers)
        yield f"bad replies, `{config}`", f"{len(replies.KINDS)} kinds, each in a whole run", wrong


def all_pairs(farm: runs.Farm, workers: int) -> list[Row]:
    """Held and racing."""
    pairs, races = twice.pairs(farm), 8
    wrong = twice.check(farm, pairs, races, workers)
    return [("two processes on one folder", f"{len(pairs)} held at a point, {races} races", wrong)]


def all_disks(farm: runs.Farm, workers: int) -> list[Row]:
    """Played, and where a file system can be mounted, real."""
    full = disk.every(farm, step=8)
    real = (
        [(c, size) for c in ("fedavg", "udec") for size in range(24, 320, 36)] if disk.mountable(farm) else []
    )
    wrong = disk.check(farm, full, real, workers)
    return [("a full disk", f"{len(full)} points, {len(real)} file systems of 24 to 312 kB", wrong)]


def all_damage(farm: runs.Farm, workers: int) -> list[Row]:
    """One row."""
    cases = damage.every(1)
    counted, wrong = damage.check(farm, cases, workers)
    figures = (
        f"{len(damage.DAMAGES)} kinds, {len(cases)} cases: {counted['right']} ended with the right bits, {counted['refused']} were "
        f"refused in one line, {counted['told']} ended with the loss among the run's failures"
    )
    return [("damaged, swapped, copied, deleted files", figures, wrong)]


def all_kills(farm: runs.Farm, workers: int) -> list[Row]:
    """One row."""
    sent: Counter[str]
    sent, wrong = kills.check(farm, range(10), workers=workers)
    figures = ", ".join(f"{n} {name}" for name, n in sorted(sent.items()))
    return [("signals to the command", f"10 runs: {figures}", wrong)]


def all_messages(farm: runs.Farm, workers: int) -> list[Row]:
    """One row for all configurations."""
    cases = messages.every(farm)
    tried, wrong = messages.check(farm, cases, workers)
    at_hub = sum(tried[way] for way in messages.HUB)
    figures = f"{at_hub} deaths of the hub at a send or receive, {tried.total() - at_hub} of a site"
    return [("messages between hub and sites", figures, wrong)]


def everything(workers: int, total: int) -> int:
    """All kinds; writes the page and returns the exit code."""
    began, rows = time.monotonic(), list[tuple[Row, float]]()
    kinds: list[Callable[[runs.Farm, int], Iterable[Row]]] = [
        lambda farm, workers: all_packets(farm, workers, total),
        all_replies,
        all_pairs,
        all_damage,
        all_disks,
        all_kills,
        all_messages,
        all_deaths,
    ]
    with runs.farm() as farm:
        for kind in kinds:
            start = time.monotonic()
            for row in kind(farm, workers):
                took, start = time.monotonic() - start, time.monotonic()
                rows.append((row, took))
                print(
                    f"{row[0]}: {row[1]}; {len(row[2])} wrong; {took:.0f} s", *row[2], sep="\n  ", flush=True
                )
    wrong = sum(len(row[2]) for row, _ in rows)
    if not wrong:
        write(rows, time.monotonic() - began, workers)
    return min(wrong, 1)


def write(rows: list[tuple[Row, float]], seconds: float, workers: int) -> None:
    """The figures, between their marks on the page."""
    import torch

    lines = ["| what | how often | wrong | seconds |", "|---|---|---|---|"]
    lines += [f"| {name} | {figures} | {len(wrong)} | {took:.0f} |" for (name, figures, wrong), took in rows]
    load = os.getloadavg()[2]
    lines += ["", f"Measured in {seconds / 60:.0f} minutes with {workers} processes on {os.cpu_count()} cores ({platform.machine()}, "
              f"load {load:.1f} over the last quarter of an hour), Python {platform.python_version()}, torch {torch.__version__}, "
              f"seed {deaths.SEED}."]  # fmt: skip
    before, _, rest = PAGE.read_text().partition(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n\n" + "\n".join(lines) + f"\n\n{END}{rest.partition(END)[2]}")


def once(asked: argparse.Namespace) -> list[str]:
    """One case again."""
    if asked.kind_of == "packets":
        return packets.check(asked.codec, [asked.number]).wrong
    with runs.farm() as farm:
        match asked.kind_of:
            case "deaths":
                return deaths.outlive(farm, deaths.Death(asked.config, asked.point, asked.way))
            case "replies":
                return replies.take(farm, asked.config, asked.kind)
            case "messages":
                return messages.outlive(farm, messages.Death(asked.config, asked.number, asked.way))
            case "twice" if asked.race is not None:
                return twice.race(farm, asked.race)
            case "twice":
                first, _, second = asked.pair.partition("+")
                return twice.meet(farm, twice.Pair(asked.config, first, second, asked.point))
            case "disk" if asked.kilobytes:
                return disk.truly(farm, asked.config, asked.kilobytes)
            case "disk":
                return disk.fill(farm, disk.Full(asked.config, asked.point))
            case "damage":
                return damage.check(
                    farm, [damage.Case(asked.config, asked.stopped, asked.kind, asked.number)]
                )[1]
            case _:
                return kills.check(farm, range(asked.number, asked.number + 1), asked.config)[1]


def main() -> None:
    """Exit code 1 where a claim does not hold."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--workers", type=int, default=2, help="processes side by side")
    parser.add_argument("--packets", type=int, default=1_000_000, help="how many mutated packets")
    kinds = parser.add_subparsers(dest="kind_of", metavar="KIND")
    for name in ("deaths", "packets", "replies", "twice", "disk", "damage", "kills", "messages"):
        kind = kinds.add_parser(name)
        kind.add_argument("--config", choices=[*runs.CONFIGS, *messages.CONFIGS], default="fedavg")
        kind.add_argument("--codec", choices=list(packets.CODECS), default="int8")
        kind.add_argument("--point", type=int, default=1, help="number of the point, from 1")
        kind.add_argument("--way", choices=[*deaths.WAYS, *messages.WAYS], default="die")
        kind.add_argument("--number", type=int, default=0)
        kind.add_argument("--kind", help="name of the reply or the damage")
        kind.add_argument("--stopped", choices=damage.STOPPED, default="in round 3")
        kind.add_argument("--pair", default="run+run")
        kind.add_argument("--race", type=int)
        kind.add_argument("--kilobytes", type=int, default=0)
    asked = parser.parse_args()
    if asked.kind_of is None:
        sys.exit(everything(asked.workers, asked.packets))
    wrong = once(asked)
    print("\n".join(wrong) or "holds")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
