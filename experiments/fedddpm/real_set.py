"""A control that no federation could run: the server trains on real images, drawn from all clients alike."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

import osmotic
from osmotic.data.sources import load
from osmotic.pieces.correction import Correction
from osmotic.protocol.messages import Phase
from osmotic.tensors import Tensors


@osmotic.register("real-set")
@dataclass(frozen=True, kw_only=True)
class RealSet(Correction):
    """As `correction`, with real images of the training split in the place of synthetic ones: the upper bound."""

    left = "real images: this is a control, and no method"
    reveals = "everything"

    def phases(self, rounds: int) -> Iterator[Phase]:
        """None of its own."""
        return iter(())

    def after(self, lab: Any, state: Tensors, phase: Phase) -> tuple[Tensors, dict[str, float]]:
        """Takes the images when it is first asked, then trains on them as `correction` does."""
        if "set" not in state:
            train = load(lab.view.config.data).train
            rows = np.random.default_rng(lab.view.config.seed).permutation(len(train))
            rows = np.sort(rows[: round(self.size * len(train))])
            part = {"images": np.asarray(train.images)[rows], "client": np.full(len(rows), -1, np.int64)}
            if train.labels is not None:
                part["labels"] = train.labels[rows].astype(np.int64)
            state, _ = self._kept(lab, [part], 0, 0, state)
        return super().after(lab, state, phase)
