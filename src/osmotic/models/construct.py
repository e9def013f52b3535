"""A network as a diffusers model: fresh from a seed, or with given weights."""

from __future__ import annotations

import threading
from collections.abc import Mapping

import numpy as np
import torch
from diffusers import ModelMixin

from osmotic.models import NetworkSpec

# Fresh layers draw from torch's one global generator, which threads share.
_drawing = threading.Lock()


def build(spec: NetworkSpec) -> ModelMixin:
    """The network in training mode, its weights yet to be set; torch's global generator is left as it was.

    Called as `model(x, t, class_labels=y, return_dict=False)[0]`: x float [B, C, H, W], t int or float tensor [B]
    (a Python float may be cut to a whole number), y int64 [B] or None if unconditional; the answer is shaped like x.
    """
    with _drawing, torch.random.fork_rng(devices=[]):
        return spec.preset.construct(spec)


def initial(spec: NetworkSpec, seed: int) -> dict[str, np.ndarray]:
    """Fresh weights by sorted name, float32, drawn from `seed` alone; torch's global generator is left as it was.

    Safe to call from several threads.
    """
    with _drawing, torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        state = spec.preset.construct(spec).state_dict()
    return {name: state[name].numpy().astype(np.float32, copy=False) for name in sorted(state)}


def with_weights(spec: NetworkSpec, weights: Mapping[str, np.ndarray]) -> ModelMixin:
    """The network in evaluation mode with float32 copies of `weights`; nothing is drawn.

    Raises: RuntimeError if a name is missing or too many, or a shape differs.
    """
    with torch.device("meta"):
        model = spec.preset.construct(spec)
    copies = {name: torch.tensor(value, dtype=torch.float32, device="cpu") for name, value in weights.items()}
    model.load_state_dict(copies, assign=True)
    return model.eval()
