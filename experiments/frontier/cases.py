"""The settings of the study: cells, and what each case changes against fp32 FedAvg of the same cell. See README.md."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Fashion-MNIST, as ../shared/data has it; any copy in the same form will do.
DATA = "npz:../shared/data/fashion-mnist.npz"
SEEDS = (0, 1, 2)
PILOT_SEED = 100  # settings are chosen on it alone

Keys = dict[str, Any]

COMMON: Keys = {
    "data.source": DATA,
    "data.clients": 10,
    "training.batch_size": 64,
    "training.lr_schedule": "cosine",
    "score.every": 0,
    "score.samples": 2000,
    "track.backends": [],
    "checkpoint.every": 20,
}
MAIN: Keys = COMMON | {"data.image_size": 8, "data.max_images": 6000, "model.network": "unet-8"}


def of_passes(passes: float, rounds: int) -> Keys:
    """So many rounds, with as much local work in each as makes `passes` over all images in the run: equal images."""
    return {"training.rounds": rounds, "training.local_epochs": passes / rounds}


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


PASSES = 25.0


def main_rounds(rounds: int) -> Keys:
    """Of the main cell: 25 passes over its 6,000 images."""
    return of_passes(PASSES, rounds)


CELLS: dict[str, Keys] = {
    "dirichlet": MAIN | {"data.partition": "dirichlet", "data.dirichlet_alpha": 0.1},
    "iid": MAIN | {"data.partition": "iid"},
}


def arguments(preset: str, seed: int, *keys: Mapping[str, Any]) -> list[str]:
    """As a person would type them after `osmotic run`; later keys win."""
    merged: Keys = {"seed": seed, "data.partition_seed": seed}
    for some in keys:
        merged |= some
    found = ["--preset", preset]
    for name, value in merged.items():
        found += ["--set", f"{name}={text(value)}"]
    return found


def text(value: Any) -> str:
    """A value as `--set` reads it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return "[" + ", ".join(f'"{v}"' for v in value) + "]"
    return str(value)
