"""Weights into a network that only draws images: float32 arrays by name, copied over its parameters on a device."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch


def copy_weights(named: Mapping[str, torch.Tensor], weights: Mapping[str, np.ndarray]) -> None:
    """Copies weights, name -> float32 [...], into parameters of the same names and shapes.

    The arrays may be read-only views of a file or packet. Raises: KeyError for a parameter without weights.
    """
    with torch.no_grad():
        for name, parameter in named.items():
            array = weights[name]
            # Of an array that cannot be written to, torch would warn.
            parameter.copy_(torch.from_numpy(array if array.flags.writeable else array.copy()))
