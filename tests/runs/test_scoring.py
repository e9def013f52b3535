"""Which images a run's scores are taken against."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from small_runs import SMALL

from osmotic.metrics import encoder as encoders
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
