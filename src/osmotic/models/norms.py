"""Group norms that can be the first trained layer behind frozen ones.

torch's CPU kernel of their backward pass (2.13) crashes the process on channels-last input that needs no gradient
while its weight does, as at the border of a frozen part.
"""

from __future__ import annotations

from typing import Any

import torch


def guard(model: torch.nn.Module) -> None:
    """Makes every group norm of `model`, in place, ask for the gradient of its input [B, C, ...].

    Only where its weight is trained.
    """
    for module in model.modules():
        if isinstance(module, torch.nn.GroupNorm):
            module.register_forward_pre_hook(_with_gradient)


def _with_gradient(norm: torch.nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """Before the norm's forward pass: its input [B, C, ...] as a fresh leaf that asks for a gradient, or None to keep it."""
    x = inputs[0]
    # Elsewhere nothing is changed: a gradient that nobody needs costs a backward pass through the norm.
    if not torch.is_grad_enabled() or x.requires_grad or not norm.weight.requires_grad:
        return None
    return (x.detach().requires_grad_(),)
