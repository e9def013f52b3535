"""Which target, schedule, weight, loss and learning rate make the best default on `digits`? See README.md."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from study import machine, run_all  # noqa: E402

EDM = ["model.target=edm", "score.sampler=edm-dpm-solver++"]
SCREEN = {
    "v-cosine-snr5": [],
    "v-cosine-snr0": ["recipe.min_snr=0"],
    "epsilon-cosine-snr5": ["model.target=epsilon"],
    "epsilon-cosine-snr0": ["model.target=epsilon", "recipe.min_snr=0"],
    "sample-cosine-snr5": ["model.target=sample"],
    "sample-cosine-snr0": ["model.target=sample", "recipe.min_snr=0"],
    "edm": EDM,
    "v-linear-snr5": ["model.schedule=linear"],
    "epsilon-linear-snr0": ["model.target=epsilon", "model.schedule=linear", "recipe.min_snr=0"],
    "v-cosine-huber": ["recipe.loss=huber"],
    "v-cosine-lr1e-3": ["training.learning_rate=1e-3"],
    "v-cosine-lr4e-3": ["training.learning_rate=4e-3"],
    "v-cosine-lr-cosine": ["training.lr_schedule=cosine"],
}


def arguments(settings: list[str]) -> list[str]:
    """Arguments of `osmotic run` for one case; scored once, at the end."""
    fixed = ["score.every=0", "track.backends=[]", *settings]
    return [part for s in fixed for part in ("--set", s)]


if __name__ == "__main__":
    rows = run_all(Path(__file__).parent, {name: arguments(s) for name, s in SCREEN.items()})
    print(f"{machine()}\n")
    print("| case | FD | KID | precision | recall |\n|---|---|---|---|---|")
    for r in sorted(rows, key=lambda r: r["fd"]):
        print(f"| {r['case']} | {r['fd']:.3f} | {r['kid']:.4f} | {r['precision']:.3f} | {r['recall']:.3f} |")
