"""FedAvg: every client trains all weights, the server averages them by number of images.

Source: arXiv 1602.05629, algorithm 1. Departs from it: the local solver is the recipe's optimiser, not plain SGD.
It is Algorithm 3 (FULL) of FedDiffuse (arXiv 2406.12575) and the vanilla form of FedDM (arXiv 2407.14730).

Next on the reader's path: `federation/client.py`, which does ClientUpdate.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from osmotic.methods.base import Method
from osmotic.models.parts import PARTS
from osmotic.protocol.aggregate import Accumulator
from osmotic.protocol.messages import TRAIN, Client, Phase, Reply, Task
from osmotic.protocol.view import View


@dataclass(frozen=True, kw_only=True)
class FedAvg(Method):
    """theta_r = theta_{r-1} + sum_k p_k (theta_r^k - theta_{r-1}), p_k = n_k / sum of n_j over the clients that answered."""

    paper: ClassVar[str] = "1602.05629"

    def tasks(self, view: View, phase: Phase, clients: Iterable[Client]) -> Iterator[Task]:
        """All weights down; the changes of the shared parts back, in the phases of the exchange alone."""
        # S_t was drawn by the server (training.fraction_train); every k in S_t gets theta_{r-1} and trains it.
        for client in clients:
            yield Task(client, "train", send=PARTS, returns=self.shared if phase.name == TRAIN else ())

    def fold(self, total: Accumulator, reply: Reply) -> None:
        """sum <- sum + n_k (theta_r^k - theta_{r-1}), name -> int64 [...] in fixed point."""
        # Added as integers: the sum has the same bits in any order of arrival.
        total.add(reply.changes, reply.weight)

    def mean(self, total: Accumulator) -> Iterator[tuple[str, np.ndarray]]:
        """sum_k p_k (theta_r^k - theta_{r-1}), float32 [...] name by name; the sums are used up."""
        # One weight sum per tensor, so partial returns (USplit) need no special case: p_k = n_k / sum n_j.
        yield from total.drain()
