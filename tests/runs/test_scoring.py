"""Which images a run's scores are taken against."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from small_runs import SMALL

from osmotic.metrics import encoder as encoders
from osmotic.metrics.features import Encoder, to_unit
from osmotic.metrics.federated import FeatureStatistics, frechet, matching
from osmotic.runs import resolve
from osmotic.runs.scoring import Scoring
from osmotic.runs.study import Study, prepare
from osmotic.storage.folder import RunDir


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
    monkeypatch.setattr(
        encoders, "get", lambda dataset, name, **told: seen.append(dataset) or pixels(dataset, name)
    )
    prepared = study("data.holdout=0.25")
    scoring = Scoring(prepared, None)
    assert scoring.encoder.name == "pixels"
    trained = {int(i) for h in prepared.holdings for i in h.train}
    kept = {int(i) for h in prepared.holdings for i in h.own_test}
    assert kept and not trained & kept
    whole = prepared.dataset.train.images
    assert rows_of(scoring.reference.images, whole) == trained
    assert rows_of(seen[0].train.images, whole) == trained
    assert len(seen[0].train.labels) == len(trained)


def test_features_are_taken_on_the_device_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []
    monkeypatch.setattr(
        encoders, "get", lambda dataset, name, device, **_: told.append(device) or pixels(dataset, name)
    )
    assert Scoring(replace(study(), device=torch.device("meta")), None).encoder.name == "pixels"
    assert told == ["meta"]


def test_without_a_holdout_the_encoder_is_that_of_the_whole_training_split(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(
        encoders, "get", lambda dataset, name, **told: seen.append(dataset) or pixels(dataset, name)
    )
    prepared = study()
    assert Scoring(prepared, None).encoder.name == "pixels"
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


def pixels(dataset: Any, name: str, **told: Any) -> Encoder:
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


@pytest.mark.usefixtures("untrained")
def test_a_score_of_copies_says_so_and_shows_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    scoring = Scoring(study("score.samples=100"), RunDir(tmp_path))
    real_as_generator(scoring, monkeypatch)
    quality = scoring.score_global({}, 1)
    # 360 held-out images: the three closest are the yardstick, and a fresh image is among them in 3 of 361 cases.
    assert quality["near_copies"] == {
        "features": 1.0, "pixels": 1.0, "expected": 3 / 361, "images": 100, "held_out": 360,
    }  # fmt: skip
    assert quality["held_out"]["fd"] > quality["fd"]
    names = sorted(path.name for path in (tmp_path / "samples").iterdir())
    assert names == ["nearest.png", "real.png", "round-0001.png"]
    page = read_png(tmp_path / "samples" / "nearest.png")
    # Three rows of ten digits, 8 pixels drawn as 64, 2 white ones around each, and the rows' names on the left.
    rows = [page[2 + 66 * row : 66 + 66 * row, -660:] for row in range(3)]
    assert page.shape[0] == 3 * 66 + 2 and page.shape[1] > 660
    assert np.array_equal(rows[0], rows[1]) and np.array_equal(rows[0], rows[2]), (
        "copies are beside their originals"
    )


@pytest.mark.usefixtures("untrained")
def test_real_images_are_shown_in_the_rows_of_the_samples(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    scoring = Scoring(study("score.samples=100"), RunDir(tmp_path))
    drawn = real_as_generator(scoring, monkeypatch)
    labels = scoring.labels()
    assert labels is not None
    scoring.save_grid(drawn, labels, "round-0001")
    real, first = (read_png(tmp_path / "samples" / f"{name}.png") for name in ("real", "round-0001"))
    of_each = np.bincount(labels)
    rows = np.flatnonzero(of_each >= 4)
    columns = min(10, of_each[rows].min())
    margin = first.shape[1] - 2 - 66 * columns
    assert np.array_equal(real[:, :margin], first[:, :margin]), "the same classes, in the same order"
    for row, of_class in enumerate(rows):
        for column in range(columns):
            y, x = 2 + 66 * row, margin + 2 + 66 * column
            image = real[y : y + 64 : 8, x : x + 64 : 8, None]
            (at,) = rows_of(image[None], scoring.reference.images) if (image != 255).any() else (None,)
            assert at is None or scoring.reference.labels[at] == of_class
    before = (tmp_path / "samples" / "real.png").stat().st_mtime_ns
    scoring.save_grid(drawn, labels, "round-0002")
    assert (tmp_path / "samples" / "real.png").stat().st_mtime_ns == before, "once per run"


@pytest.mark.usefixtures("untrained")
def test_every_personal_model_is_held_against_unseen_images_and_looked_at_for_copies(tmp_path: Path) -> None:
    prepared = study("method.name=local", "score.samples=100")
    scoring = Scoring(prepared, RunDir(tmp_path))
    fresh, copies = prepared.dataset.test.images[:100], scoring.reference.images[:40].repeat(3, 0)[:100]
    pools = {"client-000": copies, "client-002": fresh}
    quality = scoring.score_personal(pools, "after", 1)
    assert quality["near_copies"] is None and quality["held_out"] is None, "there is no global model"
    first, last = quality["per_client"]
    assert first["near_copies"]["pixels"] == 1.0 and last["near_copies"]["pixels"] < 0.05
    assert last["held_out"]["images"] == 360 and last["held_out"]["fd"] < first["held_out"]["fd"]
    assert (tmp_path / "samples" / "nearest.png").is_file()


def read_png(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


@pytest.mark.usefixtures("untrained")
def test_the_global_model_s_nearest_images_stay_where_clients_have_models_beside_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    scoring = Scoring(study("score.samples=100"), RunDir(tmp_path))
    copied = real_as_generator(scoring, monkeypatch)
    scoring.score_global({}, 1)
    before = (tmp_path / "samples" / "nearest.png").read_bytes()
    pools = {holding.client.name: 255 - copied for holding in scoring.study.holdings}
    scoring.score_personal(pools, "after", 2)
    assert (tmp_path / "samples" / "nearest.png").read_bytes() == before
    found = sorted(path.name for path in (tmp_path / "samples").glob("nearest*"))
    assert found == ["nearest-client-000.png", "nearest.png"]


@pytest.mark.usefixtures("untrained")
def test_without_a_global_model_they_are_those_of_the_first_client(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    scoring = Scoring(study("score.samples=100", "method.name=local"), RunDir(tmp_path))
    copied = real_as_generator(scoring, monkeypatch)
    scoring.score_personal({holding.client.name: copied for holding in scoring.study.holdings}, "after", 1)
    assert [path.name for path in (tmp_path / "samples").glob("nearest*")] == ["nearest.png"]


@pytest.mark.usefixtures("untrained")
@pytest.mark.parametrize("pieces", ["[]", "personalise"])
def test_where_images_are_held_out_nobody_is_scored_by_what_it_trains_on(
    pieces: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client whose only held-out image is watched, or that has none, has no own score; means would mix two kinds."""
    sets = ("data.max_images=600", "data.clients=4", "data.partition=linear", "score.samples=200")
    prepared = study(*sets, "data.holdout=0.008", f"after.pieces={pieces}")
    sizes = [len(h.own_test) for h in prepared.holdings]
    left = [h for h in prepared.holdings if not len(h.own_test)]
    assert any(len(h.train) >= 50 for h in left) and any(len(h.watched) for h in left) == (
        pieces == "personalise"
    )
    scoring = Scoring(prepared, None)
    real_as_generator(scoring, monkeypatch)
    quality = scoring.score_global({}, 1)
    assert [e["own_images"] for e in quality["per_client"]] == sizes
    assert [e["fd_own"] for e in quality["per_client"]] == [None] * 4
    assert quality["mean"]["clients_own"] == 0
