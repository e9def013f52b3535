"""The runs of the study: cells, models of one's own, and what they are held against. See README.md."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import study

from osmotic.config.schema import AdapterConfig

Keys = dict[str, Any]

SEEDS = (0, 1, 2)
PILOT_SEED = 100  # settings are chosen on it alone
CELLS = ("l-skew", "q-skew")
ROUNDS, EPOCHS = 20, 6.0  # rounds of half a pass, and passes after them

COMMON: Keys = {
    "data.source": "npz:../shared/data/fashion-mnist.npz",
    "data.image_size": 8,
    "data.max_images": 9_000,
    "data.clients": 10,
    "data.holdout": 0.3,
    "model.network": "unet-8",
    "training.rounds": ROUNDS,
    "training.local_epochs": 0.5,
    "training.batch_size": 16,
    "score.every": 0,
    "score.samples": 20,  # what the study scores is drawn by scores.py, for every client in its own class mix
    "score.steps": 10,  # thousands of images a run: drawing takes as long as training does
    "track.backends": [],
    "checkpoint.every": 10,
    "engine.workers": 1,
}


def personal(trains: str, **more: Any) -> Keys:
    """A model of one's own beside the global one; `more` are keys of the piece."""
    keys = {"trains": trains, "epochs": EPOCHS} | more
    return {"after.pieces": ["personalise"]} | {f"after.personalise.{k}": v for k, v in keys.items()}


COSINE: Keys = {"training.lr_schedule": "cosine"}
# As many passes as the rounds and the fine-tuning together; the pilot has found a falling rate better for these.
AS_LONG: Keys = COSINE | {"training.local_epochs": 0.5 + EPOCHS / ROUNDS}
METHODS: dict[str, tuple[str, Keys]] = {
    "all": ("fedavg", personal("all", rate=0.3)),
    "local": ("local", AS_LONG),
    "global-as-long": ("fedavg", AS_LONG),
    "udec": ("udec", AS_LONG),
    # The same number of passes, more of them fine-tuning.
    "all-fewer-rounds": ("fedavg", personal("all", rate=0.3, epochs=10.0) | {"training.rounds": 12}),
}
VARIANTS: dict[str, tuple[str, Keys]] = {
    "adapter": ("fedavg", personal("adapter", rank=4, rate=1.0)),
    "decoder": ("fedavg", personal("decoder", rate=0.3)),
    "embedding": ("fedavg", personal("embedding", rate=3.0)),
    "last-round": (
        "fedavg",
        {"after.pieces": ["personalise"], "after.personalise.when": "rounds"},
    ),
}


def case(cell: str, method: str, seed: int, more: Mapping[str, Any] | None = None) -> list[str]:
    """One run; split, weights and sampling follow the seed."""
    preset, keys = (METHODS | VARIANTS)[method]
    own = {"seed": seed, "data.partition_seed": seed, "data.partition": cell}
    return study.arguments(preset, COMMON, own, keys, more or {})


