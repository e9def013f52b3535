"""Names and shapes of a network's parameters, worked out without building it.

`osmotic plan` counts bytes from this within its two seconds, so nothing here imports torch or diffusers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

Shape = tuple[int, ...]
Layout = dict[str, Shape]


def count(layout: Mapping[str, Shape]) -> int:
    """The number of weights in a layout."""
    return sum(math.prod(shape) for shape in layout.values())


# The names below are those that diffusers' modules give their parameters; a layout is compared with them in the tests.
def conv(name: str, entering: int, leaving: int, kernel: int = 3) -> Layout:
    """A convolution: weight [leaving, entering, kernel, kernel], bias [leaving]."""
    return {f"{name}.weight": (leaving, entering, kernel, kernel), f"{name}.bias": (leaving,)}


def linear(name: str, entering: int, leaving: int) -> Layout:
    """A linear layer: weight [leaving, entering], bias [leaving]."""
    return {f"{name}.weight": (leaving, entering), f"{name}.bias": (leaving,)}


def norm(name: str, width: int) -> Layout:
    """A group norm: weight and bias, each [width]."""
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def classes(num_classes: int, width: int) -> Layout:
    """The class embedding [num_classes + 1, width], the last row for "no class"; nothing for a network without classes."""
    return {"class_embedding.weight": (num_classes + 1, width)} if num_classes else {}
