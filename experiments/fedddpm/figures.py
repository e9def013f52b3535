"""Draws the figures of README.md from the rows of study.py and, for the samples, from the run folders.

python experiments/fedddpm/figures.py
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
sys.path.insert(0, str(Path(__file__).parents[1]))  # before this folder, which has a study.py of its own

from cases import COMPARATOR, RUNS
from drawing import save
from matplotlib import pyplot as plt
from paired import read
from PIL import Image
from tables import CELLS, HERE, by_method

COLOURS = {
    "fedavg": "#3b6ea5",
    "fedddpm": "#c8703a",
    "fedddpm+": "#e0a84e",
    "oneshot": "#2f8f6b",
    COMPARATOR: "#8a6bb1",
}
SHOWN = ("fedavg", "fedddpm", "oneshot")  # whose samples are drawn


def cells() -> None:
    """FD of each method over FedAvg's, cell by cell."""
    main, others = read(HERE / "results.jsonl"), read(HERE / "cells.jsonl")
    figure, axis = plt.subplots(figsize=(7.5, 4))
    places = ("dirichlet-0.1", *CELLS)
    for at, cell in enumerate(places):
        methods = by_method(others if cell in CELLS else main, f"{cell}-")
        for name, colour in COLOURS.items():
            own, base = methods.get(name, {}), methods.get("fedavg", {})
            ratios = [own[s]["fd"] / base[s]["fd"] for s in own if s in base]
            if name == "fedavg" or not ratios:
                continue
            axis.scatter(ratios, [at] * len(ratios), color=colour, s=28, label=None if at else name)
    axis.axvline(1, color=COLOURS["fedavg"], lw=1)
    axis.set(xscale="log", xlabel="FD / FD of FedAvg; every dot is a seed", yticks=range(len(places)))
    axis.set_yticklabels(places)
    axis.invert_yaxis()
    axis.grid(alpha=0.2, which="both")
    axis.legend(fontsize=8)
    save(figure, HERE / "cells.png")


def sizes() -> None:
    """FD against the size of the set, of what is trained and of the set itself."""
    rows = [row for row in read(HERE / "sizes.jsonl").values()]
    base = read(HERE / "results.jsonl")["dirichlet-0.1-fedavg-s0"]["fd"]
    figure, axis = plt.subplots(figsize=(5.5, 3.8))
    x = [row["set"]["images"] for row in rows]
    axis.plot(x, [row["fd"] for row in rows], marker="o", color=COLOURS["fedddpm"], label="FedDDPM")
    axis.plot(
        x, [row["set"]["fd"] for row in rows], marker="s", ls="--", color="#777777", label="the set itself"
    )
    axis.plot(
        x,
        [row["set"]["floor"] for row in rows],
        marker=".",
        ls=":",
        color="#bbbbbb",
        label="as many real images",
    )
    axis.axhline(base, color=COLOURS["fedavg"], lw=1, label="FedAvg")
    axis.set(xscale="log", yscale="log", xlabel="synthetic images (6,000 real ones)", ylabel="FD")
    axis.grid(alpha=0.2, which="both")
    axis.legend(fontsize=8)
    save(figure, HERE / "sizes.png")


def samples() -> None:
    """A row of every class: real images, then each method, in the main cell and two others, seed 0."""
    places = [p for p in ("dirichlet-0.1", "two-classes", "fashion") if (RUNS / f"{p}-fedavg-s0").exists()]
    figure, axes = plt.subplots(len(places), 1 + len(SHOWN), figsize=(11, 2.9 * len(places)), squeeze=False)
    for row, cell in zip(axes, places, strict=True):
        files = {"real": RUNS / f"{cell}-fedavg-s0" / "samples" / "real.png"}
        files |= {m: RUNS / f"{cell}-{m}-s0" / "samples" / "round-0010.png" for m in SHOWN}
        for axis, (name, path) in zip(row, files.items(), strict=True):
            axis.set(xticks=[], yticks=[], title=f"{cell}: {name}")
            axis.title.set_fontsize(9)
            with Image.open(path) as grid:
                axis.imshow(grid.convert("L"), cmap="gray", vmin=0, vmax=255)
    save(figure, HERE / "samples.png")


if __name__ == "__main__":
    for file, draw in (("cells.jsonl", cells), ("sizes.jsonl", sizes)):
        if (HERE / file).exists():
            draw()
    if RUNS.exists():
        samples()
