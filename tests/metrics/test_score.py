"""The score of one pool: identities, the floor, and nulls."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from metric_stand_ins import frechet_distance, pixel_encoder

from osmotic.data.dataset import Split
from osmotic.metrics.score import score


def split(count: int, seed: int, labels: bool = True) -> Split:
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 255, (count, 2, 2, 1), dtype=np.uint8)
    return Split(images, rng.integers(0, 3, count) if labels else None)


def test_the_training_images_themselves_have_fd_zero_and_full_precision_and_recall():
    train = split(80, 0)
    quality = score(train.images, train, split(40, 1), pixel_encoder(3))
    assert quality.fd == pytest.approx(0.0, abs=1e-4)
    assert (quality.precision, quality.recall) == (1.0, 1.0)


def test_generating_the_held_out_images_reaches_the_floor_exactly():
    train, test = split(80, 0), split(40, 1)
    quality = score(test.images, train, test, pixel_encoder(3))
    assert quality.m == 40
    assert quality.fd_at_floor == quality.fd_floor == quality.fd


def test_the_floor_is_taken_at_as_many_images_as_were_generated_and_held_out():
    encoder, train, test = pixel_encoder(3), split(80, 0), split(40, 1)
    few = score(split(25, 2).images, train, test, encoder)
    assert (few.num_samples, few.m) == (25, 25)
    many = score(split(90, 2).images, train, test, encoder)
    assert (many.num_samples, many.m) == (90, 40)
    assert many.fd_floor == frechet_distance(encoder.features(train.images), encoder.features(test.images))
    assert many.fd_at_floor != many.fd


def test_the_same_images_score_the_same_twice():
    train, test, made = split(80, 0), split(40, 1), split(60, 2).images
    assert score(made, train, test, pixel_encoder(3)) == score(made, train, test, pixel_encoder(3))


def test_histograms_count_generated_classes_beside_the_data_s():
    # The class is the brightest of the first three pixels: pixel 1, 1, then 2.
    made = np.zeros((3, 2, 2, 1), dtype=np.uint8)
    made[:2, 0, 1] = 200
    made[2, 1, 0] = 200
    train = Split(split(10, 0).images, np.array([0] * 4 + [1] * 5 + [2]))
    quality = score(made, train, split(10, 1), pixel_encoder(3))
    assert quality.class_histogram == [0, 2, 1]
    assert quality.class_histogram_data == [4, 5, 1]


def test_what_cannot_be_measured_is_none_and_never_zero():
    train, nothing = split(80, 0, labels=False), Split(split(1, 1).images[:0], None)
    quality = dataclasses.asdict(score(split(3, 2).images, train, nothing, pixel_encoder()))
    missing = {name for name, value in quality.items() if value is None}
    # No held-out image: no floor. Three images: no three neighbours. No labels: no histograms.
    assert missing == {
        "fd_floor", "fd_at_floor", "precision", "recall", "held_out", "class_histogram", "class_histogram_data",
    }  # fmt: skip
    assert quality["m"] == 0


def test_an_encoder_without_classes_leaves_only_the_data_s_histogram():
    quality = score(split(20, 2).images, split(30, 0), split(10, 1), pixel_encoder())
    assert quality.class_histogram is None
    assert sum(quality.class_histogram_data) == 30


def test_a_generator_that_repeats_its_training_images_is_best_by_these_and_at_the_floor_by_unseen_ones():
    train, test = split(80, 0), split(40, 1)
    order = np.argsort(train.labels, kind="stable")
    repeats, fresh = train.images[order], split(80, 2).images
    encoder, labels = pixel_encoder(3), train.labels[order]
    of_repeats, of_fresh = (score(images, train, test, encoder, labels) for images in (repeats, fresh))
    assert of_repeats.fd == pytest.approx(0.0, abs=1e-4) and of_fresh.fd > 100
    assert of_repeats.held_out.fd == pytest.approx(of_repeats.held_out.floor, rel=1e-9)
    unseen, made = encoder.features(test.images), encoder.features(repeats)
    assert of_repeats.held_out.fd == pytest.approx(frechet_distance(unseen, made), rel=1e-9)
    assert (of_repeats.held_out.images, of_repeats.held_out.samples) == (40, 80)


def test_the_floor_of_held_out_images_is_of_as_many_training_images_of_each_class_as_are_compared():
    # 90 are drawn for class 0, of which the training split has 30: 30 are compared with 30.
    encoder, test = pixel_encoder(3), split(40, 1)
    train = Split(split(80, 0).images, np.repeat([0, 1], [30, 50]))
    found = score(split(90, 2).images, train, test, encoder, np.zeros(90, np.int64)).held_out
    assert found.samples == 30
    unseen = encoder.features(test.images)
    assert found.floor == frechet_distance(unseen, encoder.features(train.images[:30]))


def test_what_is_too_little_against_held_out_images_is_none():
    found = score(split(20, 2).images, split(30, 0), split(1, 1), pixel_encoder()).held_out
    assert (found.images, found.samples) == (1, 20)
    assert (found.fd, found.kid, found.precision, found.recall, found.floor) == (None,) * 5
