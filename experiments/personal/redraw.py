"""Are clients whose own model scored worse than training alone worse, or is it the noise of drawing? Five other noises for each.

python experiments/personal/redraw.py     # redraw.jsonl, from the run folders
"""

from __future__ import annotations

import json
import math
import os
import statistics
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import numpy as np  # noqa: E402
from cases import CELLS, SEEDS  # noqa: E402
from paired import T95, read  # noqa: E402
from scores import DRAWN, distance  # noqa: E402
from tables import clients, scored  # noqa: E402

import osmotic  # noqa: E402
from osmotic.data.gather import gather  # noqa: E402
from osmotic.data.strata import apportion  # noqa: E402
from osmotic.runs import saved  # noqa: E402
from osmotic.runs.scoring import Scoring  # noqa: E402
from osmotic.runs.study import prepare  # noqa: E402
from osmotic.storage.folder import RunDir  # noqa: E402

RUNS = Path(os.environ.get("RUNS", "runs/personal"))
NOISES = 5


class Redrawn(Scoring):
    """Draws with another noise than the run's."""

    noise = 0

    @property
    def seed(self) -> int:
        """Seed of the sampling noise."""
        return super().seed + 1 + self.noise


def main() -> None:
    """One line for each client that was worse."""
    rows, lines = read(HERE / "results.jsonl"), []
    for cell in CELLS:
        for seed in SEEDS:
            own, alone = (clients(rows[f"{cell}-{m}-s{seed}"]) for m in ("all", "local"))
            for name, one in own.items():
                mine, other = scored(one, "personal", "fd_own"), scored(alone[name], "personal", "fd_own")
                if mine is not None and other is not None and mine > other:
                    lines.append(
                        {"cell": cell, "seed": seed, "client": name, "first": mine / other}
                        | again(cell, seed, name)
                    )
                    print(lines[-1])
    (HERE / "redraw.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def again(cell: str, seed: int, client: str) -> dict[str, object]:
    """FD own / alone with other noises, each time the same for both models: all, geometric mean and 95 % interval."""
    folders = [RUNS / f"{cell}-{m}-s{seed}" for m in ("all", "local")]
    study = prepare(osmotic.load(folders[0]).config)
    scoring = Redrawn(study, None)
    holding = next(h for h in study.holdings if h.client.name == client)
    train = study.dataset.train
    assert train.labels is not None
    labels = apportion(np.bincount(train.labels[holding.train], minlength=study.spec.num_classes), DRAWN)
    real = scoring.encoder.features(gather([(train, holding.own_test)]).images)
    logs = []
    for noise in range(NOISES):
        scoring.noise = noise
        fds = []
        for folder in folders:
            weights = saved.weights(RunDir.existing(folder), client).tensors
            made = scoring.encoder.features(scoring.draw(weights, labels, DRAWN)[0])
            fds.append(distance(made, real))
        logs.append(math.log(fds[0] / fds[1]))
    mean, half = statistics.fmean(logs), T95[NOISES] * statistics.stdev(logs) / math.sqrt(NOISES)
    return {
        "again": [math.exp(v) for v in logs],
        "mean": math.exp(mean),
        "interval": [math.exp(mean - half), math.exp(mean + half)],
    }


if __name__ == "__main__":
    main()
