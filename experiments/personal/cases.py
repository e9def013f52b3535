"""The runs of the study: cells, models of one's own, and what they are held against. See README.md."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import study

Keys = dict[str, Any]

SEEDS = (0, 1, 2)
PILOT_SEED = 100  # settings are chosen on it alone
CELLS = ("l-skew", "q-skew")
ROUNDS, EPOCHS = 20, 10.0  # rounds of half a pass, and passes after them

COMMON: Keys = {
    "data.source": "npz:../shared/data/fashion-mnist.npz",
    "data.image_size": 8,
    "data.max_images": 12_000,
    "data.clients": 10,
    "data.holdout": 0.3,
    "model.network": "unet-8",
    "training.rounds": ROUNDS,
    "training.local_epochs": 0.5,
    "training.batch_size": 16,
    "score.every": 0,
    "score.samples": 20,  # what the study scores is drawn by scores.py, for every client in its own class mix
    "track.backends": [],
    "checkpoint.every": 10,
    "engine.workers": 1,
}


def personal(trains: str, **more: Any) -> Keys:
    """A model of one's own beside the global one; `more` are keys of the piece."""
    keys = {"trains": trains, "epochs": EPOCHS} | more
    return {"after.pieces": ["personalise"]} | {f"after.personalise.{k}": v for k, v in keys.items()}


METHODS: dict[str, tuple[str, Keys]] = {
    "all": ("fedavg", personal("all")),
    "decoder": ("fedavg", personal("decoder")),
    "adapter": ("fedavg", personal("adapter", rank=4)),
    "embedding": ("fedavg", personal("embedding")),
    "last-round": ("fedavg", personal("all", when="rounds")),
    # As many passes as the rounds and the fine-tuning together.
    "local": ("local", {"training.local_epochs": 0.5 + EPOCHS / ROUNDS}),
    "udec": ("udec", {"training.local_epochs": 0.5 + EPOCHS / ROUNDS}),
}


def case(cell: str, method: str, seed: int, more: Mapping[str, Any] | None = None) -> list[str]:
    """One run; split, weights and sampling follow the seed."""
    preset, keys = METHODS[method]
    own = {"seed": seed, "data.partition_seed": seed, "data.partition": cell}
    return study.arguments(preset, COMMON, own, keys, more or {})


def pilot() -> dict[str, list[str]]:
    """Seed 100: the learning rate of fine-tuning, and the rank."""
    found = {f"{cell}-{m}-s{PILOT_SEED}": case(cell, m, PILOT_SEED) for cell in CELLS for m in METHODS}
    varied: dict[str, tuple[str, Keys]] = {
        "all-rate-0.3": ("all", {"after.personalise.rate": 0.3}),
        "adapter-rate-3": ("adapter", {"after.personalise.rate": 3.0}),
        "embedding-rate-3": ("embedding", {"after.personalise.rate": 3.0}),
    }
    return found | {
        f"l-skew-{name}-s{PILOT_SEED}": case("l-skew", method, PILOT_SEED, keys)
        for name, (method, keys) in varied.items()
    }


def main() -> dict[str, list[str]]:
    """Seed by seed, so that a study cut short has whole pairs."""
    return {f"{cell}-{m}-s{seed}": case(cell, m, seed) for seed in SEEDS for cell in CELLS for m in METHODS}
