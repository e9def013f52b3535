"""The types of the data layer: what a source holds on disk, and what it is once read."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from osmotic.data.image import Facts, Picture
from osmotic.errors import ConfigError

# Marks that turn the direction of writing: a name with them may read as another.
TURNS = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


@dataclass(frozen=True, eq=False)
class Split:
    """Images in memory, or mapped from a file where they are many.

    Args:
        images: [N, H, W, C]; uint8, or float32 in [0, 1] where the source has 16 bits. Mapped ones are a np.memmap.
        labels: int64 [N] in 0..num_classes-1, or None for an unlabelled source.
        columns: further values per image, [N] each, for `data.partition = "by:COLUMN"`.
    """

    images: np.ndarray
    labels: np.ndarray | None
    columns: dict[str, np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True, eq=False)
class Dataset:
    """Training images, held-out real images, and the names of the classes.

    Args:
        name: as reports and scores tell it.
        train: [N, H, W, C].
        test: never trained on, [K, H, W, C], of the same size, channels and dtype as `train`.
        class_names: [num_classes]; () where there are no labels.
        settled: keys of `[data]` whose value followed from the images, e.g. {"image_size": 32}.
        notes: what was done to the images that no key asked for, a line each.
        caution: a line where the images use a sliver of their value range, else "".
        found: how many files had which "sizes", "channels", "depths" and "remarks", before they were made alike.
    """

    name: str
    train: Split
    test: Split
    class_names: tuple[str, ...]
    settled: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    caution: str = ""
    found: Mapping[str, Mapping[str, int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Shape:
    """What is known of a data set without reading its images.

    Args:
        image_size: height and width in pixels.
        channels: 1 or 3.
        num_classes: 0 if unlabelled.
        num_train: training images.
        notes: as those of `Dataset`.
    """

    image_size: int
    channels: int
    num_classes: int
    num_train: int
    notes: tuple[str, ...] = field(default=(), compare=False)


@dataclass(frozen=True, eq=False)
class StoredSplit:
    """A split whose labels and columns are read but whose images still lie on disk.

    Args:
        size: number of images, N.
        labels: int64 [N], checked, or None.
        columns: further values per image, [N] each.
        facts: yields, for each position asked for, int64 [n], where the image lies and what its header says.
        read: yields, for each position asked for, int64 [n], where the image lies and the image.
    """

    # Labels are in memory and images on disk, because subsets and splits are drawn by label before any image
    # is read.

    size: int
    labels: np.ndarray | None
    columns: dict[str, np.ndarray]
    facts: Callable[[np.ndarray], Iterator[tuple[str, Facts]]]
    read: Callable[[np.ndarray], Iterator[tuple[str, Picture]]]


@dataclass(frozen=True, eq=False)
class Source:
    """An opened source.

    Args:
        name: of the data set.
        class_names: [num_classes]; () where there are no labels.
        train: the training split, or all there is.
        test: None where the source has no test split of its own.
        notes: what was left out, a line each.
    """

    name: str
    class_names: tuple[str, ...]
    train: StoredSplit
    test: StoredSplit | None
    notes: tuple[str, ...] = ()


def checked_names(where: str, names: Sequence[str]) -> tuple[str, ...]:
    """Class names as they are.

    Args:
        where: what an error names.
    Raises: ConfigError for a name that is empty, stands twice, is longer than 200 characters, or holds what cannot be
        printed: control characters, half of a surrogate pair, marks that turn the direction of writing.
    """
    seen: set[str] = set()
    for name in names:
        told = name[:50]
        if not name.strip():
            raise ConfigError(where, told, "class names must not be empty")
        if len(name) > 200:
            raise ConfigError(where, f"{told}...", "class names must have at most 200 characters")
        # They go into files, pages and terminals: what the eye cannot tell apart, or what a terminal obeys, is no name.
        if any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") or c in TURNS for c in name):
            raise ConfigError(where, told, "class names must hold printable characters only")
        if name in seen:
            raise ConfigError(where, told, "class names must differ")
        seen.add(name)
    return tuple(names)


def checked_labels(where: str, labels: np.ndarray, size: int, num_classes: int | None) -> np.ndarray:
    """`labels` as int64 [N].

    Args:
        where: what an error names.
        labels: of any integer type, [N] or [N, 1].
        size: images there are, N.
        num_classes: None if nobody named the classes.
    Raises: ConfigError if they are not whole numbers, not one per image, or not in 0..num_classes-1
        (0..65535 where `num_classes` is None: the number of classes is then the largest label plus one).
    """
    # [N, 1] is how several published archives (MedMNIST's, CIFAR's) keep them.
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.dtype.kind not in "iu" or labels.ndim != 1:
        raise ConfigError(where, f"{labels.dtype} {list(labels.shape)}", "labels must be whole numbers, [N]")
    if len(labels) != size:
        raise ConfigError(where, len(labels), f"there must be one label for each of the {size} images")
    # A bound even where no names say how many there are: a stray 2^31 would make a network with so many
    # embeddings.
    limit = 65536 if num_classes is None else num_classes
    wrong = (labels < 0) | (labels >= limit)
    if wrong.any():
        at = int(np.argmax(wrong))
        raise ConfigError(where, int(labels[at]), f"labels must be 0 to {limit - 1} (image {at})")
    return labels.astype(np.int64)
