"""The one name for "arrays by name", and for groups of them inside a flat table."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

# Of any shape, written [...]: weights, changes and variates float32, running sums float64, images uint8.
Tensors = dict[str, np.ndarray]


def group(tensors: Mapping[str, np.ndarray], name: str) -> Tensors:
    """Entries "NAME/REST" of a flat table, by REST: the same arrays [...], not copies."""
    prefix = f"{name}/"
    return {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}


def grouped(name: str, tensors: Mapping[str, np.ndarray]) -> Tensors:
    """The inverse of `group`: every entry [...] under "NAME/"."""
    return {f"{name}/{k}": t for k, t in tensors.items()}
