"""Local optimisers by name, and their moments as tables of arrays that a client may keep from round to round."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch

from osmotic.tensors import Tensors

Parameters = Sequence[torch.nn.Parameter]

# torch's defaults, fused where torch can: one kernel for all tensors of a step.
OPTIMIZERS: dict[str, Callable[[Parameters, float], torch.optim.Optimizer]] = {
    "adamw": lambda parameters, rate: torch.optim.AdamW(parameters, lr=rate, fused=True),
    "adam": lambda parameters, rate: torch.optim.Adam(parameters, lr=rate, fused=True),
    "sgd": lambda parameters, rate: torch.optim.SGD(parameters, lr=rate),
}


def make_optimizer(parameters: Parameters, name: str, learning_rate: float) -> torch.optim.Optimizer:
    """The optimiser called `name`, a key of OPTIMIZERS, with torch's defaults.

    Raises: KeyError for another name; ValueError for a learning rate below 0.
    """
    return OPTIMIZERS[name](list(parameters), learning_rate)


def moments_of(optimizer: torch.optim.Optimizer, named: Mapping[str, torch.nn.Parameter]) -> Tensors:
    """The optimiser's state, "NAME|SLOT" -> float32 [...]: copies.

    Shaped as the parameter, or [] for a step count.
    """
    return {
        f"{name}|{key}": value.detach().cpu().numpy().astype(np.float32).copy()
        for name, p in named.items()
        for key, value in optimizer.state[p].items()
        if isinstance(value, torch.Tensor)
    }


def load_moments(
    optimizer: torch.optim.Optimizer,
    named: Mapping[str, torch.nn.Parameter],
    moments: Mapping[str, np.ndarray],
) -> None:
    """Puts what `moments_of` gave, "NAME|SLOT" -> float32 [...], into a fresh optimiser.

    Parameters that are not trained now are passed over.
    """
    for key, value in moments.items():
        name, _, slot = key.partition("|")
        if name not in named:
            continue
        p = named[name]
        # Moments take the memory format of their weight: a fused step mixes both element by element.
        tensor = torch.from_numpy(value.copy()).to(p.device)
        optimizer.state[p][slot] = torch.empty_like(p).copy_(tensor) if tensor.shape == p.shape else tensor
