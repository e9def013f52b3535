"""Improved precision and recall on a line, worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from osmotic.metrics.precision_recall import precision_recall


def line(*points: float) -> np.ndarray:
    return np.array(points)[:, None]


def test_points_on_a_line_by_hand():
    # k = 1. Real 0, 1, 10: radii 1, 1, 9, balls [-1, 1], [0, 2], [1, 19]. Generated 0.5, 5, 25, 40: inside, inside, outside,
    # outside: precision 1/2. Radii of the generated: 4.5, 4.5, 15, 15: balls [-4, 5], [0.5, 9.5], [10, 40], [25, 55].
    # Real 0 and 1 lie in the first, 10 on the edge of the third: recall 1.
    assert precision_recall(line(0, 1, 10), line(0.5, 5, 25, 40), k=1) == (0.5, 1.0)


def test_one_mode_of_two_is_precise_with_half_the_recall():
    # k = 3, four points a mode, one apart: radii 2 and 3. The generated repeat the left mode.
    left, right = line(0, 1, 2, 3), line(100, 101, 102, 103)
    assert precision_recall(np.concatenate([left, right]), left + 0.25) == (1.0, 0.5)


def test_equal_sets_are_precise_and_complete():
    x = np.random.default_rng(0).normal(size=(50, 6)).astype(np.float32)
    assert precision_recall(x, x) == (1.0, 1.0)


def test_as_many_images_as_neighbours_are_too_few():
    with pytest.raises(ValueError, match="more than k = 3"):
        precision_recall(line(0, 1, 2), line(0, 1, 2, 3))
