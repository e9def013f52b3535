"""The server's own work after the average, as pieces see it: training and sampling that nothing is kept of until it counts.

It is done in pieces that a journal keeps: interrupting it loses the piece under way.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from osmotic import seeds
from osmotic.federation.interfaces import Trainer
from osmotic.federation.journal import Journal
from osmotic.protocol.messages import Phase
from osmotic.protocol.view import View
from osmotic.storage.shelf import Shelf
from osmotic.storage.store import digest
from osmotic.tensors import Tensors, group, grouped

# Fewest optimiser steps of one piece of training, but for the last: rounded up to whole passes.
PIECE = 200


@dataclass
class ServerLab:
    """One phase's lab: weights come in as averaged and leave as trained.

    Args:
        view: the server as pieces see it.
        phase: the phase under way.
        weights: the global weights after the average, name -> float32 [...].
        trainer: what really trains and samples.
        journal: keeps pieces of work until the phase counts; None keeps none.
        shelf: where tables are kept that are too large for every checkpoint.
        steps, images, drawn: optimiser steps taken on the server so far in this phase, images in them, images drawn.
    """

    view: View
    phase: Phase
    weights: Tensors
    trainer: Trainer
    journal: Journal | None = None
    shelf: Shelf = field(default_factory=Shelf)
    steps: int = 0
    images: int = 0
    drawn: int = 0

    def train(
        self,
        images: np.ndarray,
        labels: np.ndarray | None,
        steps: int,
        learning_rate: float,
        batch_size: int | None = None,
        cleanest: float = 0.0,
    ) -> None:
        """Trains the global weights on images that the server holds, uint8 [N, H, W, C]; labels int64 [N] or None.

        Args:
            batch_size: images per step; None is `training.batch_size`.
            cleanest: share of the noise levels, from the cleanest, that is left out, in [0, 1).
        """
        run_seed, number = self.view.config.seed, self.phase.server_round
        size = batch_size or self.view.config.training.batch_size
        given = {"images": images} | ({} if labels is None else {"labels": labels})
        how = (self.steps, steps, learning_rate, size, cleanest)
        what = _told("train", run_seed, number, how) + digest(given) + digest(self.weights)
        found = self.journal.find(what) if self.journal else None
        done, moments = 0, Tensors()
        if found is not None:
            done, moments = int(found["done"][0]), group(found, "moments")
            self.weights = group(found, "weights")
        in_pass = math.ceil(len(images) / size)
        # Whole passes: each piece walks the images in an order of its own.
        piece = in_pass * math.ceil(PIECE / in_pass)
        while done < steps:
            some = min(piece, steps - done)
            seed = seeds.integer(run_seed, seeds.METHOD, number, f"/{self.steps + done}")
            self.weights, moments = self.trainer.fit(
                self.weights, images, labels, some, learning_rate, seed, size, moments, cleanest
            )
            done += some
            if self.journal:
                held = grouped("weights", self.weights) | grouped("moments", moments)
                self.journal.keep(what, held | {"done": np.array([done])})
        self.steps += steps
        self.images += steps // in_pass * len(images) + steps % in_pass * size

    def sample(
        self, weights: Mapping[str, np.ndarray], labels: np.ndarray | None, samples: int, client: str = ""
    ) -> np.ndarray:
        """Images of any weights of the network, uint8 [samples, H, W, C]; the noise follows from the round and `client`."""
        seed = seeds.integer(self.view.config.seed, seeds.METHOD, self.phase.server_round, client)
        told = _told("sample", samples, seed, None if labels is None else labels.tolist()) + digest(weights)
        found = self.journal.find(told) if self.journal else None
        if found is None:
            found = {"images": self.trainer.sample(dict(weights), labels, samples, seed)}
            if self.journal:
                self.journal.keep(told, found)
        self.drawn += samples
        return found["images"]

    def features(self, images: np.ndarray) -> np.ndarray:
        """Features of images [N, H, W, C] by the encoder of the scores, float32 [N, D]."""
        return self.trainer.features(images)


def _told(*what: Any) -> str:
    """A piece of work in words, of a fixed length."""
    return hashlib.sha256(repr(what).encode()).hexdigest()
