"""Every client's model, and the global one, against that client's own held-out images, and against the test split.

For all methods alike: as many images, drawn with the same noise in the client's own class mix, against the half of its held-out
images by which no model was chosen.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

import osmotic
from osmotic.data.gather import gather
from osmotic.data.strata import apportion
from osmotic.metrics import encoder as encoders
from osmotic.metrics.frechet import FeatureStatistics, frechet
from osmotic.metrics.near_copies import CopyFinder
from osmotic.runs import saved
from osmotic.runs.scoring import Scoring
from osmotic.runs.study import Study, prepare
from osmotic.storage.folder import RunDir

DRAWN = 300  # images of each model
LEAST = 20  # held-out images of a client that is scored by them


def figures(out: Path) -> dict[str, Any]:
    """Further entry of a row: a list of clients, each with its sizes, floor, and the scores of its own and the global model."""
    run = osmotic.load(out)
    study = prepare(run.config)
    scoring = Scoring(study, None)
    folder = RunDir.existing(out)
    encoder = encoders.get(scoring.seen, run.config.score.encoder, device="cpu")
    # The runs of a seed that differ in fine-tuning alone have one global model: it is scored in the first.
    tunes = "personalise" in run.config.after.pieces
    tuned = run.config.after.options.get("personalise", {})
    first = not tunes or (tuned.get("trains") == "all" and tuned.get("when", "after") == "after")
    kinds = ["personal"] if tunes or not saved.is_model(folder.model) else []
    kinds += ["global"] if first and saved.is_model(folder.model) else []
    clients = [_client(study, scoring, encoder, folder, place, kinds) for place in range(len(study.holdings))]
    return {"clients": clients}


def _client(
    study: Study, scoring: Scoring, encoder: Any, folder: Any, place: int, kinds: list[str]
) -> dict[str, Any]:
    holding, train = study.holdings[place], study.dataset.train
    # With nothing watched the same half is left out all the same.
    own_test = holding.own_test if len(holding.watched) else holding.own_test[1::2]
    assert train.labels is not None
    labels = apportion(np.bincount(train.labels[holding.train], minlength=study.spec.num_classes), DRAWN)
    own, real, test = gather([(train, holding.train)]), gather([(train, own_test)]), study.dataset.test
    row: dict[str, Any] = {
        "client": holding.client.name,
        "images": len(holding.train),
        "held_out": len(own_test),
        "classes": np.bincount(train.labels[holding.train], minlength=study.spec.num_classes).tolist(),
    }
    features = {
        "own": encoder.features(real.images),
        "test": encoder.features(test.images),
        "train": encoder.features(own.images),
    }
    finder = CopyFinder(own, features["train"], test, features["test"], encoder)
    for kind in kinds:
        name = holding.client.name if kind == "personal" else None
        images, _ = scoring.draw(saved.weights(folder, name).tensors, labels, DRAWN)
        made = encoder.features(images)
        copies, _ = finder.look(images, made, labels)
        row[kind] = {
            "fd_own": distance(made, features["own"]) if len(own_test) >= LEAST else None,
            "fd_test": distance(made, features["test"]),
            "copies": None if copies is None else copies.features,
            "copies_expected": None if copies is None else copies.expected,
        }
    # As many real images that the client trained on: what no model can be asked to go below.
    rows = np.random.default_rng(0).permutation(len(own))[:DRAWN]
    row["floor"] = distance(features["train"][rows], features["own"]) if len(own_test) >= LEAST else None
    return row


def distance(made: np.ndarray, real: np.ndarray) -> float:
    """FD of two sets of features [n, D] and [m, D]."""
    return float(frechet(FeatureStatistics.of(made), FeatureStatistics.of(real)))
