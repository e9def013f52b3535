"""Hugging Face data sets: `hf:NAME`, from the hub or from a folder on disk.

NAME is a repository of the hub, a folder that `save_to_disk` wrote, or a local folder of data files without a
script.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from osmotic.data import image
from osmotic.data.dataset import Source, StoredSplit, checked_labels, checked_names
from osmotic.data.image import Facts, Picture
from osmotic.errors import ConfigError

LABEL_COLUMNS = ("label", "labels")
SCALARS = ("int", "uint", "float", "bool", "string", "large_string")


def open_hub(name: str) -> Source:
    """The data set with labels and columns read: `train`, or the only split there is, and `test` if any.

    The image column is the one of type Image; the labels are the first column of type ClassLabel, else a
    column called label or labels, of numbers or texts; other scalar columns are kept, a missing text as "".

    Args:
        name: what stands behind `hf:`.
    Returns: a source whose images are decoded one by one as they are asked for, [H, W, C] each.
    Raises: ConfigError naming the data set, if it cannot be loaded or does not have exactly one image column.
    """
    return open_splits(f"hf:{name}", name, _load(name), Path(name).name)


def open_splits(key: str, where: str, splits: Mapping[str, Any], name: str) -> Source:
    """The source that splits of the `datasets` library make; the rules are those of `open_hub`.

    Args:
        key: what an error about the data set names.
        where: what an error about one row names, before the split and the row.
        splits: `datasets.Dataset` by split, one or more.
        name: of the source.
    Raises: ConfigError as `open_hub`.
    """
    for split, rows in splits.items():
        if split in ("train", "test") and len(rows) == 0:
            raise ConfigError(key, None, f"the {split} split is empty")
    if "train" not in splits and len(splits) > 1:
        raise ConfigError(key, None, f"has no train split, only {', '.join(splits)}")
    train = splits.get("train") or next(iter(splits.values()))
    images = _image_column(key, train.features)
    label = _label_column(train.features)
    names = checked_names(f"{where} train[{label}]", _class_names(train, label)) if label else ()
    stored = _stored(f"{where} train", train, images, label, names)
    test = splits.get("test") if len(splits) > 1 else None
    if test is not None and test.features != train.features:
        raise ConfigError(key, None, "the test split must have the columns of the train split")
    held_out = None if test is None else _stored(f"{where} test", test, images, label, names)
    return Source(name, names, stored, held_out)


def _load(name: str) -> dict[str, Any]:
    """The splits by name, as the library gives them."""
    import datasets

    # Where nobody watches, bars are a thousand lines of a log.
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    path = Path(
        os.path.expanduser(name)
    )  # as Path.exists, it raises nothing for a home of nobody or a name too long
    local = path if os.path.exists(path) else None
    # A path that is not there would be asked of the hub, which answers that no repository has this name.
    if local is None and name.startswith((".", "/", "~")):
        raise ConfigError(name, None, "no such folder")
    try:
        if local and any((local / f).is_file() for f in ("dataset_dict.json", "state.json")):
            found = datasets.load_from_disk(str(local))
        elif local:
            found = datasets.load_dataset(str(local))
        else:
            with _offline_if_unreachable():
                found = datasets.load_dataset(name)
    except Exception as error:  # the libraries below raise anything from OSError to their own HTTP errors
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(f"hf:{name}", None, f"cannot be loaded ({reason})") from None
    return {"train": found} if isinstance(found, datasets.Dataset) else dict(found)


@contextlib.contextmanager
def _offline_if_unreachable() -> Iterator[None]:
    """Where the hub cannot be reached, lets a data set come from the cache or fail at once.

    The hub's own client would retry for half a minute.
    """
    import datasets
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    # Both hold a copy of the switch, and both are read: the hub's client by one, the library's own code by
    # the other.
    before = constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    try:
        if not constants.HF_HUB_OFFLINE:
            get_session().head(constants.ENDPOINT, timeout=3.0)
    except Exception:  # whatever the HTTP library raises: no name, no route, a timeout
        constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before


def _image_column(key: str, features: Any) -> str:
    import datasets

    # By type and not by name: "image", "img" and "picture" are all in use. Two would be a choice that is the
    # user's.
    found = [column for column, feature in features.items() if isinstance(feature, datasets.Image)]
    if len(found) != 1:
        told = "several: " + ", ".join(found) if found else "only " + ", ".join(features)
        raise ConfigError(key, None, f"must have one image column, has {told}")
    return found[0]


def _label_column(features: Any) -> str | None:
    import datasets

    classes = [column for column, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    return next(iter(classes + [c for c in LABEL_COLUMNS if c in features]), None)


def _class_names(rows: Any, label: str) -> tuple[str, ...]:
    """The names of the classes: those of the feature, else numbers, else the texts, sorted."""
    import datasets

    feature = rows.features[label]
    if isinstance(feature, datasets.ClassLabel):
        return tuple(feature.names)
    values = np.asarray(rows[label][:])
    if values.dtype.kind in "iu":
        # Cut at the largest label `checked_labels` allows: it will say what is wrong, which a list of 2^31
        # names would not.
        return tuple(map(str, range(min(int(values.max()), 65535) + 1)))
    return tuple(sorted(set(map(str, values.tolist()))))


def _stored(where: str, rows: Any, images: str, label: str | None, names: tuple[str, ...]) -> StoredSplit:
    """One split, its labels as int64 [N]."""
    import datasets

    # Undecoded, so that files go through the same rules as those of a folder: alpha, depth, orientation,
    # frames.
    encoded = rows.select_columns([images]).cast_column(images, datasets.Image(decode=False))

    def files(positions: np.ndarray) -> Iterator[tuple[str, bytes | Path]]:
        for i in positions:
            one = encoded[int(i)][images]
            told = f"{where}[{i}]"
            if one is None:
                raise ConfigError(told, None, "broken image: the row is empty")
            yield told, one["bytes"] if one["bytes"] is not None else Path(one["path"])

    def facts(positions: np.ndarray) -> Iterator[tuple[str, Facts]]:
        return ((told, image.header(told, file)) for told, file in files(positions))

    def read(positions: np.ndarray) -> Iterator[tuple[str, Picture]]:
        return ((told, image.decode(told, file)) for told, file in files(positions))

    labels = None
    if label:
        values = np.asarray(rows[label][:])
        if values.dtype.kind == "U":
            # A text of the test split that no training image has becomes -1, which is refused below.
            index = {text: i for i, text in enumerate(names)}
            values = np.array([index.get(text, -1) for text in values.tolist()], np.int64)
        labels = checked_labels(f"{where}[{label}]", values, len(rows), len(names))
    return StoredSplit(len(rows), labels, _columns(rows, (images, label)), facts, read)


def _columns(rows: Any, taken: tuple[str | None, ...]) -> dict[str, np.ndarray]:
    """Scalar columns, [N] each, to partition by."""
    columns = {}
    for name, feature in rows.features.items():
        kind = str(getattr(feature, "dtype", "")).rstrip("0123456789")
        if name in taken or kind not in SCALARS:
            continue
        values = rows[name][:]
        columns[name] = np.asarray([v or "" for v in values] if kind.endswith("string") else values)
    return columns
