"""A network as a module: fresh from a seed, or with given weights."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from osmotic.errors import ConfigError

if TYPE_CHECKING:
    from osmotic.models.spec import NetworkSpec

# Fresh layers draw from torch's one global generator, which threads share.
_drawing = threading.Lock()

# Of all that an own network draws and that is no weight, such as a table of random frequencies in a buffer: it is not
# sent, so every site must draw the same.
CONSTANTS_SEED = 0


def build(spec: NetworkSpec) -> nn.Module:
    """The network in training mode, its weights yet to be set; torch's global generator is left as it was.

    Called as `model(x, t, class_labels=y, return_dict=False)[0]`: x float [B, C, H, W], t int or float tensor [B]
    (a Python float may be cut to a whole number), y int64 [B] or None if unconditional; the answer is shaped like x.
    Raises: ConfigError for an own network that cannot be used, see `register_network`.
    """
    with _draws(CONSTANTS_SEED if spec.network.own else None):
        return spec.network.construct(spec)


def initial(spec: NetworkSpec, seed: int) -> dict[str, np.ndarray]:
    """Fresh weights, name -> float32 [...], sorted, drawn from `seed` alone.

    torch's global generator is left as it was. Safe to call from several threads.
    Raises: ConfigError for an own network that cannot be used, or whose weights do not follow from the seed.
    """
    weights = _fresh(spec, seed)
    if spec.network.own:
        # A module that draws from numpy or the clock would start every site, and every resumed run, elsewhere.
        again = _fresh(spec, seed)
        for name, value in weights.items():
            if not np.array_equal(value, again[name]):
                rule = f"parameter {name} differs from build to build: draw it from torch's global generator"
                raise ConfigError("model.network", spec.name, rule)
    return weights


def with_weights(spec: NetworkSpec, weights: Mapping[str, np.ndarray]) -> nn.Module:
    """The network in evaluation mode with float32 copies of `weights`.

    Args:
        weights: name -> array [...] of any float dtype, shaped as in `layout(spec)`.
    Raises: RuntimeError if a name is missing or too many, or a shape differs; ConfigError as `build`.
    """
    if spec.network.own:
        model = build(
            spec
        )  # really, not on the meta device: buffers and constants keep the values it gives them
        _copy_in(model, weights)
        return model.eval()
    with torch.device("meta"):
        model = spec.network.construct(spec)
    copies = {name: torch.tensor(value, dtype=torch.float32, device="cpu") for name, value in weights.items()}
    model.load_state_dict(copies, assign=True)
    return model.eval()


def skeleton(spec: NetworkSpec) -> nn.Module:
    """The network for its names and shapes alone: on torch's meta device, or on the CPU if it cannot be built there.

    Raises: ConfigError as `build`.
    """
    with _draws(CONSTANTS_SEED):
        try:
            with torch.device("meta"):
                return spec.network.construct(spec)
        except ConfigError:
            raise
        except Exception:
            # A build that reads a value it has drawn, say. What is really wrong with it is raised again here.
            with torch.device("cpu"):
                return spec.network.construct(spec)


def _fresh(spec: NetworkSpec, seed: int) -> dict[str, np.ndarray]:
    with _draws(seed):
        named = dict(spec.network.construct(spec).named_parameters())
    return {name: named[name].detach().numpy().astype(np.float32, copy=False) for name in sorted(named)}


def _copy_in(model: nn.Module, weights: Mapping[str, np.ndarray]) -> None:
    named = dict(model.named_parameters())
    if odd := sorted(named.keys() ^ weights.keys()):
        raise RuntimeError(
            f"weights must be of the network's parameters: missing or too many are {', '.join(odd)}"
        )
    with torch.no_grad():
        for name, parameter in named.items():
            # copy_ would stretch a smaller array over the parameter.
            if parameter.shape != weights[name].shape:
                raise RuntimeError(
                    f"{name} must have shape {tuple(parameter.shape)}, got {weights[name].shape}"
                )
            parameter.copy_(torch.tensor(weights[name]))


@contextmanager
def _draws(seed: int | None) -> Iterator[None]:
    """torch's global generator, to oneself and at `seed` (None: as it is); afterwards as it was."""
    with _drawing, torch.random.fork_rng(devices=[]):
        if seed is not None:
            torch.default_generator.manual_seed(seed)
        yield
