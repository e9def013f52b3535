"""`data.source`: from what the user wrote to images in memory, or to their count and shape alone."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from osmotic.config.keys import nearest
from osmotic.config.schema import DataConfig
from osmotic.data import image, strata
from osmotic.data.dataset import Dataset, Shape, Source, Split, StoredSplit
from osmotic.data.folder import open_folder
from osmotic.data.hub import open_hub
from osmotic.data.npz import open_npz
from osmotic.errors import ConfigError

# Built in, so that `osmotic plan` and a wrong key answer without a download.
NAMED = {
    "digits": Shape(image_size=8, channels=1, num_classes=10, num_train=1437),
    "mnist": Shape(image_size=28, channels=1, num_classes=10, num_train=60_000),
    "fashion-mnist": Shape(image_size=28, channels=1, num_classes=10, num_train=60_000),
    "cifar10": Shape(image_size=32, channels=3, num_classes=10, num_train=50_000),
}
# In the order in which they are looked for: lossless before JPEG.
FILES = {
    "mnist": ("mnist.npz",),
    "fashion-mnist": ("fashion-mnist.npz",),
    "cifar10": ("cifar10.npz", "cifar10-jpeg.npz"),
}
HUB = {
    "mnist": "ylecun/mnist",
    "fashion-mnist": "zalando-datasets/fashion_mnist",
    "cifar10": "uoft-cs/cifar10",
}
PREFIXES = {"npz": open_npz, "folder": open_folder}
# The test split and the subset must not move when only the split over clients does, so their seeds are fixed.
TEST_SEED, SUBSET_SEED = 1797, 1798


def load(cfg: DataConfig) -> Dataset:
    """The data set that `data.source` names, in memory: what `finish` makes of it.

    Raises: ConfigError naming the key or file and the rule.
    """
    check(cfg)
    return finish(cfg, _open(cfg.source))


def finish(cfg: DataConfig, source: Source) -> Dataset:
    """The images of an opened source in memory, converted if asked, those for training cut to `max_images`.

    The cut is drawn at random, by a fixed seed. A source without a test split gives a fifth of its images
    (rounded up) to it, stratified by label, by a fixed seed too.

    Args:
        cfg: `image_size`, `channels` and `max_images` are read, `source` is not.
        source: opened by `load`, or by `own.open_python`.
    Returns: images [N, H, W, C], uint8, or float32 in [0, 1]; labels int64 [N] or None.
    Raises: ConfigError naming what is at fault: an image that is not square, of another size or depth than
        the first, or float32 outside [0, 1]; a source of one image; `data.channels`.
    """
    _check_channels(cfg)
    train_rows, test_rows = _rows(source)
    if cfg.max_images and cfg.max_images < len(train_rows):
        # Rows are drawn before any image is read: a subset of a large folder decodes its own files alone.
        rng = np.random.default_rng(SUBSET_SEED)
        train_rows = np.sort(rng.choice(train_rows, cfg.max_images, replace=False))
    train = _read(source.train, train_rows, cfg)
    # The test split stays whole, whatever `max_images` is: scores of small and large runs share their floor.
    test = _read(source.test or source.train, test_rows, cfg, like=train.images)
    return Dataset(source.name, train, test, source.class_names)


def describe(cfg: DataConfig) -> Shape:
    """What `load` would give, without decoding more than one image.

    Named sets are answered from built-in figures, or from the file in OSMOTIC_DATA; `npz:` from array headers
    and labels; `folder:` from the list of files and one image.

    Raises: ConfigError as `load`, as far as it can be known without reading the images.
    """
    check(cfg)
    if cfg.source in NAMED and _local(cfg.source) is None:
        native = NAMED[cfg.source]
        side, channels, num_train = native.image_size, native.channels, native.num_train
        num_classes = native.num_classes
        side, channels = cfg.image_size or side, cfg.channels or channels
        return Shape(side, channels, num_classes, min(num_train, cfg.max_images or num_train))
    return shape_of(cfg, _open(cfg.source))


def shape_of(cfg: DataConfig, source: Source) -> Shape:
    """What `finish` would give of an opened source, from its labels and one image.

    Args:
        cfg, source: as `finish`.
    Raises: ConfigError as `finish`, as far as one image can tell.
    """
    _check_channels(cfg)
    where, shape = source.train.peek()
    side, channels = image.fitted_shape(where, shape, cfg.image_size, cfg.channels)
    num_train = len(_rows(source)[0])
    return Shape(side, channels, len(source.class_names), min(num_train, cfg.max_images or num_train))


def _check_channels(cfg: DataConfig) -> None:
    if cfg.channels not in (0, 1, 3):
        raise ConfigError("data.channels", cfg.channels, "must be 0 (native), 1 (grey) or 3 (colour)")


def check(cfg: DataConfig) -> None:
    """Refuses a source's name or channels that there are none of; reads nothing.

    Raises: ConfigError naming `data.source`, with the nearest valid one, or `data.channels`.
    """
    _check_channels(cfg)
    kind, colon, rest = cfg.source.partition(":")
    if cfg.source in NAMED or (kind in (*PREFIXES, "hf") and rest):
        return
    rule = f"must be one of {', '.join(NAMED)}, npz:PATH, folder:PATH, hf:NAME"
    # What follows only looks for the likeliest slip: nothing after the colon, a forgotten prefix, a misspelt
    # name.
    if colon and kind in (*PREFIXES, "hf"):
        raise ConfigError("data.source", cfg.source, "must name what comes after the colon")
    if cfg.source.endswith(".npz") and not colon:
        raise ConfigError("data.source", cfg.source, rule, f"npz:{cfg.source}")
    if cfg.source and Path(cfg.source).is_dir():
        raise ConfigError("data.source", cfg.source, rule, f"folder:{cfg.source}")
    close = nearest(kind, ("npz", "folder", "hf")) if colon else nearest(cfg.source, NAMED)
    raise ConfigError("data.source", cfg.source, rule, f"{close}:{rest}" if colon and close else close)


def _open(name: str) -> Source:
    kind, _, rest = name.partition(":")
    if name == "digits":
        return _digits()
    if name in NAMED:
        return dataclasses.replace(_named(name), name=name)
    return open_hub(rest) if kind == "hf" else PREFIXES[kind](Path(rest).expanduser())


def _local(name: str) -> Path | None:
    """The file of a named set in the folder OSMOTIC_DATA, if it is there."""
    folder = os.environ.get("OSMOTIC_DATA")
    paths = [Path(folder).expanduser() / file for file in FILES.get(name, ())] if folder else []
    return next((path for path in paths if path.is_file()), None)


def _named(name: str) -> Source:
    """A named set from its file, else from the hub."""
    path = _local(name)
    if path is not None:
        return open_npz(path)
    # The user asked for "mnist", not for a repository: an error that names both ways to get it is of more
    # use.
    try:
        return open_hub(HUB[name])
    except ConfigError as error:
        files = " or ".join(FILES[name])
        raise ConfigError(
            "data.source",
            name,
            f"not found: put {files} into a folder and set OSMOTIC_DATA to it, "
            f"or let the Hugging Face hub be reached for {HUB[name]} ({error.rule})",
        ) from None


def _digits() -> Source:
    """scikit-learn's 1,797 handwritten digits, 8x8, grey levels 0..16 spread over 0..255."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)[..., None]

    def read(positions: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
        return (("digits", images[i]) for i in positions)

    labels = digits.target.astype(np.int64)
    train = StoredSplit(len(images), labels, {}, lambda: ("digits", (8, 8, 1)), read)
    return Source("digits", tuple(map(str, range(10))), train, None)


def _rows(source: Source) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the training and of the test images in their stored splits."""
    size = source.train.size
    if source.test is not None:
        return np.arange(size), np.arange(source.test.size)
    if size < 2:
        raise ConfigError(source.name, f"{size} image", "must hold 2 images or more, one is kept for testing")
    # Drawn over the whole source, before `max_images`: the test images of a small run are those of the large
    # one.
    test = strata.draw(source.train.labels, size, -(-size // 5), np.random.default_rng(TEST_SEED))
    return np.setdiff1d(np.arange(size), test), test


def _read(stored: StoredSplit, rows: np.ndarray, cfg: DataConfig, like: np.ndarray | None = None) -> Split:
    """The images [n, H, W, C] at positions `rows`, int64 [n], with their labels and columns."""
    images = image.stack(stored.read(rows), len(rows), cfg.image_size, cfg.channels, like)
    labels = None if stored.labels is None else stored.labels[rows]
    return Split(images, labels, {name: column[rows] for name, column in stored.columns.items()})
