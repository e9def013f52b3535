"""Fréchet distance between two sets of features, each taken as one Gaussian.

Source: arXiv:1706.08500, eq. 6. FD = |mu_a - mu_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)), computed by
torchmetrics in float64. Nothing is added to the covariances, so fewer images than features are allowed: a
rank-deficient covariance only drops terms of the trace. FD of few images is biased upwards all the same;
compare it at equal counts, which is what the floor of `score` is for.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# Above this width the eigenvalues of D x D take seconds, and with fewer images than features most of them are 0.
WIDE = 512
_ROWS = 10_000  # images at a time: 2,048 features of 10,000 are 164 MB in float64


@dataclass(frozen=True)
class FeatureStatistics:
    """Sums from which mean and covariance follow; those of parts add up to those of the whole.

    Args:
        count: images, >= 0.
        sum: of the features, float64 [D].
        outer: sum of outer products x x^T, float64 [D, D].
    """

    count: int
    sum: np.ndarray
    outer: np.ndarray

    @classmethod
    def of(cls, features: np.ndarray) -> FeatureStatistics:
        """Statistics of a set of images.

        Args:
            features: of any floating type, [N, D]; N may be 0.
        Raises: ValueError if they have other axes.
        """
        if features.ndim != 2:
            raise ValueError(f"features must be [N, D], got shape {features.shape}")
        width = features.shape[1]
        total, outer = np.zeros(width), np.zeros((width, width))
        for start in range(0, len(features), _ROWS):
            # float64 before the sums, not after: the covariance is a difference of two numbers nearly alike.
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
        """Mean of the features, float64 [D].

        Raises: ValueError without images.
        """
        if self.count < 1:
            raise ValueError("the mean needs at least 1 image")
        return self.sum / self.count

    @property
    def cov(self) -> np.ndarray:
        """Unbiased covariance, (outer - n mean mean^T) / (n - 1), float64 [D, D].

        Raises: ValueError under 2 images.
        """
        if self.count < 2:
            raise ValueError(f"a covariance needs at least 2 images, got {self.count}")
        return (self.outer - self.count * np.outer(self.mean, self.mean)) / (self.count - 1)


def frechet(a: FeatureStatistics, b: FeatureStatistics) -> float:
    """FD between two sets known by their statistics alone, >= 0, in squared units of the features.

    Args:
        a, b: statistics of features equally wide, of 2 images or more each.
    Raises: ValueError if one has under 2 images, or they differ in width.
    """
    import torch
    from torchmetrics.image.fid import FrechetInceptionDistance

    if min(a.count, b.count) < 2:
        raise ValueError(f"FD needs at least 2 images on both sides, got {a.count} and {b.count}")
    if a.sum.shape != b.sum.shape:
        raise ValueError(f"features must be equally wide, got {a.sum.shape} and {b.sum.shape}")
    features = torch.nn.Identity()
    # The metric insists on a network of its own; these features are computed already, so it gets one that
    # does nothing.
    features.num_features = len(a.sum)  # type: ignore[assignment]  # how torchmetrics learns the width
    metric = FrechetInceptionDistance(feature=features).set_dtype(torch.float64)
    # The metric's own running sums are these statistics, so features need not be there.
    for kind, side in (("real", a), ("fake", b)):
        setattr(metric, f"{kind}_features_sum", torch.from_numpy(side.sum))
        setattr(metric, f"{kind}_features_cov_sum", torch.from_numpy(side.outer))
        setattr(metric, f"{kind}_features_num_samples", torch.tensor(side.count))
    metric.orig_dtype = torch.float64  # of the result; `update` would have set it
    metric._update_count = 1  # states were set rather than updated, and that is meant
    return max(float(metric.compute()), 0.0)  # rounding can leave -1e-12 for equal sets


def frechet_to(real: FeatureStatistics, made: np.ndarray) -> float:
    """`frechet` of features [N, D] to a set known by its statistics; quicker where there are fewer images than wide features.

    With centred features A of these, C_made = A^T A / (N - 1), the eigenvalues of C_real C_made that are not 0 are those
    of A C_real A^T / (N - 1), which is symmetric and N x N. The same figure but for rounding, 1e-7 of it: what is exactly
    0 is the root of a rounding error, here as in `frechet`.
    Args:
        made: of any floating type.
    Raises: ValueError as `frechet`.
    """
    import torch

    count, width = made.shape
    if width <= WIDE or not 2 <= count < width or width != len(real.sum) or real.count < 2:
        return frechet(real, FeatureStatistics.of(made))
    features = made.astype(np.float64)
    mean, cov = features.mean(axis=0), real.cov
    centred = (features - mean) / np.sqrt(count - 1)
    squares = torch.linalg.eigvalsh(torch.from_numpy(centred @ cov @ centred.T))
    roots = float(squares.clamp(min=0).sqrt().sum())
    traces = float(np.trace(cov) + np.square(centred).sum())
    return max(float(np.square(real.mean - mean).sum()) + traces - 2 * roots, 0.0)
