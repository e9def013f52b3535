"""Server Nesterov momentum: the outer optimiser of DiLoCo.

Source: arXiv 2311.08105, algorithm 1 (outer optimiser Nesterov; 0.7 and 0.9 are its usual settings), in the form of torch's SGD.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from osmotic.config.keys import key
from osmotic.methods.base import Method
from osmotic.pieces.base import Metrics, Piece, Section
from osmotic.pieces.momentum import NOTHING_AVERAGED
from osmotic.protocol.messages import Phase
from osmotic.protocol.view import View
from osmotic.tensors import Tensors


@dataclass(frozen=True, kw_only=True)
class Nesterov(Piece):
    """m <- momentum * m + mean change;  theta <- theta + learning_rate * (mean change + momentum * m)."""

    section: ClassVar[Section] = "server"
    server_copies: ClassVar[int] = 2
    title: ClassVar[str] = "server Nesterov momentum (DiLoCo's outer optimiser)"
    paper: ClassVar[str] = "2311.08105"
    left: ClassVar[str] = ""

    learning_rate: float = key(0.7, "server step size", 0, above=True)
    momentum: float = key(0.9, "share of the last step that is kept", 0, 1)

    def misfit(self, method: Method) -> str | None:
        """None for every exchange that averages something."""
        return None if method.shared else NOTHING_AVERAGED

    def change(
        self, view: View, state: Tensors, gathered: Any, phase: Phase, mean: Tensors
    ) -> tuple[Tensors, Tensors, Metrics]:
        """(learning_rate * (mean + momentum * m), m and all older ones, {}): name -> float32 [...]."""
        rate, momentum = np.float32(self.learning_rate), np.float32(self.momentum)
        moved = {n: momentum * state[n] + delta if n in state else delta for n, delta in mean.items()}
        return {n: rate * (delta + momentum * moved[n]) for n, delta in mean.items()}, {**state, **moved}, {}
