"""The paper's full setting, for an accelerator: 28x28, K = 2, 5, 10, all modes and partitions, and the sweep over E.

    OSMOTIC_DATA=FOLDER python experiments/feddiffuse/gpu.py                  # resumes where it was cut off, then prints the tables
    OSMOTIC_DATA=FOLDER python experiments/feddiffuse/gpu.py --try            # every command on a few steps, anywhere
    OSMOTIC_DATA=FOLDER python experiments/feddiffuse/gpu.py --only k5 --seeds 2023

Rows go to gpu.jsonl beside this file (with --try to a folder of their own).
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from cases import PARTITIONS, kept
from study import machine, run_all
from tables import interval

MODES = ("full", "usplit", "ulatdec", "udec")
CLIENTS = (2, 5, 10)
EPOCHS = (1, 2, 3, 5, 8)
SEEDS = (2023, 2024, 2025)
# 5,000 images by 1,000 ancestral steps: the counts of papers that the text does not settle are chosen in README.md.
FULL = {
    "data.source": "fashion-mnist",
    "training.rounds": 15,
    "training.local_epochs": 5,
    "score.sampler": "ddpm",
    "score.steps": 1000,
    "score.samples": 5000,
    "score.every": 5,
    "track.backends": [],
}
TRY = {
    "data.max_images": 200,
    "training.rounds": 1,
    "training.local_epochs": 1,
    "score.samples": 16,
    "score.steps": 2,
    "score.sampler": "ddim",
}


def case(mode: str, clients: int, partition: str, seed: int, changes: dict[str, Any]) -> list[str]:
    """Arguments of `osmotic run`; seed 2023 draws the paper's own split."""
    keys = FULL | {
        "data.clients": clients,
        "data.partition": partition,
        "data.partition_seed": seed,
        "seed": seed,
    }
    keys |= changes
    preset = mode if mode == "central" else f"feddiffuse-{mode}"
    return [
        "--preset",
        preset,
        *(part for k, v in keys.items() for part in ("--set", f"{k}={json.dumps(v)}")),
    ]


def cases(seeds: tuple[int, ...], changes: dict[str, Any]) -> dict[str, list[str]]:
    """Table 2, then the sweep over E, then centralised training with 15 passes and with the 75 of the others."""
    out: dict[str, list[str]] = {}
    for seed in seeds:
        for clients in CLIENTS:
            for partition in PARTITIONS:
                for mode in MODES:
                    name = f"k{clients}-{partition}-{mode}-{seed}"
                    out[name] = case(mode, clients, partition, seed, changes)
        for clients in CLIENTS:
            for epochs in EPOCHS:
                if epochs == FULL["training.local_epochs"]:
                    continue  # that is the table's own cell
                more = {"training.local_epochs": epochs} | changes
                out[f"e{epochs}-k{clients}-iid-full-{seed}"] = case("full", clients, "iid", seed, more)
        for epochs in (1, 5):
            more = {"recipe.name": "feddiffuse", "training.local_epochs": epochs} | changes
            out[f"central-e{epochs}-{seed}"] = case("central", 1, "iid", seed, more)
    return out


def tables(rows: dict[str, dict[str, Any]]) -> str:
    """FD as mean and 95 % interval over seeds; personal models: mean over clients before the last average, as in the paper."""

    def cell(start: str, end: str) -> str:
        found = [r for name, r in rows.items() if name.startswith(start) and name[len(start) :].isdigit()]
        return interval([r["fd"] if r["fd"] is not None else r["mean_fd_all"] for r in found]) or end

    lines = ["| mode | K | iid | l-skew | q-skew |", "|---|---|---|---|---|"]
    for mode in MODES:
        for clients in CLIENTS:
            own = [cell(f"k{clients}-{p}-{mode}-", "not run") for p in PARTITIONS]
            lines.append(f"| {mode} | {clients} | {' | '.join(own)} |")
    lines += ["", "| K | " + " | ".join(f"E = {e}" for e in EPOCHS) + " |", "|---|" + "---|" * len(EPOCHS)]
    for clients in CLIENTS:
        own = [
            cell(f"k{clients}-iid-full-" if e == 5 else f"e{e}-k{clients}-iid-full-", "not run")
            for e in EPOCHS
        ]
        lines.append(f"| {clients} | {' | '.join(own)} |")
    for epochs in (1, 5):
        lines.append(f"\ncentral, {15 * epochs} passes: {cell(f'central-e{epochs}-', 'not run')}")
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--try", dest="trial", action="store_true", help="few images and steps, one seed")
    parser.add_argument("--only", default="", help="only cases whose name starts so, e.g. k5-l-skew")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    asked = parser.parse_args()
    seeds = tuple(asked.seeds[:1] if asked.trial else asked.seeds)
    wanted = cases(seeds, TRY if asked.trial else {})
    chosen = {name: arguments for name, arguments in wanted.items() if name.startswith(asked.only)}
    with tempfile.TemporaryDirectory() as scratch:
        here = Path(scratch) if asked.trial else Path(__file__).parent
        runs = here / "runs" if asked.trial else Path("runs/feddiffuse-gpu")
        found = run_all(here, chosen, runs=runs, more=kept, results="gpu.jsonl")
    print(machine() + "\n")
    print(tables({r["case"]: r for r in found}))
