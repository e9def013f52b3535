"""Fréchet distance: closed forms, scipy's matrix root, additivity of the statistics."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from metric_stand_ins import frechet_distance
from scipy.linalg import sqrtm

from osmotic.metrics.frechet import WIDE, FeatureStatistics, frechet, frechet_to


def test_shift_by_three_in_one_direction_is_nine():
    # Equal covariances: the trace term is 0, and |(3, 0)|^2 = 9.
    x = np.random.default_rng(0).normal(size=(200, 2))
    assert frechet_distance(x, x + np.array([3.0, 0.0])) == pytest.approx(9.0, abs=1e-6)


def test_scaling_by_two_is_the_sum_of_squared_gaps_between_deviations():
    # Four corners (+-1, +-1): mean 0, unbiased covariance 4/3 I. Doubled: 16/3 I. Per direction
    # (sqrt(16/3) - sqrt(4/3))^2 = 4/3, so 8/3 over two directions.
    x = np.array([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    assert frechet_distance(x, 2 * x) == pytest.approx(8 / 3, abs=1e-9)


def test_agrees_with_the_matrix_square_root_of_scipy():
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(300, 5)) @ rng.normal(size=(5, 5)), rng.normal(size=(200, 5)) + 0.5
    ca, cb = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    exact = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(ca + cb - 2 * sqrtm(ca @ cb).real)
    assert frechet_distance(a, b) == pytest.approx(exact, rel=1e-8)


def test_equal_sets_are_at_distance_zero_and_order_does_not_matter():
    x = np.random.default_rng(2).normal(size=(100, 8)).astype(np.float32)
    assert frechet_distance(x, x[::-1].copy()) == pytest.approx(0.0, abs=1e-6)


def test_fewer_images_than_features_gives_the_value_of_the_occupied_plane():
    # Three points that live in 2 of 50 directions: the other 48 have covariance 0 on both sides and add nothing.
    flat = np.array([[0.0, 0.0], [2.0, 0.0], [0.0, 2.0]])
    other = 3 * flat + 1
    wide, wide_other = np.pad(flat, ((0, 0), (0, 48))), np.pad(other, ((0, 0), (0, 48)))
    assert frechet_distance(wide, wide_other) == pytest.approx(frechet_distance(flat, other), rel=1e-6)


def test_statistics_of_parts_add_up_to_those_of_the_whole():
    x = np.random.default_rng(3).normal(5.0, 1.0, size=(101, 6))
    parts = FeatureStatistics.of(x[:1]) + FeatureStatistics.of(x[1:40]) + FeatureStatistics.of(x[40:])
    assert parts.count == 101
    np.testing.assert_allclose(parts.mean, x.mean(0), rtol=1e-13)
    np.testing.assert_allclose(parts.cov, np.cov(x, rowvar=False), rtol=1e-9, atol=1e-12)


def test_statistics_of_whole_numbers_add_up_to_the_last_bit():
    # Sums of small integers are exact in float64, so any split gives the same bits.
    x = np.random.default_rng(4).integers(-50, 50, size=(64, 5)).astype(np.float32)
    whole, parts = FeatureStatistics.of(x), FeatureStatistics.of(x[:9]) + FeatureStatistics.of(x[9:])
    assert np.array_equal(whole.sum, parts.sum)
    assert np.array_equal(whole.outer, parts.outer)
    assert frechet(whole, parts) == pytest.approx(0.0, abs=1e-6)


def test_one_image_is_too_few():
    with pytest.raises(ValueError, match="at least 2 images"):
        frechet_distance(np.ones((1, 2)), np.ones((5, 2)))


def test_features_of_unequal_width_are_refused():
    with pytest.raises(ValueError, match="equally wide"):
        frechet_distance(np.ones((3, 2)), np.ones((3, 4)))


def no_large_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    def eigvals(matrix: torch.Tensor) -> torch.Tensor:
        raise AssertionError(f"eigenvalues of {tuple(matrix.shape)}")

    monkeypatch.setattr(torch.linalg, "eigvals", eigvals)


def test_wide_features_of_few_images_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    # The corners of above in 2 of 600 directions, doubled and shifted by 3 in a third one: 8/3 + 9.
    no_large_matrix(monkeypatch)
    x, y = np.zeros((4, 600)), np.zeros((4, 600))
    x[:, [7, 300]] = [[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]]
    y[:, [7, 300]] = 2 * x[:, [7, 300]]
    y[:, 500] = 3
    assert frechet_to(FeatureStatistics.of(x), y) == pytest.approx(8 / 3 + 9, abs=1e-6)


@pytest.mark.parametrize(("real", "made"), [(30, 40), (700, 40), (40, 500)])
def test_wide_features_of_few_images_have_the_distance_of_the_whole_matrices(
    monkeypatch: pytest.MonkeyPatch, real: int, made: int
) -> None:
    rng = np.random.default_rng(3)
    width = WIDE + 8
    spread = np.exp(-np.arange(width) / 50)
    a = (rng.normal(size=(real, width)) * spread).astype(np.float32)
    b = (rng.normal(0.1, 1.2, size=(made, width)) * spread).astype(np.float32)
    whole = frechet(FeatureStatistics.of(a), FeatureStatistics.of(b))
    no_large_matrix(monkeypatch)
    assert frechet_to(FeatureStatistics.of(a), b) == pytest.approx(whole, rel=1e-6)


@pytest.mark.parametrize(("width", "made"), [(96, 60), (WIDE, 60), (WIDE + 1, WIDE + 1)])
def test_narrow_features_and_many_images_keep_their_distance_to_the_last_bit(width: int, made: int) -> None:
    rng = np.random.default_rng(4)
    a, b = rng.normal(size=(70, width)), rng.normal(size=(made, width))
    assert frechet_to(FeatureStatistics.of(a), b) == frechet(FeatureStatistics.of(a), FeatureStatistics.of(b))


@pytest.mark.parametrize(
    ("real", "made"), [((1, 600), (5, 600)), ((5, 600), (1, 600)), ((5, 600), (5, 700)), ((5, 700), (5, 600))]
)
def test_wide_features_are_refused_as_narrow_ones_are(real: tuple[int, int], made: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=r"FD needs at least 2|equally wide"):
        frechet_to(FeatureStatistics.of(np.zeros(real)), np.zeros(made))
