"""Scores per client, and scores from feature statistics, so that no image has to move.

A client computes `FeatureStatistics.of(encoder.features(its images))` and sends those sums; sums of clients
add up to those of all images, and `frechet` compares them with any other sums. Averaging FD over clients can
rank models wrongly, averaging KID cannot (arXiv:2310.11714), so both are given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from osmotic.metrics.features import Encoder
from osmotic.metrics.frechet import FeatureStatistics, frechet
from osmotic.metrics.kid import kernel_distance

__all__ = ["ClientImages", "FeatureStatistics", "aggregate", "frechet", "matching", "score_clients"]

# With fewer images FD is mostly bias and KID mostly noise.
MIN_OWN = 50
SCORES = ("fd_all", "fd_own", "kid_all", "kid_own")


class ClientImages(NamedTuple):
    """One client's real images.

    Args:
        name: as the run calls it, e.g. "client-003".
        client_id: >= 0.
        images: those it trains on, uint8 or float32 in [0, 1], [N, H, W, C].
        labels: their classes if known, int64 [N].
        own_test: its own held-out images if it has any, [K, H, W, C].
    """

    name: str
    client_id: int
    images: np.ndarray
    labels: np.ndarray | None
    own_test: np.ndarray | None = None


def score_clients(
    pool: np.ndarray,
    pool_labels: np.ndarray | None,
    encoder: Encoder,
    reference: np.ndarray,
    clients: Sequence[ClientImages],
    stage: Literal["before", "after"] = "after",
    union_labels: np.ndarray | None = None,
) -> list[dict[str, Any]]:
    """One entry of `summary.quality.per_client` for each client, all from one pool of generated images.

    `fd_all`, `kid_all`: pool images in the label mix of all clients together, against `reference`; the same
    for all clients of one pool. `fd_own`, `kid_own`: pool images in the client's label mix, against its own
    held-out images where given, else its own images; None if either side has under 50.
    Args:
        pool: generated images, uint8 [M, H, W, C].
        pool_labels: the class each was generated for, int64 [M]; None takes the whole pool for every client.
        encoder: gives the features, [M, D].
        reference: features of the training split, [N, D].
        clients: those to score, in the order of the entries.
        stage: whether personal models are scored before or after the last average of shared parts is merged.
        union_labels: classes of the images of all clients, int64 [K], where `clients` are only some of them
            (one pool each).
    Raises: ValueError if the pool or a client's images are empty.
    """
    # The pool's features once for all clients: the network is the dear part, picking rows of features costs
    # nothing.
    made = encoder.features(pool)

    def mixed_as(labels: Sequence[np.ndarray | None]) -> np.ndarray:
        """Features of the pool's images in the label mix of `labels`, [some, D]."""
        known = [some for some in labels if some is not None]
        if pool_labels is None or len(known) < len(labels) or not known:
            return made
        return made[matching(pool_labels, np.concatenate(known))]

    union = [client.labels for client in clients] if union_labels is None else [union_labels]
    fd_all, kid_all = _distances(reference, mixed_as(union), least=2)
    entries = []
    for client in clients:
        # Held-out before training images: a model that repeats its training images would score well against
        # them.
        real = client.images if client.own_test is None or not len(client.own_test) else client.own_test
        fd_own = kid_own = None
        if len(real) >= MIN_OWN:
            own = mixed_as([client.labels])
            fd_own, kid_own = _distances(encoder.features(real), own, least=MIN_OWN)
        entries.append(
            {
                "client_id": client.client_id,
                "name": client.name,
                "num_examples": len(client.images),
                "stage": stage,
                "fd_all": fd_all,
                "fd_own": fd_own,
                "kid_all": kid_all,
                "kid_own": kid_own,
            }
        )
    return entries


def _distances(real: np.ndarray, made: np.ndarray, least: int) -> tuple[float | None, float | None]:
    """FD and KID; None for both where one side has fewer images than `least`."""
    if min(len(real), len(made)) < least:
        return None, None
    return frechet(FeatureStatistics.of(real), FeatureStatistics.of(made)), kernel_distance(real, made)


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


def aggregate(per_client: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float | None]]:
    """Mean, mean weighted by `num_examples`, and worst (largest) of each score over the clients that have it.

    Args:
        per_client: entries of `score_clients`.
    Returns: {"mean" | "weighted" | "worst": {score: value}}; a score that no client has is None.
    """
    out: dict[str, dict[str, float | None]] = {"mean": {}, "weighted": {}, "worst": {}}
    for key in SCORES:
        have = [entry for entry in per_client if entry[key] is not None]
        values = np.array([entry[key] for entry in have], dtype=np.float64)
        # Weighted by what the federation weights by, so that it can be read beside the loss of the rounds.
        weights = np.array([entry["num_examples"] for entry in have], dtype=np.float64)
        out["mean"][key] = float(values.mean()) if have else None
        out["weighted"][key] = float(np.average(values, weights=weights)) if weights.sum() > 0 else None
        out["worst"][key] = float(values.max()) if have else None
    return out
