"""Weights in and out of a network: float32 arrays by name on the one side, parameters on a device on the other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import torch

from osmotic.tensors import Tensors


def copy_weights(named: Mapping[str, torch.Tensor], weights: Mapping[str, np.ndarray]) -> None:
    """Copies weights, name -> float32 [...], into parameters of the same names and shapes.

    The arrays may be read-only views of a file or packet. Raises: KeyError for a parameter without weights.
    """
    with torch.no_grad():
        for name, parameter in named.items():
            array = weights[name]
            # Of an array that cannot be written to, torch would warn.
            parameter.copy_(torch.from_numpy(array if array.flags.writeable else array.copy()))


def weights_of(named: Mapping[str, torch.Tensor], names: Iterable[str] | None = None) -> Tensors:
    """Copies of parameters as name -> float32 [...], all or those named, sorted by name."""
    return {
        n: named[n].detach().cpu().contiguous().numpy().copy()
        for n in sorted(named if names is None else names)
    }
