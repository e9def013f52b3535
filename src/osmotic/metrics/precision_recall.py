"""Improved precision and recall: does the generator stay among the real images, does it reach them all.

Source: arXiv:1904.06991, eqs. 1 and 2, with k = 3 as in its experiments.
"""

from __future__ import annotations

import numpy as np

_ROWS = 1_000  # queries at a time: the distances are [1,000, M] in float64


def precision_recall(real: np.ndarray, generated: np.ndarray, k: int = 3) -> tuple[float, float]:
    """Shares, in [0, 1]: of generated images inside real ones' balls, of real inside generated ones'.

    A set's balls reach from each of its members to that member's k-th nearest other member (eq. 1). Both
    shares depend on the counts, so the paper and `score` use equally many on both sides.
    Args:
        real, generated: features of any floating type, [N, D] and [M, D], N and M above k.
        k: which neighbour bounds a ball, >= 1.
    Returns: (precision, recall).
    Raises: ValueError if one side has k images or fewer.
    """
    if min(len(real), len(generated)) <= k:
        raise ValueError(f"precision and recall need more than k = {k} images on both sides")
    real, generated = real.astype(np.float64), generated.astype(np.float64)
    return _share_inside(generated, real, k), _share_inside(real, generated, k)


def _share_inside(queries: np.ndarray, members: np.ndarray, k: int) -> float:
    """Share of the queries [Q, D] that lie in a ball of the members [M, D], in [0, 1] (eq. 2)."""
    from scipy.spatial.distance import cdist
    from sklearn.neighbors import NearestNeighbors

    # Asked without queries, scikit-learn leaves each member out of its own neighbours.
    radii = NearestNeighbors(n_neighbors=k).fit(members).kneighbors()[0][:, -1]  # [M]
    # Up to the edge counts as inside (eq. 1), so equal sets give 1. Any ball will do: one real outlier with a
    # large ball flatters precision (arXiv:2002.09797, sec. 2).
    inside = 0
    for start in range(0, len(queries), _ROWS):
        inside += int((cdist(queries[start : start + _ROWS], members) <= radii).any(axis=1).sum())
    return inside / len(queries)
