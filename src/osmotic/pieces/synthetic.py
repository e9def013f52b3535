"""Synthetic images in the place of a client's own: what is drawn, what is dropped again, and what no server should take.

The filters of the auxiliary set that FedDDPM (arXiv 2503.06426) draws from local models; the paper says nothing of them.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from osmotic.data.strata import apportion
from osmotic.metrics.near_copies import MAX_HELD_OUT, PERCENT, SAME, nearest
from osmotic.training.images import Images, Mapped

# How often a client draws anew in the place of images that it has dropped.
ATTEMPTS = 3
# Neighbours that an image needs within the set not to stand alone.
NEIGHBOURS = 5

Draw = Callable[[np.ndarray | None, int, int], np.ndarray]


def own_images(images: Images) -> np.ndarray:
    """A client's own images as arrays, [N, H, W, C], uint8 or float32 in [0, 1]."""
    if isinstance(images.pixels, Mapped):
        return np.asarray(images.pixels.images[images.pixels.rows])
    pixels = images.take(torch.arange(len(images)))
    return pixels.permute(0, 2, 3, 1).cpu().numpy()


def labels_for(samples: int, counts: np.ndarray | None, even: bool) -> np.ndarray | None:
    """Classes to draw, int64 [samples], in the client's own mix, or of each class that it holds as many; None for none.

    Args:
        counts: the client's images of each class, int64 [classes].
        even: as many of each.
    """
    if counts is None:
        return None
    return apportion((counts > 0).astype(np.int64) if even else counts, samples)


class CopyFilter:
    """Tells images that lie at one of the client's own as hardly any of these lies at another.

    Closeness as in `metrics/near_copies.py`, of pixels, as a site has no encoder; the yardstick is what the 1 % of its own
    images closest to another one have (with fewer than 100, the closest), leaving out those that are there twice.

    Args:
        own: as the space keeps them, [N, H, W, C], N >= 2.
        mirrored: whether training mirrors images: then mirror images are copies too.
        kept: what the space keeps of images [M, h, w, c]; closeness of latents is that of these.
    """

    def __init__(
        self,
        own: np.ndarray,
        mirrored: bool,
        kept: Callable[[np.ndarray], np.ndarray] = lambda images: images,
    ) -> None:
        self.own, self.mirrored, self._kept = own, mirrored, kept
        rows = np.random.default_rng(0).permutation(len(own))[:MAX_HELD_OUT]
        close = np.sort(nearest(own[rows], own, rows)[1])
        # An image that is there twice is no yardstick.
        close = close[close > SAME]
        self.threshold = float(close[max(1, len(close) * PERCENT // 100) - 1]) if len(close) else SAME

    def copies(self, images: np.ndarray) -> np.ndarray:
        """Which of these, uint8 [M, H, W, C], are near-copies: bool [M]."""
        images = self._kept(images)
        close = nearest(images, self.own)[1]
        if self.mirrored:
            close = np.minimum(close, nearest(images[:, :, ::-1], self.own)[1])
        return close <= self.threshold


def drawn_without_copies(
    draw: Draw, labels: np.ndarray | None, samples: int, seed: int, copies: CopyFilter | None
) -> tuple[np.ndarray, np.ndarray | None, int]:
    """(images [n, H, W, C], n <= samples, their labels [n] or None, images dropped): drawn anew for those dropped, a few times.

    Args:
        labels: int64 [samples], or None.
        seed: of the noise.
        copies: what drops; None drops nothing.
    """
    images: np.ndarray | None = None
    missing, dropped = np.arange(samples), 0
    for attempt in range(ATTEMPTS):
        drawn = draw(None if labels is None else labels[missing], len(missing), seed + attempt)
        images = np.zeros((samples, *drawn.shape[1:]), np.uint8) if images is None else images
        images[missing] = drawn
        if copies is None:
            missing = missing[:0]
            break
        missing = missing[copies.copies(drawn)]
        dropped += len(missing)
        if not len(missing):
            break
    assert images is not None
    kept = np.setdiff1d(np.arange(samples), missing)
    return images[kept], None if labels is None else labels[kept], dropped


def objection(images: np.ndarray, labels: np.ndarray | None, num_classes: int) -> str | None:
    """Why images [n, H, W, C] that came from outside are none to train on, in one short line; or None.

    Args:
        labels: int64 [n], or None where none are told.
        num_classes: labels lie below it.
    """
    if not len(images):
        return "there is no image"
    if labels is not None and not ((labels >= 0) & (labels < num_classes)).all():
        return f"a label lies outside 0..{num_classes - 1}"
    flat = images.reshape(len(images), -1)
    blank = int((flat == flat[:, :1]).all(axis=1).sum())
    if 2 * blank > len(images):
        return f"{blank} of {len(images)} images are of one value all over"
    different = len(np.unique(flat, axis=0))
    if 2 * different < len(images):
        return f"{len(images)} images are copies of {different}"
    return None


def outliers(features: np.ndarray, share: float) -> np.ndarray:
    """Which images stand most alone in the set, by the distance to their fifth neighbour: bool [N], this share of all.

    Args:
        features: float32 [N, D].
        share: 0 to 0.5 of the images.
    """
    alone = np.zeros(len(features), bool)
    count = int(share * len(features))
    if count == 0 or len(features) <= NEIGHBOURS:
        return alone
    points = torch.from_numpy(np.ascontiguousarray(features)).float()
    reach = torch.cat(
        [torch.cdist(some, points).kthvalue(NEIGHBOURS + 1, dim=1).values for some in points.split(1024)]
    )
    alone[torch.argsort(reach, descending=True, stable=True)[:count].numpy()] = True
    return alone
