"""Class histograms and their distance."""

from __future__ import annotations

import numpy as np
import pytest

from osmotic.metrics.histogram import class_histogram, total_variation


def test_classes_without_images_count_zero():
    assert class_histogram(np.array([0, 2, 2]), 4) == [1, 0, 2, 0]


def test_a_label_beyond_the_classes_is_refused():
    with pytest.raises(ValueError, match=r"0\.\.1"):
        class_histogram(np.array([0, 2]), 2)


def test_total_variation_is_half_the_summed_gaps_of_shares():
    # Shares (1/2, 1/2, 0) and (1/4, 1/4, 1/2): gaps 1/4 + 1/4 + 1/2 = 1, half of it 1/2.
    assert total_variation([2, 2, 0], [1, 1, 2]) == pytest.approx(0.5)


def test_total_variation_is_one_without_a_common_class_and_zero_for_equal_shares():
    assert total_variation([3, 0], [0, 9]) == 1.0
    assert total_variation([1, 2], [10, 20]) == pytest.approx(0.0)
