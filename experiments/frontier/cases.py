"""The settings of the study: cells, and what each case changes against fp32 FedAvg of the same cell. See README.md."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from typing import Any

import study

from osmotic.config.schema import DataConfig
from osmotic.data.partition import partition
from osmotic.data.sources import load
from osmotic.protocol.participation import images_planned

# Fashion-MNIST, as ../shared/data has it; any copy in the same form will do.
DATA = "npz:../shared/data/fashion-mnist.npz"
SEEDS = (0, 1, 2)
PILOT_SEED = 100  # settings are chosen on it alone

Keys = dict[str, Any]

COMMON: Keys = {
    "data.source": DATA,
    "data.clients": 10,
    "training.batch_size": 16,
    "training.lr_schedule": "cosine",
    "score.every": 0,
    "score.samples": 2000,
    "track.backends": [],
    "checkpoint.every": 2,  # a client keeps its states back to the oldest checkpoint: 30 MB each with moments and residual
}
MAIN: Keys = COMMON | {"data.image_size": 8, "data.max_images": 6000, "model.network": "unet-8"}


def sizes(keys: Mapping[str, Any], seed: int) -> tuple[int, ...]:
    """Images of each client of a cell's split with this seed."""
    data = {name.removeprefix("data."): value for name, value in keys.items() if name.startswith("data.")}
    return _dealt(json.dumps(data | {"partition_seed": seed}, sort_keys=True))


@cache
def _dealt(data: str) -> tuple[int, ...]:
    """Read and dealt once for all cases of a cell."""
    cfg = DataConfig(**json.loads(data))
    return tuple(map(len, partition(cfg, load(cfg).train, remember=True)))


def of_images(images: int, rounds: int, keys: Mapping[str, Any], seed: int) -> Keys:
    """So many rounds, with the local work in each that makes `images` in the run as nearly as whole steps allow.

    Steps are whole, and rounded client by client, so equal passes are not equal images: with few images a round two
    cases of a cell could differ by a fifth.
    """
    held, batch = sizes(keys, seed), int(keys["training.batch_size"])

    def seen(epochs: float) -> int:
        return rounds * sum(images_planned(size, batch, epochs) for size in held)

    passes = images / rounds / sum(held)
    tried = [passes * (0.7 + 0.001 * step) for step in range(601)]
    best = min(tried, key=lambda epochs: (abs(seen(epochs) - images), abs(epochs - passes)))
    return {"training.rounds": rounds, "training.local_epochs": round(best, 5)}


def both(codec: str, feedback: bool = True, **options: Any) -> Keys:
    """A codec both ways, residuals kept at the clients, the first contact drawn from the seed."""
    return {
        "codec.up": codec,
        "codec.down": codec,
        "codec.error_feedback": feedback,
        "codec.first_contact": "seed",
        **{f"codec.{codec}.{key}": value for key, value in options.items()},
    }


def learned(bits: float, down_bits: float, every: int, warmup_codec: str = "int2", warmup: int = 1) -> Keys:
    """The learned codec both ways."""
    return both(
        "learned", bits=bits, down_bits=down_bits, every=every, warmup=warmup, warmup_codec=warmup_codec
    )


def nesterov(learning_rate: float, momentum: float) -> Keys:
    """Outer momentum on the server, as DiLoCo (arXiv 2311.08105) has it."""
    return {
        "server.pieces": ["nesterov"],
        "server.nesterov.learning_rate": learning_rate,
        "server.nesterov.momentum": momentum,
    }


def synthetic(**options: Any) -> Keys:
    """The server trains on synthetic images that sites draw from models of their own (arXiv 2503.06426)."""
    return {"server.pieces": ["correction"]} | {f"server.correction.{k}": v for k, v in options.items()}


IMAGES = 144_000  # that all clients of a run see in all: 24 passes over the main cell's 6,000


CELLS: dict[str, Keys] = {
    "dirichlet": MAIN | {"data.partition": "dirichlet", "data.dirichlet_alpha": 0.1},
    "iid": MAIN | {"data.partition": "iid"},
}


def arguments(preset: str, seed: int, *keys: Mapping[str, Any]) -> list[str]:
    """Arguments of `osmotic run`; split, weights and sampling follow the seed, later keys win."""
    return study.arguments(preset, {"seed": seed, "data.partition_seed": seed, "engine.workers": 1}, *keys)
