"""Fréchet distance between two sets of features, each taken as one Gaussian (arXiv:1706.08500, eq. 6).

FD = |mu_a - mu_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)), computed by torchmetrics in float64. Nothing is added to the
covariances, so fewer images than features are allowed: a rank-deficient covariance only drops terms of the trace. FD
of few images is biased upwards all the same; compare it at equal counts, which is what the floor of `score` is for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

_ROWS = 10_000


@dataclass(frozen=True)
class FeatureStatistics:
    """Sums from which mean and covariance follow; those of parts add up to those of the whole.

    Args:
        count: images.
        sum: float64 [D].
        outer: sum of outer products, float64 [D, D].
    """

    count: int
    sum: np.ndarray
    outer: np.ndarray

    @classmethod
    def of(cls, features: np.ndarray) -> FeatureStatistics:
        """Statistics of features [N, D]; N may be 0."""
        if features.ndim != 2:
            raise ValueError(f"features must be [N, D], got shape {features.shape}")
        width = features.shape[1]
        total, outer = np.zeros(width), np.zeros((width, width))
        for start in range(0, len(features), _ROWS):
            part = features[start : start + _ROWS].astype(np.float64)
            total += part.sum(axis=0)
            outer += part.T @ part
        return cls(len(features), total, outer)

    def __add__(self, other: FeatureStatistics) -> FeatureStatistics:
        if self.sum.shape != other.sum.shape:
            raise ValueError(f"features must be equally wide, got {self.sum.shape} and {other.sum.shape}")
        return FeatureStatistics(self.count + other.count, self.sum + other.sum, self.outer + other.outer)

    @property
    def mean(self) -> np.ndarray:
        """float64 [D]; ValueError without images."""
        if self.count < 1:
            raise ValueError("the mean needs at least 1 image")
        return self.sum / self.count

    @property
    def cov(self) -> np.ndarray:
        """Unbiased covariance, float64 [D, D]; ValueError under 2 images."""
        if self.count < 2:
            raise ValueError(f"a covariance needs at least 2 images, got {self.count}")
        return (self.outer - self.count * np.outer(self.mean, self.mean)) / (self.count - 1)

    def tensors(self) -> dict[str, np.ndarray]:
        """The message a client sends: count int64 [1], sum float64 [D], outer float64 [D, D]."""
        return {"count": np.array([self.count], dtype=np.int64), "sum": self.sum, "outer": self.outer}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, np.ndarray]) -> FeatureStatistics:
        """The statistics in a message of `tensors`; ValueError if shapes do not fit or a value is not finite."""
        count, total, outer = int(tensors["count"][0]), tensors["sum"], tensors["outer"]
        if total.ndim != 1 or outer.shape != total.shape * 2 or count < 0:
            raise ValueError(f"feature statistics do not fit: {count}, {total.shape}, {outer.shape}")
        if not (np.isfinite(total).all() and np.isfinite(outer).all()):
            raise ValueError("feature statistics must be finite")
        return cls(count, total.astype(np.float64), outer.astype(np.float64))


def frechet(a: FeatureStatistics, b: FeatureStatistics) -> float:
    """FD between two sets known by their statistics alone, >= 0; ValueError if one has under 2 images."""
    import torch
    from torchmetrics.image.fid import FrechetInceptionDistance

    if min(a.count, b.count) < 2:
        raise ValueError(f"FD needs at least 2 images on both sides, got {a.count} and {b.count}")
    if a.sum.shape != b.sum.shape:
        raise ValueError(f"features must be equally wide, got {a.sum.shape} and {b.sum.shape}")
    features = torch.nn.Identity()
    features.num_features = len(a.sum)  # type: ignore[assignment]  # how torchmetrics learns the width
    metric = FrechetInceptionDistance(feature=features).set_dtype(torch.float64)
    # The metric's own running sums are these statistics, so features need not be there.
    for kind, side in (("real", a), ("fake", b)):
        setattr(metric, f"{kind}_features_sum", torch.from_numpy(side.sum))
        setattr(metric, f"{kind}_features_cov_sum", torch.from_numpy(side.outer))
        setattr(metric, f"{kind}_features_num_samples", torch.tensor(side.count))
    metric.orig_dtype = torch.float64
    metric._update_count = 1  # states were set rather than updated, and that is meant
    return max(float(metric.compute()), 0.0)  # rounding can leave -1e-12 for equal sets


def frechet_distance(real: np.ndarray, generated: np.ndarray) -> float:
    """FD between features [N, D] and [M, D], >= 0."""
    return frechet(FeatureStatistics.of(real), FeatureStatistics.of(generated))
