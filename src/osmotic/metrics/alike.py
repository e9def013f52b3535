"""Two sets cut to equal counts and one class mix, so that their scores differ by the images alone.

FD of few images is biased upwards, and a set in which a class is rare by chance is farther from everything: a
comparison of a stratified set with a random one of equal size measures the draw.
"""

from __future__ import annotations

import numpy as np


def alike(
    a_labels: np.ndarray | None, b_labels: np.ndarray | None, a_size: int, b_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """As many images of each class from both sets, as the smaller one has: drawn at random by a fixed seed.

    Without labels on both sides as many images as the smaller set has.

    Args:
        a_labels, b_labels: classes, int64 [a_size] and [b_size], or None.
        a_size, b_size: images there are, >= 0.
    Returns: positions in either set, sorted int64, equally many; empty where the sets share no class.
    """
    # Not the first ones: pools are often sorted by class.
    if a_labels is None or b_labels is None:
        count = min(a_size, b_size)
        return _some(np.arange(a_size), count), _some(np.arange(b_size), count)
    classes = np.intersect1d(a_labels, b_labels)
    counts = [min(int((a_labels == c).sum()), int((b_labels == c).sum())) for c in classes]
    return _by_class(a_labels, classes, counts), _by_class(b_labels, classes, counts)


def _by_class(labels: np.ndarray, classes: np.ndarray, counts: list[int]) -> np.ndarray:
    """Sorted positions of `counts` images of each class."""
    picks = [_some(np.flatnonzero(labels == c), n) for c, n in zip(classes, counts, strict=True)]
    return np.sort(np.concatenate([np.empty(0, np.int64), *picks]))


def _some(positions: np.ndarray, count: int) -> np.ndarray:
    """`count` of the positions by a fixed seed, in their old order, so that sums run as they do over all."""
    if count == len(positions):
        return positions
    return positions[np.sort(np.random.default_rng(0).permutation(len(positions))[:count])]
