"""Where a lossy run falls behind: its error by noise level, and how far its weights went another way, by layer.

python experiments/frontier/levels.py FOLDER fp32 NAME ...   # run folders FOLDER/NAME; the first one named is what the others are held against

The error is that of the velocity on 2,000 held-out images, with the same noise for all runs.
"""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

import osmotic
from osmotic.runs.study import prepare

BANDS = 8  # of the schedule's timesteps, equally long
IMAGES = 2000
KINDS = ("conv", "to_q", "to_k", "to_v", "to_out", "time", "class_embedding", "norm")


def errors(run: Any, network: torch.nn.Module) -> np.ndarray:
    """Mean squared error of the velocity in each band of timesteps, [BANDS]."""
    study = prepare(run.config)
    test = study.dataset.test
    x0 = study.blueprint.space.encode(
        torch.from_numpy(np.asarray(test.images[:IMAGES]).transpose(0, 3, 1, 2).copy())
    )
    labels = torch.from_numpy(test.labels[:IMAGES].astype(np.int64))
    alpha_bar, generator = study.blueprint.process.alpha_bar, torch.Generator().manual_seed(0)
    edges = np.linspace(0, len(alpha_bar), BANDS + 1).astype(int)
    found = []
    with torch.no_grad():
        for low, high in pairwise(edges):
            t = torch.randint(int(low), int(high), (len(x0),), generator=generator)
            noise = torch.randn(x0.shape, generator=generator)
            kept = alpha_bar[t][:, None, None, None]
            noisy, goal = (
                kept.sqrt() * x0 + (1 - kept).sqrt() * noise,
                kept.sqrt() * noise - (1 - kept).sqrt() * x0,
            )
            answers = [
                network(a, b, class_labels=c, return_dict=False)[0]
                for a, b, c in zip(noisy.split(500), t.split(500), labels.split(500), strict=True)
            ]
            found.append(float((torch.cat(answers) - goal).square().mean()))
    return np.array(found)


def weights(network: torch.nn.Module) -> dict[str, np.ndarray]:
    """By parameter."""
    return {n: p.detach().numpy() for n, p in network.named_parameters()}


def apart(
    mine: dict[str, np.ndarray], base: dict[str, np.ndarray], start: dict[str, np.ndarray]
) -> dict[str, float]:
    """|mine - base| / |base - start| of the parameters of each kind."""
    found = {}
    for kind in KINDS:
        names = [n for n in base if kind in n]
        if names:
            far = sum(float(np.square(mine[n] - base[n]).sum()) for n in names)
            found[kind] = float(np.sqrt(far / sum(float(np.square(base[n] - start[n]).sum()) for n in names)))
    return found


def main() -> None:
    """Two tables in markdown."""
    folder, names = Path(sys.argv[1]), sys.argv[2:]
    runs = {name: osmotic.load(folder / name) for name in names}
    networks = {name: run.pipeline().unet.eval() for name, run in runs.items()}
    first = names[0]
    base = errors(runs[first], networks[first])
    print(
        "| run | " + " | ".join(f"t {i}/{BANDS}" for i in range(BANDS)) + " |\n" + "|---" * (BANDS + 1) + "|"
    )
    print(f"| {first}, error | " + " | ".join(f"{e:.4f}" for e in base) + " |")
    for name in names[1:]:
        ratio = errors(runs[name], networks[name]) / base
        print(f"| {name}, ratio | " + " | ".join(f"{r:.3f}" for r in ratio) + " |")
    start = {n: np.asarray(t) for n, t in prepare(runs[first].config).blueprint.initial().items()}
    held = weights(networks[first])
    print("\n| run | " + " | ".join(KINDS) + " |\n" + "|---" * (len(KINDS) + 1) + "|")
    for name in names[1:]:
        told = apart(weights(networks[name]), held, start)
        print(f"| {name} | " + " | ".join(f"{told[k]:.2f}" if k in told else "" for k in KINDS) + " |")


if __name__ == "__main__":
    main()
