"""Which images a run's scores are taken against."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from small_runs import SMALL

from osmotic.metrics import encoder as encoders
from osmotic.metrics.features import Encoder, to_unit
from osmotic.metrics.federated import FeatureStatistics, frechet, matching
from osmotic.runs import resolve
from osmotic.runs.scoring import Scoring
from osmotic.runs.study import Study, prepare


def study(*sets: str) -> Study:
    return prepare(resolve.load(sets=[*SMALL, *sets]))


def rows_of(images: np.ndarray, whole: np.ndarray) -> set[int]:
    """Where these images stand in the data set; each is there once."""
    known = {image.tobytes(): i for i, image in enumerate(whole)}
    return {known[image.tobytes()] for image in images}


def test_the_encoder_and_the_reference_see_only_what_clients_train_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(encoders, "get", lambda dataset, name: seen.append(dataset))
    prepared = study("data.holdout=0.25")
    scoring = Scoring(prepared, None)
    assert scoring.encoder is None
    trained = {int(i) for h in prepared.holdings for i in h.train}
    kept = {int(i) for h in prepared.holdings for i in h.own_test}
    assert kept and not trained & kept
    whole = prepared.dataset.train.images
    assert rows_of(scoring.reference.images, whole) == trained
    assert rows_of(seen[0].train.images, whole) == trained
    assert len(seen[0].train.labels) == len(trained)


def test_without_a_holdout_the_encoder_is_that_of_the_whole_training_split(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(encoders, "get", lambda dataset, name: seen.append(dataset))
    prepared = study()
    assert Scoring(prepared, None).encoder is None
    assert seen[0].train is prepared.dataset.train


def test_held_out_are_the_test_split_and_what_clients_keep() -> None:
    prepared = study("data.holdout=0.25")
    held_out = Scoring(prepared, None).held_out
    test = prepared.dataset.test
    kept = {int(i) for h in prepared.holdings for i in h.own_test}
    assert np.array_equal(held_out.images[: len(test)], test.images)
    assert rows_of(held_out.images[len(test) :], prepared.dataset.train.images) == kept
    assert len(held_out.labels) == len(test) + len(kept)
    without = study()
    assert Scoring(without, None).held_out is without.dataset.test


def pixels(dataset: Any, name: str) -> Encoder:
    """An encoder that needs no training: features are the 64 pixels of a digit."""
    flat = torch.nn.Flatten()
    return Encoder("pixels", "0" * 64, None, flat, None, to_unit, threads=1)


@pytest.fixture
def untrained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoders, "get", pixels)


def real_as_generator(scoring: Scoring, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """Makes the scorer's model draw training images of the classes asked for; returns these."""
    reference, labels = scoring.reference, scoring.labels()
    assert reference.labels is not None and labels is not None
    rows = np.concatenate(
        [np.resize(np.flatnonzero(reference.labels == c), (labels == c).sum()) for c in range(10)]
    )
    monkeypatch.setattr(scoring, "draw", lambda *args: (reference.images[rows], 1))
    return reference.images[rows]


@pytest.mark.usefixtures("untrained")
def test_every_client_s_score_against_all_images_is_the_run_s_own(monkeypatch: pytest.MonkeyPatch) -> None:
    # 97 samples of 10 classes: rounding makes their mix another one than that of the images.
    scoring = Scoring(study("score.samples=97"), None)
    real_as_generator(scoring, monkeypatch)
    quality = scoring.score_global({}, 1)
    assert len(quality["per_client"]) == 3
    for entry in quality["per_client"]:
        assert (entry["fd_all"], entry["kid_all"]) == (quality["fd"], quality["kid"])
    assert quality["mean"]["fd_all"] == pytest.approx(quality["fd"])


@pytest.mark.usefixtures("untrained")
@pytest.mark.parametrize("holdout", [0.0, 0.5])
def test_own_scores_are_taken_against_the_client_s_own_images(
    holdout: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = study("data.max_images=600", "score.samples=200", f"data.holdout={holdout}")
    scoring = Scoring(prepared, None)
    drawn = real_as_generator(scoring, monkeypatch).reshape(200, 64).astype(np.float64) / 255
    quality = scoring.score_global({}, 1)
    dataset, labels = prepared.dataset, scoring.labels()
    assert labels is not None and dataset.train.labels is not None
    for holding, entry in zip(prepared.holdings, quality["per_client"], strict=True):
        own = dataset.train.images[holding.own_test if holdout else holding.train]
        assert entry["own_images"] == len(own) >= 50
        picked = matching(labels, dataset.train.labels[holding.train])
        assert entry["own_samples"] == len(picked)
        both = (FeatureStatistics.of(x) for x in (own.reshape(len(own), 64) / 255, drawn[picked]))
        assert entry["fd_own"] == pytest.approx(frechet(*both), rel=1e-3)
        assert entry["fd_own_floor"] > 0
