"""The runs of the study: cells, methods and controls. See README.md."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import study
from features import KINDS

Keys = dict[str, Any]

SEEDS = (0, 1, 2)
PILOT_SEED = 100  # settings are chosen on it alone
MNIST, FASHION = ("npz:../shared/data/mnist.npz", "npz:../shared/data/fashion-mnist.npz")

ROUNDS, PASSES = 10, 1.0  # of the clients over their images, in each round
SIZE = 0.1  # of the set, as a share of all images
FEATURES = Path("runs/fedddpm-data")  # made by features.py when the cells are run

COMMON: Keys = {
    "data.image_size": 8,
    "data.max_images": 6000,
    "data.clients": 10,
    "model.network": "unet-8",
    "training.rounds": ROUNDS,
    "training.local_epochs": PASSES,
    "training.batch_size": 16,
    "training.lr_schedule": "cosine",
    "score.every": 0,
    "score.samples": 2000,
    "track.backends": [],
    "checkpoint.every": 10,
    "engine.workers": 1,
}
CELLS: dict[str, Keys] = {
    "dirichlet-0.1": {"data.source": MNIST, "data.partition": "dirichlet", "data.dirichlet_alpha": 0.1},
    "dirichlet-0.5": {"data.source": MNIST, "data.partition": "dirichlet", "data.dirichlet_alpha": 0.5},
    "two-classes": {"data.source": MNIST, "data.partition": "pathological", "data.classes_per_client": 2},
    "iid": {"data.source": MNIST, "data.partition": "iid"},
    "q-skew": {"data.source": MNIST, "data.partition": "q-skew"},
    **{
        f"feature-{kind}": {
            "data.source": f"npz:{FEATURES}/{kind}.npz",
            "data.partition": "by:site",
            "data.max_images": 0,
        }
        for kind in KINDS
    },
    "fashion": {"data.source": FASHION, "data.partition": "dirichlet", "data.dirichlet_alpha": 0.1},
}
LOCAL_EPOCHS = 10.0  # of phase 0: as many images as all rounds


def correction(**options: Any) -> Keys:
    """Server training on synthetic images; options are keys of the piece."""
    keys = {"local_epochs": LOCAL_EPOCHS, "size": SIZE} | options
    if keys.get("images") == "federated":
        del keys["local_epochs"]
    return {"server.pieces": ["correction"]} | {f"server.correction.{k}": v for k, v in keys.items()}


FEDDDPM: Keys = correction()
PLUS: Keys = correction(when="once", window=2, passes=0.3 * ROUNDS)
METHODS: dict[str, tuple[str, Keys]] = {
    "fedavg": ("fedavg", {}),
    "fedprox": ("fedprox", {}),
    "scaffold": ("scaffold", {}),
    "fedadam": ("fedadam", {"server.adam.learning_rate": 0.003}),
    "fedddpm": ("fedavg", FEDDDPM),
    "fedddpm-upload": ("fedavg", correction(images="upload")),
    "fedddpm-federated": ("fedavg", correction(images="federated", draw_after=ROUNDS // 2)),
    "fedddpm+": ("fedavg", PLUS),
    "oneshot": ("oneshot", correction(size=1.0)),
    # Controls.
    # As many steps of the server as clients take in FedAvg's rounds.
    "set-alone": ("oneshot", correction(passes=PASSES / SIZE)),
    # The images of phase 0 as further passes of the rounds, its bytes (weights down once, images up) as a further round,
    # and the server's steps as further steps of the clients.
    "fedavg-equal-images": ("fedavg", {"training.local_epochs": PASSES + LOCAL_EPOCHS / ROUNDS}),
    "fedavg-equal-bytes": ("fedavg", {"training.rounds": ROUNDS + 1}),
    "fedavg-more-steps": ("fedavg", {"training.local_epochs": PASSES + SIZE}),
    "real-set": ("fedavg", {"server.pieces": ["real-set"]}),
    "central": ("central", {}),
}
OTHER_CELLS = ("fedavg", "fedddpm", "fedddpm+", "oneshot")
SIZES = (0.01, 0.05, 0.25, 0.5)  # beside 0.1


def arguments(preset: str, seed: int, *keys: Mapping[str, Any]) -> list[str]:
    """Arguments of `osmotic run`; split, weights and sampling follow the seed, later keys win."""
    return study.arguments(preset, {"seed": seed, "data.partition_seed": seed}, *keys)


def case(cell: str, method: str, seed: int, more: Mapping[str, Any] | None = None) -> list[str]:
    """One run."""
    preset, keys = METHODS[method]
    return arguments(preset, seed, COMMON, CELLS[cell], keys, more or {})


def pilot() -> dict[str, list[str]]:
    """Seed 100: what to choose."""
    cell = "dirichlet-0.1"
    # Ten passes over all images, divided otherwise: where does skew cost anything?
    divided = {
        f"{method}-{rounds}x{10 / rounds:g}": (
            method,
            {"training.rounds": rounds, "training.local_epochs": 10 / rounds},
        )
        for method, rounds in (("central", 20), ("fedavg", 20), ("fedavg", 10), ("fedavg", 5))
    }
    # How long must local models train until their images are of use, and how hard may they be trained on?
    corrected: dict[str, tuple[str, Keys]] = {
        f"fedddpm-local-{epochs}": ("fedddpm", {"server.correction.local_epochs": float(epochs)})
        for epochs in (10, 30, 100)
    } | {
        "fedddpm-passes-3": ("fedddpm", {"server.correction.passes": 3.0}),
        "fedddpm-rate-0.3": ("fedddpm", {"server.correction.rate": 0.3}),
        "fedddpm-noisy-half": ("fedddpm", {"server.correction.skip_cleanest": 0.5}),
        "fedddpm-all-copies": ("fedddpm", {"server.correction.drop_copies": False}),
        "fedddpm-size-0.5": ("fedddpm", {"server.correction.size": 0.5, "server.correction.passes": 0.2}),
    }
    return {
        f"{name}-s{PILOT_SEED}": case(cell, method, PILOT_SEED, keys)
        for name, (method, keys) in (divided | corrected).items()
    }


def main() -> dict[str, list[str]]:
    """Seed by seed, so that a study cut short has whole pairs."""
    return {f"dirichlet-0.1-{m}-s{seed}": case("dirichlet-0.1", m, seed) for seed in SEEDS for m in METHODS}


def cells() -> dict[str, list[str]]:
    """The other cells, one seed."""
    return {f"{c}-{m}-s0": case(c, m, 0) for c in CELLS if c != "dirichlet-0.1" for m in OTHER_CELLS}


def sizes() -> dict[str, list[str]]:
    """FD against the size of the set, one seed, at equal server steps: the larger the set, the fewer passes over it."""
    return {
        f"size-{size:g}-s0": case(
            "dirichlet-0.1",
            "fedddpm",
            0,
            {"server.correction.size": size, "server.correction.passes": 0.1 / size},
        )
        for size in SIZES
    }
