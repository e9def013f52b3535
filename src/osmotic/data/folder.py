"""Image files in folders: `folder:PATH`.

Sub-folders are the classes, in the order of their names; a folder of images alone is unlabelled. Where the
only sub-folders are `train`, or `train` and `test`, each of them is such a folder and they are the splits.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np

from osmotic.config.keys import nearest
from osmotic.data import dicom, image
from osmotic.data.dataset import Source, StoredSplit, checked_names
from osmotic.data.image import Facts, Picture
from osmotic.errors import ConfigError

# By suffix, not by content: opening every file to see what it is would take minutes on a large folder.
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", dicom.SUFFIX)
KINDS = ", ".join(suffix[1:] for suffix in SUFFIXES)
SHOWN_ENDS = 5  # of files that are left alone


def open_folder(path: Path) -> Source:
    """The files below `path`, listed but not decoded; those of other kinds are left alone and told of, hidden ones left alone.

    Args:
        path: a folder as the head of this file says.
    Returns: a source whose images are decoded one by one as they are asked for, [H, W, C] each.
    Raises: ConfigError naming the folder that is missing, empty, or mixes images with sub-folders; a link that leads
        out of `path`, a file that is no regular one, a name that no class can have.
    """
    try:
        path = path.expanduser()
        found, there = path.is_dir(), path.exists()
    except (OSError, RuntimeError, ValueError) as error:  # too long, a home of nobody, a NUL
        raise ConfigError(
            str(path), None, f"is no folder ({getattr(error, 'strerror', None) or error})"
        ) from None
    if not found:
        raise ConfigError(str(path), None, "is not a folder" if there else "no such folder")
    path = path.resolve()
    # Only exactly these names are splits: "train" beside "healthy" is a class like any other.
    folders, _ = _listing(path, path)
    names = {folder.name for folder in folders}
    if names not in ({"train"}, {"train", "test"}):
        classes, train = _classes(path, path)
        return Source(path.name, classes, train, None, _left_alone(path))
    classes, train = _classes(path, path / "train")
    # By the training classes' numbers, not by its own order: a test split may lack a class.
    test = _classes(path, path / "test", classes)[1] if "test" in names else None
    return Source(path.name, classes, train, test, _left_alone(path))


def _listing(root: Path, path: Path) -> tuple[list[Path], list[Path]]:
    """Sub-folders and image files of `path`, each sorted by name; none of them lies outside `root`."""
    # Sorted, as the file system's own order differs between machines, and positions must mean the same images
    # on all. "__MACOSX" is what macOS adds to zip archives: a folder of files that end in .png and are none.
    try:
        entries = sorted(e for e in path.iterdir() if not e.name.startswith((".", "__MACOSX")))
    except OSError as error:
        raise ConfigError(str(path), None, f"cannot be read ({error.strerror})") from None
    folders, files = [], []
    for entry in entries:
        kept = entry.suffix.lower() in SUFFIXES
        if entry.is_symlink() and (kept or entry.is_dir()):
            _refuse_outside(root, entry)
        if entry.is_dir():
            folders.append(entry)
        elif kept:
            # A pipe would keep a reader waiting for ever.
            if not entry.is_file():
                raise ConfigError(str(entry), None, "is no regular file")
            files.append(entry)
    return folders, files


def _left_alone(root: Path) -> tuple[str, ...]:
    """A line on the files below `root` that are read as no image, or none: photographs of other kinds may be among them."""
    ends: Counter[str] = Counter()
    for _, folders, files in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith((".", "__MACOSX"))]
        for name in files:
            end = Path(name).suffix.lower()
            if not name.startswith(".") and end not in SUFFIXES:
                # Shown as it is only where it is an ending indeed: names come from anywhere.
                ends[end if re.fullmatch(r"\.[a-z0-9]{1,8}", end) else "no ending"] += 1
    if not ends:
        return ()
    most = sorted(ends.items(), key=lambda one: (-one[1], one[0]))[:SHOWN_ENDS]
    shown = ", ".join(f"{n} of {end}" for end, n in most)
    more = ", ..." if len(ends) > SHOWN_ENDS else ""
    return (f"left alone, as of no kind that is read: {shown}{more}",)


def _refuse_outside(root: Path, link: Path) -> None:
    # A data set from elsewhere could otherwise make any image of this machine part of the training.
    try:
        inside = link.resolve(strict=True).is_relative_to(root)
    except (OSError, RuntimeError):  # leads nowhere, or in a circle
        raise ConfigError(str(link), None, "is a link that leads nowhere") from None
    if not inside:
        raise ConfigError(str(link), None, "is a link that leads out of the folder, which is not followed")


def _classes(
    root: Path, path: Path, known: tuple[str, ...] | None = None
) -> tuple[tuple[str, ...], StoredSplit]:
    """Class names and files of one split; `known` are the training classes if this is the test split."""
    folders, files = _listing(root, path)
    if folders and files:
        raise ConfigError(str(files[0]), None, "images must lie inside class folders where there are any")
    if not folders:
        if known:
            raise ConfigError(str(path), None, "must hold class folders, as the training images do")
        if not files:
            rule = "; ".join((f"empty folder: holds no images ({KINDS})", *_left_alone(path)))
            raise ConfigError(str(path), None, rule)
        return (), _stored(files, None)
    names = checked_names(str(path), [folder.name for folder in folders]) if known is None else known
    files, labels = [], []
    for folder in folders:
        if folder.name not in names:
            raise ConfigError(
                str(folder), None, "is no class of the training images", nearest(folder.name, names)
            )
        own = _class_files(root, folder)
        files += own
        labels += [names.index(folder.name)] * len(own)
    return names, _stored(files, np.array(labels, np.int64))


def _class_files(root: Path, folder: Path) -> list[Path]:
    """Image files of one class."""
    deeper, files = _listing(root, folder)
    if deeper:
        raise ConfigError(str(deeper[0]), None, "a class folder must hold images, not folders")
    if not files:
        raise ConfigError(str(folder), None, f"class folder holds no images ({KINDS})")
    return files


def _stored(files: list[Path], labels: np.ndarray | None) -> StoredSplit:
    """The split of these files, [N], and their labels, int64 [N]."""

    def facts(positions: np.ndarray) -> Iterator[tuple[str, Facts]]:
        for i in positions:
            yield str(files[i]), _reader(files[i]).header(str(files[i]), files[i])

    def read(positions: np.ndarray) -> Iterator[tuple[str, Picture]]:
        for i in positions:
            yield str(files[i]), _reader(files[i]).decode(str(files[i]), files[i])

    return StoredSplit(len(files), labels, {}, facts, read)


def _reader(file: Path) -> ModuleType:
    """What reads a file of this kind: `header` and `decode`."""
    return dicom if file.suffix.lower() == dicom.SUFFIX else image
