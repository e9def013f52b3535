"""How few bytes can a federation train on? Quality against total traffic. See README.md.

python experiments/frontier/study.py pilot        # settings are chosen on seed 100 alone: pilot.jsonl
python experiments/frontier/study.py main         # the main cell, seeds 0 to 2: results.jsonl
python experiments/frontier/study.py confirm      # 60,000 images at 14x14, less traffic than the pictures: confirm.jsonl
python experiments/frontier/study.py feddm        # FedDM's variants, half of the clients under l-skew: feddm.jsonl

Each skips what is finished and goes on with what was cut off; a case is done when its line is in the file.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from cases import (  # noqa: E402
    CELLS,
    COMMON,
    MAIN,
    PILOT_SEED,
    SEEDS,
    Keys,
    arguments,
    both,
    learned,
    main_rounds,
    of_passes,
)
from study import run_all  # noqa: E402

import osmotic  # noqa: E402

Cases = dict[str, list[str]]

# What the main table compares; chosen on the pilot seed (README.md says how). None is fp32 FedAvg itself.
SETTINGS: dict[str, Keys] = {
    "fp32": main_rounds(100),
    "int4": main_rounds(100) | both("int4", entropy=True),
    "int2": main_rounds(100) | both("int2", entropy=True),
    "learned-1": main_rounds(100) | learned(1.0, 1.0, 10),
    "learned-0.2": main_rounds(100) | learned(0.2, 0.2, 10),
    "sparse-5%": main_rounds(100) | both("sparse", density=0.05, bits=1),
    "fp32-r20": main_rounds(20),
    "learned-0.2-r20": main_rounds(20) | learned(0.2, 0.2, 5),
}


def pilot() -> Cases:
    """Seed 100, which no table has: what to choose, and where it hurts."""
    up_alone: Keys = {"codec.down": "fp32"}
    tried: dict[str, tuple[str, Keys]] = {
        "fp32": ("dirichlet", main_rounds(100)),
        "fp32-r50": ("dirichlet", main_rounds(50)),
        "fp32-r20": ("dirichlet", main_rounds(20)),
        "scaffold-r20": ("dirichlet", main_rounds(20)),
        "learned-0.25-0.25-r20": ("dirichlet", main_rounds(20) | learned(0.25, 0.25, 5)),
        "learned-0.1-0.1": ("dirichlet", main_rounds(100) | learned(0.1, 0.1, 10)),
        "learned-0.1-up-alone": ("dirichlet", main_rounds(100) | learned(0.1, 0.1, 10) | up_alone),
        "learned-0.1-0.1-no-feedback": (
            "dirichlet",
            main_rounds(100) | learned(0.1, 0.1, 10) | {"codec.error_feedback": False},
        ),
        "learned-1-1": ("dirichlet", main_rounds(100) | learned(1.0, 1.0, 10)),
        "learned-1.8-0.1": ("dirichlet", main_rounds(100) | learned(1.8, 0.1, 10, "int8", 1)),
        "learned-0.2-0.2": ("dirichlet", main_rounds(100) | learned(0.2, 0.2, 10)),
        "int4": ("dirichlet", main_rounds(100) | both("int4", entropy=True)),
        "int2": ("dirichlet", main_rounds(100) | both("int2", entropy=True)),
        "iid-fp32": ("iid", main_rounds(100)),
        "iid-fp32-r20": ("iid", main_rounds(20)),
        "iid-learned-0.2-0.2-r20": ("iid", main_rounds(20) | learned(0.2, 0.2, 5)),
    }
    return {
        name: arguments(
            "scaffold" if name.startswith("scaffold") else "fedavg", PILOT_SEED, CELLS[cell], keys
        )
        for name, (cell, keys) in tried.items()
    }


def main() -> Cases:
    """The main cell, both partitions; seed by seed, so that a study cut short has whole pairs."""
    found: Cases = {}
    for seed in SEEDS:
        for cell, keys in CELLS.items():
            for name, setting in SETTINGS.items():
                found[f"{cell}-{name}-s{seed}"] = arguments("fedavg", seed, keys, setting)
            one = {"training.rounds": 10, "training.local_epochs": 2.5}
            found[f"{cell}-central-s{seed}"] = arguments("central", seed, keys, one)
    return found


def confirm() -> Cases:
    """Where the data outweigh the model: all images at 14x14, 60 rounds of a fifth of an epoch."""
    cell = COMMON | {
        "data.image_size": 14,
        "data.partition": "dirichlet",
        "data.dirichlet_alpha": 0.1,
        "model.network": "unet-8",
    }
    settings = {
        "fp32": of_passes(12.0, 60),
        "learned-r20-0.15": of_passes(12.0, 20) | learned(0.15, 0.05, 7),
        "learned-r12-0.3": of_passes(12.0, 12) | learned(0.3, 0.1, 5),
    }
    return {
        f"14x14-{name}-s{seed}": arguments("fedavg", seed, cell, keys)
        for seed in SEEDS[:2]
        for name, keys in settings.items()
    }


def feddm() -> Cases:
    """The paper's variants (arXiv 2407.14730) under l-skew: all of ten clients in each round, and half of them."""
    prox = {f"prox-{mu:g}": ("feddm-prox", {"local.prox.mu": mu}) for mu in (1e-3, 1e-2, 1e-1)}
    everybody: dict[str, tuple[str, Keys]] = {
        "vanilla": ("feddm-vanilla", {}),
        "quant": ("feddm-quant", {}),
        **prox,
    }
    half: dict[str, tuple[str, Keys]] = {
        "vanilla": ("feddm-vanilla", {}),
        "quant": ("feddm-quant", {}),
        "quant-weights": ("feddm-quant", {"codec.up_sends": "weights"}),
        "quant-int2": ("feddm-quant", {"codec.up": "int2"}),
        "quant-int2-feedback": ("feddm-quant", {"codec.up": "int2", "codec.error_feedback": True}),
    }
    found: Cases = {}
    for seed in SEEDS:
        # Half of the clients see half of the images in a round: twice the rounds make the images equal.
        for share, rounds, variants in ((1.0, 25, everybody), (0.5, 50, half)):
            cell = MAIN | {
                "data.partition": "l-skew",
                "training.fraction_train": share,
                "training.rounds": rounds,
                "training.local_epochs": 1.0,
            }
            for name, (preset, keys) in variants.items():
                found[f"{name}-{share:g}-s{seed}"] = arguments(preset, seed, cell, keys)
    return found


def traffic(out: Path) -> dict[str, Any]:
    """Further entries of a row: traffic against the pictures, and the score against images that nobody trained on."""
    summary = osmotic.load(out).summary
    held = (summary["quality"] or {}).get("held_out") or {}
    return {
        "traffic": summary["traffic"],
        "held_out_fd": held.get("fd"),
        "failures": len(summary["failures"]),
    }


STUDIES = {"pilot": pilot, "main": main, "confirm": confirm, "feddm": feddm}

if __name__ == "__main__":
    [which] = sys.argv[1:] or ["main"]
    results = "results.jsonl" if which == "main" else f"{which}.jsonl"
    run_all(HERE, STUDIES[which](), more=traffic, results=results)
