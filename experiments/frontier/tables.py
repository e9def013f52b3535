"""The tables of README.md and the picture of quality against bytes, from the rows of study.py.

python experiments/frontier/tables.py             # markdown on stdout, frontier.png beside this file
"""

from __future__ import annotations

import math
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from paired import Rows, interval, read  # noqa: E402

MARKS = ((4, 1.02), (8, 1.05), (32, 1.05), (150, 1.10), (500, 1.15))


def ratio(values: Sequence[float], base: Sequence[float]) -> tuple[float, float]:
    """Geometric mean of paired ratios, and its upper 95 % bound (infinite for one pair)."""
    logs = [math.log(a / b) for a, b in zip(values, base, strict=True)]
    mean, _, upper = interval(logs)
    return mean, upper


def bytes_of(row: dict[str, Any]) -> int:
    """Both directions."""
    return int(row["bytes_up"] + row["bytes_down"])


def cell_rows(rows: Rows, cell: str, base: str = "fp32") -> list[dict[str, Any]]:
    """One line for each setting of a cell: paired with `base` over the seeds that both have."""
    seeds: dict[str, dict[int, dict[str, Any]]] = {}
    for case, row in rows.items():
        if case.startswith(f"{cell}-"):
            name, _, seed = case.removeprefix(f"{cell}-").rpartition("-s")
            seeds.setdefault(name, {})[int(seed)] = row
    found = []
    for name, own in seeds.items():
        pairs = [(own[s], seeds[base][s]) for s in sorted(own) if s in seeds.get(base, {})]
        if not pairs:
            continue
        fd = [a["fd"] for a, _ in pairs]
        mean, upper = ratio(fd, [b["fd"] for _, b in pairs])
        sent = statistics.fmean(bytes_of(a) for a, _ in pairs)
        plain = statistics.fmean(bytes_of(b) for _, b in pairs)
        images = pairs[0][0]["traffic"]["images_bytes"]
        found.append(
            {
                "name": name,
                "seeds": len(pairs),
                "fd": statistics.fmean(fd),
                "ratio": mean,
                "upper": upper,
                "bytes": sent,
                "factor": plain / sent if sent else math.inf,
                "images": sent / images if images else None,
                "seen": statistics.fmean(a["images_seen"] for a, _ in pairs),
                "steps": statistics.fmean(a["client_steps"] for a, _ in pairs),
                "held": statistics.fmean(a["held_out_fd"] for a, _ in pairs),
            }
        )
    return sorted(found, key=lambda one: -one["bytes"])


def markdown(found: list[dict[str, Any]]) -> str:
    """A table."""
    lines = [
        "| setting | seeds | images seen | client steps | FD | held-out FD | FD / fp32 FedAvg | upper 95 % | traffic | times less | of the pictures |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for one in found:
        upper = "" if math.isinf(one["upper"]) else f"{one['upper']:.3f}"
        factor = "" if math.isinf(one["factor"]) else f"{one['factor']:.1f}"
        images = "" if one["images"] is None else f"{one['images']:.2f}"
        lines.append(
            f"| {one['name']} | {one['seeds']} | {one['seen']:,.0f} | {one['steps']:,.0f} | {one['fd']:.3f} | {one['held']:.3f} | {one['ratio']:.3f} | {upper} | "
            f"{one['bytes'] / 1e6:.2f} MB | {factor} | {images} |"
        )
    return "\n".join(lines)


def marks(found: list[dict[str, Any]]) -> str:
    """Which marks are reached: by the upper bound of the paired ratios, at least so many times fewer bytes."""
    lines = ["| mark | reached by | ratio | upper 95 % |", "|---|---|---|---|"]
    for factor, most in MARKS:
        able = [one for one in found if one["factor"] >= factor and math.isfinite(one["factor"])]
        best = min(able, key=lambda one: one["upper"], default=None)
        told = "nothing tried" if best is None else f"{best['name']} ({best['factor']:.0f}x)"
        if best is None:
            lines.append(f"| {factor}x at {most} | {told} | | |")
            continue
        answer = told if best["upper"] <= most else f"not reached; best is {told}"
        lines.append(f"| {factor}x at {most} | {answer} | {best['ratio']:.3f} | {best['upper']:.3f} |")
    return "\n".join(lines)


def picture(cells: dict[str, list[dict[str, Any]]]) -> None:
    """Quality against bytes: frontier.png."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 5.5))
    for marker, (cell, found) in zip("os^", cells.items(), strict=False):
        shown = [one for one in found if math.isfinite(one["factor"])]
        axes.scatter(
            [o["bytes"] / 1e6 for o in shown], [o["ratio"] for o in shown], marker=marker, label=cell
        )
        for one in shown:
            axes.annotate(
                one["name"],
                (one["bytes"] / 1e6, one["ratio"]),
                (4, 4),
                textcoords="offset points",
                fontsize=7,
            )
    fp32 = next((o["bytes"] for found in cells.values() for o in found if o["name"] == "fp32"), None)
    if fp32:
        for factor, most in MARKS:
            axes.plot([fp32 / factor / 1e6], [most], "k_", markersize=14)
            axes.annotate(
                f"mark {factor}x",
                (fp32 / factor / 1e6, most),
                (0, -10),
                textcoords="offset points",
                fontsize=6,
            )
    axes.set_xscale("log")
    axes.axhline(1, color="grey", linewidth=0.8)
    axes.set_xlabel("traffic of the run, both directions, MB")
    axes.set_ylabel("FD / FD of fp32 FedAvg, paired by seed")
    axes.set_title("How few bytes can a federation train on? Fashion-MNIST at 8x8, 10 clients, equal images")
    axes.legend()
    figure.tight_layout()
    figure.savefig(HERE / "frontier.png", dpi=120)


def main() -> None:
    """Prints every table that has rows."""
    rows, cells = read(HERE / "results.jsonl"), {}
    for cell in ("dirichlet", "iid"):
        if found := cell_rows(rows, cell):
            cells[cell] = found
            print(f"### {cell}\n\n{markdown(found)}\n\n{marks(found)}\n")
    if cells:
        picture(cells)
    if found := cell_rows(read(HERE / "confirm.jsonl"), "14x14"):
        print(f"### 14x14\n\n{markdown(found)}\n")
    pilot = read(HERE / "pilot.jsonl")
    for cell in ("dirichlet", "iid"):
        if found := cell_rows(pilot, cell):
            print(f"### Pilot, seed 100, {cell}\n\n{markdown(found)}\n")
    for share in ("1", "0.5"):
        feddm = {
            f"{share}-{case.replace(f'-{share}-s', '-s')}": row
            for case, row in read(HERE / "feddm.jsonl").items()
            if f"-{share}-s" in case
        }
        if found := cell_rows(feddm, share, "vanilla"):
            print(f"### FedDM, {float(share):.0%} of the clients in each round\n\n{markdown(found)}\n")


if __name__ == "__main__":
    main()
