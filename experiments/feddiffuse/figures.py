"""Draws the figures of README.md from results.jsonl and, for the samples, from the run folders.

python experiments/feddiffuse/figures.py [RUNS]
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
from cases import METHODS, PARTITIONS
from drawing import save
from matplotlib import pyplot as plt
from PIL import Image
from tables import Rows, of, read

HERE = Path(__file__).parent
COLOURS = {
    "fedavg": "#3b6ea5",
    "usplit": "#8a6bb1",
    "ulatdec": "#2f8f6b",
    "udec": "#c8703a",
    "local": "#777777",
    "central": "#222222",
}
MARKERS = {"iid": "o", "l-skew": "s", "q-skew": "^"}


def weighted_steps(row: dict[str, Any], rounds: int) -> float:
    """Optimiser steps of a client so far, weighted by its share of the images: what moves the average."""
    sizes = np.array(row["client_sizes"], float)
    return float((sizes / sizes.sum() * np.ceil(sizes / 16)).sum() * rounds)


def steps(rows: Rows) -> None:
    """FD against weighted steps per client, every scored round of every run."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), sharey=True)
    for axis, methods in zip(
        axes, (("central", "fedavg", "usplit"), ("ulatdec", "udec", "local")), strict=True
    ):
        for m in methods:
            for p in PARTITIONS if m != "central" else ("iid",):
                found = of(rows, m if m == "central" else f"{m}-{p}")
                label = f"{m}, {p}" if m != "central" else m
                for row in found:
                    curve = [c for c in row["curve"] if c["phase"] == "train"]
                    x = [weighted_steps(row, c["round"]) for c in curve]
                    y = [c["mean_fd_all"] for c in curve]
                    axis.plot(x, y, color=COLOURS[m], marker=MARKERS[p], ms=4, lw=0.8, alpha=0.8, label=label)
                    label = None
        axis.set(xscale="log", yscale="log", xlabel="optimiser steps of a client, weighted by its images")
        axis.grid(alpha=0.2, which="both")
        axis.legend(fontsize=7)
    axes[0].set_ylabel("FD (mean over clients, before the last average)")
    save(figure, HERE / "steps.png")


def conveyed(rows: Rows) -> None:
    """Weights conveyed by round, the paper's Fig. 4, for the network and clients of this study."""
    figure, axis = plt.subplots(figsize=(5.5, 3.8))
    for m in METHODS:
        for row in of(rows, f"{m}-iid")[:1]:
            total = np.cumsum(row["conveyed_by_round"]) / 1e6
            axis.plot(range(1, len(total) + 1), total, color=COLOURS[m], marker="o", ms=3, label=m)
    axis.set(xlabel="round", ylabel="weights conveyed so far, millions")
    axis.grid(alpha=0.2)
    axis.legend(fontsize=8)
    save(figure, HERE / "conveyed.png")


def sizes(rows: Rows) -> None:
    """q-skew: FD of each client's own model against its number of images."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4), sharey=True)
    for axis, stage in zip(axes, ("before", "after"), strict=True):
        for m in ("local", "ulatdec", "udec", "udec+encoder5"):
            runs = of(rows, f"{m}-q-skew") + of(rows, f"tiny+{m}")
            found = [c for row in runs for c in row["per_client"]]
            own = [c for c in found if c["stage"] == stage or m == "local"]
            colour = COLOURS.get(m, "#b03a6b")
            axis.scatter(
                [c["num_examples"] for c in own], [c["fd_all"] for c in own], s=22, color=colour, label=m
            )
        one = [row["fd"] for row in of(rows, "fedavg-q-skew") + of(rows, "tiny+fedavg")]
        if one:
            axis.axhline(
                statistics.mean(one), color=COLOURS["fedavg"], lw=1, label="fedavg, one model for all"
            )
        axis.set(xscale="log", yscale="log", xlabel="images of the client", title=f"{stage} the last average")
        axis.grid(alpha=0.2, which="both")
        axis.legend(fontsize=7)
    axes[0].set_ylabel("FD against all data")
    save(figure, HERE / "sizes.png")


def samples(runs: Path) -> None:
    """Rows of ten images: real ones, then each method on l-skew and q-skew, seed 0; personal models of two clients."""
    rows: list[tuple[str, Path]] = []
    for p in ("l-skew", "q-skew"):
        rows += [(f"{m}, {p}", runs / f"{m}-{p}-0/samples/round-0015.png") for m in ("fedavg", "usplit")]
        sized = runs / f"udec-{p}-0"
        if not sized.exists():
            continue
        held = read_sizes(sized)
        small, large = int(np.argmin(held)), int(np.argmax(held))
        for m in ("ulatdec", "udec", "local"):
            for k in (large, small):
                name = f"{m}, {p}, client of {held[k]} images"
                rows.append((name, runs / f"{m}-{p}-0/samples/round-0015-client-{k:03d}.png"))
    rows = [(name, path) for name, path in rows if path.exists()]
    figure, axes = plt.subplots(len(rows), 1, figsize=(8, 0.62 * len(rows)))
    for axis, (name, path) in zip(axes, rows, strict=True):
        with Image.open(path) as grid:
            side = grid.width // 10
            axis.imshow(grid.convert("L").crop((0, 0, grid.width, side)), cmap="gray", vmin=0, vmax=255)
        axis.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=7)
        axis.set(xticks=[], yticks=[])
    save(figure, HERE / "samples.png")


def read_sizes(run: Path) -> list[int]:
    """Images of each client of a run."""
    import json

    return list(json.loads((run / "summary.json").read_text())["client_sizes"])


if __name__ == "__main__":
    found = read(HERE / "results.jsonl")
    for draw in (steps, conveyed, sizes):
        draw(found)
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path("runs/feddiffuse")
    if folder.exists():
        samples(folder)
