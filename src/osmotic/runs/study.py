"""A simulated run before anything runs: its blueprint, and everybody's data."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch

from osmotic.config.schema import Config
from osmotic.data import partition, sources
from osmotic.data.dataset import Dataset, Split
from osmotic.errors import ConfigError
from osmotic.federation.blueprint import Blueprint
from osmotic.federation.interfaces import Engine
from osmotic.methods import Method
from osmotic.models import NetworkSpec
from osmotic.pieces import Chain
from osmotic.protocol.messages import Client
from osmotic.runs.settle import settle

HASHED_BYTES = 2**22  # at once
FAR = 1.25  # from it on a standard deviation is told to be another than the one expected


@dataclass(frozen=True)
class Holding:
    """What one simulated client holds: positions in the training split, its own held-out part apart.

    Args:
        train: trained on.
        own_test: held out, for scores.
        watched: held out, for what training itself watches.
    """

    client: Client
    train: np.ndarray
    own_test: np.ndarray
    watched: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))


@dataclass(frozen=True)
class Study:
    """Everything a run is made of, before anything runs: the blueprint, and everybody's data.

    Args:
        sites: the engine whose clients hold the images at their own places; the data set is empty then, and holdings have
            sizes alone. None in a simulation.
        tells: hashes of the feature networks by which a site may tell sums of its images' features, by its name.
        compares: names of the sites that may tell KID of their images, too.
        withheld: what a site's policy keeps back, as the action that would ask for it -> names of such sites.
        holds_out: images that a site holds out for scores, by the names of the sites that hold any out; 0 where all of them are watched.
        lacks: names of the sites that do not hold the pretrained weights of the run, and are sent them.
    """

    blueprint: Blueprint
    dataset: Dataset
    holdings: list[Holding]
    device: torch.device
    sites: Engine | None = None
    tells: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    compares: frozenset[str] = frozenset()
    lacks: frozenset[str] = frozenset()
    withheld: Mapping[str, frozenset[str]] = field(default_factory=dict)
    holds_out: Mapping[str, int] = field(default_factory=dict)

    @property
    def at_sites(self) -> bool:
        """Whether images are where this process cannot see them."""
        return self.sites is not None

    @property
    def config(self) -> Config:
        """The run's configuration."""
        return self.blueprint.config

    @property
    def spec(self) -> NetworkSpec:
        """The network."""
        return self.blueprint.spec

    @cached_property
    def prepared(self) -> np.ndarray:
        """All training images as they are kept while training lasts, [N, H, W, C]: themselves, or their latents, computed once."""
        return self.blueprint.space.prepare(self.dataset.train.images)

    @property
    def workers(self) -> int:
        """Clients side by side: as asked, or one per core; one on a GPU, which a single client fills."""
        asked = self.config.engine.workers
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return min(asked or (1 if self.device.type == "cuda" else cores), len(self.holdings))

    def model(self) -> torch.nn.Module:
        """A network on the study's device."""
        return self.blueprint.model(self.device)


def prepare(
    config: Config,
    dataset: Dataset | None = None,
    read: Callable[[int, int], object] = lambda done, count: None,
) -> Study:
    """Loads the data and makes the objects.

    Args:
        dataset: images of the caller's own; None reads `data.source`.
        read: as `sources.load`.
    Raises: ConfigError for data that do not fit the configuration.
    """
    dataset = dataset or sources.load(config.data, read)
    # The images' own values of keys first: a run records them, so that its file repeats it.
    config = replace(config, data=replace(config.data, **dataset.settled))
    config = settle(config, len(dataset.train), len(dataset.class_names))
    conditional = is_conditional(config, len(dataset.class_names))
    num_classes = len(dataset.class_names) if conditional else 0
    size, channels = dataset.train.images.shape[1], dataset.train.images.shape[3]
    blueprint = Blueprint.of(config, size, channels, num_classes)
    if num_classes == 0 and config.score.guidance not in (1.0, "auto"):
        raise ConfigError(
            "score.guidance", config.score.guidance, f"needs labels, and {config.data.source} has none"
        )
    if config.model.target == "edm" and not config.model.autoencoder:
        _tell_spread(config.model.sigma_data, dataset)
    if blueprint.config.model.pretrained and not blueprint.config.model.pretrained_sha256:
        # Written down, so that the file of the run names what it began with.
        blueprint = blueprint.agreed()
    holdings = _holdings(config, dataset, blueprint.method(), blueprint.chain())
    return Study(blueprint, dataset, holdings, choose_device(config.engine.device))


