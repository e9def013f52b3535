"""A random share of some images in which every class keeps its share, as far as its count allows."""

from __future__ import annotations

import numpy as np


def draw(labels: np.ndarray | None, size: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """`count` of the positions 0..size-1, sorted int64, stratified by label (plain random if there are none).

    Each class gives its quota `class size * count / size`, rounded by largest remainder; what is left over
    goes to a class of which something remains, ties at random.

    Args:
        labels: int64 [size], or None.
        count: 0..size.
    """
    strata = np.zeros(size, np.int64) if labels is None else np.unique(labels, return_inverse=True)[1]
    sizes = np.bincount(strata)
    taken, remainder = np.divmod(sizes * count, max(size, 1))
    used_up = taken + 1 >= sizes
    order = np.lexsort((rng.random(len(sizes)), -remainder, used_up))
    taken[order[: count - taken.sum()]] += 1
    picks = [rng.permutation(np.flatnonzero(strata == k))[: taken[k]] for k in range(len(sizes))]
    return np.sort(np.concatenate([np.empty(0, np.int64), *picks]))
