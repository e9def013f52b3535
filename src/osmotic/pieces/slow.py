"""When learning has become slow: the rules by which FedDDPM+ (arXiv 2503.06426) decides to correct.

The paper says that it detects slow learning and corrects once; its rule is not known. Both rules here are ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

# s_r = SMOOTHING s_{r-1} + (1 - SMOOTHING) * loss of round r: losses of single rounds are mostly noise of timesteps.
SMOOTHING = 0.8


@dataclass(frozen=True)
class Report:
    """What one client's reply says of a round: its weight, its mean loss, and the length of its change."""

    weight: int
    loss: float
    length: float


def smoothed(before: np.ndarray, replies: Mapping[str, Report]) -> np.ndarray:
    """The smoothed losses of all rounds so far, float64 [r], with that of this round put to their end.

    Args:
        before: float64 [r - 1].
        replies: by client; the median of their losses, weighted by images, is that of the round: one client that reports
            any figure does not move a mean then.
    """
    ordered = sorted((report.loss, report.weight) for report in replies.values())
    reached = np.cumsum([weight for _, weight in ordered])
    middle = ordered[int(np.searchsorted(reached, reached[-1] / 2))][0]
    return np.append(before, SMOOTHING * before[-1] + (1 - SMOOTHING) * middle if len(before) else middle)


def gain(losses: np.ndarray, window: int) -> float | None:
    """By what share the smoothed loss has fallen over the last `window` rounds; None before there are so many, or from 0."""
    if len(losses) <= window or losses[-1 - window] <= 0:
        return None
    return float((losses[-1 - window] - losses[-1]) / losses[-1 - window])


def agreement(replies: Mapping[str, Report], mean_length: float) -> float | None:
    """|sum p_k d_k| / sum p_k |d_k|, in [0, 1]: 1 where all clients move the same way; None where nobody moved."""
    total = sum(replies[name].weight for name in sorted(replies))
    lengths = sum(replies[name].length * replies[name].weight for name in sorted(replies)) / total
    return min(1.0, mean_length / lengths) if lengths > 0 else None
