"""The feature network that `score.encoder` names: the data's own classifier, or one trained elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from osmotic.data.dataset import Dataset
from osmotic.errors import ConfigError
from osmotic.metrics import classifier, encoder_file, pretrained
from osmotic.metrics.features import THREADS, Encoder
from osmotic.metrics.weights import PREFIX

__all__ = ["Encoder", "get", "steps_to_train"]


def get(
    dataset: Dataset,
    name: str = "classifier",
    cache: bool = True,
    threads: int = THREADS,
    device: str = "cpu",
    stepped: Callable[[], object] = lambda: None,
) -> Encoder:
    """The encoder that `score.encoder` names, trained now if it is the data's own and not in the cache.

    Args:
        dataset: train and held-out images, [N, H, W, C] each; a pretrained encoder ignores it.
        name: "classifier", "inception-v3", "dinov2" or "file:PATH".
        cache: look for a trained encoder in the cache folder and leave a new one there.
        threads: operator threads for training and features, >= 1; the bits depend on it.
        stepped: called after every step, where an encoder is trained.
        device: where features are computed; training always runs on the CPU, so that the hash is one.
    Raises: ConfigError if there is no encoder of this name, or a pretrained one's weights are not on disk, or are for
        images of other channels; ValueError without training images.
    """
    if name == "classifier":
        return classifier.get(dataset, cache, threads, device, stepped)
    if name.startswith(PREFIX):
        found = encoder_file.read(Path(name.removeprefix(PREFIX)), device, threads)
        try:
            found.prepare(np.zeros((1, *dataset.train.images.shape[1:]), np.uint8))
        except ValueError as error:
            raise ConfigError("score.encoder", name, f"is for other images: {error}") from None
        return found
    return pretrained.load(name, device, threads)


def steps_to_train(dataset: Dataset, name: str, threads: int = THREADS) -> int:
    """Optimiser steps that `get` will take: none for an encoder that lies in the cache, or was trained elsewhere."""
    return classifier.steps_to_train(dataset, threads) if name == "classifier" else 0
