"""Who can tell whether an image was trained on, from what the server sees? See README.md beside this file.

python experiments/membership/study.py           # results.jsonl; skips what is finished
python experiments/membership/study.py table
"""

from __future__ import annotations

import json
import os
import statistics
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from paired import T95  # noqa: E402
from study import arguments, one  # noqa: E402

import osmotic  # noqa: E402
from osmotic.runs import saved  # noqa: E402
from osmotic.runs.study import Study, prepare  # noqa: E402
from osmotic.storage.folder import RunDir  # noqa: E402
from osmotic.storage.store import read_checked  # noqa: E402
from osmotic.training.images import Images  # noqa: E402

RUNS = Path(os.environ.get("RUNS", "runs/membership"))
SEEDS, ROUNDS, CLIENTS, OWN = (0, 1, 2), 10, 3, 64
PASSES = (30, 300)  # of a client over its images in all
DRAWS = 64  # noisy copies of an image behind its loss
COMMON: dict[str, Any] = {
    "data.source": "npz:../shared/data/mnist.npz",
    "data.image_size": 8,
    "data.max_images": CLIENTS * OWN,
    "data.clients": CLIENTS,
    "data.partition": "iid",
    "model.network": "unet-8",
    "training.rounds": ROUNDS,
    "training.batch_size": 16,
    "score.every": 0,
    "score.samples": 100,
    "track.backends": [],
    "engine.workers": 1,
    "server.correction.size": 1.0,  # as many synthetic images as real ones
}
# What leaves: local models, images, changes of weights. What the server draws from an uploaded model is what its site would send
# without the filter of near-copies.
WAYS: dict[str, dict[str, Any]] = {
    "upload": {"server.correction.images": "upload", "server.pieces": ["correction", "listening"]},
    "site": {"server.pieces": ["correction"]},
    "fedavg": {"server.pieces": ["listening"]},
}


def auc(members: np.ndarray, others: np.ndarray) -> float:
    """How often a member scores higher than another image, ties half: 0.5 is guessing. Scores float [n] and [m]."""
    higher = (members[:, None] > others[None]).mean()
    return float(higher + 0.5 * (members[:, None] == others[None]).mean())


def candidates(study: Study) -> Iterator[tuple[str, Images, Images]]:
    """(client, its images, as many test images in the same class mix)."""
    train, test, device = study.dataset.train, study.dataset.test, torch.device("cpu")
    assert train.labels is not None and test.labels is not None
    unused = np.ones(len(test), bool)
    for holding in study.holdings:
        labels = train.labels[holding.train]
        rows = []
        for label, count in enumerate(np.bincount(labels)):
            found = np.flatnonzero(unused & (test.labels == label))[:count]
            unused[found] = False
            rows.append(found)
        other = np.concatenate(rows)
        yield (
            holding.client.name,
            Images.of(train.images, train.labels, device, rows=holding.train),
            Images.of(test.images, test.labels, device, rows=other),
        )


def losses(study: Study, weights: dict[str, np.ndarray], images: Images) -> np.ndarray:
    """Denoising loss of each image, float [n], by the same noise for all images and models."""
    model = study.model()
    model.load_state_dict({n: torch.from_numpy(np.array(t)) for n, t in weights.items()})
    model.eval()
    found = []
    with torch.no_grad():
        for row in range(len(images)):
            x, y = images.batch(torch.full((DRAWS,), row))
            generator = torch.Generator().manual_seed(0)
            found.append(float(study.blueprint.process.loss(model, x, y, generator)))
    return np.array(found)


def nearness(drawn: np.ndarray, images: Images) -> np.ndarray:
    """Minus the distance of each image to the nearest drawn one, float [n]; `drawn` uint8 [M, H, W, C]."""
    made = torch.from_numpy(drawn.reshape(len(drawn), -1)).float()
    own = torch.from_numpy(np.asarray(images.pixels).transpose(0, 2, 3, 1).reshape(len(images), -1)).float()
    return -torch.cdist(own, made).min(dim=1).values.numpy()


