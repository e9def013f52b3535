"""Do personal averages help where they keep the clock of the whole round, and where each keeps its own? See README.md."""

from __future__ import annotations

import json
import shutil
import statistics
import sys
from pathlib import Path

import numpy as np

import osmotic
from osmotic.diffusion.ema import Ema
from osmotic.metrics import encoder as encoders
from osmotic.metrics.frechet import FeatureStatistics, frechet
from osmotic.runs import resolve, study
from osmotic.runs.scoring import Scoring
from osmotic.storage.store import read_checked
from osmotic.tensors import group

SEEDS = (10, 11, 12)
SAMPLES = 200
HALF_LIFE = 5_000.0
ROUNDS, EPOCHS = 20, 2


def keys(seed: int) -> dict[str, object]:
    """`local` on digits by the default recipe, without averages: they are made afterwards, from every round's weights."""
    return {
        "seed": seed,
        "data.partition_seed": seed,
        "data.partition": "dirichlet",
        "recipe.ema_half_lives": [],
        "training.rounds": ROUNDS,
        "training.local_epochs": EPOCHS,
        "score.every": 0,
        "score.samples": SAMPLES,
        "engine.workers": 1,
        "track.backends": [],
        "checkpoint.keep": ROUNDS + 1,  # so that clients keep every round's state
    }


def measure(seed: int, folder: Path) -> dict[str, float]:
    """Mean FD over the clients' own models: raw, averaged by each client's own images, averaged by all clients'."""
    out = folder / f"local-{seed}"
    osmotic.run(preset="local", keys=keys(seed), out=out, quiet=True)
    sets = [f"{key}={json.dumps(value)}" for key, value in keys(seed).items()]
    prepared = study.prepare(resolve.load(preset="local", sets=sets))
    scoring = Scoring(prepared, None)
    encoder = encoders.get(prepared.dataset, "classifier")
    real = FeatureStatistics.of(encoder.features(scoring.reference.images))
    everybody = sum(len(h.train) for h in prepared.holdings) * EPOCHS
    found: dict[str, list[float]] = {"raw": [], "own clock": [], "round's clock": []}
    for holding in prepared.holdings:
        own, shared = Ema([HALF_LIFE]), Ema([HALF_LIFE])
        for path in sorted((out / "clients" / holding.client.name).glob("state-*.safetensors")):
            weights = group(read_checked(path), "personal")
            own.update(weights, len(holding.train) * EPOCHS)
            shared.update(weights, everybody)
        models = (weights, own.average(HALF_LIFE), shared.average(HALF_LIFE))
        for name, model in zip(found, models, strict=True):
            images, _ = scoring.draw(model, scoring.labels(), SAMPLES)
            found[name].append(frechet(real, FeatureStatistics.of(encoder.features(images))))
    shutil.rmtree(out)
    return {name: float(np.mean(values)) for name, values in found.items()}


if __name__ == "__main__":
    here = Path(__file__).parent
    path = here / "results.json"
    rows = json.loads(path.read_text()) if path.exists() else {}
    for seed in SEEDS:
        if str(seed) not in rows:
            rows[str(seed)] = measure(seed, Path(sys.argv[1] if len(sys.argv) > 1 else "runs/averages"))
            path.write_text(json.dumps(rows, indent=1) + "\n")
    print("| seed | raw | own clock | round's clock |\n|---|---|---|---|")
    for seed, row in rows.items():
        print(f"| {seed} | " + " | ".join(f"{v:.2f}" for v in row.values()) + " |")
    means = [statistics.mean(r[name] for r in rows.values()) for name in next(iter(rows.values()))]
    print("| mean | " + " | ".join(f"{v:.2f}" for v in means) + " |")
