"""Equal draws by class, and that the floor and the score beside it are taken of such draws."""

from __future__ import annotations

import numpy as np
import pytest
from metric_stand_ins import frechet_distance, pixel_encoder

from osmotic.data import strata
from osmotic.data.dataset import Split
from osmotic.metrics.alike import alike
from osmotic.metrics.score import score


def by_class(labels: np.ndarray) -> Split:
    """Images that are alike within a class: features then tell the class mix and nothing else."""
    looks = np.random.default_rng(5).integers(0, 255, (10, 2, 2, 1), dtype=np.uint8)
    return Split(looks[labels], labels)


def test_both_sides_get_as_many_of_each_class_as_the_poorer_one_has():
    # a: 4 of class 0, 1 of class 1, 2 of class 2; b: 2, 3 and none, and 5 of class 7.
    a = np.array([0, 0, 0, 0, 1, 2, 2])
    b = np.array([7, 7, 7, 7, 7, 1, 1, 1, 0, 0])
    rows_a, rows_b = alike(a, b, 7, 10)
    assert a[rows_a].tolist() == [0, 0, 1]
    assert sorted(b[rows_b].tolist()) == [0, 0, 1]
    assert rows_a.tolist() == sorted(rows_a) and rows_b.tolist() == sorted(rows_b)


def test_within_a_class_the_draw_is_random_and_repeats_itself():
    a, b = np.zeros(1000, np.int64), np.zeros(100, np.int64)
    rows, every = alike(a, b, 1000, 100)
    assert every.tolist() == list(range(100))
    assert 400 < rows.mean() < 600, "not the first hundred"
    assert np.array_equal(rows, alike(a, b, 1000, 100)[0])


def test_without_labels_counts_alone_are_equal():
    rows_a, rows_b = alike(None, np.zeros(4, np.int64), 10, 4)
    assert (len(rows_a), rows_b.tolist()) == (4, [0, 1, 2, 3])
    assert rows_a.tolist() != [0, 1, 2, 3]


def test_a_perfect_generator_whose_pool_is_sorted_by_class_scores_the_floor_exactly():
    # Any other class mix on one of the sides would move the distance.
    reference, held_out = by_class(np.arange(100) % 10), by_class(np.arange(30) % 10)
    labels = np.repeat(np.arange(10), 12)
    quality = score(by_class(labels).images, reference, held_out, pixel_encoder(), labels)
    assert quality.m == 30
    assert quality.fd_at_floor == pytest.approx(quality.fd_floor, abs=1e-9)
    assert quality.precision == quality.recall == 1.0


def test_the_floor_is_drawn_by_class_where_fewer_are_generated_than_held_out():
    reference, held_out = by_class(np.arange(100) % 10), by_class(np.arange(500) % 10)
    labels = np.repeat(np.arange(10), 3)
    quality = score(by_class(labels).images, reference, held_out, pixel_encoder(), labels)
    assert quality.m == 30
    # Three of each class against the even mix: the means agree, the floor is all in the factor n - 1.
    features = pixel_encoder().features(by_class(labels).images)
    expected = frechet_distance(pixel_encoder().features(reference.images), features)
    assert quality.fd_floor == pytest.approx(expected, abs=1e-9) == quality.fd_at_floor


def test_precision_and_recall_compare_one_class_mix():
    # Class 1 is drawn wrongly, half way between the clusters. A random part of the training images holds one or two
    # of class 1, whose balls reach to the other cluster and would take these in.
    rng = np.random.default_rng(0)

    def near(centre: np.ndarray) -> np.ndarray:
        noise = rng.integers(-4, 5, (len(centre), 2, 2, 1))
        return (centre[:, None, None, None] + noise).astype(np.uint8)

    classes = np.repeat([0, 1], [400, 8])
    reference, held_out = (Split(near(np.where(classes == 0, 20, 230)), classes) for _ in range(2))
    labels = np.repeat([0, 1], [4, 8])
    quality = score(near(np.where(labels == 0, 20, 120)), reference, held_out, pixel_encoder(), labels)
    assert quality.precision == pytest.approx(4 / 12)


def test_real_images_as_a_generator_score_as_the_floor_does():
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)[..., None]
    labels = digits.target.astype(np.int64)
    differences = []
    for seed in range(12):
        rng = np.random.default_rng(seed)
        held_out = strata.draw(labels, len(labels), 250, rng)  # as test splits are: every class by its share
        rest = np.setdiff1d(np.arange(len(labels)), held_out)
        reference = rest[strata.draw(labels[rest], len(rest), 700, rng)]
        pool = np.setdiff1d(rest, reference)
        pool = pool[np.argsort(labels[pool], kind="stable")]  # as pools are: sorted by class
        sets = [Split(images[rows], labels[rows]) for rows in (reference, held_out)]
        quality = score(images[pool], *sets, pixel_encoder(width=64), labels[pool])
        assert quality.m == 250
        differences.append(np.log(quality.fd_at_floor / quality.fd_floor))
    # Nothing but chance may be left between them: three standard errors.
    assert abs(np.mean(differences)) < 3 * np.std(differences, ddof=1) / np.sqrt(len(differences))
