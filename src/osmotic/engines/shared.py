"""What processes of one machine share: memory without a name, and messages of JSON with open files beside them.

Both ends are ours: nothing is pickled, and large arrays are never written into a message. Memory without a name
(`memfd_create`, Linux) is freed with the last process that holds it, however that ends.
"""

from __future__ import annotations

import json
import mmap
import os
import socket
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

HEAD = struct.Struct("<II")  # bytes of the JSON that follows, and how many open files come with it
MAX_FILES = 16  # of one message
ALIGNED = 64  # bytes, a cache line: what lies in one piece of memory begins at multiples of it


class Slab:
    """A piece of shared memory of a fixed size.

    Args:
        number: by which the process that owns it names it to others.
        file: descriptor; the slab's own, closed with it.
        size: bytes.
        write: whether this process may write to it.
    """

    def __init__(self, number: int, file: int, size: int, write: bool) -> None:
        self.number, self.file, self.size = number, file, size
        try:
            access = mmap.ACCESS_WRITE if write else mmap.ACCESS_READ
            self.memory = mmap.mmap(file, size, access=access)
        except BaseException:
            os.close(file)
            raise

    @classmethod
    def new(cls, number: int, size: int) -> Slab:
        """Memory of `size` bytes, >= 1, all of it there: a page that is missing later would end the process by a signal.

        Raises: OSError if there is no room for it.
        """
        file = os.memfd_create("osmotic")
        try:
            os.posix_fallocate(file, 0, size)
        except OSError as error:
            os.close(file)
            told = (
                f"{error.strerror}: {size:,} bytes for worker processes; engine.processes = false needs none"
            )
            raise OSError(error.errno, told, "shared memory") from None
        return cls(number, file, size, write=True)

    def fileno(self) -> int:
        """Descriptor of its file."""
        return self.file

    def __del__(self) -> None:
        # The mapping lives on as long as somebody holds a view of it.
        if (file := getattr(self, "file", -1)) >= 0:
            self.file = -1
            os.close(file)


class Pool:
    """Slabs that this process writes and others read; each is used again once nobody reads it any more."""

    def __init__(self) -> None:
        self.slabs: dict[int, Slab] = {}
        self._free: set[int] = set()

    def take(self, size: int) -> Slab:
        """The smallest free slab that holds `size` bytes, or a new one. Raises: OSError as `Slab.new`."""
        fitting = [n for n in self._free if self.slabs[n].size >= size]
        if fitting:
            number = min(fitting, key=lambda n: (self.slabs[n].size, n))
            self._free.remove(number)
            return self.slabs[number]
        number = len(self.slabs)
        self.slabs[number] = Slab.new(number, max(1, size))
        return self.slabs[number]

    def give_back(self, number: int) -> None:
        """Nobody reads this slab any more."""
        self._free.add(number)


def one_after_another(lengths: Sequence[int]) -> tuple[list[int], int]:
    """Where pieces of these lengths, in bytes, begin in one piece of memory, and the bytes of all."""
    starts, end = [], 0
    for length in lengths:
        starts.append(end)
        end += -(-length // ALIGNED) * ALIGNED
    return starts, end


def put_arrays(arrays: Mapping[str, np.ndarray]) -> tuple[Slab, dict[str, Any]]:
    """Arrays [...] by name in one slab, and where each lies, as JSON for `get_arrays`. Raises: OSError as `Slab.new`."""
    starts, size = one_after_another([array.nbytes for array in arrays.values()])
    places = {
        name: [array.dtype.str, list(array.shape), start]
        for (name, array), start in zip(arrays.items(), starts, strict=True)
    }
    slab = Slab.new(0, max(1, size))
    for name, array in arrays.items():
        _view(slab.memory, places[name])[...] = array
    return slab, places


def get_arrays(memory: mmap.mmap, places: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The arrays [...] that `put_arrays` laid there, as views."""
    return {name: _view(memory, place) for name, place in places.items()}


def _view(memory: mmap.mmap, place: Sequence[Any]) -> np.ndarray:
    dtype, shape, start = place
    return np.ndarray(tuple(shape), np.dtype(dtype), memory, start)


def send(to: socket.socket, message: Mapping[str, Any], files: Sequence[int] = ()) -> None:
    """Sends one message, with descriptors of open files, at most MAX_FILES. Raises: OSError if nobody is there."""
    text = json.dumps(message, default=native_number).encode()
    head = HEAD.pack(len(text), len(files))
    if files:
        socket.send_fds(to, [head], files)
        head = b""
    to.sendall(head + text)


def receive(at: socket.socket) -> tuple[dict[str, Any], list[int]] | None:
    """The next message and its open files; None once the other end is gone, in the middle of a message too."""
    try:
        head, files, _, _ = socket.recv_fds(at, HEAD.size, MAX_FILES)
        head += _exactly(at, HEAD.size - len(head))
        size, _ = HEAD.unpack(head)
        message: dict[str, Any] = json.loads(_exactly(at, size))
    except (EOFError, ConnectionError):
        return None
    return message, files


def _exactly(at: socket.socket, size: int) -> bytes:
    parts = []
    while size:
        if not (part := at.recv(min(size, 2**20))):
            raise EOFError
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def native_number(value: Any) -> Any:
    """A number of numpy, which packets of one process may hold, as Python's own."""
    if hasattr(value, "item"):
        return value.item()
    raise TypeError(f"{type(value).__name__} cannot be told to another process")
