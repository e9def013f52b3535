"""SCAFFOLD: control variates take out of a client's gradients what is its own drift.

Source: arXiv 1910.06378, algorithm 1, option II. Departs from it: the correction is added to the gradient before the
recipe's optimiser (and before clipping), and a client's new variate is the mean of its uncorrected gradients of the
round. Under plain SGD without clipping that is option II itself:

    x - y_k = eta sum_t (g_t - c_k + c),  so  c_k - c + (x - y_k) / (K eta) = mean_t g_t.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from osmotic.methods.base import Method
from osmotic.pieces.base import Metrics, Piece
from osmotic.protocol.aggregate import Accumulator
from osmotic.protocol.messages import Phase, Reply, Spec, Task
from osmotic.protocol.view import Extension, Step, View
from osmotic.tensors import Tensors

if TYPE_CHECKING:
    from torch import Tensor

# A gradient of one weight beyond this is an explosion: the reply is refused as `range`. The exact sum holds
# 2 * 1024 * clients in 62 bits, so variates of 10,000 clients keep steps of 4e-12.
MAX_GRADIENT = 1024.0


@dataclass
class Variates:
    """One client's variates while it trains, by name, each float32 [...] on the device."""

    correction: dict[str, Tensor]  # c - c_k
    sums: dict[str, Tensor] = field(default_factory=dict)  # of the uncorrected gradients so far


@dataclass(frozen=True, kw_only=True)
class Scaffold(Piece):
    """Gradients g [...] become g - c_k + c, with c the mean of all clients' c_k.

    Only parts that are returned have variates.
    """

    server_copies: ClassVar[int] = 4
    client_copies: ClassVar[int] = 4
    title: ClassVar[str] = "SCAFFOLD's control variates"
    paper: ClassVar[str] = "1910.06378"
    left: ClassVar[str] = (
        "the change of the mean gradient of each weight (control variate), as large as the weights"
    )

    reveals: ClassVar[str] = (
        "a variate is the mean gradient over one site's images: what holds of changes of weights holds of it, without an "
        "optimiser in between"
    )

    def misfit(self, method: Method) -> str | None:
        """None for every exchange whose clients return something."""
        return None if method.shared else "clients return nothing, so there is no drift between them"

    # --- server ---
    def server_start(self, view: View) -> Tensors:
        """c = 0: name -> float32 [...], of every parameter of the network."""
        return {name: np.zeros(shape, np.float32) for name, shape in view.layout.items()}  # c = 0

    def extend(self, view: View, state: Tensors, phase: Phase, task: Task) -> Extension:
        """c of the parts that are returned goes down; c_k+ - c_k is wanted back, name -> float32 [...]."""
        # No others: c would never hear of the variate of a part that stays with its client.
        names = view.names(task.returns)
        # Twice the range: the difference of two gradients, each within it.
        back = {n: Spec(view.layout[n], wire="exact", max_abs=2 * MAX_GRADIENT, counts=True) for n in names}
        return Extension(extras={n: state[n] for n in names}, expects=back)

    def gather(self, view: View, gathered: Accumulator | None, reply: Reply) -> Accumulator | None:
        """The exact sum of c_k+ - c_k over the clients, each of weight 1, name -> [...]."""
        if not reply.tensors:
            return gathered  # a phase in which nothing was asked back
        total = gathered or view.accumulator(len(view.clients), 2 * MAX_GRADIENT)
        total.add(reply.tensors, 1)  # the mean over clients, not over images
        return total

    def change(
        self, view: View, state: Tensors, gathered: Accumulator | None, phase: Phase, mean: Tensors
    ) -> tuple[Tensors, Tensors, Metrics]:
        """(the mean as it is, c + |S| / N mean (c_k+ - c_k), the length of c): name -> float32 [...]."""
        # The server's line: c <- c + |S| / N * mean over S of (c_k+ - c_k); N counts all clients, whoever was asked.
        if gathered is None:
            return mean, state, {}
        moved = {
            name: state[name] + (change * np.float32(gathered.weights[name] / len(view.clients)))
            for name, change in gathered.mean().items()
        }
        state = {**state, **moved}
        size = math.sqrt(sum(float(np.square(state[n], dtype=np.float64).sum()) for n in sorted(state)))
        return mean, state, {"variate_norm": size}

    # --- client ---
    def client_begin(self, step: Step, state: Tensors) -> Variates:
        """c - c_k of the parts that are returned, name -> float32 [...]; c_k is 0 before the first round."""
        import torch

        correction = {}
        for name, common in step.extras.items():
            like = step.parameters[name]  # same device and memory order, so that adding it costs one pass
            difference = common - state[name] if name in state else common
            correction[name] = torch.empty_like(like, requires_grad=False).copy_(torch.from_numpy(difference))
        return Variates(correction)

    def after_backward(self, step: Step, work: Variates) -> None:
        """sum <- sum + g, then g <- g + c - c_k, each [...], in place."""
        # The local step: y_k <- y_k - eta (g - c_k + c); the uncorrected g is summed first.
        for name, difference in work.correction.items():
            gradient = step.parameters[name].grad
            if gradient is None:  # frozen, or not reached by the loss
                continue
            if name in work.sums:
                work.sums[name].add_(gradient)
            else:
                work.sums[name] = gradient.clone()
            gradient.add_(difference)

    def client_end(self, step: Step, work: Variates, state: Tensors) -> tuple[Tensors, Tensors]:
        """(c_k+ - c_k, c_k+): name -> float32 [...], with c_k+ the mean of g over the steps of the round."""
        # Option II: c_k+ = mean of the uncorrected gradients; its change goes back.
        new, sent = {}, {}
        for name in work.correction:
            shape = tuple(step.parameters[name].shape)
            total = work.sums.get(name)
            new[name] = (
                np.zeros(shape, np.float32)
                if total is None
                else (total / step.taken).cpu().contiguous().numpy()
            )
            sent[name] = new[name] - state[name] if name in state else new[name]
        return sent, {**state, **new}
