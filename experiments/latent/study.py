"""Latents against pixels, federated, at equal time. See README.md.

python experiments/latent/study.py pilot     # seed 100: speeds, and whether settings hold: pilot.jsonl
python experiments/latent/study.py main      # three seeds: results.jsonl

Each skips what is finished and goes on with what was cut off; a case is done when its line is in the file.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import study  # noqa: E402
from given_back import figures  # noqa: E402

Keys = dict[str, Any]

RUNS = Path(os.environ.get("RUNS", "runs/latent"))  # a folder in memory is as good
SEEDS, PILOT_SEED = (0, 1, 2), 100

COMMON: Keys = {
    "data.source": "npz:../shared/data/mednist32.npz",
    "data.image_size": 64,
    "data.max_images": 3000,
    "data.clients": 6,
    "data.partition": "dirichlet",
    "data.dirichlet_alpha": 0.5,
    "training.batch_size": 16,
    "training.lr_schedule": "cosine",
    "score.every": 0,
    "score.samples": 300,  # in pixels they take as long as training does
    "score.steps": 10,
    "track.backends": [],
    "engine.workers": 1,
}
# Equal time: measured side by side on seed 0, in minutes of one core: 13 for these rounds of the autoencoder, 12.5 for those in its
# latents, and 2.3 for each of these rounds in pixels.
AUTOENCODER: Keys = {"training.rounds": 4, "training.learning_rate": 0.001, "score.samples": 100}
LATENT: Keys = {"training.rounds": 30, "model.network": "unet-8"}
PIXELS: Keys = {"training.rounds": 11, "training.local_epochs": 0.185, "model.network": "unet-8"}


def autoencoders(seeds: Iterable[int]) -> dict[str, list[str]]:
    """A federation for an autoencoder, on the images that then train in its latents."""
    return {f"autoencoder-s{s}": study.arguments("autoencoder", COMMON, AUTOENCODER, _own(s)) for s in seeds}


def denoisers(seeds: Iterable[int]) -> dict[str, list[str]]:
    """The same method in latents and in pixels."""
    found = {}
    for seed in seeds:
        place = {"model.autoencoder": str((RUNS / f"autoencoder-s{seed}" / "model").resolve())}
        found[f"latent-s{seed}"] = study.arguments("feddm-latent", COMMON, LATENT, place, _own(seed))
        found[f"pixels-s{seed}"] = study.arguments("fedavg", COMMON, PIXELS, _own(seed))
    return found


def _own(seed: int) -> Keys:
    return {"seed": seed, "data.partition_seed": seed}


if __name__ == "__main__":
    [which] = sys.argv[1:] or ["main"]
    seeds = (PILOT_SEED,) if which == "pilot" else SEEDS
    results = "results.jsonl" if which == "main" else f"{which}.jsonl"
    for one in seeds:  # so that a study cut short has whole pairs
        study.run_all(HERE, autoencoders([one]), RUNS, results=f"autoencoders-{which}.jsonl")
        study.run_all(HERE, denoisers([one]), RUNS, jobs=2, more=figures, results=results)
