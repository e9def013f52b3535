"""Shares of some images in which every class keeps its share, as far as its count allows: drawn, or as labels alone."""

from __future__ import annotations

import numpy as np


def draw(labels: np.ndarray | None, size: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """`count` of the positions 0..size-1, sorted int64, stratified by label (plain random if there are none).

    Each class gives its quota `class size * count / size`, rounded by largest remainder; what is left over
    goes to a class of which something remains, ties at random.

    Args:
        labels: int64 [size], or None.
        size: positions there are, >= 0.
        count: 0..size.
        rng: its draws are part of what `data.partition_seed` means: another order of them is another split.
    Returns: int64 [count].
    """
    strata = np.zeros(size, np.int64) if labels is None else np.unique(labels, return_inverse=True)[1]
    # Largest remainder in whole numbers: shares as floats would tie or not by their last bit.
    sizes = np.bincount(strata)
    taken, remainder = np.divmod(sizes * count, max(size, 1))
    used_up = taken + 1 >= sizes
    # Last key first: classes that would be used up come last, then larger remainders, then a random order.
    order = np.lexsort((rng.random(len(sizes)), -remainder, used_up))
    taken[order[: count - taken.sum()]] += 1
    picks = [rng.permutation(np.flatnonzero(strata == k))[: taken[k]] for k in range(len(sizes))]
    return np.sort(np.concatenate([np.empty(0, np.int64), *picks]))


def apportion(counts: np.ndarray, total: int) -> np.ndarray:
    """`total` labels in the proportions of `counts` by largest remainder, int64 [total], sorted.

    Args:
        counts: images of each class, [classes], not all 0.
    """
    share = counts / counts.sum() * total
    whole = np.floor(share).astype(np.int64)
    # Stable order: of equal remainders the smaller label comes first.
    whole[np.argsort(whole - share, kind="stable")[: total - whole.sum()]] += 1
    return np.repeat(np.arange(len(counts)), whole)
