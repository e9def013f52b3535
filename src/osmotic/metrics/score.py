"""The quality of one pool of generated images: distances to the training split, beside those of real ones."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from osmotic.data.dataset import Split
from osmotic.metrics.alike import alike
from osmotic.metrics.features import Encoder
from osmotic.metrics.frechet import FeatureStatistics, frechet_to
from osmotic.metrics.histogram import class_histogram
from osmotic.metrics.kid import kernel_distance
from osmotic.metrics.precision_recall import precision_recall

NEIGHBOURS = 3  # of precision and recall, as in arXiv:1904.06991


@dataclass(frozen=True)
class HeldOut:
    """Scores against real images that nobody trained on; None where there was too little to measure with.

    The reference of the other scores is what was trained on, so a generator that repeats its training images is
    best by them. Here it is no better than the training images themselves, which is the floor.

    Args:
        fd, kid, precision, recall: of `samples` generated images against `images` held-out ones; precision and
            recall at equally many of each class.
        images: held-out images.
        floor: FD of training images against the held-out images, as many of each class as were generated.
        samples: of each class as many generated images as the training images can match; all, where there are
            enough of these.
    """

    fd: float | None
    kid: float | None
    precision: float | None
    recall: float | None
    images: int
    floor: float | None
    samples: int


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
        held_out: the same pool against the held-out images; None without any.
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
    held_out: HeldOut | None
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
        self.reference, self.encoder = reference, encoder
        self.real = encoder.features_once(reference.images)
        self._statistics = FeatureStatistics.of(self.real)
        # Positions in the pool, and beside them those of real images, as many of each class.
        self._seen = alike(labels, reference.labels, samples, len(reference))
        self._unseen = alike(labels, held_out.labels, samples, len(held_out))
        # The network is asked for nothing where there is nothing.
        nobody = np.empty((0, self.real.shape[1]), np.float32)
        self.unseen = encoder.features_once(held_out.images) if len(held_out) else nobody
        self._unseen_statistics = FeatureStatistics.of(self.unseen)
        self._floor = _distance(self._statistics, self.unseen[self._unseen[1]])
        self._held_out_floor = _distance(self._unseen_statistics, self.real[self._seen[1]])

    def score(self, made: np.ndarray) -> Quality:
        """Every score of one pool; the same input gives the same figures.

        Args:
            made: features of the generated images, in the order of the labels, [samples, D].
        """
        fd, kid = self.distances(made)
        precision, recall = _shares(self.real, made, self._seen)
        at_floor = _distance(self._statistics, made[self._unseen[0]])
        shown, data = _histograms(made, self.reference, self.encoder)
        return Quality(
            num_samples=len(made),
            fd=fd,
            kid=kid,
            precision=precision,
            recall=recall,
            fd_floor=self._floor,
            fd_at_floor=at_floor,
            m=len(self._unseen[0]),
            held_out=self.against_held_out(made),
            class_histogram=shown,
            class_histogram_data=data,
        )

    def distances(self, made: np.ndarray) -> tuple[float | None, float | None]:
        """FD and KID of one pool's features [samples, D] against the reference."""
        return _distances(self.real, self._statistics, made)

    def against_held_out(self, made: np.ndarray) -> HeldOut | None:
        """Scores of one pool's features [samples, D] against the held-out images; None without any."""
        if not len(self.unseen):
            return None
        compared = made[self._seen[0]]
        fd, kid = _distances(self.unseen, self._unseen_statistics, compared)
        precision, recall = _shares(self.unseen, made, self._unseen)
        return HeldOut(fd, kid, precision, recall, len(self.unseen), self._held_out_floor, len(compared))


def _distance(real: FeatureStatistics, made: np.ndarray) -> float | None:
    """FD; None under two images on a side, as there is no covariance: never a made-up number."""
    return frechet_to(real, made) if min(real.count, len(made)) >= 2 else None


def _distances(
    real: np.ndarray, statistics: FeatureStatistics, made: np.ndarray
) -> tuple[float | None, float | None]:
    """FD and KID of features [N, D] against real ones [M, D]; None under two images on a side."""
    fd = _distance(statistics, made)
    return fd, None if fd is None else kernel_distance(real, made)


def _shares(
    real: np.ndarray, made: np.ndarray, alike: tuple[np.ndarray, np.ndarray]
) -> tuple[float | None, float | None]:
    """Precision and recall at these positions of `made` and `real`; None where no image has enough neighbours."""
    if len(alike[0]) <= NEIGHBOURS:
        return None, None
    return precision_recall(real[alike[1]], made[alike[0]], NEIGHBOURS)


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
