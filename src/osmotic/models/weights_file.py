"""Weights from a file that anybody may have made: finite numbers, or a reason why not."""

from __future__ import annotations

from pathlib import Path

import numpy as np


def read(file: Path) -> dict[str, np.ndarray]:
    """What a safetensors file holds, name -> float32 [...], from any float type: numpy does not know bfloat16.

    Raises: ValueError, in a few words that begin with the file's name, for no plain file, another format, and values that are no finite
        numbers.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not file.is_file():  # a pipe would be waited for
        raise ValueError(f"{file.name} is no file")
    try:
        held = load_file(file)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{file.name} cannot be read ({error})") from None
    found: dict[str, np.ndarray] = {}
    for name, tensor in held.items():
        if not tensor.is_floating_point():
            kind = str(tensor.dtype).removeprefix("torch.")
            raise ValueError(f"{file.name}: {name} is of type {kind}, and weights are real numbers")
        values = tensor.float()
        if not torch.isfinite(values).all():
            raise ValueError(f"{file.name}: {name} holds values that are no finite numbers")
        found[name] = values.numpy()
    return found
