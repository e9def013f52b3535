"""What a run sends in training, against two yardsticks: plain fp32 FedAvg, and the training images themselves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from osmotic.data.compressed import Compressed
from osmotic.protocol.messages import TRAIN

DIRECTIONS, FLOAT_BYTES = 2, 4


def figures(total: int, parameters: int, asked: int, images: Compressed | None) -> dict[str, Any]:
    """The table `traffic` of a plan or a summary.

    Args:
        total: bytes up and down.
        parameters: weights of the whole network, also where an adapter of it is all that is trained.
        asked: how often a client was asked to train, summed over rounds.
        images: those that clients hold; None where they were not compressed.
    """
    # No headers: what cannot be left out by any way of writing fp32, so that `factor` flatters no codec.
    plain = FLOAT_BYTES * DIRECTIONS * parameters * asked
    held = images.bytes if images else None
    return {
        "bytes": total,
        "fp32_fedavg_bytes": plain,
        "factor": plain / total if total and plain else None,
        "images_bytes": held,
        "images_sampled": images.sampled if images else None,
        "to_images": total / held if total and held else None,
    }


def asked(ledger: Path) -> int:
    """How often a client was asked to train, from the lines of ledger.jsonl; those that failed were asked too."""
    with ledger.open(encoding="utf-8") as file:
        entries = map(json.loads, file)
        return sum(e["phase"] == TRAIN and e["direction"] == "down" for e in entries)
