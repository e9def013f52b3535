"""The settings of the study: cells, and what each case changes against fp32 FedAvg of the same cell. See README.md."""

from __future__ import annotations

from pathlib import Path

DATA = Path("../shared/data/fashion-mnist.npz")

# Passes over all images in a whole run; rounds times local passes is the same for every case of a cell: equal images.
PASSES = 50.0

MAIN = {
    "data.source": f"npz:{DATA}",
    "data.image_size": 8,
    "data.max_images": 6000,
    "data.clients": 10,
    "model.network": "unet-8",
    "training.batch_size": 64,
    "score.every": 0,
    "score.samples": 2000,
    "track.backends": [],
    "checkpoint.every": 10,
}
CELLS = {
    "dirichlet": MAIN | {"data.partition": "dirichlet", "data.dirichlet_alpha": 0.1},
    "iid": MAIN | {"data.partition": "iid"},
}


def rounds(count: int) -> dict[str, object]:
    """So many rounds, each with as much local work as makes the images equal."""
    return {"training.rounds": count, "training.local_epochs": PASSES / count}


def both(codec: str, **options: object) -> dict[str, object]:
    """A codec both ways, residuals kept at the clients, the first contact drawn from the seed."""
    return {
        "codec.up": codec,
        "codec.down": codec,
        "codec.error_feedback": True,
        "codec.first_contact": "seed",
        **{f"codec.{codec}.{key}": value for key, value in options.items()},
    }
