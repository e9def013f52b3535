"""NumPy archives: `npz:PATH`, read without pickle and image by image only when asked.

Arrays: `train_images` [N, H, W] or [N, H, W, C] (uint8, uint16, or float32 in [0, 1]), or, for JPEG files
kept as they are, `train_jpeg` (their bytes, uint8) with `train_offsets` [N + 1]; `train_labels` [N]; the same
for `test_`; `class_names`. Any other `train_COLUMN` with N values is a column to partition by.
"""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Protocol

import numpy as np

from osmotic.config.keys import nearest
from osmotic.data import image
from osmotic.data.dataset import Source, StoredSplit, checked_labels, checked_names
from osmotic.data.image import Facts, Picture
from osmotic.errors import ConfigError

BROKEN = (zipfile.BadZipFile, OSError, ValueError, EOFError, zlib.error, NotImplementedError)
CHUNK_BYTES = 2**20
# What a column may not be called, as these arrays have a meaning.
KEYS = ("images", "jpeg", "offsets", "labels")


class Arrays(Protocol):
    """Arrays by name, in a file or in memory, and what errors call them."""

    @property
    def keys(self) -> list[str]:
        """The names there are."""

    def where(self, array: str) -> str:
        """What an error names, e.g. "own.npz[train_images]"."""

    def header(self, array: str) -> tuple[tuple[int, ...], np.dtype]:
        """Shape and dtype. Raises ConfigError if the array is broken or holds pickled objects."""

    def load(self, array: str) -> np.ndarray:
        """The array itself. Raises ConfigError as `header`."""

    def chunks(self, array: str) -> Iterator[np.ndarray]:
        """The array in pieces along its first axis, in order. Raises ConfigError as `header`."""


def open_npz(path: Path) -> Source:
    """The archive with its labels, columns and array headers read.

    Raises: ConfigError naming the file and the rule, for a missing or broken file, a missing array, a wrong
        dtype, shape or length, a label out of range, or pickled objects.
    """
    # Pickle is refused everywhere below: an archive may come from anywhere, and unpickling one runs its
    # author's code.
    return open_arrays(_Archive(path), path.stem)


def open_arrays(archive: Arrays, name: str) -> Source:
    """The source that these arrays make; images stay where they are until they are asked for.

    Args:
        archive: the arrays of the head of this file: images [N, H, W] or [N, H, W, C], labels [N],
            class_names [classes].
        name: of the source.
    Raises: ConfigError naming the array and the rule, as `open_npz`.
    """
    names = _class_names(archive)
    train = _split(archive, "train", len(names) if names else None)
    if train.labels is None and names:
        raise _error(archive, "train_labels", "missing array, though there are class_names")
    has_test = "test_images" in archive.keys or "test_jpeg" in archive.keys
    if not has_test and "test_labels" in archive.keys:
        raise _error(archive, "test_images", "missing array, though there are test_labels")
    test = _split(archive, "test", len(names) if names else None) if has_test else None
    if test and (test.labels is None) != (train.labels is None):
        which = "test_labels" if test.labels is None else "train_labels"
        raise _error(archive, which, "missing array: both splits must have labels, or neither")
    # Over both splits: a class that only test images have still needs its number.
    if train.labels is not None and not names:
        largest = max(int(s.labels.max()) for s in (train, test) if s is not None and s.labels is not None)
        names = tuple(map(str, range(largest + 1)))
    return Source(name, names, train, test)


