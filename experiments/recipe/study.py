"""Which target, schedule, weight, loss, learning rate, average and guidance make the best default on `digits`?

Trains one FedAvg run per case, then scores each with several averages and guidance scales. See README.md.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from study import machine, run_all

import osmotic

HALF_LIVES = (0, 1000, 2000, 5000, 10000)
GUIDANCE = (1.0, 1.5, 2.0, 3.0)
BASE = "v-cosine-snr5"  # scored with every average and guidance, the others with two of each
CASES = {
    "v-cosine-snr5": [],
    "v-cosine-snr0": ["recipe.min_snr=0"],
    "epsilon-cosine-snr5": ["model.target=epsilon"],
    "epsilon-cosine-snr0": ["model.target=epsilon", "recipe.min_snr=0"],
    "sample-cosine-snr5": ["model.target=sample"],
    "sample-cosine-snr0": ["model.target=sample", "recipe.min_snr=0"],
    "edm": ["model.target=edm", "score.sampler=edm-dpm-solver++"],
    "v-cosine-lr-cosine": ["training.lr_schedule=cosine"],
    "v-cosine-lr4e-3": ["training.learning_rate=4e-3"],
    "v-cosine-huber": ["recipe.loss=huber"],
    "v-linear-snr5": ["model.schedule=linear"],
}


def arguments(settings: list[str]) -> list[str]:
    """Arguments of `osmotic run` for one case: every average is kept, and the run's own score is a small one."""
    kept = [float(h) for h in HALF_LIVES if h]
    fixed = [
        f"recipe.ema_half_lives={kept}",
        "score.every=0",
        "score.samples=100",
        "track.backends=[]",
        *settings,
    ]
    return [part for s in fixed for part in ("--set", s)]


def score(folder: Path) -> None:
    """Fills scores.jsonl: every run x average x guidance, 1,000 samples each."""
    path = folder / "scores.jsonl"
    done = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    seen = {(r["case"], r["half_life"], r["guidance"]) for r in done}
    for case in CASES:
        for half_life in HALF_LIVES if case == BASE else (0, 2000):
            for guidance in GUIDANCE if case == BASE else (1.0, 2.0):
                if (case, half_life, guidance) in seen or not (
                    Path("runs/recipe") / case / "summary.json"
                ).exists():
                    continue
                run = osmotic.load(Path("runs/recipe") / case)
                quality = run.evaluate(ema=half_life, guidance=guidance, samples=1000)
                keys = (
                    "half_life",
                    "guidance",
                    "fd",
                    "kid",
                    "precision",
                    "recall",
                    "fd_at_floor",
                    "fd_floor",
                    "nfe",
                )
                with open(path, "a") as file:
                    file.write(json.dumps({"case": case} | {k: quality[k] for k in keys}) + "\n")


if __name__ == "__main__":
    here = Path(__file__).parent
    for case, settings in CASES.items():
        run_all(here, {case: arguments(settings)})
        score(here)
    rows = [json.loads(line) for line in (here / "scores.jsonl").read_text().splitlines()]
    print(
        f"{machine()}\n\n| case | best FD | KID | half-life | guidance | FD at 2,000 and 2 | FD at 2,000 and 1 |"
    )
    print("|---|---|---|---|---|---|---|")
    for case in CASES:
        own = {(r["half_life"], r["guidance"]): r for r in rows if r["case"] == case}
        best = min(own.values(), key=lambda r: r["fd"])
        print(
            f"| {case} | {best['fd']:.3f} | {best['kid']:.4f} | {best['half_life']:g} | {best['guidance']:g} "
            f"| {own[2000, 2.0]['fd']:.3f} | {own[2000, 1.0]['fd']:.3f} |"
        )
