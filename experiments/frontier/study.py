"""How few bytes can a federation train on? Quality against total traffic. See README.md.

python experiments/frontier/study.py pilot        # settings are chosen on seed 100 alone: pilot.jsonl
python experiments/frontier/study.py main         # the main cell, three to five seeds: results.jsonl
python experiments/frontier/study.py confirm      # 60,000 images at 14x14, less traffic than the pictures: confirm.jsonl
python experiments/frontier/study.py feddm        # FedDM's variants, half of the clients under l-skew: feddm.jsonl

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

from cases import (  # noqa: E402
    CELLS,
    COMMON,
    IMAGES,
    MAIN,
    PILOT_SEED,
    SEEDS,
    Keys,
    arguments,
    both,
    learned,
    nesterov,
    of_images,
    synthetic,
)
from study import run_all  # noqa: E402

import osmotic  # noqa: E402

Cases = dict[str, list[str]]
# Run folders. A folder in memory is as good: a run with residuals writes all of them to disk in every round.
RUNS = Path(os.environ.get("RUNS", "runs/frontier"))

# A setting: rounds, and what it changes against fp32 FedAvg.
Setting = tuple[int, Keys]
KEPT: Keys = {"training.optimizer_state": "keep"}

DILOCO = nesterov(0.7, 0.9)
SEEDED: Keys = {"codec.first_contact": "seed"}
# Half of the images are the clients' own, in one go; the other half are steps of the server on what their models draw.
SHOT: Keys = (
    {"method.name": "oneshot"}
    | SEEDED
    | synthetic(size=1.0, local_epochs=IMAGES / 12_000, passes=IMAGES / 12_000 / 20)
)
# A third of the images go into models of the sites' own; the server takes as many more.
MIXED: Keys = (
    both("int2", entropy=True)
    | synthetic(size=0.5, local_epochs=IMAGES / 18_000, passes=IMAGES / 6_000 / 20 / 3 / 0.5)
    | {"server.pieces": ["nesterov", "correction"]}
    | {k: v for k, v in DILOCO.items() if k != "server.pieces"}
    | {"training.local_epochs": IMAGES / 6_000 / 20 * 2 / 3}
)
TRIED: dict[str, dict[str, Setting]] = {
    "iid": {
        "fp32": (100, {}),
        "fp32-r10": (10, {}),
        "fp32-r10-kept": (10, KEPT),
        "fp32-r10-nesterov-kept": (10, DILOCO | KEPT),
        "fp32-r10-kept-batch-8": (10, KEPT | {"training.batch_size": 8}),
    },
    "dirichlet": {
        "fp32": (100, {}),
        "fp32-r50": (50, {}),
        "int2": (100, both("int2", entropy=True)),
        "fp32-r50-nesterov": (50, DILOCO),
        "learned-1": (100, learned(1.0, 1.0, 10)),
        "fp32-kept": (100, KEPT),
        "fp32-r20-nesterov": (20, DILOCO),
        "int2-r50-nesterov": (50, DILOCO | both("int2", entropy=True)),
        "learned-0.5-r50-nesterov": (50, DILOCO | learned(0.5, 0.5, 10)),
        "int2-r20-nesterov-kept": (20, DILOCO | KEPT | both("int2", entropy=True)),
        "int2-r10-nesterov-kept": (10, DILOCO | KEPT | both("int2", entropy=True)),
        "learned-1-r20-kept": (20, KEPT | learned(1.0, 1.0, 5)),
        "learned-0.5-r40-kept": (40, KEPT | learned(0.5, 0.5, 10)),
        "oneshot": (20, SHOT),
        "int2-r20-nesterov-synthetic": (20, MIXED),
        "learned-0.2-kept": (100, KEPT | learned(0.2, 0.2, 10)),
        "learned-0.13-r50-kept": (50, KEPT | learned(0.13, 0.13, 10)),
        "learned-0.055-kept": (100, KEPT | learned(0.055, 0.055, 33)),
    },
}


# What the main table compares; chosen on the pilot seed, those at iid without one (README.md says how).
# The first settings of a cell have five seeds under skew: with three, bounds were too wide to decide anything.
CHOSEN: dict[str, dict[str, Setting]] = {
    "dirichlet": {
        "fp32": (100, {}),
        "fp32-kept": (100, KEPT),
        "int2-kept": (100, KEPT | both("int2", entropy=True)),
        "learned-0.95-kept": (100, KEPT | learned(0.95, 0.95, 20)),
        "learned-0.18-kept": (100, KEPT | learned(0.18, 0.18, 20)),
    },
    "iid": {
        "fp32": (100, {}),
        "fp32-kept": (100, KEPT),
        "int2-kept": (100, KEPT | both("int2", entropy=True)),
        "learned-0.95-kept": (100, KEPT | learned(0.95, 0.95, 20)),
    },
}
# Of less account, or harder: three seeds, after all of the above.
LATE: dict[str, dict[str, Setting]] = {
    "dirichlet": {
        "int2-r50-kept": (50, KEPT | both("int2", entropy=True)),
        "learned-0.055-kept": (100, KEPT | learned(0.055, 0.055, 33)),
    },
    "iid": {"learned-0.18-kept": (100, KEPT | learned(0.18, 0.18, 20))},
}
# Of the confirming cell: from the main cell's best, at fewer bits, and images in the place of weights, half as many as there are
# real ones: more would outweigh these.
CONFIRMED: dict[str, Setting] = {
    "fp32": (60, {}),
    "oneshot-0.5": (
        20,
        {"method.name": "oneshot"} | SEEDED | synthetic(size=0.5, local_epochs=6.0, passes=12 / 20),
    ),
    "learned-0.15-r20-kept": (20, KEPT | learned(0.15, 0.05, 7)),
}


def pilot() -> Cases:
    """Seed 100, which no table has: what to choose, and where it hurts."""
    return {
        f"{cell}-{name}-s{PILOT_SEED}": in_cell(cell, PILOT_SEED, setting)
        for cell, settings in TRIED.items()
        for name, setting in settings.items()
    }


def in_cell(cell: str, seed: int, setting: Setting) -> list[str]:
    """One run of the main cell."""
    rounds, keys = setting
    cfg = CELLS[cell] | keys
    return arguments("fedavg", seed, cfg, of_images(IMAGES, rounds, cfg, seed), keys)


def main() -> Cases:
    """The main cell, both partitions; seed by seed, so that a study cut short has whole pairs."""
    found: Cases = {}

    def add(chosen: dict[str, Setting], cell: str, seeds: Iterable[int]) -> None:
        for seed in seeds:
            for name, setting in chosen.items():
                found[f"{cell}-{name}-s{seed}"] = in_cell(cell, seed, setting)

    add(CHOSEN["dirichlet"], "dirichlet", range(5))
    add(CHOSEN["iid"], "iid", SEEDS)
    for cell, chosen in LATE.items():
        add(chosen, cell, SEEDS)
    for seed in SEEDS:  # the union of the clients is the same in both cells
        one = {"training.rounds": 10, "training.local_epochs": 2.4}
        found[f"dirichlet-central-s{seed}"] = arguments("central", seed, CELLS["dirichlet"], one)
    return found


def confirm() -> Cases:
    """Where the data outweigh the model: all images at 14x14, 60 rounds of a fifth of an epoch."""
    cell = COMMON | {
        "data.image_size": 14,
        "data.partition": "dirichlet",
        "data.dirichlet_alpha": 0.1,
        "model.network": "unet-8",
    }
    # Whole pairs first, the most promising ones before the others.
    first = ["fp32", "oneshot-0.5"]
    found: Cases = {}
    for names in (first, [name for name in CONFIRMED if name not in first]):
        for seed in SEEDS[:2]:
            for name in names:
                rounds, keys = CONFIRMED[name]
                images = of_images(12 * 60_000, rounds, cell, seed)
                found[f"14x14-{name}-s{seed}"] = arguments("fedavg", seed, cell, images, keys)
    return found


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
        for share, rounds, variants in ((1.0, 12, everybody), (0.5, 24, half)):
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
    # Two runs side by side, a client at a time in each: no core waits for the last client of a round.
    run_all(HERE, STUDIES[which](), RUNS, jobs=2, more=traffic, results=results)
