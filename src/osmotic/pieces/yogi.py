"""FedYogi: Yogi on the server; its second moment grows and shrinks by additions. Source: arXiv 2003.00295, algorithm 2."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from osmotic.config.keys import key
from osmotic.pieces.adaptive import Adaptive


@dataclass(frozen=True, kw_only=True)
class Yogi(Adaptive):
    """v <- v - (1 - beta2) Delta^2 sign(v - Delta^2)."""

    title: ClassVar[str] = "Yogi on the server (FedYogi)"

    beta2: float = key(0.99, "how slowly the second moment follows", 0, 1)

    def second_moment(self, v: np.ndarray, square: np.ndarray) -> np.ndarray:
        """v - (1 - beta2) Delta^2 sign(v - Delta^2), float32 [...]; it never falls below 0."""
        moved: np.ndarray = v - (np.float32(1) - np.float32(self.beta2)) * square * np.sign(v - square)
        return moved
