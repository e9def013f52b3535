"""Networks of one form whose weights are the rows of one buffer, so that they can be trained one by one or all at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from osmotic.flat import FlatLayout
from osmotic.models.stacked import Crowd, stack
from osmotic.training.network import FlatNetwork
from osmotic.training.replay import Replays


class Stack:
    """N networks; called as one with images of the crowd's clients side by side, [n * B, C, H, W].

    Args:
        build: gives a fresh network on its device.
        clients: N, >= 1.
        layout: of its parameters; None takes it as one part.
    Raises: NotStackable for a network with a layer that cannot be computed for many clients at once.
    """

    def __init__(
        self, build: Callable[[], nn.Module], clients: int, layout: FlatLayout | None = None
    ) -> None:
        first = build()
        if layout is None:
            layout = FlatLayout.whole({name: tuple(p.shape) for name, p in first.named_parameters()})
        like = next(first.parameters())
        self.weights = torch.zeros(clients, layout.size, device=like.device, dtype=like.dtype)
        self.gradient = torch.zeros_like(self.weights)
        self.crowd = Crowd()
        self._model = stack(first, self.crowd).train()
        (self._leaf,) = self._model.parameters()
        # Each is a network like any other, for pieces, samples and whatever is done client by client.
        rows = zip(self.weights, self.gradient, strict=True)
        self.networks = [FlatNetwork(build(), layout, row) for row in rows]
        self._weights = {name: layout.view(self.weights, name) for name in layout}  # each [N, ...]
        self._gradients = {name: layout.view(self.gradient, name) for name in layout}
        self.trained = set(layout)  # by any client; what nobody trains needs no gradient
        # A GPU waits for its small operations to be launched one by one, a CPU does not.
        self.replays = Replays() if like.device.type == "cuda" else None

    def __call__(self, sample: Tensor, level: Tensor, **kwargs: Any) -> Any:
        """The networks' answers; going back adds to the clients' rows of `gradient`."""
        n = self.crowd.clients
        rows = [weights[:n] for weights in self._weights.values()]
        into = [g[:n] if name in self.trained else None for name, g in self._gradients.items()]
        self.crowd.weights = dict(zip(self._weights, _Rows.apply(self._leaf, rows, into), strict=True))
        try:
            return self._model(sample, level, **kwargs)
        finally:
            self.crowd.weights = {}


class _Rows(torch.autograd.Function):
    """Weights [n, ...] that bring their gradients home; as leaves with a view for `grad`, torch would warn of the view."""

    @staticmethod
    def forward(ctx: Any, leaf: Tensor, rows: list[Tensor], into: list[Tensor | None]) -> Any:
        """The rows as they are; those without a place for their gradient are frozen.

        Args:
            leaf: any that asks for a gradient, so that torch goes back through here.
        """
        ctx.into = into
        ctx.set_materialize_grads(False)
        given = tuple(row.view_as(row) for row in rows)
        ctx.mark_non_differentiable(*(row for row, place in zip(given, into, strict=True) if place is None))
        return given

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> Any:
        """Added, since a piece that bends the loss may have put a share there before."""
        both = [(i, g) for i, g in zip(ctx.into, gradients, strict=True) if i is not None and g is not None]
        torch._foreach_add_([place for place, _ in both], [gradient for _, gradient in both])
        return None, None, None
