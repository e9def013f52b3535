"""The runs of the study: cells, methods and controls. See README.md."""

from __future__ import annotations

import os
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
RUNS = Path(os.environ.get("RUNS", "runs/fedddpm"))

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
LOCAL_EPOCHS = 30.0  # of phase 0: three times the images of all rounds


def correction(piece: str = "correction", **options: Any) -> Keys:
    """Server training on synthetic images; options are keys of the piece."""
    if piece == "correction":
        drawn = (
            {"size": SIZE}
            if options.get("images") == "federated"
            else {"size": SIZE, "local_epochs": LOCAL_EPOCHS}
        )
        options = drawn | options
    return {"server.pieces": [piece]} | {f"server.{piece}.{k}": v for k, v in options.items()}


Method = tuple[str, Keys]  # a preset, and keys over those of the cell


def drawn(base: str, share: float, preset: str = "fedavg", **options: Any) -> Method:
    """One whose server trains on a share of the images that the sites of the run `base` drew."""
    return preset, correction("drawn-set", run=RUNS / base, share=share, **options)


# FedDDPM+: at each slow-down, at most in every third round.
PLUS: Keys = {"when": "slow", "window": 2, "rule": "agreement", "least_agreement": 0.5}
ONCE: Keys = {"when": "once", "window": 2, "passes": 0.3 * ROUNDS}  # as many steps in one go
ALONE: Keys = {"passes": PASSES / SIZE}  # as many steps of the server as clients take in FedAvg's rounds
METHODS: dict[str, Method] = {
    "fedddpm": ("fedavg", correction()),
    "fedddpm-upload": ("fedavg", correction(images="upload")),
    "oneshot": ("oneshot", correction(size=1.0)),
    # Controls: the images of phase 0 as further passes of the rounds, its bytes (weights down once, images up) as a further
    # round, the server's steps as further steps of the clients, all together or (as many in a row in each round) each of them.
    "fedavg-equal-images": ("fedavg", {"training.local_epochs": PASSES + LOCAL_EPOCHS / ROUNDS}),
    "fedavg": ("fedavg", {}),
    "fedprox": ("fedprox", {"local.prox.mu": 0.001}),
    "scaffold": ("scaffold", {}),
    "fedadam": ("fedadam", {"server.adam.learning_rate": 0.03}),
    "fedddpm-federated": ("fedavg", correction(images="federated", draw_after=ROUNDS // 2)),
    "fedavg-equal-bytes": ("fedavg", {"training.rounds": ROUNDS + 1}),
    "fedavg-more-steps": ("fedavg", {"training.local_epochs": PASSES + SIZE}),
    "fedavg-equal-sequence": ("fedavg", {"training.local_epochs": 2 * PASSES}),
    "real-set": ("fedavg", {"server.pieces": ["real-set"]}),
    "central": ("central", {}),
}
COMPARATOR = "fedprox"  # of FedProx, SCAFFOLD and FedAdam the best in the main cell
IN_A_ROW = ("two-classes", "fashion", "iid", "dirichlet-0.5")  # cells with this control besides the main one
SIZES = (0.01, 0.05, 0.1, 0.25, 0.5)

Stage = dict[str, list[str]]  # name of a run and of its folder -> arguments of `osmotic run`


def arguments(preset: str, seed: int, *keys: Mapping[str, Any]) -> list[str]:
    """As `osmotic run` takes them; split, weights and sampling follow the seed, later keys win."""
    return study.arguments(preset, {"seed": seed, "data.partition_seed": seed}, *keys)


def stage(cell: str, seed: int, methods: Mapping[str, Method], prefix: str | None = None) -> Stage:
    """Runs of one cell and seed, named by the cell or by another prefix."""
    prefix = f"{cell}-" if prefix is None else prefix
    return {
        f"{prefix}{name}-s{seed}": arguments(method[0], seed, COMMON, CELLS[cell], method[1])
        for name, method in methods.items()
    }


def pilot() -> list[Stage]:
    """Seed 100: what to choose. FedDDPM's variants take a tenth of the images that `oneshot` drew."""
    # Ten passes over all images, divided otherwise: where does skew cost anything?
    first: dict[str, Method] = {"oneshot": METHODS["oneshot"]} | {
        f"{preset}-{rounds}x{10 / rounds:g}": (
            preset,
            {"training.rounds": rounds, "training.local_epochs": 10 / rounds},
        )
        for preset, rounds in (("central", 20), ("fedavg", 20), ("fedavg", 10), ("fedavg", 5))
    }
    # What it is held against, at its own best.
    for mu in (0.001, 0.01):
        first[f"fedprox-{mu:g}"] = "fedprox", {"local.prox.mu": mu}
    for rate in (0.001, 0.003, 0.01, 0.03, 0.1):
        first[f"fedadam-{rate:g}"] = "fedadam", {"server.adam.learning_rate": rate}
    # How long must local models train until their images are of use?
    for epochs in (10, 30):
        first[f"fedddpm-local-{epochs}"] = "fedavg", correction(local_epochs=float(epochs))
    # How hard may the server train on them, and when?
    corrected: dict[str, tuple[float, Keys]] = {
        "": (SIZE, {}),
        "-passes-3": (SIZE, {"passes": 3.0}),
        "-rate-0.3": (SIZE, {"rate": 0.3}),
        "-noisy-half": (SIZE, {"skip_cleanest": 0.5}),
        "-size-1": (1.0, {"passes": SIZE}),
        "-size-1-passes-1": (1.0, {}),
        "+once-loss": (SIZE, ONCE),
        "+once-agreement": (SIZE, ONCE | {"rule": "agreement"}),
        "+slow-loss": (SIZE, {"when": "slow", "window": 2}),
        "+slow-agreement": (SIZE, {"when": "slow", "window": 2, "rule": "agreement"}),
        # None of these four fires in so few rounds; these do, once or three times, with as many steps in all.
        "+once-loss-0.12": (SIZE, ONCE | {"least_gain": 0.12}),
        "+once-loss-0.11": (SIZE, ONCE | {"least_gain": 0.11}),
        "+slow-loss-0.15": (SIZE, {"when": "slow", "window": 2, "least_gain": 0.15}),
        "+slow-agreement-0.5": (SIZE, PLUS),
    }
    base = f"oneshot-s{PILOT_SEED}"
    then = {f"fedddpm{name}": drawn(base, share, **keys) for name, (share, keys) in corrected.items()}
    # What limits it: outliers of the set, or the server's training?
    last: dict[str, Method] = {
        "fedddpm-outliers-0.1": drawn(base, SIZE, drop_outliers=0.1),
        "oneshot-passes-3": drawn(base, 1.0, "oneshot", passes=3.0),
    }
    return [stage("dirichlet-0.1", PILOT_SEED, methods, "") for methods in (first, then, last)]


def main() -> list[Stage]:
    """Seed by seed, so that a study cut short has whole pairs; what shares a phase 0 runs beside the next seed."""
    stages: list[Stage] = [{} for _ in range(len(SEEDS) + 1)]
    for at, seed in enumerate(SEEDS):
        stages[at] |= stage("dirichlet-0.1", seed, METHODS)
        base = f"dirichlet-0.1-fedddpm-s{seed}"
        sharing = {"fedddpm+": drawn(base, 1.0, **PLUS), "set-alone": drawn(base, 1.0, "oneshot", **ALONE)}
        stages[at + 1] |= stage("dirichlet-0.1", seed, sharing)
    return stages


def cells() -> list[Stage]:
    """The other cells, one seed; FedDDPM and FedDDPM+ take a tenth of the images that `oneshot` drew."""
    first: Stage = {}
    then: Stage = {}
    for cell in (cell for cell in CELLS if cell != "dirichlet-0.1"):
        first |= stage(cell, 0, {method: METHODS[method] for method in ("oneshot", "fedavg", COMPARATOR)})
        if cell in IN_A_ROW:
            first |= stage(cell, 0, {"fedavg-equal-sequence": METHODS["fedavg-equal-sequence"]})
        base = f"{cell}-oneshot-s0"
        sharing = {"fedddpm": drawn(base, SIZE), "fedddpm+": drawn(base, SIZE, **PLUS)}
        then |= stage(cell, 0, sharing)
    return [first, then]


def sizes() -> list[Stage]:
    """FD against the size of the set, one seed, at equal server steps: the larger the set, the fewer passes over it."""
    base = "dirichlet-0.1-oneshot-s0"
    found = {f"size-{size:g}": drawn(base, size, passes=SIZE / size) for size in SIZES}
    return [stage("dirichlet-0.1", 0, found, "")]
