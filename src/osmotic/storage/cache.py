"""The cache folder, and arrays in files of it that have no name."""

from __future__ import annotations

import errno
import math
import os
import shutil
import tempfile
from pathlib import Path
from typing import IO

import numpy as np


def cache_folder() -> Path:
    """$OSMOTIC_CACHE, else $XDG_CACHE_HOME/osmotic, else ~/.cache/osmotic; it need not exist."""
    # Asked at every call and not once at import, so that a test or a notebook may set them later.
    if own := os.environ.get("OSMOTIC_CACHE"):
        return Path(own).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "osmotic"


class Nameless(np.memmap):
    """An array in a file without a name; `file` is kept open, so that another process can be given it."""

    file: IO[bytes] | None = None  # of the whole array; None of a part of it


def nameless(shape: tuple[int, ...], dtype: np.dtype) -> Nameless:
    """An array of zeros that lies in a file of the cache folder instead of in memory; the file has no name.

    The system frees it with the process, however that ends, so nothing of the images stays behind on the disk.

    Raises: OSError if the disk has no room for it.
    """
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    size = math.prod(shape) * np.dtype(dtype).itemsize
    # Asked before it is taken: to find out by taking it would fill the disk for others.
    if size > shutil.disk_usage(folder).free:
        raise OSError(errno.ENOSPC, f"no room on the disk for {size:,} bytes of images", str(folder))
    # Not in /tmp, which may itself lie in memory.
    with tempfile.TemporaryFile(dir=folder) as file:
        # Room first: a mapped page that finds none later ends the process by a signal.
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        else:
            file.truncate(size)
        found = Nameless(file, dtype, "r+", shape=shape)
        found.file = os.fdopen(os.dup(file.fileno()), "rb")
        return found
