"""The server's own work after the average, as pieces see it: training and sampling that nothing is kept of until it counts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from osmotic import seeds
from osmotic.federation.interfaces import Trainer
from osmotic.protocol.messages import Phase
from osmotic.protocol.view import View
from osmotic.tensors import Tensors


@dataclass
class ServerLab:
    """One phase's lab: weights come in as averaged and leave as trained; interrupting it loses only what it did.

    Args:
        view: the server as pieces see it.
        phase: the phase under way.
        weights: the global weights after the average, name -> float32 [...].
        trainer: what really trains and samples.
        steps: optimiser steps taken on the server so far in this phase.
    """

    view: View
    phase: Phase
    weights: Tensors
    trainer: Trainer
    steps: int = 0

    def train(self, images: np.ndarray, labels: np.ndarray | None, steps: int, learning_rate: float) -> None:
        """Trains the global weights on images that the server holds, uint8 [N, H, W, C]; labels int64 [N] or None."""
        seed = seeds.integer(self.view.config.seed, seeds.METHOD, self.phase.server_round)
        self.weights = self.trainer.fit(self.weights, images, labels, steps, learning_rate, seed)
        self.steps += steps

    def sample(
        self, weights: Tensors, labels: np.ndarray | None, samples: int, client: str = ""
    ) -> np.ndarray:
        """Images of any weights of the network, uint8 [samples, H, W, C]; the noise follows from the round and `client`."""
        seed = seeds.integer(self.view.config.seed, seeds.METHOD, self.phase.server_round, client)
        return self.trainer.sample(weights, labels, samples, seed)
