"""Which classes a set of images shows, and how far two such histograms lie apart."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def class_histogram(labels: np.ndarray, num_classes: int) -> list[int]:
    """Images of each class, [num_classes]; ValueError if a label lies outside 0..num_classes-1."""
    if len(labels) and not (labels.min() >= 0 and labels.max() < num_classes):
        raise ValueError(f"labels must lie in 0..{num_classes - 1}, got {labels.min()}..{labels.max()}")
    return np.bincount(labels.astype(np.int64), minlength=num_classes).tolist()


def total_variation(a: Sequence[int], b: Sequence[int]) -> float:
    """Half the summed difference of the shares of each class, in [0, 1]; ValueError if one is empty or they differ in length."""
    if len(a) != len(b) or sum(a) <= 0 or sum(b) <= 0:
        raise ValueError(f"histograms must have equal length and hold images, got {list(a)} and {list(b)}")
    return float(0.5 * np.abs(np.asarray(a) / sum(a) - np.asarray(b) / sum(b)).sum())
