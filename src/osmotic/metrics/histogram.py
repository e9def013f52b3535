"""Which classes a set of images shows."""

from __future__ import annotations

import numpy as np


def class_histogram(labels: np.ndarray, num_classes: int) -> list[int]:
    """Images of each class.

    Args:
        labels: of any integer type, [N]; N may be 0.
        num_classes: >= 1.
    Returns: counts, [num_classes], that sum to N.
    Raises: ValueError if a label lies outside 0..num_classes-1.
    """
    # bincount would make room for a label too large without a word, and the report's bars would no longer
    # line up.
    if len(labels) and not (labels.min() >= 0 and labels.max() < num_classes):
        raise ValueError(f"labels must lie in 0..{num_classes - 1}, got {labels.min()}..{labels.max()}")
    return np.bincount(labels.astype(np.int64), minlength=num_classes).tolist()
