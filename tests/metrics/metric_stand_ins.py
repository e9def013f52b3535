"""Small data sets and encoders for the tests of the scores."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from osmotic.data.dataset import Dataset, Split
from osmotic.metrics.features import Encoder, to_unit
from osmotic.metrics.frechet import FeatureStatistics, frechet


def dataset(name: str, train: Split, test: Split, class_names: tuple[str, ...] = ()) -> Dataset:
    return Dataset(name, train, test, class_names)


def frechet_distance(real: np.ndarray, generated: np.ndarray) -> float:
    """FD between features [N, D] and [M, D]."""
    return frechet(FeatureStatistics.of(real), FeatureStatistics.of(generated))


def bars(count: int, side: int = 8, channels: int = 1, seed: int = 0) -> Split:
    """Noisy images with one bright bar: class 0 across the top, class 1 down the left."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 60, (count, side, side, channels), dtype=np.uint8)
    labels = np.arange(count) % 2
    images[labels == 0, : side // 4] += 180
    images[labels == 1, :, : side // 4] += 180
    return Split(images, labels.astype(np.int64))


def unlabelled(split: Split) -> Split:
    return Split(split.images, None)


class FirstPixels(nn.Module):
    """Features are the first pixels' values, in [0, 255]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, x: Tensor) -> Tensor:
        return 255.0 * x.flatten(1)[:, : self.width]


def pixel_encoder(num_classes: int = 0, width: int = 4) -> Encoder:
    """An encoder whose features can be written down by hand; its class is the brightest of the first pixels."""
    head = None
    if num_classes:
        head = nn.Linear(width, num_classes, bias=False)
        with torch.no_grad():
            head.weight.copy_(torch.eye(num_classes, width))
        head.requires_grad_(False)
    return Encoder("pixels", "0" * 64, None, FirstPixels(width), head, to_unit, threads=1)
