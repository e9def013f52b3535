"""Local optimisers by name, and their moments as tables of arrays that a client may keep from round to round."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch

from osmotic.tensors import Tensors
from osmotic.training.network import FlatNetwork, Runs

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


def moments_of(optimizer: torch.optim.Optimizer, network: FlatNetwork, runs: Runs) -> Tensors:
    """The optimiser's state, "NAME|SLOT" -> float32 [...]: copies.

    Shaped as the parameter, or [] for a step count.
    """
    found: Tensors = {}
    for names, run in runs.values():
        for slot, value in optimizer.state[run].items():
            if not isinstance(value, torch.Tensor):
                continue
            for name in names:
                if value.ndim == 0:
                    found[f"{name}|{slot}"] = np.array(float(value), np.float32)
                else:
                    view = network.view(value, names, name)
                    found[f"{name}|{slot}"] = view.detach().cpu().contiguous().numpy().copy()
    return found


def steps_of(moments: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Parameter name -> optimiser steps that its moments have seen; one step count serves a whole run of parameters."""
    return {
        key.removesuffix("|step"): float(value) for key, value in moments.items() if key.endswith("|step")
    }


def load_moments(
    optimizer: torch.optim.Optimizer, network: FlatNetwork, runs: Runs, moments: Mapping[str, np.ndarray]
) -> None:
    """Puts what `moments_of` gave, "NAME|SLOT" -> float32 [...], into a fresh optimiser.

    Parameters that are not trained now are passed over.

    Args:
        runs: as `network.trained(steps_of(moments))` gives them, so that all of a run have seen as many steps.
    """
    slots: dict[str, dict[str, np.ndarray]] = {}
    for key, value in moments.items():
        name, _, slot = key.partition("|")
        slots.setdefault(name, {})[slot] = value
    for first, (names, run) in runs.items():
        for slot, value in slots.get(first, {}).items():
            if value.ndim == 0 and slot == "step":
                optimizer.state[run][slot] = torch.from_numpy(value.copy()).to(run.device)
                continue
            state = torch.empty_like(run)
            for name in names:
                network.view(state, names, name).copy_(torch.from_numpy(slots[name][slot].copy()))
            optimizer.state[run][slot] = state
