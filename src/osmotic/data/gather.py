"""Parts of data sets as one split; what is mapped from a file stays so, as it may not fit into memory."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from osmotic.data.dataset import Split
from osmotic.storage import cache

_ROWS = 4_096  # images copied at a time


def gather(parts: Sequence[tuple[Split, np.ndarray]]) -> Split:
    """The images of each split at these positions, one part after the other, with their labels.

    Args:
        parts: splits of one image shape and dtype, and positions in each, int64 [n]; at least one part.
    Returns: images [sum of n, H, W, C], mapped from a file without a name where a part is mapped; labels None where
        a part has none; no columns.
    Raises: OSError if the disk has no room for them.
    """
    first, total = parts[0][0].images, sum(len(rows) for _, rows in parts)
    shape = (total, *first.shape[1:])
    mapped = any(isinstance(split.images, np.memmap) for split, _ in parts)
    images = cache.nameless(shape, first.dtype) if mapped and total else np.empty(shape, first.dtype)
    done = 0
    for split, rows in parts:
        for start in range(0, len(rows), _ROWS):
            some = rows[start : start + _ROWS]
            images[done : done + len(some)] = split.images[some]
            done += len(some)
    labels = [split.labels[rows] for split, rows in parts if split.labels is not None]
    return Split(images, np.concatenate(labels) if len(labels) == len(parts) else None)
