"""Dropout that draws from a generator of its own: torch's draws from the global one, which clients side by side share."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class SeededDropout(nn.Dropout):
    """`nn.Dropout` with masks [...] from `generator` (on the CPU): a step is a function of its seed alone."""

    generator: torch.Generator | None = None

    def forward(self, x: Tensor) -> Tensor:
        """[...] -> [...]: zeroed with probability p and scaled by 1 / (1 - p) in training, else unchanged.

        Raises: RuntimeError in training, if `seed` was not called.
        """
        if not self.training or self.p == 0:
            return x
        if self.generator is None:
            raise RuntimeError("dropout has no generator: set `generator` before training")
        # On the CPU, so that a GPU drops the same activations.
        kept = torch.rand(x.shape, generator=self.generator).to(x.device) >= self.p
        return x * kept / (1 - self.p)


def make_seeded(model: nn.Module) -> None:
    """Replaces every `nn.Dropout` inside `model`, changed in place; names and weights stay."""
    for name, module in list(model.named_modules()):
        # Exactly this class: what inherits from it may drop whole channels, or be seeded already.
        if type(module) is nn.Dropout:
            parent = model.get_submodule(name.rpartition(".")[0]) if "." in name else model
            setattr(parent, name.rpartition(".")[2], SeededDropout(module.p))


def seeded(model: nn.Module) -> list[SeededDropout]:
    """All such dropout of `model`, in order of use; its `generator` is to be set before training."""
    return [module for module in model.modules() if isinstance(module, SeededDropout)]