def attack(case: str) -> dict[str, list[float]]:
    """AUC of each attack on each client."""
    study = prepare(osmotic.load(RUNS / f"fedavg-{case}").config)
    [alone] = (RUNS / f"seen-upload-{case}").glob("local-*.npz")
    local = np.load(alone)
    first, last = (np.load(RUNS / f"seen-fedavg-{case}" / f"train-{r}.npz") for r in (1, ROUNDS))
    final = dict(saved.weights(RunDir.existing(RUNS / f"fedavg-{case}")).tensors)
    found: dict[str, list[float]] = {}

    def told(what: str, score: Any, members: Images, others: Images) -> None:
        found.setdefault(what, []).append(auc(score(members), score(others)))

    for number, (name, members, others) in enumerate(candidates(study)):
        for what, seen in (
            ("local model", local),
            ("change of round 1", first),
            (f"change of round {ROUNDS}", last),
        ):
            before = _group(seen, "before")
            after = {n: before[n] + t for n, t in _group(seen, name).items()}

            def fell(
                images: Images, a: Any = after, b: Any = before, alone: bool = what == "local model"
            ) -> Any:
                """How low the loss is, or how much the change has lowered it."""
                return (0.0 if alone else losses(study, b, images)) - losses(study, a, images)

            told(what, fell, members, others)
        told("global model", lambda images: -losses(study, final, images), members, others)
        for way, what in (("site", "images"), ("upload", "images, near-copies not dropped")):
            [path] = sorted((RUNS / f"{way}-{case}" / "auxiliary").glob("*.safetensors"))
            held = read_checked(path)
            drawn = held["images"][held["client"] == number]
            told(what, lambda images, d=drawn: nearness(d, images), members, others)
    return found


def _group(seen: Any, name: str) -> dict[str, np.ndarray]:
    return {n.removeprefix(f"{name}/"): seen[n] for n in seen.files if n.startswith(f"{name}/")}


def main() -> None:
    """Runs what is missing, seed by seed, and writes a line for each seed and number of passes."""
    path = HERE / "results.jsonl"
    rows = {r["case"]: r for r in map(json.loads, path.read_text().splitlines())} if path.exists() else {}
    for seed, passes in product(SEEDS, PASSES):
        case = f"{passes}-s{seed}"
        if case in rows:
            continue
        for way, keys in WAYS.items():
            out = RUNS / f"{way}-{case}"
            if not (out / "summary.json").exists():
                one(arguments("fedavg", keys_of(way, keys, seed, passes)), out, [HERE / "listening.py"])
        rows[case] = {"case": case, "seed": seed, "passes": passes, "auc": attack(case)}
        path.write_text("".join(json.dumps(r) + "\n" for r in rows.values()))
    print(table(list(rows.values())))


def keys_of(way: str, keys: dict[str, Any], seed: int, passes: int) -> dict[str, Any]:
    """The keys of one run; those of pieces that it does not have are left out."""
    own = {"seed": seed, "data.partition_seed": seed, "training.local_epochs": passes / ROUNDS}
    own |= {
        "server.correction.local_epochs": passes,
        "server.listening.folder": RUNS / f"seen-{way}-{passes}-s{seed}",
    }
    pieces = keys["server.pieces"]
    wanted = COMMON | own | keys
    return {k: v for k, v in wanted.items() if k.count(".") < 2 or k.split(".")[1] in pieces}


def table(rows: list[dict[str, Any]]) -> str:
    """Mean over clients, then over seeds with the 95 % interval of that mean."""
    lines = [
        "| what the server sees | " + " | ".join(f"AUC, {p} passes" for p in PASSES) + " |",
        "|---" * (1 + len(PASSES)) + "|",
    ]
    for what in rows[0]["auc"]:
        told = []
        for passes in PASSES:
            means = [statistics.fmean(row["auc"][what]) for row in rows if row["passes"] == passes]
            half = T95[len(means)] * statistics.stdev(means) / len(means) ** 0.5 if len(means) > 1 else 0.0
            told.append(f"{statistics.fmean(means):.2f}" + (f" +- {half:.2f}" if len(means) > 1 else ""))
        lines.append(f"| {what} | " + " | ".join(told) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    if sys.argv[1:] == ["table"]:
        print(table([json.loads(line) for line in (HERE / "results.jsonl").read_text().splitlines()]))
    else:
        main()
