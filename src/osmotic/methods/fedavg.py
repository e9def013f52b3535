"""FedAvg: every client trains all weights, the server averages them by number of images.

Source: arXiv 1602.05629, algorithm 1. Departs from it: the local solver is the recipe's optimiser, not plain SGD.
It is Algorithm 3 (FULL) of FedDiffuse (arXiv 2406.12575) and the vanilla form of FedDM (arXiv 2407.14730).
"""

from __future__ import annotations

from dataclasses import dataclass

from osmotic.methods.base import Method


@dataclass(frozen=True, kw_only=True)
class FedAvg(Method):
    """theta_r = theta_{r-1} + sum_k p_k (theta_r^k - theta_{r-1}), p_k = n_k / sum of n_j over the clients that answered."""
