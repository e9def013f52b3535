"""FedAdagrad: Adagrad on the server; steps only ever shrink. Source: arXiv 2003.00295, algorithm 2."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from osmotic.config.keys import key
from osmotic.pieces.adaptive import Adaptive


@dataclass(frozen=True, kw_only=True)
class Adagrad(Adaptive):
    """v <- v + Delta^2. beta1 is 0 by default: plain Adagrad has no first moment."""

    title: ClassVar[str] = "Adagrad on the server (FedAdagrad)"

    beta1: float = key(0.0, "share of the old first moment that is kept", 0, 1)

    def second_moment(self, v: np.ndarray, square: np.ndarray) -> np.ndarray:
        """v + Delta^2, float32 [...]."""
        return v + square
