"""`data.source`: from what the user wrote to images in memory, or to their count and shape alone."""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from osmotic.config.keys import nearest
from osmotic.config.schema import DataConfig
from osmotic.data import census, convert, strata
from osmotic.data.convert import Conversion
from osmotic.data.dataset import Dataset, Shape, Source, Split, StoredSplit
from osmotic.data.folder import open_folder
from osmotic.data.hub import open_hub
from osmotic.data.image import Facts, Picture
from osmotic.data.npz import open_npz
from osmotic.errors import ConfigError
from osmotic.storage import cache

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
# From so many bytes on a split lies in a file instead of in memory: above all of the named sets, below what a laptop has.
MAPPED_FROM = 2**29
RANGE_IMAGES = 500  # are looked at for `data.value_range = "auto"`


class Converted(UserWarning):
    """Images were made alike in a way that no key asked for; the command prints it as a note."""


def load(
    cfg: DataConfig, read: Callable[[int, int], object] = lambda done, count: None, keep_all: bool = False
) -> Dataset:
    """The data set that `data.source` names, in memory: what `finish` makes of it.

    Args:
        read: told after every image how many are read, and of how many, for one split after the other.
        keep_all: a source without a test split gives none of its images to one: they are one client's own.
    Raises: ConfigError naming the key or file and the rule.
    """
    check(cfg)
    source = _open(cfg.source, keep_all)
    test = None if source.test is None else _watched(source.test, read)
    return finish(cfg, dataclasses.replace(source, train=_watched(source.train, read), test=test))


def _watched(stored: StoredSplit, told: Callable[[int, int], object]) -> StoredSplit:
    """The split, whose reading tells how far it is."""

    def read(positions: np.ndarray) -> Iterator[Any]:
        for done, one in enumerate(stored.read(positions), 1):
            told(done, len(positions))
            yield one

    return dataclasses.replace(stored, read=read)


def finish(cfg: DataConfig, source: Source) -> Dataset:
    """The images of an opened source, made alike as `census.choose` says, those for training cut to `max_images`.

    The cut is drawn at random, by a fixed seed. A source without a test split gives a fifth of its images
    (rounded up) to it, stratified by label, by a fixed seed too. A split of MAPPED_FROM bytes or more lies in a file
    without a name and is mapped. What was done that no key asked for is warned of, a line each, as `Converted`.

    Args:
        cfg: `source` and what divides the images are not read.
        source: opened by `load`, or by `own.open_python`.
    Returns: images [N, H, W, C], uint8, or float32 in [0, 1]; labels int64 [N] or None.
    Raises: ConfigError naming what is at fault: an image that `data.fit = "refuse"` refuses, float32 outside [0, 1],
        a source of one image, a key; OSError if the disk has no room for the file.
    """
    convert.check_keys(cfg)
    train_rows, test_rows = _rows(source, cfg.max_images)
    found = _census(source, train_rows, test_rows)
    settled: dict[str, Any] = {}
    conversion, notes = census.choose(cfg, found)
    if cfg.value_range == "auto":
        some = train_rows[census.spread(len(train_rows), RANGE_IMAGES)]
        settled["value_range"] = census.ends_of(source.train.read(some))
        conversion, notes = census.choose(dataclasses.replace(cfg, **settled), found)
    if not cfg.image_size and not found.alike:
        settled["image_size"] = conversion.side
    train = _read(source.train, train_rows, conversion)
    # The test split stays whole, whatever `max_images` is: scores of small and large runs share their floor.
    test = _read(source.test or source.train, test_rows, conversion)
    notes = (*source.notes, *notes)
    for note in notes:
        warnings.warn(note, Converted, stacklevel=2)
    caution = _caution(source, train_rows, train.images, found) if cfg.value_range == "full" else ""
    if caution:
        warnings.warn(caution, stacklevel=2)
    return Dataset(source.name, train, test, source.class_names, settled, notes, caution, found.table())


def _caution(source: Source, rows: np.ndarray, images: np.ndarray, found: census.Census) -> str:
    """A line where the training images, or those of one depth among them, use a sliver of their range; else ""."""
    if len(found.dtypes) == 1:
        return census.sliver(images, census.full_of(list(found.dtypes)))
    some = census.spread(len(rows), RANGE_IMAGES)
    depths = np.array([facts.dtype for _, facts in source.train.facts(rows[some])])
    told = (
        census.sliver(images[some[depths == d]], census.full_of([d]), census.DEPTHS[d])
        for d in np.unique(depths)
    )
    return "; ".join(line for line in told if line)


def describe(cfg: DataConfig, keep_all: bool = False) -> Shape:
    """What `load` would give, without decoding an image.

    Named sets are answered from built-in figures, or from the file in OSMOTIC_DATA; `npz:` from array headers
    and labels; `folder:` from the headers of the files.

    Raises: ConfigError as `load`, as far as it can be known without decoding the images.
    """
    check(cfg)
    if cfg.source in NAMED and _local(cfg.source) is None:
        native = NAMED[cfg.source]
        side, channels, num_train = native.image_size, native.channels, native.num_train
        num_classes = native.num_classes
        side, channels = cfg.image_size or side, cfg.channels or channels
        return Shape(side, channels, num_classes, min(num_train, cfg.max_images or num_train))
    return shape_of(cfg, _open(cfg.source, keep_all))


