"""The tables of README.md, from the rows of study.py.

python experiments/personal/tables.py             # markdown on stdout
"""

from __future__ import annotations

import math
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from cases import ADAPTERS, CELLS, PILOT_SEED, RATES, SEEDS  # noqa: E402
from paired import interval, read  # noqa: E402

Clients = Mapping[str, Mapping[str, Any]]


def clients(row: Mapping[str, Any]) -> Clients:
    """Clients of a row by name."""
    return {one["client"]: one for one in row["clients"]}


def scored(one: Mapping[str, Any], kind: str, score: str) -> float | None:
    """A score of a client's own model, or of the global one."""
    found = (one.get(kind) or {}).get(score)
    return None if found is None else float(found)


def ratio(a: Clients, b: Clients, kind_a: str, kind_b: str, score: str = "fd_own") -> tuple[float, int, int]:
    """Mean over clients of the logarithm of score a / score b; clients that are better in a, and how many there are."""
    logs = []
    for name, one in a.items():
        mine, theirs = scored(one, kind_a, score), scored(b[name], kind_b, score)
        if mine is not None and theirs is not None:
            logs.append(math.log(mine / theirs))
    return statistics.fmean(logs), sum(value < 0 for value in logs), len(logs)


def told(logs: list[float]) -> str:
    """Geometric mean over seeds of ratios and its 95 % interval, given their logarithms; no interval of one."""
    middle, low, high = interval(logs)
    return f"{middle:.3f}" if len(logs) < 2 else f"{middle:.3f} ({low:.3f} to {high:.3f})"


def mean(rows: Mapping[int, Clients], value: Callable[[Mapping[str, Any]], float | None]) -> str:
    """Mean over clients and seeds of what is there."""
    found = [v for row in rows.values() for one in row.values() if (v := value(one)) is not None]
    return f"{statistics.fmean(found):.3f}" if found else "-"


# What every way is held against, and which of its models.
BASELINES = {"local": "personal", "global-as-long": "global", "udec": "personal", "all": "global"}


def table(rows: Mapping[str, Mapping[str, Any]], cell: str) -> str:
    """One line for each way to a model of one's own, paired client by client with training alone and with two global models."""
    lines = [
        "| model | seeds | FD to own held-out images | to the test split | / alone | clients better | / global, as many passes | clients better "
        "| / UDec | clients better | / global before fine-tuning | clients better | near-copies (expected) |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    by: dict[str, dict[int, Clients]] = {}
    for name, row in rows.items():
        if name.startswith(f"{cell}-"):
            method, _, seed = name.removeprefix(f"{cell}-").rpartition("-s")
            by.setdefault(method, {})[int(seed)] = clients(row)
    order = [("global before fine-tuning", "global", "all")] if "all" in by else []
    order += [(m, "global" if m == "global-as-long" else "personal", m) for m in by]
    for name, kind, method in order:
        found = by[method]
        cells = [
            name,
            ", ".join(map(str, sorted(found))),
            mean(found, lambda one, kind=kind: scored(one, kind, "fd_own")),
            mean(found, lambda one, kind=kind: scored(one, kind, "fd_test")),
        ]
        for other, other_kind in BASELINES.items():
            shared = sorted(found.keys() & by.get(other, {}).keys())
            if not shared or (method, kind) == (other, other_kind):
                cells += ["", ""]
                continue
            pairs = [ratio(found[s], by[other][s], kind, other_kind) for s in shared]
            cells += [
                told([p[0] for p in pairs]),
                f"{sum(p[1] for p in pairs)} of {sum(p[2] for p in pairs)}",
            ]
        copies, expected = (
            mean(found, lambda one, kind=kind, what=what: scored(one, kind, what))
            for what in ("copies", "copies_expected")
        )
        lines.append("| " + " | ".join([*cells, f"{copies} ({expected})"]) + " |")
    floors = mean(by.get("all", {}), lambda one: one["floor"])
    return "\n".join(lines) + f"\n\nFloor (own training images against own held-out ones): {floors}."


def distances(row: Mapping[str, Any]) -> list[float]:
    """Of every client: total variation distance of its class mix to that of all clients' images together, 0..1."""
    union = [sum(column) for column in zip(*(one["classes"] for one in row["clients"]), strict=True)]
    return [
        sum(abs(a / sum(one["classes"]) - b / sum(union)) for a, b in zip(one["classes"], union, strict=True))
        / 2
        for one in row["clients"]
    ]


def who_gains(rows: Mapping[str, Mapping[str, Any]], cell: str, method: str) -> str:
    """Correlation over clients and seeds of what fine-tuning gains with size, and with the distance to the union's class mix."""
    sizes, far, gains = [], [], []
    for name, row in rows.items():
        if not name.startswith(f"{cell}-{method}-s"):
            continue
        for one, distance in zip(row["clients"], distances(row), strict=True):
            mine, whole = scored(one, "personal", "fd_own"), scored(one, "global", "fd_own")
            if mine is None or whole is None:
                continue
            gains.append(math.log(mine / whole))
            sizes.append(math.log(one["images"]))
            far.append(distance)
    if len(gains) < 3 or len(set(sizes)) < 2:
        return "-"
    found = [statistics.correlation(sizes, gains), statistics.correlation(far, gains)]
    return f"{len(gains)} clients: correlation of log(own / global) with log(images) {found[0]:+.2f}, with the distance of the class mix to the union's {found[1]:+.2f}"


def adapters(rows: Mapping[str, Mapping[str, Any]], ways: Iterable[str], seeds: Sequence[int]) -> str:
    """FD and bytes of every way to go on from one network, paired by seed with all weights in fp32."""
    lines = [
        "| what is trained | FD | / all weights, fp32 | MB up | MB down | bytes, all weights in fp32 / these |",
        "|---|---|---|---|---|---|",
    ]
    for name in ways:
        pairs = [(rows[f"{name}-s{s}"], rows[f"all-fp32-s{s}"]) for s in seeds if f"{name}-s{s}" in rows]
        if not pairs:
            continue
        logs = [math.log(a["fd"] / b["fd"]) for a, b in pairs]
        up, down = (statistics.fmean(a[k] for a, _ in pairs) for k in ("bytes_up", "bytes_down"))
        whole = statistics.fmean(b["bytes_up"] + b["bytes_down"] for _, b in pairs)
        told_fd = ", ".join(f"{a['fd']:.2f}" for a, _ in pairs)
        lines.append(
            f"| {name} | {told_fd} | {'' if name == 'all-fp32' else told(logs)} | {up / 1e6:.2f} | {down / 1e6:.2f} | {whole / (up + down):.1f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    for file in ("pilot.jsonl", "results.jsonl"):
        if rows := read(HERE / file):
            for cell in CELLS:
                print(f"\n### {file}, {cell}\n\n{table(rows, cell)}\n")
                print(f"Who gains (all weights): {who_gains(rows, cell, 'all')}")
    for file, ways, told_seeds in (
        ("rates.jsonl", RATES, (PILOT_SEED,)),
        ("adapters.jsonl", ADAPTERS, SEEDS),
    ):
        if rows := read(HERE / file):
            print(f"\n### {file}\n\n{adapters(rows, ways, told_seeds)}\n")
