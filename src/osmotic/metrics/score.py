"""The quality of one pool of generated images: distances to the training split, beside those of real ones."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from osmotic.data.dataset import Split
from osmotic.metrics.alike import alike
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
        precision, recall: in [0, 1], at equally many generated and training images of each class.
        fd_floor: m held-out real images against the training split: what a perfect generator would reach.
        fd_at_floor: m generated images, as many of each class, against the training split: to be read beside
            the floor.
        m: of each class as many images as the pool and the held-out images both have; without labels
            min(num_samples, held-out images).
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


class Yardstick:
    """What scores of one pool need of the real images: it hangs on the pool's labels alone, so it is made once.

    Args:
        reference: the images that clients train on, [M, H, W, C].
        held_out: real images that nobody trained on, [K, H, W, C]; may be empty.
        encoder: gives the features, [N, D].
        labels: the class each image of a pool is generated for, int64 [samples], or None.
        samples: images of a pool, >= 1.
    Raises: ValueError if there are no images in `reference`.
    """

    def __init__(
        self, reference: Split, held_out: Split, encoder: Encoder, labels: np.ndarray | None, samples: int
    ) -> None:
        self.reference, self.held_out, self.encoder = reference, held_out, encoder
        self.labels, self.samples = labels, samples
        self.real = encoder.features_once(reference.images)
        self._statistics = FeatureStatistics.of(self.real)
        self._at_floor, unseen = alike(labels, held_out.labels, samples, len(held_out))
        self._floor = None
        if min(len(unseen), len(self.real)) >= 2:
            found = encoder.features_once(held_out.images)
            self._floor = frechet(self._statistics, FeatureStatistics.of(found[unseen]))
        self._same, self._real_same = alike(labels, reference.labels, samples, len(reference))

    def score(self, made: np.ndarray) -> Quality:
        """Every score of one pool; the same input gives the same figures.

        Args:
            made: features of the generated images, in the order of the labels, [samples, D].
        """
        at_floor = fd = kid = precision = recall = None
        if self._floor is not None:
            at_floor = frechet(self._statistics, FeatureStatistics.of(made[self._at_floor]))
        # Under two images there is no covariance, and no k-th neighbour without k others: None, never a
        # made-up number.
        if min(len(made), len(self.real)) >= 2:
            fd = frechet(self._statistics, FeatureStatistics.of(made))
            kid = kernel_distance(self.real, made)
        if len(self._same) > NEIGHBOURS:
            precision, recall = precision_recall(self.real[self._real_same], made[self._same], NEIGHBOURS)
        shown, data = _histograms(made, self.reference, self.encoder)
        return Quality(
            num_samples=len(made),
            fd=fd,
            kid=kid,
            precision=precision,
            recall=recall,
            fd_floor=self._floor,
            fd_at_floor=at_floor,
            m=len(self._at_floor),
            class_histogram=shown,
            class_histogram_data=data,
        )


def score(
    generated: np.ndarray,
    reference: Split,
    held_out: Split,
    encoder: Encoder,
    labels: np.ndarray | None = None,
) -> Quality:
    """Every score of one pool, for one alone: a `Yardstick` serves many.

    Args:
        generated: uint8 [N, H, W, C].
        reference, held_out, encoder: as `Yardstick`.
        labels: the class each was generated for, int64 [N], or None.
    Raises: ValueError if there are no generated or no training images.
    """
    made = encoder.features(generated)
    return Yardstick(reference, held_out, encoder, labels, len(made)).score(made)


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