def shape_of(cfg: DataConfig, source: Source) -> Shape:
    """What `finish` would give of an opened source, from its labels and the headers of its images.

    Args:
        cfg, source: as `finish`.
    Raises: ConfigError as `finish`, as far as headers can tell.
    """
    convert.check_keys(cfg)
    train_rows, test_rows = _rows(source, cfg.max_images)
    to, notes = census.choose(cfg, _census(source, train_rows, test_rows))
    return Shape(to.side, to.channels, len(source.class_names), len(train_rows), (*source.notes, *notes))


def check(cfg: DataConfig) -> None:
    """Refuses a source's name, channels, background or value range that there are none of; reads nothing.

    Raises: ConfigError naming `data.source`, with the nearest valid one, or the other key.
    """
    convert.check_keys(cfg)
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
    if cfg.source and os.path.isdir(cfg.source):  # unlike Path.is_dir false for a name that is too long
        raise ConfigError("data.source", cfg.source, rule, f"folder:{cfg.source}")
    close = nearest(kind, ("npz", "folder", "hf")) if colon else nearest(cfg.source, NAMED)
    raise ConfigError("data.source", cfg.source, rule, f"{close}:{rest}" if colon and close else close)


def _open(name: str, keep_all: bool = False) -> Source:
    kind, _, rest = name.partition(":")
    if name == "digits":
        found = _digits()
    elif name in NAMED:
        found = dataclasses.replace(_named(name), name=name)
    else:
        found = open_hub(rest) if kind == "hf" else PREFIXES[kind](Path(rest))
    if keep_all and found.test is None:
        return dataclasses.replace(found, test=dataclasses.replace(found.train, size=0))
    return found


def _local(name: str) -> Path | None:
    """The file of a named set in the folder OSMOTIC_DATA, if it is there."""
    folder = os.environ.get("OSMOTIC_DATA")
    paths = [Path(os.path.expanduser(folder)) / file for file in FILES.get(name, ())] if folder else []
    return next((path for path in paths if os.path.isfile(path)), None)  # false where it is too long


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
    table = _digits_table()  # [1797, 64 + 1]
    images = np.rint(table[:, :-1].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)[..., None]

    def facts(positions: np.ndarray) -> Iterator[tuple[str, Facts]]:
        return (("digits", Facts(8, 8, 1, "uint8")) for _ in positions)

    def read(positions: np.ndarray) -> Iterator[tuple[str, Picture]]:
        return (("digits", Picture(images[i])) for i in positions)

    labels = table[:, -1].astype(np.int64)
    train = StoredSplit(len(images), labels, {}, facts, read)
    return Source("digits", tuple(map(str, range(10))), train, None)


def _digits_table() -> np.ndarray:
    """The pixels and the label of each digit, float64 [1797, 64 + 1]."""
    # The package is looked up and not imported: that takes longer than all that a run needs until its first step.
    package = importlib.util.find_spec("sklearn")
    for folder in (package and package.submodule_search_locations) or []:
        file = Path(folder) / "datasets" / "data" / "digits.csv.gz"
        if file.is_file():
            return np.loadtxt(file, delimiter=",")
    from sklearn.datasets import load_digits

    data, labels = load_digits(return_X_y=True)
    return np.column_stack([data, labels])


def _rows(source: Source, max_images: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the training images, `max_images` at most, and of the test images in their stored splits; sorted."""
    train, test = _all_rows(source)
    if max_images and max_images < len(train):
        # Rows are drawn before any image is read: a subset of a large folder decodes its own files alone.
        rng = np.random.default_rng(SUBSET_SEED)
        train = np.sort(rng.choice(train, max_images, replace=False))
    return train, test


def _all_rows(source: Source) -> tuple[np.ndarray, np.ndarray]:
    """Positions of all training and test images in their stored splits."""
    size = source.train.size
    if source.test is not None:
        return np.arange(size), np.arange(source.test.size)
    if size < 2:
        raise ConfigError(source.name, f"{size} image", "must hold 2 images or more, one is kept for testing")
    # Drawn over the whole source, before `max_images`: the test images of a small run are those of the large
    # one.
    test = strata.draw(source.train.labels, size, -(-size // 5), np.random.default_rng(TEST_SEED))
    return np.setdiff1d(np.arange(size), test), test


def _census(source: Source, train: np.ndarray, test: np.ndarray) -> census.Census:
    """What the headers of these rows say."""
    found = census.Census().add(source.train.facts(train))
    return found.add((source.test or source.train).facts(test))


def _read(stored: StoredSplit, rows: np.ndarray, to: Conversion) -> Split:
    """The images [n, side, side, channels] at positions `rows`, int64 [n], with their labels and columns."""
    shape = (len(rows), to.side, to.side, to.channels)
    # Filled in place: a list of all images would need twice the memory.
    mapped = math.prod(shape) * to.dtype.itemsize >= MAPPED_FROM
    images = cache.nameless(shape, to.dtype) if mapped else np.empty(shape, to.dtype)
    for i, (where, picture) in enumerate(stored.read(rows)):
        images[i] = to(where, picture)
    labels = None if stored.labels is None else stored.labels[rows]
    return Split(images, labels, {name: column[rows] for name, column in stored.columns.items()})
