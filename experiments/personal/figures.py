"""Draws the figures of README.md from the rows of study.py and, for the samples, from the run folders.

python experiments/personal/figures.py
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import numpy as np  # noqa: E402
from cases import CELLS, SEEDS  # noqa: E402
from drawing import save  # noqa: E402
from matplotlib import pyplot as plt  # noqa: E402
from paired import read  # noqa: E402
from tables import clients, distances, scored  # noqa: E402

import osmotic  # noqa: E402
from osmotic.data.strata import apportion, draw  # noqa: E402
from osmotic.runs import saved  # noqa: E402
from osmotic.runs.scoring import Scoring  # noqa: E402
from osmotic.runs.study import prepare  # noqa: E402
from osmotic.storage.folder import RunDir  # noqa: E402

RUNS = Path(os.environ.get("RUNS", "runs/personal"))
COLOURS = dict(zip(CELLS, ("#3b6ea5", "#c8703a"), strict=True))
SHOWN = 12  # images of a row


def who_gains() -> None:
    """A dot is a client of a seed: its own model against training alone, and against the global one by size and distance."""
    rows = read(HERE / "results.jsonl")
    figure, (alone, size, distance) = plt.subplots(1, 3, figsize=(12, 3.8))
    for cell in CELLS:
        for seed in SEEDS:
            if f"{cell}-all-s{seed}" not in rows or f"{cell}-local-s{seed}" not in rows:
                continue
            row, local = rows[f"{cell}-all-s{seed}"], clients(rows[f"{cell}-local-s{seed}"])
            for one, far in zip(row["clients"], distances(row), strict=True):
                own, whole = scored(one, "personal", "fd_own"), scored(one, "global", "fd_own")
                other = scored(local[one["client"]], "personal", "fd_own")
                if own is None or whole is None or other is None:
                    continue
                alone.scatter(other, own, color=COLOURS[cell], s=16)
                size.scatter(one["images"], own / whole, color=COLOURS[cell], s=16)
                distance.scatter(far, own / whole, color=COLOURS[cell], s=16)
    bounds = [max(1.0, alone.get_xlim()[0]), alone.get_xlim()[1]]
    alone.plot(bounds, bounds, color="#777777", lw=1)
    alone.set(
        xscale="log",
        yscale="log",
        xlabel="FD to own held-out images, alone",
        ylabel="the same, model of its own",
    )
    size.set(xscale="log", xlabel="images of the client", ylabel="FD, own model / global one")
    distance.set(xlabel="distance of its class mix to the union's", ylabel="FD, own model / global one")
    for axis in (size, distance):
        axis.axhline(1, color="#777777", lw=1)
    for axis in (alone, size, distance):
        axis.grid(alpha=0.2, which="both")
    for cell in CELLS:
        alone.scatter([], [], color=COLOURS[cell], label=cell)
    alone.legend(fontsize=8)
    save(figure, HERE / "who-gains.png")


def samples() -> None:
    """Of seed 0, for the client with the fewest images in each cell: real images, and what three models draw in its class mix."""
    figure, axes = plt.subplots(4 * len(CELLS), 1, figsize=(8, 7))
    for at, cell in enumerate(CELLS):
        folders = {m: RUNS / f"{cell}-{m}-s0" for m in ("all", "local")}
        study = prepare(osmotic.load(folders["all"]).config)
        holding = min(study.holdings, key=lambda h: len(h.train))
        train, scoring = study.dataset.train, Scoring(study, None)
        assert train.labels is not None
        labels = apportion(np.bincount(train.labels[holding.train], minlength=study.spec.num_classes), SHOWN)
        picked = holding.train[
            draw(train.labels[holding.train], len(holding.train), SHOWN, np.random.default_rng(0))
        ]
        name = f"{cell}, {len(holding.train)} images"
        told = {f"{name}: real": train.images[picked[np.argsort(train.labels[picked], kind="stable")]]}
        for label, which, client in (
            ("global", "all", None),
            ("own", "all", holding.client.name),
            ("alone", "local", holding.client.name),
        ):
            found: Mapping[str, Any] = saved.weights(RunDir.existing(folders[which]), client).tensors
            told[f"{name}: {label}"] = scoring.draw(found, labels, SHOWN)[0]
        for axis, (title, images) in zip(axes[4 * at :], told.items(), strict=False):
            axis.imshow(np.concatenate(list(images[..., 0]), axis=1), cmap="gray", vmin=0, vmax=255)
            axis.set(xticks=[], yticks=[])
            axis.set_ylabel(title.replace(": ", "\n"), rotation=0, ha="right", va="center", fontsize=8)
    save(figure, HERE / "samples.png")


def per_byte() -> None:
    """FD against all bytes of a run, from one network: all weights against adapters."""
    rows = read(HERE / "adapters.jsonl")
    figure, axis = plt.subplots(figsize=(6, 3.8))
    names = sorted({case.rpartition("-s")[0] for case in rows if not case.startswith("scratch")})
    for name in names:
        own = [rows[f"{name}-s{seed}"] for seed in SEEDS if f"{name}-s{seed}" in rows]
        x = [(row["bytes_up"] + row["bytes_down"]) / 1e6 for row in own]
        axis.scatter(x, [row["fd"] for row in own], s=22, label=name)
    axis.set(xscale="log", yscale="log", xlabel="MB, both ways", ylabel="FD")
    axis.grid(alpha=0.2, which="both")
    axis.legend(fontsize=7)
    save(figure, HERE / "per-byte.png")


if __name__ == "__main__":
    who_gains()
    if (HERE / "adapters.jsonl").exists():
        per_byte()
    if (RUNS / f"{CELLS[0]}-all-s0").exists():
        samples()
