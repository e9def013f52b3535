"""The tables of README.md, from the rows of study.py.

python experiments/fedddpm/tables.py             # markdown on stdout
"""

from __future__ import annotations

import math
import statistics
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from paired import Rows, interval, read  # noqa: E402

CELLS = (
    "dirichlet-0.5",
    "two-classes",
    "iid",
    "q-skew",
    "fashion",
    "feature-contrast",
    "feature-rotation",
    "feature-blur",
)


def by_method(rows: Rows, prefix: str) -> dict[str, dict[int, dict[str, Any]]]:
    """Method -> seed -> row, of the cases that begin so."""
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for case, row in rows.items():
        if case.startswith(prefix):
            name, _, seed = case.removeprefix(prefix).rpartition("-s")
            found.setdefault(name, {})[int(seed)] = row
    return found


def table(methods: dict[str, dict[int, dict[str, Any]]], base: str = "fedavg") -> str:
    """One line for each method, paired with `base` over the seeds that both have."""
    lines = [
        f"| method | seeds | FD | held-out FD | FD / {base} | 95 % | images of clients | server steps | bytes up | near-copies | FD of the set (floor) |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, own in methods.items():
        seeds = [s for s in sorted(own) if s in methods.get(base, {})]
        if not seeds:
            continue
        rows = [own[s] for s in seeds]
        ratio, low, high = interval([math.log(own[s]["fd"] / methods[base][s]["fd"]) for s in seeds])
        told = "" if len(seeds) < 2 or name == base else f"{low:.2f} to {high:.2f}"
        copies = [c["features"] for r in rows if (c := r.get("near_copies"))]
        sets = [s for r in rows if (s := r.get("set"))]
        drawn = f"{_mean(s['fd'] for s in sets):.2f} ({_mean(s['floor'] for s in sets):.2f})" if sets else ""
        lines.append(
            f"| {name} | {len(seeds)} | {_mean(r['fd'] for r in rows):.3f} | {_mean(r['held_out_fd'] for r in rows):.3f} | "
            f"{ratio:.3f} | {told} | {_mean(r['images_seen'] for r in rows):,.0f} | {_mean(r['server_steps'] for r in rows):,.0f} | "
            f"{_mean(r['bytes_up'] for r in rows) / 1e6:,.1f} MB | {_mean(copies):.1%} | {drawn} |"
        )
    return "\n".join(lines)


def kept(methods: dict[str, dict[int, dict[str, Any]]], plus: str = "fedddpm+", base: str = "fedavg") -> str:
    """How much of FedDDPM's gain FedDDPM+ keeps, and at how many of its server steps, seed by seed."""
    found = []
    for seed in sorted(methods.get(plus, {})):
        if all(seed in methods.get(m, {}) for m in (base, "fedddpm")):
            without, whole, few = (methods[m][seed] for m in (base, "fedddpm", plus))
            gain = (without["fd"] - few["fd"]) / (without["fd"] - whole["fd"])
            found.append(
                f"seed {seed} {gain:.0%} at {few['server_steps'] / whole['server_steps']:.0%} of the steps"
            )
    return f"`{plus}` keeps of the gain of `fedddpm`: " + "; ".join(found) + "." if found else ""


PAIRS = (
    ("fedddpm", "fedavg-equal-images"),
    ("fedddpm", "fedavg-equal-bytes"),
    ("fedddpm", "fedavg-more-steps"),
    ("fedddpm", "fedavg-equal-sequence"),
    ("fedddpm", "set-alone"),
    ("fedddpm", "real-set"),
    ("fedddpm", "fedddpm-upload"),
    ("fedddpm+", "fedddpm"),
    ("oneshot", "fedddpm"),
    ("oneshot", "fedavg-equal-images"),
    ("oneshot", "central"),
)


def pairs(methods: dict[str, dict[int, dict[str, Any]]]) -> str:
    """Paired ratios of FD that FedAvg's column does not tell."""
    lines = ["| FD of | over that of | by seed | mean | 95 % |", "|---|---|---|---|---|"]
    for a, b in PAIRS:
        seeds = [s for s in sorted(methods.get(a, {})) if s in methods.get(b, {})]
        if not seeds:
            continue
        logs = [math.log(methods[a][s]["fd"] / methods[b][s]["fd"]) for s in seeds]
        middle, low, high = interval(logs)
        each = ", ".join(f"{math.exp(v):.2f}" for v in logs)
        told = "" if len(seeds) < 2 else f"{low:.2f} to {high:.2f}"
        lines.append(f"| {a} | {b} | {each} | {middle:.2f} | {told} |")
    return "\n".join(lines)


def cells(rows: Rows) -> str:
    """One line for each cell: FD of every method, and in brackets over FedAvg's."""
    names = ("fedavg", "fedprox", "fedavg-equal-sequence", "fedddpm", "fedddpm+", "oneshot")
    lines = [
        "| cell | "
        + " | ".join(names)
        + " | steps of fedddpm+ | its share of the gain | oneshot's set (floor) | near-copies, at most |",
        "|---" * (len(names) + 5) + "|",
    ]
    for cell in CELLS:
        own = {name: seeds[0] for name, seeds in by_method(rows, f"{cell}-").items() if 0 in seeds}
        if "fedavg" not in own:
            continue
        base = own["fedavg"]["fd"]
        told = [f"{own[n]['fd']:.2f} ({own[n]['fd'] / base:.2f})" if n in own else "-" for n in names]
        steps = gain = "-"
        if "fedddpm+" in own:
            steps = f"{own['fedddpm+']['server_steps'] / own['fedddpm']['server_steps']:.0%}"
            won = base - own["fedddpm"]["fd"]
            gain = f"{(base - own['fedddpm+']['fd']) / won:.0%}" if won > 0.05 * base else "no gain"
        held = own["oneshot"]["set"]
        copies = max(row["near_copies"]["features"] for row in own.values())
        lines.append(
            f"| {cell} | {' | '.join(told)} | {steps} | {gain} | {held['fd']:.2f} ({held['floor']:.2f}) | {copies:.1%} |"
        )
    return "\n".join(lines)


def _mean(values: Any) -> float:
    found = list(values)
    return statistics.fmean(found) if found else math.nan


def main() -> None:
    """Prints every table that has rows."""
    if rows := read(HERE / "pilot.jsonl"):
        print(f"### Pilot, seed 100\n\n{table(by_method(rows, ''), 'fedavg-10x1')}\n")
    if rows := read(HERE / "results.jsonl"):
        methods = by_method(rows, "dirichlet-0.1-")
        print(f"### Dirichlet 0.1\n\n{table(methods)}\n\n{pairs(methods)}\n\n{kept(methods)}\n")
    if rows := read(HERE / "cells.jsonl"):
        print(f"### Other cells, seed 0\n\n{cells(rows)}\n")
    if rows := read(HERE / "sizes.jsonl"):
        print(
            "### Size of the set\n\n| images | share | FD | held-out FD | FD of the set (floor) |\n|---|---|---|---|---|"
        )
        for case, row in rows.items():
            held = row["set"]
            share = float(case.removeprefix("size-").rpartition("-s")[0])
            drawn = f"{held['fd']:.2f} ({held['floor']:.2f})"
            print(
                f"| {held['images']:,} | {share:.0%} | {row['fd']:.3f} | {row['held_out_fd']:.3f} | {drawn} |"
            )


if __name__ == "__main__":
    main()
