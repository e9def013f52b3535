"""Scores per client, and scores from feature statistics, so that no image has to move.

A client computes `FeatureStatistics.of(encoder.features(its images))` and sends those sums; sums of clients
add up to those of all images, and `frechet` compares them with any other sums. Averaging FD over clients can
rank models wrongly, averaging KID cannot (arXiv:2310.11714), so both are given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from osmotic.metrics.alike import alike
from osmotic.metrics.frechet import FeatureStatistics, frechet, frechet_to
from osmotic.metrics.kid import kernel_distance

__all__ = [
    "ClientImages",
    "FeatureStatistics",
    "OwnYardstick",
    "RealImages",
    "aggregate",
    "frechet",
    "matching",
]

Stage = Literal["before", "after"]

# With fewer images FD is mostly bias and KID mostly noise.
MIN_OWN = 50
SCORES = ("fd_all", "fd_own", "kid_all", "kid_own")


@dataclass(frozen=True, eq=False)
class RealImages:
    """All real images there are, as features: one array, however many clients look at it.

    Args:
        features: [N, D].
        labels: their classes if known, int64 [N].
    """

    features: np.ndarray
    labels: np.ndarray | None


@dataclass(frozen=True, eq=False)
class ClientImages:
    """One client's real images.

    Args:
        name: as the run calls it, e.g. "client-003".
        client_id: >= 0.
        num_examples: images it trains on.
        labels: the classes of these if known, int64 [num_examples].
        own: what its models are compared with, as positions in `RealImages`, int64 [K]: where the run holds images out its own
            of these, maybe none, else those it trains on. Held-out ones come first, as a model that repeats its training images
            would score well against them.
    """

    name: str
    client_id: int
    num_examples: int
    labels: np.ndarray | None
    own: np.ndarray


class OwnYardstick:
    """What the own scores of one client need of the real images: it hangs on the pool's labels alone.

    Args:
        client: which real images are its own.
        real: all of them: the others' too, and those of the test split.
        pool_labels: the class each image of a pool is generated for, int64 [samples]; None takes the whole pool.
        samples: images of a pool.
    """

    def __init__(
        self, client: ClientImages, real: RealImages, pool_labels: np.ndarray | None, samples: int
    ) -> None:
        rows = np.arange(samples)
        if pool_labels is not None and client.labels is not None:
            rows = matching(pool_labels, client.labels)
        self._floor = None
        # A client with too few images has no own scores: there may be thousands, so nothing is kept for it but this.
        self._told = {
            "client_id": client.client_id,
            "name": client.name,
            "num_examples": client.num_examples,
            "own_images": len(client.own),
            "own_samples": len(rows),
        }
        self._compared: tuple[np.ndarray, np.ndarray] | None = None
        if min(len(client.own), len(rows)) >= MIN_OWN:
            own = real.features[client.own]
            self._compared = own, rows
            not_own = np.ones(len(real.features), bool)
            not_own[client.own] = False
            others = np.flatnonzero(not_own)
            mix = None if pool_labels is None else pool_labels[rows]
            labels = None if real.labels is None else real.labels[others]
            found = alike(mix, labels, len(rows), len(others))[1]
            # Fewer than were generated, or another mix, is no floor: FD hangs on both.
            if len(found) == len(rows):
                self._floor = _distance(own, real.features[others[found]])

    def score(
        self, made: np.ndarray, fd_all: float | None, kid_all: float | None, stage: Stage
    ) -> dict[str, Any]:
        """The client's entry of `summary.quality.per_client`.

        `fd_own`, `kid_own`: pool images in the client's label mix, `own_samples` of them, against `own_images`
        real ones of the client; None if either side has under 50. `fd_own_floor`: FD of real images of others, as
        many of each class as `own_samples`, against the same; None where others have too few of a class.
        Args:
            made: features of the pool, [samples, D].
            fd_all, kid_all: of the whole pool against the images that all clients train on.
            stage: whether personal models are scored before or after the last average of shared parts is merged.
        """
        fd_own = kid_own = None
        if self._compared is not None:
            own, rows = self._compared
            fd_own, kid_own = _distance(own, made[rows]), kernel_distance(own, made[rows])
        told = self._told
        return {
            "client_id": told["client_id"],
            "name": told["name"],
            "num_examples": told["num_examples"],
            "stage": stage,
            "fd_all": fd_all,
            "fd_own": fd_own,
            "kid_all": kid_all,
            "kid_own": kid_own,
            "fd_own_floor": self._floor,
            "own_images": told["own_images"],
            "own_samples": told["own_samples"],
        }


def _distance(real: np.ndarray, made: np.ndarray) -> float:
    """FD of features [N, D] and [M, D]."""
    return frechet_to(FeatureStatistics.of(real), made)


def matching(pool_labels: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Sorted indices of the largest part of the pool whose classes are mixed as `labels` are; the first of
    each class.

    With shares p and pool counts P the size is the largest t with t * p_c <= P_c for every class c that both
    have; the part takes round(t * p_c) of each. A class the pool has none of cannot be matched and is left
    out of the mix.
    Args:
        pool_labels: classes of the pool, int64 [M].
        labels: classes to match, int64 [N].
    Returns: positions in the pool, int64 [size], empty if no class is common.
    """
    num_classes = int(max(pool_labels.max(initial=0), labels.max(initial=0))) + 1
    there = np.bincount(pool_labels, minlength=num_classes)
    wanted = np.bincount(labels, minlength=num_classes) * (there > 0)
    if wanted.sum() == 0:
        return np.arange(0)
    asked = wanted > 0
    scale = (there[asked] / wanted[asked]).min()
    # scale * wanted is at most what is there, but for float rounding in the class that sets the scale.
    counts = np.minimum(np.rint(scale * wanted).astype(np.int64), there)
    parts = [np.flatnonzero(pool_labels == c)[: counts[c]] for c in np.flatnonzero(counts)]
    return np.sort(np.concatenate(parts)) if parts else np.arange(0)


def aggregate(per_client: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Mean, mean weighted by `num_examples`, and worst (largest) of each score over the clients that have it.

    Args:
        per_client: entries as `OwnYardstick.score` gives them.
    Returns: {"mean" | "weighted" | "worst": {score: value}}; a score that no client has is None. In each also
        "clients", how many there are, and "clients_own", how many of them have own scores.
    """
    out: dict[str, dict[str, Any]] = {"mean": {}, "weighted": {}, "worst": {}}
    for key in SCORES:
        have = [entry for entry in per_client if entry[key] is not None]
        values = np.array([entry[key] for entry in have], dtype=np.float64)
        # Weighted by what the federation weights by, so that it can be read beside the loss of the rounds.
        weights = np.array([entry["num_examples"] for entry in have], dtype=np.float64)
        out["mean"][key] = float(values.mean()) if have else None
        out["weighted"][key] = float(np.average(values, weights=weights)) if weights.sum() > 0 else None
        out["worst"][key] = float(values.max()) if have else None
    # A mean of one client in ten reads like one of all: so the counts stand beside it.
    counts = {
        "clients": len(per_client),
        "clients_own": sum(entry["fd_own"] is not None for entry in per_client),
    }
    for figures in out.values():
        figures.update(counts)
    return out
