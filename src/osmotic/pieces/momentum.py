"""Server momentum (FedAvgM): the server moves by a running sum of the clients' mean changes.

Source: arXiv 1909.06335 (FedAvgM); the server optimiser SGD of FedOpt (arXiv 2003.00295, algorithm 1).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from osmotic.config.keys import key
from osmotic.methods.base import Method
from osmotic.pieces.base import Metrics, Piece, Section
from osmotic.protocol.messages import Phase
from osmotic.protocol.view import View
from osmotic.tensors import Tensors

NOTHING_AVERAGED = "the server averages nothing, so there is no mean change to work on"


@dataclass(frozen=True, kw_only=True)
class Momentum(Piece):
    """m <- momentum * m + mean change;  theta <- theta + learning_rate * m. Rate 1 and momentum 0 are FedAvg.

    Per parameter, and only where somebody returned it: a part that nobody returned keeps both weights and m.
    """

    section: ClassVar[Section] = "server"
    server_copies: ClassVar[int] = 2
    title: ClassVar[str] = "server momentum (FedAvgM)"
    paper: ClassVar[str] = "1909.06335"
    left: ClassVar[str] = ""

    learning_rate: float = key(1.0, "server step size", 0, above=True)
    momentum: float = key(0.9, "share of the last step that is kept", 0, 1)

    def misfit(self, method: Method) -> str | None:
        """None for every exchange that averages something."""
        return None if method.shared else NOTHING_AVERAGED

    def change(
        self, view: View, state: Tensors, gathered: Any, phase: Phase, mean: Tensors
    ) -> tuple[Tensors, Tensors, Metrics]:
        """(learning_rate * m, m and all older ones, {}): name -> float32 [...]."""
        rate, momentum = np.float32(self.learning_rate), np.float32(self.momentum)
        moved = {n: momentum * state[n] + delta if n in state else delta for n, delta in mean.items()}
        return {n: rate * m for n, m in moved.items()}, {**state, **moved}, {}
