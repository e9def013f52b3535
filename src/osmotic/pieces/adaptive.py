"""The adaptive server optimisers of FedOpt share all but the second moment.

Source: arXiv 2003.00295, algorithm 2. With the clients' mean change Delta as pseudo-gradient, no bias correction:

    m <- beta1 m + (1 - beta1) Delta;   v <- as the optimiser says;   theta <- theta + learning_rate m / (sqrt(v) + tau)
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from osmotic.config.keys import key
from osmotic.methods.base import Method
from osmotic.pieces.base import Metrics, Piece, Section
from osmotic.pieces.momentum import NOTHING_AVERAGED
from osmotic.protocol.messages import Phase
from osmotic.protocol.view import View
from osmotic.tensors import Tensors, group, grouped


@dataclass(frozen=True, kw_only=True)
class Adaptive(Piece):
    """Algorithm 2 of FedOpt but for its line of v. Only weights that somebody returned move, and only their moments."""

    section: ClassVar[Section] = "server"
    server_copies: ClassVar[int] = 4
    paper: ClassVar[str] = "2003.00295"
    left: ClassVar[str] = ""

    learning_rate: float = key(0.01, "server step size (eta)", 0, above=True)
    beta1: float = key(0.9, "share of the old first moment that is kept", 0, 1)
    tau: float = key(1e-3, "degree of adaptivity: added to the root of the second moment", 0, above=True)

    def misfit(self, method: Method) -> str | None:
        """None for every exchange that averages something."""
        return None if method.shared else NOTHING_AVERAGED

    @abstractmethod
    def second_moment(self, v: np.ndarray, square: np.ndarray) -> np.ndarray:
        """The new v, given the old one and Delta^2, each float32 [...] of one parameter's shape."""

    def change(
        self, view: View, state: Tensors, gathered: Any, phase: Phase, mean: Tensors
    ) -> tuple[Tensors, Tensors, Metrics]:
        """(learning_rate * m / (sqrt(v) + tau), "m/NAME" and "v/NAME", {}): name -> float32 [...]."""
        first, second = group(state, "m"), group(state, "v")
        rate, beta1, tau = np.float32(self.learning_rate), np.float32(self.beta1), np.float32(self.tau)
        step: Tensors = {}
        for name, delta in mean.items():
            m = first.get(name, np.zeros_like(delta))
            v = second.get(name, np.full_like(delta, tau * tau))  # the paper asks for v_{-1} >= tau^2
            first[name] = beta1 * m + (np.float32(1) - beta1) * delta
            second[name] = self.second_moment(v, delta * delta)
            step[name] = rate * first[name] / (np.sqrt(second[name]) + tau)
        return step, grouped("m", first) | grouped("v", second), {}
