"""FedDDPM on an accelerator: CIFAR-10 with `unet-32`, ten clients under Dirichlet 0.1.

    OSMOTIC_DATA=FOLDER python experiments/fedddpm/gpu.py           # resumes where it was cut off
    OSMOTIC_DATA=FOLDER python experiments/fedddpm/gpu.py --try     # every command on a few steps, anywhere

Rows go to gpu.jsonl beside this file (with --try to a folder of their own).
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from cases import Keys, arguments, correction
from study import on_accelerator

CIFAR: Keys = {
    "data.source": "cifar10",
    "data.clients": 10,
    "data.partition": "dirichlet",
    "data.dirichlet_alpha": 0.1,
    "model.network": "unet-32",
    "training.batch_size": 128,
    "training.learning_rate": 2e-4,
    "training.rounds": 60,
    "training.local_epochs": 2,
    "training.lr_schedule": "cosine",
    "engine.precision": "bf16",
    "score.every": 0,
    "score.samples": 5000,
    "track.backends": [],
}
TRY: Keys = {
    "data.max_images": 60,
    "data.clients": 2,
    "data.partition": "iid",
    "training.rounds": 2,
    "training.local_epochs": 1,
    "training.batch_size": 32,
    "score.samples": 8,
    "score.steps": 2,
}
LOCAL: Keys = {"server.correction.local_epochs": 60}


def cases(seeds: list[int], changes: Mapping[str, Any]) -> dict[str, list[str]]:
    """The methods of the main cell that need no plugin; `changes` win."""
    methods: dict[str, tuple[str, Keys]] = {
        "fedavg": ("fedavg", {}),
        "fedddpm": ("fedavg", correction() | LOCAL),
        "fedddpm+": ("fedavg", correction(when="slow", passes=4.0) | LOCAL),
        "fedddpm-upload": ("fedavg", correction(images="upload") | LOCAL),
        "oneshot": ("oneshot", correction(size=1.0) | LOCAL),
        "fedavg-equal-images": ("fedavg", {"training.local_epochs": 3}),
    }
    quick = {"server.correction.local_epochs": 1} if changes else {}
    return {
        f"cifar-{name}-s{seed}": arguments(
            preset, seed, CIFAR, keys, changes, quick if "server.pieces" in keys else {}
        )
        for seed in seeds
        for name, (preset, keys) in methods.items()
    }


if __name__ == "__main__":
    on_accelerator(str(__doc__), Path(__file__).parent, cases, TRY)