class _Archive:
    """One `.npz` file: its keys, and array headers and arrays on demand."""

    def __init__(self, path: Path) -> None:
        try:
            self.path = path = path.expanduser()
            if not path.is_file():
                raise ConfigError(str(path), None, "is not a file" if path.exists() else "no such file")
        except (OSError, RuntimeError) as error:  # too long, a home of nobody
            raise ConfigError(
                str(path), None, f"is no file ({getattr(error, 'strerror', None) or error})"
            ) from None
        try:
            with zipfile.ZipFile(path) as archive:
                self.keys = [n.removesuffix(".npy") for n in archive.namelist() if n.endswith(".npy")]
        except (zipfile.BadZipFile, OSError) as error:
            raise ConfigError(str(path), None, f"is not a readable .npz file ({error})") from None

    def where(self, array: str) -> str:
        return f"{self.path}[{array}]"

    def header(self, array: str) -> tuple[tuple[int, ...], np.dtype]:
        """Shape and dtype, from the first bytes of the array."""
        # `osmotic plan` needs no more than this, and an archive of gigabytes then answers at once.
        try:
            with zipfile.ZipFile(self.path) as archive, archive.open(f"{array}.npy") as file:
                shape, _, dtype = _npy_header(file)
                held = archive.getinfo(f"{array}.npy").file_size
        except BROKEN as error:
            raise _error(self, array, f"broken array ({error})") from None
        if dtype.hasobject:
            raise _error(self, array, "holds pickled objects, which are never loaded")
        # Before anything is allocated by a header that promises more than there is.
        if math.prod(shape) * dtype.itemsize > held:
            raise _error(self, array, f"broken array (shorter than its shape {list(shape)})")
        return shape, dtype

    def load(self, array: str) -> np.ndarray:
        """The array itself."""
        self.header(array)  # tells pickled objects from a broken array, which np.load does not
        try:
            with np.load(self.path, allow_pickle=False) as archive:
                return archive[array]
        except BROKEN as error:
            raise _error(self, array, f"broken array ({error})") from None

    def chunks(self, array: str) -> Iterator[np.ndarray]:
        """The array [N, ...] in pieces of about a megabyte, so that it may be larger than memory."""
        self.header(array)
        try:
            with zipfile.ZipFile(self.path) as archive, archive.open(f"{array}.npy") as file:
                shape, fortran, dtype = _npy_header(file)
                if fortran and len(shape) > 1:  # its first axis runs fastest: no image lies in one piece
                    yield self.load(array)
                    return
                row = math.prod(shape[1:]) * dtype.itemsize
                rows = max(1, CHUNK_BYTES // max(row, 1))
                for start in range(0, shape[0], rows):
                    count = min(rows, shape[0] - start)
                    data = file.read(count * row)
                    if len(data) != count * row:
                        raise EOFError("it ends early")
                    yield np.frombuffer(data, dtype).reshape(count, *shape[1:])
        except BROKEN as error:
            raise _error(self, array, f"broken array ({error})") from None


def _npy_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, order and dtype, from the first bytes of an array."""
    reader = np.lib.format
    version = reader.read_magic(file)
    read = reader.read_array_header_1_0 if version == (1, 0) else reader.read_array_header_2_0
    found: tuple[tuple[int, ...], bool, np.dtype] = read(file)
    return found


def _error(
    archive: Arrays, array: str, rule: str, value: object = None, hint: str | None = None
) -> ConfigError:
    return ConfigError(archive.where(array), value, rule, hint)


def _class_names(archive: Arrays) -> tuple[str, ...]:
    """The names of the classes, () if there are none."""
    if "class_names" not in archive.keys:
        return ()
    names = archive.load("class_names")
    if names.dtype.kind not in "US" or names.ndim != 1:
        raise _error(archive, "class_names", "must be a list of texts", f"{names.dtype} {list(names.shape)}")
    try:
        texts = [n.decode() if isinstance(n, bytes) else str(n) for n in names.tolist()]
    except UnicodeDecodeError as error:
        raise _error(archive, "class_names", "must be texts in UTF-8", error.object[:50]) from None
    return checked_names(archive.where("class_names"), texts)


def _split(archive: Arrays, prefix: str, num_classes: int | None) -> StoredSplit:
    """The split "train" or "test", its labels as int64 [N]."""
    if f"{prefix}_images" in archive.keys:
        size, facts, read = _pixels(archive, f"{prefix}_images")
    elif f"{prefix}_jpeg" in archive.keys:
        size, facts, read = _jpegs(archive, prefix)
    else:
        hint = nearest(f"{prefix}_images", archive.keys)
        found = f" (nearest array found: {hint})" if hint else ""
        raise _error(archive, f"{prefix}_images", "missing array" + found)
    labels = None
    if f"{prefix}_labels" in archive.keys:
        array = f"{prefix}_labels"
        labels = checked_labels(archive.where(array), archive.load(array), size, num_classes)
    return StoredSplit(size, labels, _columns(archive, prefix, size), facts, read)


def _columns(archive: Arrays, prefix: str, size: int) -> dict[str, np.ndarray]:
    """Further arrays of a split, [N] each, to partition by."""
    columns = {}
    for array in archive.keys:
        name = array.removeprefix(f"{prefix}_")
        if name == array or name in KEYS:
            continue
        # The commonest slip: "train_label" would be a column, and the run would go on without labels.
        if name in ("label", "image", "offset"):
            raise _error(archive, array, "unknown array", None, f"{array}s")
        shape, _ = archive.header(array)
        if not shape or shape[0] != size:
            raise _error(archive, array, f"a column must have one row for each of the {size} images", shape)
        # Boxes, masks and the like come with published archives: nothing to partition by, and no reason to
        # refuse them.
        if len(shape) == 1:
            columns[name] = archive.load(array)
    return columns


def _pixels(archive: Arrays, array: str) -> tuple:
    """Size, facts and read of an array of pixels."""
    shape, dtype = archive.header(array)
    if dtype not in (np.uint8, np.uint16, np.float32):
        raise _error(archive, array, "must be uint8, uint16, or float32 in [0, 1]", str(dtype))
    if len(shape) not in (3, 4) or shape[0] < 1:
        raise _error(archive, array, "must be [N, H, W] or [N, H, W, C] with N >= 1", list(shape))
    channels = shape[3] if len(shape) == 4 else 1

    def facts(positions: np.ndarray) -> Iterator[tuple[str, Facts]]:
        told = archive.where(array), Facts(shape[2], shape[1], channels, dtype.name)
        return (told for _ in positions)

    def read(positions: np.ndarray) -> Iterator[tuple[str, Picture]]:
        # In the order of the file, which rows are asked for in: a compressed array is unpacked once, and none is whole
        # in memory.
        start, asked = 0, iter(positions.tolist())
        wanted = next(asked, None)
        for piece in archive.chunks(array):
            while wanted is not None and wanted < start + len(piece):
                pixels = piece[wanted - start].reshape(shape[1], shape[2], channels)
                yield archive.where(array), Picture(pixels)
                wanted = next(asked, None)
            start += len(piece)

    return shape[0], facts, read


def _jpegs(archive: Arrays, prefix: str) -> tuple:
    """Size, facts and read of concatenated JPEG files."""
    if f"{prefix}_offsets" not in archive.keys:
        raise _error(archive, f"{prefix}_offsets", f"missing array, though there is {prefix}_jpeg")
    (length, *more), dtype = archive.header(f"{prefix}_jpeg")
    if dtype != np.uint8 or more:
        raise _error(archive, f"{prefix}_jpeg", "must be uint8, [bytes]", str(dtype))
    offsets = archive.load(f"{prefix}_offsets")
    if offsets.dtype.kind not in "iu" or offsets.ndim != 1 or len(offsets) < 2:
        raise _error(archive, f"{prefix}_offsets", "must be whole numbers, [N + 1]", str(offsets.dtype))
    offsets = offsets.astype(np.int64)
    if offsets[0] != 0 or offsets[-1] != length or (np.diff(offsets) <= 0).any():
        raise _error(archive, f"{prefix}_offsets", f"must rise from 0 to the {length} bytes of {prefix}_jpeg")

    data: list[np.ndarray] = []  # unpacked once, for headers and for pixels

    def files(positions: np.ndarray) -> Iterator[tuple[str, bytes]]:
        data[:] = data or [archive.load(f"{prefix}_jpeg")]
        for i in positions:
            where = f"{archive.where(f'{prefix}_jpeg')} image {i}"
            yield where, data[0][offsets[i] : offsets[i + 1]].tobytes()

    def facts(positions: np.ndarray) -> Iterator[tuple[str, Facts]]:
        return ((where, image.header(where, file)) for where, file in files(positions))

    def read(positions: np.ndarray) -> Iterator[tuple[str, Picture]]:
        return ((where, image.decode(where, file)) for where, file in files(positions))

    return len(offsets) - 1, facts, read
