"""The runs of the study and what is kept of each; `study.py` runs them, `report.py` reads the rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

METHODS = ("fedavg", "usplit", "ulatdec", "udec")
PARTITIONS = ("iid", "l-skew", "q-skew")
SEEDS = (0, 1, 2)

SMALL = {
    "data.source": "fashion-mnist",
    "data.image_size": 8,
    "data.max_images": 3000,
    "data.clients": 5,
    "training.rounds": 15,
    "training.local_epochs": 1,
    "model.conditional": False,
    "recipe.ema_half_lives": [],
    "score.samples": 500,
    "score.steps": 10,
    "score.every": 5,
    "track.backends": [],
    "engine.workers": 1,
}


def case(preset: str, partition: str, seed: int, **more: Any) -> list[str]:
    """Arguments of `osmotic run`; split, weights and sampling all vary with the seed. `section__key` stands for a dot."""
    keys = SMALL | {"data.partition": partition, "data.partition_seed": seed, "seed": seed}
    keys |= {name.replace("__", "."): value for name, value in more.items()}
    return [
        "--preset",
        preset,
        *(part for k, v in keys.items() for part in ("--set", f"{k}={json.dumps(v)}")),
    ]


def main_grid() -> dict[str, list[str]]:
    """4 methods and local-only on 3 partitions, and centralised training: seed by seed, so that a cut leaves whole seeds."""
    cases: dict[str, list[str]] = {}
    for seed in SEEDS:
        cases[f"central-{seed}"] = case("central", "iid", seed)
        for partition in PARTITIONS:
            cases |= {f"{m}-{partition}-{seed}": case(m, partition, seed) for m in (*METHODS, "local")}
    return cases


def falling_rate() -> dict[str, list[str]]:
    """The four methods on l-skew with a learning rate that falls to 0 over the rounds: last steps then add no noise."""
    return {
        f"cosine+{m}-l-skew-{seed}": case(m, "l-skew", seed, training__lr_schedule="cosine", score__every=0)
        for seed in SEEDS
        for m in METHODS
    }


def variants() -> dict[str, list[str]]:
    """What goes beyond the paper, on the partitions where it should matter."""
    cases: dict[str, list[str]] = {}
    for seed in SEEDS:
        for partition in ("l-skew", "q-skew"):
            cases[f"udec+encoder5-{partition}-{seed}"] = case(
                "udec", partition, seed, method__encoder_every=5
            )
        cases[f"usplit+freeze-l-skew-{seed}"] = case("usplit", "l-skew", seed, method__freeze=True)
        cases[f"udec+int8-l-skew-{seed}"] = case("udec", "l-skew", seed, codec__up="int8", codec__down="int8")
    return cases


TINY_SPLITS = (29, 172, 363)  # seeds of q-skew with 3,000 images and 5 clients whose smallest client holds 13


def tiny() -> dict[str, list[str]]:
    """q-skew with a client of 13 images, as in the paper's split for 5 clients."""
    cases: dict[str, list[str]] = {}
    for seed, split in zip(SEEDS, TINY_SPLITS, strict=True):
        more = {"data__partition_seed": split, "score__every": 0}
        for m in ("fedavg", "udec", "local"):
            cases[f"tiny+{m}-{seed}"] = case(m, "q-skew", seed, **more)
        cases[f"tiny+udec+encoder5-{seed}"] = case("udec", "q-skew", seed, method__encoder_every=5, **more)
    return cases


def own_network() -> dict[str, list[str]]:
    """The paper's network at 16x16 on l-skew, one seed."""
    size = {"data__image_size": 16, "model__network": "convnext-unet"}
    return {f"convnext16-{m}-l-skew-0": case(m, "l-skew", 0, **size) for m in METHODS}


def kept(out: Path) -> dict[str, Any]:
    """Of a run folder, what the report needs beside the common row: per client, per stage, per scored round."""
    summary = json.loads((out / "summary.json").read_text())
    quality = summary["quality"]
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    ledger = [json.loads(line) for line in (out / "ledger.jsonl").read_text().splitlines()]
    rounds = [line["round"] for line in lines if line["phase"] == "train"]
    conveyed = dict.fromkeys(rounds, 0)
    for entry in ledger:
        if entry["total"]:
            conveyed[entry["round"]] += entry["parameters"]
    return {
        "preset": summary["preset"],
        "client_sizes": summary["client_sizes"],
        "parameters": summary["parameters"],
        "parameters_up": summary["parameters_up"],
        "parameters_down": summary["parameters_down"],
        "guidance": quality["guidance"],
        "scores": {k: quality[k] for k in ("mean", "weighted", "worst", "after")},
        "per_client": quality["per_client"],
        "curve": [
            {
                "round": line["round"],
                "phase": line["phase"],
                "client_steps": line["client_steps"],
                "fd": line["quality"]["fd"],
                "mean_fd_all": line["quality"]["mean"]["fd_all"],
                "weighted_fd_all": line["quality"]["weighted"]["fd_all"],
            }
            for line in lines
            if line["quality"]
        ],
        "conveyed_by_round": list(conveyed.values()),
        "scored_weights_sha256": summary["scored_weights_sha256"],
        "failures": len(summary["failures"]),
    }
