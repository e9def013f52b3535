"""FedProx: clients are pulled back towards the weights that they started the round from.

Source: arXiv 1812.06127, eq. 2; the local objective of FedDM-prox (arXiv 2407.14730). Departs from it: the local solver
is the recipe's optimiser, run for all local epochs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from osmotic.config.keys import key
from osmotic.pieces.base import Piece
from osmotic.protocol.view import Step
from osmotic.tensors import Tensors

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Prox(Piece):
    """h_k(theta) = F_k(theta) + mu / 2 * |theta - theta_{r-1}|^2; at mu = 0 it is the exchange alone, bit for bit."""

    title: ClassVar[str] = "FedProx's pull towards the round's weights"
    paper: ClassVar[str] = "1812.06127"
    left: ClassVar[str] = ""

    mu: float = key(0.01, "weight of the pull towards the round's weights", 0)

    def client_begin(self, step: Step, state: Tensors) -> list[tuple[Tensor, Tensor]]:
        """(theta, theta_{r-1}) for every parameter, each float32 [...] on the device."""
        return [(parameter, step.received[name]) for name, parameter in step.parameters.items()]

    def after_backward(self, step: Step, work: list[tuple[Tensor, Tensor]]) -> None:
        """g <- g + mu (theta - theta_{r-1}), each [...], in place."""
        # The gradient of mu / 2 * |theta - theta_{r-1}|^2, in closed form: through the loss the same numbers would cost
        # three small operations per tensor, forward and backward, in every batch.
        import torch

        with torch.no_grad():
            for parameter, start in work:
                if parameter.grad is not None:  # None: frozen
                    parameter.grad.add_(parameter - start, alpha=self.mu)
