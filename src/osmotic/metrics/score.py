"""The quality of one pool of generated images: distances to the training split, with the floor that real images reach."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from osmotic.metrics.encoder import Encoder, SplitLike
from osmotic.metrics.frechet import FeatureStatistics, frechet
from osmotic.metrics.histogram import class_histogram
from osmotic.metrics.kid import kernel_distance
from osmotic.metrics.precision_recall import precision_recall

NEIGHBOURS = 3


@dataclass(frozen=True)
class Quality:
    """Scores of generated images; None where there was too little to measure with.

    Args:
        fd, kid: all generated images against the training split.
        precision, recall: at equally many generated and training images.
        fd_floor: held-out real images, m of them, against the training split: what a perfect generator would reach.
        fd_at_floor: m generated images against the training split, to be read beside the floor.
        m: min(num_samples, held-out images).
        class_histogram: generated images of each class, as the encoder sees them.
        class_histogram_data: training images of each class.
    """

    num_samples: int
    fd: float | None
    kid: float | None
    precision: float | None
    recall: float | None
    fd_floor: float | None
    fd_at_floor: float | None
    m: int
    class_histogram: list[int] | None
    class_histogram_data: list[int] | None


def score(generated: np.ndarray, reference: SplitLike, held_out: SplitLike, encoder: Encoder) -> Quality:
    """Every score of one pool; the same input gives the same figures.

    Args:
        generated: uint8 [N, H, W, C].
        reference: the training split.
        held_out: real images the generator has not seen; may be empty.
    """
    made = encoder.features(generated)
    real = encoder.features_once(reference.images)
    real_statistics = FeatureStatistics.of(real)
    m = min(len(made), len(held_out.images))
    floor = at_floor = kid = precision = recall = None
    if m >= 2 and len(real) >= 2:
        unseen = encoder.features_once(held_out.images)
        floor = frechet(real_statistics, FeatureStatistics.of(_some(unseen, m)))
        at_floor = frechet(real_statistics, FeatureStatistics.of(_some(made, m)))
    measurable = min(len(made), len(real))
    if measurable >= 2:
        kid = kernel_distance(real, made)
    if measurable > NEIGHBOURS:
        precision, recall = precision_recall(_some(real, measurable), _some(made, measurable), NEIGHBOURS)
    shown, data = _histograms(made, reference, encoder)
    return Quality(
        num_samples=len(made),
        fd=frechet(real_statistics, FeatureStatistics.of(made)) if measurable >= 2 else None,
        kid=kid,
        precision=precision,
        recall=recall,
        fd_floor=floor,
        fd_at_floor=at_floor,
        m=m,
        class_histogram=shown,
        class_histogram_data=data,
    )


def _some(features: np.ndarray, count: int) -> np.ndarray:
    """`count` of the rows, drawn without replacement by a fixed seed: pools are often sorted by class."""
    if count == len(features):
        return features
    return features[np.sort(np.random.default_rng(0).permutation(len(features))[:count])]


def _histograms(
    made: np.ndarray, reference: SplitLike, encoder: Encoder
) -> tuple[list[int] | None, list[int] | None]:
    if reference.labels is None:
        return None, None
    classes = encoder.classes_of(made)
    num_classes = max(int(reference.labels.max()) + 1, encoder.num_classes)
    data = class_histogram(reference.labels, num_classes)
    return (None if classes is None else class_histogram(classes, num_classes)), data
