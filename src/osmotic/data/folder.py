"""Image files in folders: `folder:PATH`.

Sub-folders are the classes, in the order of their names; a folder of images alone is unlabelled. Where the
only sub-folders are `train`, or `train` and `test`, each of them is such a folder and they are the splits.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from osmotic.config.keys import nearest
from osmotic.data import image
from osmotic.data.dataset import Source, StoredSplit
from osmotic.errors import ConfigError

# By suffix, not by content: opening every file to see what it is would take minutes on a large folder.
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
KINDS = ", ".join(suffix[1:] for suffix in SUFFIXES)


def open_folder(path: Path) -> Source:
    """The files below `path`, listed but not decoded; files of other kinds and hidden ones are left alone.

    Args:
        path: a folder as the head of this file says.
    Returns: a source whose images are decoded one by one as they are asked for, [H, W, C] each.
    Raises: ConfigError naming the folder that is missing, empty, or mixes images with sub-folders.
    """
    if not path.is_dir():
        raise ConfigError(str(path), None, "is not a folder" if path.exists() else "no such folder")
    # Only exactly these names are splits: "train" beside "healthy" is a class like any other.
    folders, _ = _listing(path)
    names = {folder.name for folder in folders}
    if names not in ({"train"}, {"train", "test"}):
        classes, train = _classes(path)
        return Source(path.resolve().name, classes, train, None)
    classes, train = _classes(path / "train")
    # By the training classes' numbers, not by its own order: a test split may lack a class.
    test = _classes(path / "test", classes)[1] if "test" in names else None
    return Source(path.resolve().name, classes, train, test)


def _listing(path: Path) -> tuple[list[Path], list[Path]]:
    """Sub-folders and image files of `path`, each sorted by name."""
    # Sorted, as the file system's own order differs between machines, and positions must mean the same images
    # on all. "__MACOSX" is what macOS adds to zip archives: a folder of files that end in .png and are none.
    try:
        entries = sorted(e for e in path.iterdir() if not e.name.startswith((".", "__MACOSX")))
    except OSError as error:
        raise ConfigError(str(path), None, f"cannot be read ({error.strerror})") from None
    return (
        [e for e in entries if e.is_dir()],
        [e for e in entries if e.suffix.lower() in SUFFIXES and not e.is_dir()],
    )


def _classes(path: Path, known: tuple[str, ...] | None = None) -> tuple[tuple[str, ...], StoredSplit]:
    """Class names and files of one split; `known` are the training classes if this is the test split."""
    folders, files = _listing(path)
    if folders and files:
        raise ConfigError(str(files[0]), None, "images must lie inside class folders where there are any")
    if not folders:
        if known:
            raise ConfigError(str(path), None, "must hold class folders, as the training images do")
        if not files:
            raise ConfigError(str(path), None, f"empty folder: holds no images ({KINDS})")
        return (), _stored(files, None)
    names = tuple(folder.name for folder in folders) if known is None else known
    files, labels = [], []
    for folder in folders:
        if folder.name not in names:
            raise ConfigError(
                str(folder), None, "is no class of the training images", nearest(folder.name, names)
            )
        own = _class_files(folder)
        files += own
        labels += [names.index(folder.name)] * len(own)
    return names, _stored(files, np.array(labels, np.int64))


def _class_files(folder: Path) -> list[Path]:
    """Image files of one class."""
    deeper, files = _listing(folder)
    if deeper:
        raise ConfigError(str(deeper[0]), None, "a class folder must hold images, not folders")
    if not files:
        raise ConfigError(str(folder), None, f"class folder holds no images ({KINDS})")
    return files


def _stored(files: list[Path], labels: np.ndarray | None) -> StoredSplit:
    """The split of these files, [N], and their labels, int64 [N]."""

    def read(positions: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
        for i in positions:
            yield str(files[i]), image.decode(str(files[i]), files[i])

    def peek() -> tuple[str, tuple[int, int, int]]:
        where, first = next(read(np.array([0])))
        height, width, channels = first.shape
        return where, (height, width, channels)

    return StoredSplit(len(files), labels, {}, peek, read)
