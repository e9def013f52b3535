"""The frontier on an accelerator: the paper's network at 28x28, where the pictures outweigh a round, and CIFAR-10 with `unet-32`.

    OSMOTIC_DATA=FOLDER python experiments/frontier/gpu.py                  # resumes where it was cut off
    OSMOTIC_DATA=FOLDER python experiments/frontier/gpu.py --try            # every command on a few steps, anywhere
    OSMOTIC_DATA=FOLDER python experiments/frontier/gpu.py --only 28x28 --seeds 0

Rows go to gpu.jsonl beside this file (with --try to a folder of their own).
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from cases import Keys, arguments, both, learned
from study import on_accelerator

# 15 rounds of 5 passes, as FedDiffuse's Full (arXiv 2406.12575): fp32 moves 3.60 GB to learn from pictures of 30.9 MB.
PAPER: Keys = {
    "data.source": "fashion-mnist",
    "data.clients": 10,
    "data.partition": "l-skew",
    "training.rounds": 15,
    "training.local_epochs": 5,
    "score.every": 0,
    "score.samples": 5000,
    "track.backends": [],
}
CIFAR: Keys = {
    "data.source": "cifar10",
    "data.clients": 10,
    "data.partition": "dirichlet",
    "data.dirichlet_alpha": 0.5,
    "model.network": "unet-32",
    "training.batch_size": 128,
    "training.learning_rate": 2e-4,
    "training.rounds": 100,
    "training.local_epochs": 2,
    "engine.precision": "bf16",
    "score.every": 0,
    "score.samples": 5000,
    "track.backends": [],
}
TRY: Keys = {
    "data.max_images": 60,
    "data.clients": 2,
    "training.rounds": 2,
    "training.local_epochs": 1,
    "training.batch_size": 32,
    "score.samples": 8,
    "score.steps": 2,
}


def cases(seeds: list[int], changes: Mapping[str, Any]) -> dict[str, list[str]]:
    """fp32, quantised and learned, each cell; `changes` win."""
    fewer: Keys = {"training.rounds": 20, "training.local_epochs": 10}
    found = {}
    for seed in seeds:
        paper: dict[str, Keys] = {
            "fp32": {},
            "int2": both("int2", entropy=True),
            "learned-0.5": learned(0.5, 0.1, 4),
            "learned-0.1": learned(0.1, 0.05, 4),
        }
        for name, keys in paper.items():
            found[f"28x28-{name}-s{seed}"] = arguments("feddiffuse-full", seed, PAPER, keys, changes)
        cifar: dict[str, Keys] = {
            "fp32": {},
            "fp32-r20": fewer,
            "int2": both("int2", entropy=True),
            "learned-0.25": learned(0.25, 0.05, 10),
            "learned-r20-0.1": fewer | learned(0.1, 0.05, 5),
        }
        for name, keys in cifar.items():
            found[f"cifar-{name}-s{seed}"] = arguments("fedavg", seed, CIFAR, keys, changes)
    return found


if __name__ == "__main__":
    on_accelerator(str(__doc__), Path(__file__).parent, cases, TRY)
