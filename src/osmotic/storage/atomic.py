"""Files that are either whole or not there: temporary name, fsync, rename, fsync of the folder."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Inside the block an error of the file system that names no file, as a write to a full disk gives it, gets `path`."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def write_bytes(path: Path, data: bytes) -> None:
    """Writes `data` to `path`, as `write_chunks` does.

    Raises: OSError as `write_chunks`.
    """
    write_chunks(path, [data])


def write_chunks(path: Path, chunks: Iterable[bytes | memoryview]) -> None:
    """Writes `chunks` one after the other to `path`; a process killed at any moment leaves the old file or
    the new one, never a torn one.

    Args:
        path: its folder is made if absent; the file gets mode 0644.
        chunks: any number of pieces, taken one at a time, so that the whole need not be in memory.
    Raises: OSError as the file system gives it (disk full, no permission); the old file is then untouched.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Beside the file, not in /tmp: a rename is atomic inside one file system only. A name of its own for each
    # writer, so that two of them cannot mix their bytes.
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with naming(path), os.fdopen(handle, "wb") as file:
            for chunk in chunks:
                file.write(chunk)
            # The content before the name: a rename that reaches the disk first would leave an empty file
            # after a power cut.
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)  # mkstemp gives 0600, which would hide a report from colleagues
        os.replace(name, path)
    except BaseException:  # Ctrl-C too: a leftover of gigabytes helps nobody
        Path(name).unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """`write_bytes` of UTF-8 text, with the line ends it has; a lone surrogate, which UTF-8 has not, as its escape.

    Raises: OSError as `write_chunks`.
    """
    # A text that cannot be written must not end a run that has come so far.
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def is_leftover(path: Path) -> bool:
    """Whether a file has the name of one that `write_chunks` did not come to finish."""
    return re.fullmatch(r"\..+\.[a-z0-9_]+\.tmp", Path(path).name) is not None and not Path(path).is_dir()


def clear_leftovers(folder: Path) -> None:
    """Deletes what killed writers left unfinished in a folder that nobody else is writing to."""
    # A writer that is killed cannot clean up after itself; the next one, alone in the folder by contract,
    # does.
    for path in Path(folder).glob(".*.tmp"):
        if is_leftover(path):
            path.unlink(missing_ok=True)


def clear_tree(folder: Path) -> None:
    """As `clear_leftovers`, in a run's folder and all below it, unfinished models too; links are not followed."""
    for here, folders, _ in os.walk(folder):
        for name in [n for n in folders if re.fullmatch(r"\..+\.(new|old)", n)]:  # as models are written
            folders.remove(name)
            shutil.rmtree(Path(here) / name, ignore_errors=True)
        clear_leftovers(Path(here))


def sync_folder(folder: Path) -> None:
    """Makes renames inside `folder` durable.

    Raises: OSError if there is no such folder.
    """
    # A name is an entry of its folder: without this the file is on disk, but after a power cut not under its
    # new name.
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_tree(folder: Path) -> None:
    """Makes a folder and everything below it survive a power cut, before it is renamed to its place."""
    # A folder is opened and synced like a file; last comes the one that names all others.
    for path in (*Path(folder).rglob("*"), Path(folder)):
        sync_folder(path)