def is_conditional(config: Config, num_classes: int) -> bool:
    """Whether the network is told the class. Raises ConfigError if it should be and there are no labels."""
    if config.model.conditional is True and num_classes == 0:
        raise ConfigError("model.conditional", True, f"needs labels, and {config.data.source} has none")
    return num_classes > 0 if config.model.conditional == "auto" else bool(config.model.conditional)


def _tell_spread(sigma_data: float, dataset: Dataset) -> None:
    """Warns where the images' own standard deviation is far from the one that target edm expects."""
    images = dataset.train.images
    pixels = np.asarray(images[:: max(1, len(images) // 1000)], np.float32)
    spread = float(pixels.std()) * (2 / 255 if images.dtype == np.uint8 else 2)  # in [-1, 1]
    if not sigma_data / FAR <= spread <= sigma_data * FAR:
        warnings.warn(
            f"model.sigma_data = {sigma_data:g}, and these images have a standard deviation of {spread:.2f} (told here, "
            "sent nowhere): a model.sigma_data near it may train better",
            stacklevel=3,
        )


def _holdings(config: Config, dataset: Dataset, method: Method, chain: Chain) -> list[Holding]:
    split = partition.divide(config.data, dataset.train)
    if method.pools_data:
        union = np.sort(np.concatenate([train for train, _ in split]))
        own = np.sort(np.concatenate([own for _, own in split]))
        return [Holding(Client(0, "central", len(union)), union, own)]
    return [
        Holding(Client(i, f"client-{i:03d}", len(train)), train, *set_aside(own, chain))
        for i, (train, own) in enumerate(split)
    ]


def set_aside(held_out: np.ndarray, chain: Chain) -> tuple[np.ndarray, np.ndarray]:
    """Held-out positions, int64 [n], as (those for scores, those that training watches): a score by what it watched would flatter it."""
    return (held_out[1::2], held_out[::2]) if chain.watches else (held_out, held_out[:0])


def choose_device(name: str) -> torch.device:
    """The torch device of a name. Raises ConfigError if it is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):
        raise ConfigError("engine.device", name, "is not available on this machine") from None
    return device


def make_deterministic(study: Study) -> None:
    """Same bits every time: fixed op threads, and on CUDA deterministic kernels."""
    torch.set_num_threads(study.config.engine.threads)
    if study.device.type == "cuda" and study.config.engine.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False


def data_sha256(study: Study) -> str:
    """Hash of all training images and labels, and of who holds which: what a resumed run must find again.

    Of images at sites only how many each has: the sites themselves keep the rest.
    """
    if study.at_sites:
        told = [[h.client.name, h.client.num_examples] for h in study.holdings]
        known = [told, study.blueprint.image_shape, study.dataset.class_names]
        return hashlib.sha256(repr(known).encode()).hexdigest()
    total = _hash(study.dataset.train)
    for holding in study.holdings:
        total.update(f"{holding.client.name}:".encode())
        total.update(np.ascontiguousarray(holding.train, "<i8").data)
    return total.hexdigest()


def _hash(split: Split) -> Any:
    """SHA-256, still open, of a split's images and labels."""
    total, images = hashlib.sha256(), split.images
    rows = max(1, HASHED_BYTES // max(images[:1].nbytes, 1))
    for start in range(0, len(images), rows):  # piece by piece: mapped images may be larger than memory
        total.update(np.ascontiguousarray(images[start : start + rows]).data)
    if split.labels is not None:
        total.update(np.ascontiguousarray(split.labels, "<i8").data)
    return total


def describe_partition(study: Study) -> dict[str, Any]:
    """partition.json: who holds how many images of which class."""
    names = list(study.dataset.class_names)
    labels = study.dataset.train.labels
    counts: Sequence[Sequence[int]] | None = None
    if labels is not None and not study.at_sites:
        counts = partition.class_counts([h.train for h in study.holdings], labels, len(names)).tolist()
    return {
        "clients": [h.client.name for h in study.holdings],
        "class_names": names,
        "counts": counts,
        "sizes": [h.client.num_examples for h in study.holdings],
        "holdout_sizes": [len(h.own_test) for h in study.holdings],
        "watched_sizes": [len(h.watched) for h in study.holdings],
        "sha256": data_sha256(study),
        "test_sha256": _hash(study.dataset.test).hexdigest(),
    }
