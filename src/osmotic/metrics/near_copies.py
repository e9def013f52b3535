"""Near-copies: generated images that lie at one training image as hardly any unseen real image does.

An image's closeness is its distance to the nearest training image over its mean distance to the 50 nearest: small
where one image stands out, near 1 in a dense region and far from everything alike. A near-copy is closer than 99 %
of held-out real images are, so fresh images of the same kind are found at the known rate of about 1 %.

After the adaptive distance of arXiv:2301.13188, sec. 5. Departs from it: it takes a fixed factor for the yardstick.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from osmotic.data import strata
from osmotic.data.dataset import Split
from osmotic.metrics.features import Encoder, op_threads, to_unit

NEIGHBOURS = 50
PERCENT = 1  # of held-out images that are at least as close, by construction
MIN_HELD_OUT = 100  # a percentile needs a hundred
# More would make the shares no surer than it matters, and every one is held against all training images.
MAX_GENERATED, MAX_HELD_OUT = 1_000, 2_000
# As means over blocks of pixels: noise that nobody sees does not hide a copy, and large images stay affordable.
MAX_SIDE = 32
# Closer than this an image is the same up to rounding, also where the data hold images twice.
SAME = 1e-3
_ROWS = 4_096  # training images at a time: they may be on disk, and distances are [queries, 4,096]


@dataclass(frozen=True)
class NearCopies:
    """Shares of near-copies among the generated images that were looked at.

    Args:
        features, pixels: by distances of features, and of pixels; in [0, 1].
        expected: share at which fresh real images are found.
        images: generated images looked at.
        held_out: held-out images behind the yardstick.
    """

    features: float
    pixels: float
    expected: float
    images: int
    held_out: int


@dataclass(frozen=True, eq=False)
class Neighbours:
    """Nearest training images of generated ones.

    Args:
        generated: positions in the pool, int64 [Q].
        nearest: by "features" and "pixels", positions in the training images, int64 [Q].
        closeness: likewise, in [0, 1], 0 for the same image, float64 [Q].
    """

    generated: np.ndarray
    nearest: dict[str, np.ndarray]
    closeness: dict[str, np.ndarray]


class CopyFinder:
    """Holds generated images against the training images; what follows from real images alone is made once.

    Args:
        reference: the training images, [M, H, W, C], M >= 2; they may lie on disk.
        real: their features, [M, D].
        held_out: real images that nobody trained on, [K, H, W, C]; may be empty.
        unseen: their features, [K, D].
        encoder: whose operator threads are used; the bits depend on their number.
        mirrored: whether training mirrors images: then an image is as close as the closer of it and its mirror
            image, held-out ones alike.
    Raises: ValueError under two training images.
    """

    def __init__(
        self,
        reference: Split,
        real: np.ndarray,
        held_out: Split,
        unseen: np.ndarray,
        encoder: Encoder,
        mirrored: bool = False,
    ) -> None:
        if len(reference) < 2:
            raise ValueError(f"near-copies need at least 2 training images, got {len(reference)}")
        self._reference, self._real, self._encoder, self._mirrored = reference, real, encoder, mirrored
        rows = strata.draw(held_out.labels, *_at_most(len(held_out), MAX_HELD_OUT))
        self.held_out = len(rows)
        # Of n held-out images in random order with a fresh one, the fresh one is among the `rank` closest in
        # `rank` of n + 1 cases.
        self._rank = (self.held_out + 1) * PERCENT // 100
        self._threshold: dict[str, float] = {}
        if self.held_out >= MIN_HELD_OUT:
            found = self._look(held_out.images, unseen, rows).closeness
            self._threshold = {
                view: max(float(np.sort(values)[self._rank - 1]), SAME) for view, values in found.items()
            }

    def look(
        self, images: np.ndarray, made: np.ndarray, labels: np.ndarray | None
    ) -> tuple[NearCopies | None, Neighbours]:
        """The shares, None with fewer than 100 held-out images; and whom each image looked at lies nearest to.

        Args:
            images: generated, uint8 [N, H, W, C], N >= 1.
            made: their features, [N, D].
            labels: the class each was generated for, int64 [N], or None.
        """
        rows = strata.draw(labels, *_at_most(len(images), MAX_GENERATED))
        found = self._look(images, made, rows)
        if not self._threshold:
            return None, found
        shares = {view: float(np.mean(found.closeness[view] <= top)) for view, top in self._threshold.items()}
        expected = self._rank / (self.held_out + 1)
        return NearCopies(**shares, expected=expected, images=len(rows), held_out=self.held_out), found

    def _look(self, images: np.ndarray, features: np.ndarray, rows: np.ndarray) -> Neighbours:
        """The nearest training images of those at these positions, int64 [Q]."""
        some, made = images[rows], features[rows]
        found = self._among(some, made)
        if self._mirrored:
            turned = some[:, :, ::-1]
            other = self._among(turned, self._encoder.features(turned))
            for view, (_, close) in other.items():
                found[view] = np.where(close < found[view][1], other[view], found[view])
        nearest = {view: at.astype(np.int64) for view, (at, _) in found.items()}
        return Neighbours(rows, nearest, {view: close for view, (_, close) in found.items()})

    def _among(self, images: np.ndarray, made: np.ndarray) -> dict[str, np.ndarray]:
        """By view the nearest training images and the closeness, [2, Q], of images and their features."""
        with op_threads(self._encoder.threads), torch.inference_mode():
            return {
                "features": np.stack(nearest(made, self._real)),
                "pixels": np.stack(nearest(images, self._reference.images)),
            }


def _at_most(size: int, most: int) -> tuple[int, int, np.random.Generator]:
    """What `strata.draw` needs to draw `most` of `size` positions, or all, by a fixed seed."""
    return size, min(size, most), np.random.default_rng(0)


def nearest(
    queries: np.ndarray, members: np.ndarray, itself: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Position of each query's nearest member, int64 [Q], and its closeness, float64 [Q].

    Args:
        queries, members: features [Q, D] and [M, D], or images [Q, H, W, C] and [M, H, W, C].
        itself: where the queries are members, M >= 2, their positions there, int64 [Q]: none is its own neighbour.
    """
    asked = _vectors(queries)
    # Around the middle of the data distances lose fewer digits: they are differences of squared lengths.
    middle = _vectors(members[:_ROWS]).mean(0)
    asked = asked - middle
    lengths = asked.square().sum(1, keepdim=True)
    best, where = torch.empty(len(asked), 0), torch.empty(len(asked), 0, dtype=torch.int64)
    for start in range(0, len(members), _ROWS):
        some = _vectors(members[start : start + _ROWS]) - middle
        squared = torch.addmm(some.square().sum(1), asked, some.T, alpha=-2).add_(lengths)  # [Q, rows]
        if itself is not None:
            here = np.flatnonzero((itself >= start) & (itself < start + len(some)))
            squared[here, itself[here] - start] = torch.inf
        near, at = squared.topk(min(NEIGHBOURS, squared.shape[1]), largest=False)
        best, where = torch.cat([best, near], 1), torch.cat([where, at + start], 1)
        best, kept = best.topk(min(NEIGHBOURS, best.shape[1]), largest=False)
        where = where.gather(1, kept)
    first = where[:, 0].numpy()
    if itself is not None:
        best = best[:, : len(members) - 1]
    distances = best.clamp_(min=0).sqrt_()
    # Of the nearest one exactly: what is left of a difference of squares would hide that it is the same image.
    distances[:, 0] = (asked - (_vectors(members[first]) - middle)).norm(dim=1)
    mean = distances.double().mean(1)
    # All 50 the same image as the query: as close as can be.
    return first, torch.where(mean > 0, distances[:, 0].double() / mean, 0.0).numpy()


def _vectors(some: np.ndarray) -> torch.Tensor:
    """Features [N, D] as they are; images [N, H, W, C] as values in [0, 1], shrunk to at most 32 x 32, in one row each."""
    if some.ndim == 2:
        return torch.from_numpy(np.ascontiguousarray(some)).float()
    x = to_unit(some)
    size = (min(x.shape[2], MAX_SIDE), min(x.shape[3], MAX_SIDE))
    return (x if x.shape[2:] == size else functional.interpolate(x, size=size, mode="area")).flatten(1)
