"""FedAdam: Adam on the server. Source: arXiv 2003.00295, algorithm 2."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from osmotic.config.keys import key
from osmotic.pieces.adaptive import Adaptive


@dataclass(frozen=True, kw_only=True)
class Adam(Adaptive):
    """v <- beta2 v + (1 - beta2) Delta^2."""

    title: ClassVar[str] = "Adam on the server (FedAdam)"

    beta2: float = key(0.99, "share of the old second moment that is kept", 0, 1)

    def second_moment(self, v: np.ndarray, square: np.ndarray) -> np.ndarray:
        """beta2 v + (1 - beta2) Delta^2, float32 [...]."""
        beta2 = np.float32(self.beta2)
        moved: np.ndarray = beta2 * v + (np.float32(1) - beta2) * square
        return moved
