"""FedDDPM on an accelerator: CIFAR-10 with `unet-32`, ten clients under Dirichlet 0.1.

    OSMOTIC_DATA=FOLDER python experiments/fedddpm/gpu.py           # resumes where it was cut off
    OSMOTIC_DATA=FOLDER python experiments/fedddpm/gpu.py --try     # every command on a few steps, anywhere

Rows go to gpu.jsonl beside this file (with --try to a folder of their own).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from cases import Keys, arguments, correction
from study import run_all

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


def cases(seeds: list[int], changes: Keys) -> dict[str, list[str]]:
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


def main() -> None:
    """Runs what is missing."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--try", dest="trial", action="store_true", help="a few steps of every case, anywhere"
    )
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp()) if args.trial else Path(__file__).parent
    wanted = cases(args.seeds[:1] if args.trial else args.seeds, TRY if args.trial else {})
    rows = run_all(folder, wanted, runs=folder / "runs" if args.trial else None, results="gpu.jsonl")
    print(f"{len(rows)} cases in {folder / 'gpu.jsonl'}")


if __name__ == "__main__":
    main()
