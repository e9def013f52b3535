"""FedAvg against centralised and local training on `digits` at equal images seen, three seeds. See README.md."""

from __future__ import annotations

import json
import math
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from study import machine, run_all

import osmotic

METHODS = ("fedavg", "central", "local")
SEEDS = (0, 1, 2)
SCALES = (1.0, 1.5, 2.0)
STUDENT_95 = 4.303  # two-sided 95 % quantile of Student's t with 2 degrees of freedom


def arguments(method: str, seed: int) -> list[str]:
    """Seed of weights, batches and sampling, and seed of the split, both vary."""
    sets = (
        f"seed={seed}",
        f"data.partition_seed={seed}",
        "score.every=0",
        "score.guidance=2",
        "track.backends=[]",
    )
    return ["--preset", method, *(part for s in sets for part in ("--set", s))]


def interval(values: list[float]) -> str:
    """Mean and half-width of its 95 % interval."""
    half = STUDENT_95 * statistics.stdev(values) / math.sqrt(len(values))
    return f"{statistics.mean(values):.3f} +- {half:.3f}"


def at_guidance(case: str, scale: float) -> dict[str, float]:
    """FD, KID, precision and recall of a finished run at another guidance scale."""
    quality = osmotic.load(Path("runs/digits_baseline") / case).evaluate(guidance=scale)
    return {k: quality[k] for k in ("fd", "kid", "precision", "recall", "fd_at_floor")}


if __name__ == "__main__":
    here = Path(__file__).parent
    cases = {f"{m}-{s}": arguments(m, s) for s in SEEDS for m in METHODS}
    rows = {r["case"]: r for r in run_all(here, cases)}
    print(f"{machine()}\n")
    print(
        "| run | FD | KID | precision | recall | FD at 360 | floor at 360 | mean FD of clients | images seen | steps | weights |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    for case, r in rows.items():
        scores = [
            r[k] for k in ("fd", "kid", "precision", "recall", "fd_at_floor", "fd_floor", "mean_fd_all")
        ]
        shown = " | ".join("not measured" if v is None else f"{v:.3f}" for v in scores)
        print(f"| {case} | {shown} | {r['images_seen']} | {r['client_steps']} | {r['weights_sha256'][:12]} |")
    path = here / "guidance.json"
    scales = json.loads(path.read_text()) if path.exists() else {}
    for method in ("fedavg", "central"):
        for scale in SCALES:
            for seed in SEEDS:
                if (name := f"{method}-{seed}-{scale:g}") not in scales:
                    scales[name] = at_guidance(f"{method}-{seed}", scale)
                    path.write_text(json.dumps(scales, indent=1) + "\n")
    print("\n| guidance | method | FD | KID | precision | recall |\n|---|---|---|---|---|---|")
    for scale in SCALES:
        for method in ("fedavg", "central"):
            own = [scales[f"{method}-{s}-{scale:g}"] for s in SEEDS]
            cells = " | ".join(interval([o[k] for o in own]) for k in ("fd", "kid", "precision", "recall"))
            print(f"| {scale:g} | {method} | {cells} |")
    for method in METHODS:
        key = "mean_fd_all" if method == "local" else "fd"
        print(
            f"\n{method}: FD {interval([rows[f'{method}-{s}'][key] for s in SEEDS])} (mean and 95 % interval of three seeds)"
        )
