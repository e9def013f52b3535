"""Low-rank adapters of a network's layers (LoRA, arXiv 2106.09685), trained without changing the network's form.

Every layer W [out, in, ...] stands for W0 + B A, with A [r, in ...] and B [out, r], B = 0 at first. By the chain rule the
gradients are dL/dB = dL/dW A^T and dL/dA = B^T dL/dW, so the loop trains as ever: here its gradient of W is taken, A and B
make a step, and W is written anew. The layers' own step is then one of zeros.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from osmotic.protocol.view import Step

if TYPE_CHECKING:
    from torch import Tensor


class LowRank:
    """The adapter of one client's step.

    Args:
        step: whose `received` weights are W0.
        rank: r.
        seed: of A.
    """

    def __init__(self, step: Step, rank: int, seed: int) -> None:
        import torch  # only where it trains: configurations are read without it

        from osmotic.training.optimizers import make_optimizer

        names = of_layers(shapes_of(step.parameters), rank)
        generator = torch.Generator().manual_seed(seed)
        self.base = {name: step.received[name].detach().clone() for name in names}
        self.factors: dict[str, tuple[Tensor, Tensor]] = {}
        for name, weight in self.base.items():
            out, inputs = weight.shape[0], weight[0].numel()
            # As LoRA draws it: uniform within the bounds of a layer of this width.
            first = (torch.rand(rank, inputs, generator=generator) * 2 - 1) / inputs**0.5
            pair = first.to(weight.device), torch.zeros(out, rank, device=weight.device)
            self.factors[name] = pair
        self._every = [factor for pair in self.factors.values() for factor in pair]
        self._clip = step.training.grad_clip
        self._optimizer = make_optimizer(self._every, step.training.optimizer, step.learning_rate)  # type: ignore[arg-type]

    def step(self, parameters: Mapping[str, Tensor]) -> None:
        """One step of A and B by the gradients [...] of the layers, which are set to zero."""
        for name, (a, b) in self.factors.items():
            gradient = parameters[name].grad
            assert gradient is not None
            rows = gradient.reshape(len(gradient), -1)
            a.grad, b.grad = b.T @ rows, rows @ a.T
            gradient.zero_()
        if self._clip:
            from torch.nn.utils import clip_grad_norm_

            clip_grad_norm_(self._every, self._clip)
        self._optimizer.step()

    def merge(self, parameters: Mapping[str, Tensor]) -> None:
        """Writes W0 + B A into the layers [...]."""
        for name, (a, b) in self.factors.items():
            parameters[name].data.copy_(self.base[name] + (b @ a).view(self.base[name].shape))


def of_layers(shapes: Mapping[str, tuple[int, ...]], rank: int) -> list[str]:
    """Names of the parameters of these shapes [out, in, ...] that are wider than the rank both ways, embeddings apart, sorted."""
    return sorted(
        name
        for name, shape in shapes.items()
        if len(shape) >= 2
        and not name.startswith("class_embedding")
        and min(shape[0], math.prod(shape[1:])) > rank
    )


def shapes_of(parameters: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Name -> shape of parameters [...]."""
    return {name: tuple(parameter.shape) for name, parameter in parameters.items()}
