"""Splits over clients that were dealt before, in the cache folder: a partitioner takes longer to import than to ask.

A file says of itself what it holds, by a hash over everything that the split follows from; it may be deleted at any time.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable
from dataclasses import asdict
from importlib import metadata
from pathlib import Path

import numpy as np

from osmotic.config.schema import DataConfig
from osmotic.storage.cache import cache_folder
from osmotic.storage.store import StateLost, read_checked, write_checked
from osmotic.tensors import Tensors

# Raise it whenever a partition deals otherwise by the same keys.
RECIPE = "split-1"
KEYS = (
    "partition",
    "partition_seed",
    "clients",
    "dirichlet_alpha",
    "classes_per_client",
    "shards_per_client",
)


def remembered(
    cfg: DataConfig, keys: np.ndarray, deal: Callable[[DataConfig, np.ndarray], list[np.ndarray]]
) -> list[np.ndarray]:
    """`deal(cfg, keys)`, a client's positions in `keys` int64 [n] each, or what it gave at an earlier time.

    Args:
        cfg: of it only KEYS may matter to `deal`.
        keys: int64 [N].
    Raises: what `deal` raises; that is not remembered.
    """
    path = _path(cfg, keys)
    with contextlib.suppress(StateLost):  # not there, or damaged: then it is dealt, and written, again
        return _parts(read_checked(path), len(keys))
    parts = deal(cfg, keys)
    table = {"positions": np.concatenate(parts), "sizes": np.array([len(part) for part in parts])}
    with contextlib.suppress(OSError):  # a cache that cannot be written costs time, and no run
        write_checked(path, {name: array.astype(np.int64) for name, array in table.items()})
    return parts


def _path(cfg: DataConfig, keys: np.ndarray) -> Path:
    """Where the split of these keys lies once it was dealt."""
    settings = {name: asdict(cfg)[name] for name in KEYS}
    versions = [RECIPE, *(metadata.version(name) for name in ("flwr-datasets", "numpy"))]
    digest = hashlib.sha256(f"{versions}{settings}{len(keys)}".encode())
    digest.update(np.ascontiguousarray(keys, "<i8").data)
    return cache_folder() / "splits" / f"{digest.hexdigest()}.safetensors"


def _parts(table: Tensors, size: int) -> list[np.ndarray]:
    """The parts of `size` images in a file; raises StateLost where they are none."""
    positions, sizes = table.get("positions"), table.get("sizes")
    if (
        positions is None
        or sizes is None
        or not all(a.ndim == 1 and a.dtype == np.int64 for a in (positions, sizes))
    ):
        raise StateLost("is no split")
    # Whole by its checksum; still nothing but positions of these images, each once, may come out of it.
    fits = len(sizes) and sizes.min() >= 0 and sizes.sum() == len(positions) and len(positions)
    if (
        not fits
        or positions.min() < 0
        or positions.max() >= size
        or len(np.unique(positions)) < len(positions)
    ):
        raise StateLost("is no split of these images")
    return np.split(positions, np.cumsum(sizes)[:-1])
