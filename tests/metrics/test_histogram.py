"""Class histograms."""

from __future__ import annotations

import numpy as np
import pytest

from osmotic.metrics.histogram import class_histogram


def test_classes_without_images_count_zero():
    assert class_histogram(np.array([0, 2, 2]), 4) == [1, 0, 2, 0]


def test_a_label_beyond_the_classes_is_refused():
    with pytest.raises(ValueError, match=r"0\.\.1"):
        class_histogram(np.array([0, 2]), 2)
