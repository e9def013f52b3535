"""The quality of one pool of generated images: distances to the training split, beside those of real ones."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from osmotic.data.dataset import Split
from osmotic.metrics.features import Encoder
from osmotic.metrics.frechet import FeatureStatistics, frechet
from osmotic.metrics.histogram import class_histogram
from osmotic.metrics.kid import kernel_distance
from osmotic.metrics.precision_recall import precision_recall

NEIGHBOURS = 3  # of precision and recall, as in arXiv:1904.06991


@dataclass(frozen=True)
class Quality:
    """Scores of generated images; None where there was too little to measure with.

    Args:
        num_samples: generated images.
        fd, kid: all generated images against the training split; fd >= 0, kid may be slightly below.
        precision, recall: in [0, 1], at equally many generated and training images.
        fd_floor: held-out real images, m of them, against the training split: what a perfect generator would
            reach.
        fd_at_floor: m generated images against the training split, to be read beside the floor.
        m: min(num_samples, held-out images).
        class_histogram: generated images of each class, as the encoder sees them, [num_classes].
        class_histogram_data: training images of each class, [num_classes].
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


def score(generated: np.ndarray, reference: Split, held_out: Split, encoder: Encoder) -> Quality:
    """Every score of one pool; the same input gives the same figures.

    Args:
        generated: uint8 [N, H, W, C].
        reference: the training split, [M, H, W, C].
        held_out: real images the generator has not seen, [K, H, W, C]; may be empty.
        encoder: gives the features, [N, D].
    Raises: ValueError if there are no generated or no training images.
    """
    made = encoder.features(generated)
    real = encoder.features_once(reference.images)
    real_statistics = FeatureStatistics.of(real)
    # FD of few images is biased upwards, and the bias falls with their number: floor and `fd_at_floor` are
    # therefore both taken at m images, so that they differ by the images alone.
    m = min(len(made), len(held_out.images))
    floor = at_floor = kid = precision = recall = None
    if m >= 2 and len(real) >= 2:
        unseen = encoder.features_once(held_out.images)
        floor = frechet(real_statistics, FeatureStatistics.of(_some(unseen, m)))
        at_floor = frechet(real_statistics, FeatureStatistics.of(_some(made, m)))
    # Under two images there is no covariance, and no k-th neighbour without k others: None, never a made-up
    # number.
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
    """`count` of the rows [N, D] by a fixed seed, not the first ones: pools are often sorted by class."""
    if count == len(features):
        return features
    # In their old order, so that the sums run as they do over all rows.
    return features[np.sort(np.random.default_rng(0).permutation(len(features))[:count])]


def _histograms(
    made: np.ndarray, reference: Split, encoder: Encoder
) -> tuple[list[int] | None, list[int] | None]:
    """Classes of the generated images, by their features [N, D], and of the training images."""
    if reference.labels is None:
        return None, None
    classes = encoder.classes_of(made)
    # A class may have a name and an output but no training image, so both are asked.
    num_classes = max(int(reference.labels.max()) + 1, encoder.num_classes)
    data = class_histogram(reference.labels, num_classes)
    return (None if classes is None else class_histogram(classes, num_classes)), data