# From a network that was trained on Fashion-MNIST in one place to MNIST at ten clients.
BEGUN: Keys = {
    "data.image_size": 8,
    "data.max_images": 12_000,
    "model.network": "unet-8",
    "training.rounds": 10,
    "training.local_epochs": 1.0,
    "training.batch_size": 16,
    "score.every": 0,
    "score.samples": 100,
    "track.backends": [],
    "engine.workers": 1,
}
STARTED: Keys = COMMON | {
    "data.source": "npz:../shared/data/mnist.npz",
    "data.max_images": 6_000,
    "data.holdout": 0.0,
    "data.partition": "l-skew",
    "score.samples": 2000,
}
TARGETS = list(AdapterConfig().targets)
# But the last, whose one channel out leaves no room for a rank.
EVERY_LAYER = [
    *TARGETS,
    "class_embedding",
    "conv_in",
    "linear_1",
    "linear_2",
    "time_emb_proj",
    "conv_shortcut",
    "conv",
]
INT2: Keys = {"codec.up": "int2", "codec.down": "int2", "codec.error_feedback": True}
INT8: Keys = {"codec.up": "int8", "codec.down": "int8", "codec.error_feedback": True}
OF_ADAPTER: Keys = {"training.learning_rate": 0.2}  # the best of RATES; B alone moves, from 0
ADAPTERS: dict[str, Keys] = {
    "scratch": {},
    "all-fp32": {},
    "all-int2": INT2,
    "adapter-2": OF_ADAPTER | {"adapter.rank": 2},
    "adapter-8": OF_ADAPTER | {"adapter.rank": 8},
    "adapter-8-int8": OF_ADAPTER | INT8 | {"adapter.rank": 8},
    # Both factors: a lower rate than the one that was tried, which was too high for A.
    "adapter-8-both": {"adapter.rank": 8, "adapter.trains": "both", "training.learning_rate": 0.02},
}
# Rates by which all weights and adapters are trained: chosen on the pilot's seed.
RATES: dict[str, Keys] = {
    "all-fp32": {},
    "all-fp32-rate-0.0006": {"training.learning_rate": 0.0006},
    "adapter-8": {"adapter.rank": 8},
    "adapter-8-rate-0.006": {"adapter.rank": 8, "training.learning_rate": 0.006},
    "adapter-8-rate-0.02": {"adapter.rank": 8, "training.learning_rate": 0.02},
    "adapter-8-rate-0.06": {"adapter.rank": 8, "training.learning_rate": 0.06},
    "adapter-8-rate-0.2": {"adapter.rank": 8, "training.learning_rate": 0.2},
    "adapter-8-classes": {
        "adapter.rank": 8,
        "adapter.targets": [*TARGETS, "class_embedding"],
        "training.learning_rate": 0.2,
    },
    "adapter-8-every-layer": {
        "adapter.rank": 8,
        "adapter.targets": EVERY_LAYER,
        "training.learning_rate": 0.2,
    },
    "adapter-8-both-rate-0.06": {"adapter.rank": 8, "adapter.trains": "both", "training.learning_rate": 0.06},
}


def begun(seeds: Iterable[int]) -> dict[str, list[str]]:
    """What the others start from."""
    data = {"data.source": "npz:../shared/data/fashion-mnist.npz"}
    return {f"begun-s{s}": study.arguments("central", BEGUN, data, {"seed": s}) for s in seeds}


def adapters(seeds: Iterable[int], runs: Path, ways: Mapping[str, Keys] = ADAPTERS) -> dict[str, list[str]]:
    """All weights against adapters, at equal rounds and images."""
    found = {}
    for seed in seeds:
        own = {"seed": seed, "data.partition_seed": seed}
        for name, keys in ways.items():
            start = {
                "model.pretrained": str((runs / f"begun-s{seed}" / "model").resolve()),
                "codec.first_contact": "seed",
            }
            found[f"{name}-s{seed}"] = study.arguments(
                "fedavg", STARTED, own, {} if name == "scratch" else start, keys
            )
    return found


def pilot() -> dict[str, list[str]]:
    """Seed 100, l-skew: the learning rate of fine-tuning, and how long it takes."""
    varied: dict[str, tuple[str, Keys]] = {
        "all": ("all", {}),
        "all-rate-1": ("all", {"after.personalise.rate": 1.0}),
        "all-fewer-rounds": ("all-fewer-rounds", {}),
        "local": ("local", {}),
        "local-constant": ("local", {"training.lr_schedule": "constant"}),
    }
    return {
        f"l-skew-{name}-s{PILOT_SEED}": case("l-skew", method, PILOT_SEED, keys)
        for name, (method, keys) in varied.items()
    }


def main() -> dict[str, list[str]]:
    """Seed by seed, so that a study cut short has whole pairs; then the variants, in one cell."""
    found = {f"{cell}-{m}-s{seed}": case(cell, m, seed) for seed in SEEDS for cell in CELLS for m in METHODS}
    return found | {f"l-skew-{m}-s{seed}": case("l-skew", m, seed) for seed in SEEDS for m in VARIANTS}
