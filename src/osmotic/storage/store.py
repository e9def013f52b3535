"""A client's private state, a file per round: personal parts, residuals, variates, moments. It never leaves.

A client may be asked to repeat a step that the server never summed, so the state before it must still be
there. The server says in every task which round it last counted, and how far back it could go itself.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from osmotic.storage.atomic import clear_leftovers, write_chunks
from osmotic.tensors import Tensors


class StateLost(RuntimeError):
    """The private state that a step must start from is missing or damaged on this client."""


class Store:
    """Versions of one client's state, name -> array [...], as `state-<round>.safetensors` in its own folder.

    A version is written whole or not at all. The one the server may still ask to start from is never deleted.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)

    def load(self, counted_round: int | None, sha256: str | None = None) -> Tensors:
        """State after the round in which the server last counted this client; {} if it never did.

        Newer versions are dropped: they belong to steps that the server never summed.

        Args:
            counted_round: the round, or None if the server never counted this client.
            sha256: what `save` gave for it, as the server was told; None where that is not known.
        Returns: arrays [...] by name.
        Raises: StateLost if that version is missing, does not match its checksum, or is not the one of this hash.
        """
        for number, path in self._versions().items():
            if counted_round is None or number > counted_round:
                path.unlink()
        if counted_round is None:
            return {}
        path = self._path(counted_round)
        if not path.is_file():
            raise StateLost(f"private state of round {counted_round} is missing")
        tensors = read_checked(path)
        # A whole file may still be that of another client, round or run, copied to this place.
        if sha256 is not None and digest(tensors) != sha256:
            raise StateLost(f"private state of round {counted_round} is not the one that was counted")
        return tensors

    def save(self, tensors: Mapping[str, np.ndarray], server_round: int, durable_round: int | None) -> str:
        """Keeps `tensors` as the state after `server_round`.

        Args:
            tensors: arrays [...] by name, of the dtypes of DTYPES.
            server_round: may be negative, for phases before the first round.
            durable_round: the oldest round the server could still go back to: that version and all after it
                stay. None deletes nothing.
        Returns: the SHA-256 of the tensors, 64 hexadecimal digits.
        Raises: OSError as the file system gives it; older versions are then untouched.
        """
        clear_leftovers(self.folder)
        digest = write_checked(self._path(server_round), tensors)
        if durable_round is not None:
            for number, path in self._versions().items():
                if number < durable_round:
                    path.unlink()
        return digest

    def _path(self, number: int) -> Path:
        # With a sign, as phases before the first round have negative numbers, and padded after it.
        return self.folder / f"state-{number:+09d}.safetensors"

    def _versions(self) -> dict[int, Path]:
        return {
            int(p.stem.removeprefix("state-")): p for p in sorted(self.folder.glob("state-*.safetensors"))
        }


def digest(tensors: Mapping[str, np.ndarray]) -> str:
    """SHA-256 over sorted names, dtypes, shapes and little-endian bytes.

    Args:
        tensors: arrays [...] of any shape and dtype, by name.
    Returns: 64 hexadecimal digits; the same on every processor.
    """
    total = hashlib.sha256()
    for name in sorted(tensors):
        # The shape from the tensor: ascontiguousarray makes a scalar [] an array of [1].
        shape, array = list(tensors[name].shape), np.ascontiguousarray(tensors[name])
        total.update(f"{name}|{array.dtype.name}|{shape}|".encode())
        total.update(array.astype(array.dtype.newbyteorder("<"), copy=False).data)
    return total.hexdigest()


def write_checked(
    path: Path, tensors: Mapping[str, np.ndarray], notes: Mapping[str, str] | None = None
) -> str:
    """Atomic safetensors file that carries the SHA-256 of its tensors and of its notes.

    Args:
        tensors: arrays [...] by name, of the dtypes of DTYPES.
        notes: texts by name; "sha256" and "notes_sha256" are taken.
    Returns: the tensors' SHA-256.
    Raises: KeyError for another dtype; OSError as the file system gives it.
    """
    found = digest(tensors)
    notes = dict(notes or {})
    seal = hashlib.sha256("".join(f"{k}={notes[k]};" for k in sorted(notes)).encode()).hexdigest()
    write_chunks(path, safetensors_chunks(tensors, {**notes, "sha256": found, "notes_sha256": seal}))
    return found


# numpy's names and those of the safetensors format; what is not here is kept by no client and no server.
DTYPES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "int64": "I64",
    "int32": "I32",
    "int8": "I8",
    "uint8": "U8",
}


def safetensors_chunks(
    tensors: Mapping[str, np.ndarray], notes: Mapping[str, str]
) -> Iterator[bytes | memoryview]:
    """The safetensors format piece by piece: the library would build the whole file in memory.

    Source: https://github.com/huggingface/safetensors, section "Format". Layout: u64 header length, JSON
    header padded to 8 bytes, then the tensors, larger item sizes first for alignment.

    Args:
        tensors: arrays [...] by name, of the dtypes of DTYPES.
        notes: texts by name, kept in the header.
    Raises: KeyError for another dtype.
    """
    # Larger first: every tensor then starts at a multiple of its item size, which readers that map the file
    # need.
    names = sorted(tensors, key=lambda n: (-tensors[n].dtype.itemsize, n))
    header: dict[str, Any] = {"__metadata__": dict(notes)}
    offset = 0
    for name in names:
        tensor = tensors[name]
        end = offset + tensor.nbytes
        header[name] = {
            "dtype": DTYPES[tensor.dtype.name],
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    yield struct.pack("<Q", len(text)) + text
    for name in names:
        yield np.ascontiguousarray(tensors[name], tensors[name].dtype.newbyteorder("<")).tobytes()


def read_checked(path: Path) -> Tensors:
    """Tensors [...] of a file by `write_checked`.

    Raises: StateLost if it is torn, altered or no such file.
    """
    return read_with_notes(path)[0]


def read_with_notes(path: Path) -> tuple[Tensors, dict[str, str]]:
    """Tensors [...] and notes of a file by `write_checked`.

    Raises: StateLost if it is torn, altered or no such file.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np") as file:
            notes = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError, ValueError) as error:
        raise StateLost(f"{path.name} cannot be read ({type(error).__name__})") from None
    expected, seal = notes.pop("sha256", ""), notes.pop("notes_sha256", "")
    # Safetensors itself checks sizes alone: a flipped bit inside a tensor or the notes would pass without
    # these two.
    found = hashlib.sha256("".join(f"{k}={notes[k]};" for k in sorted(notes)).encode()).hexdigest()
    if digest(tensors) != expected or found != seal:
        raise StateLost(f"{path.name} does not match its checksum")
    return tensors, notes
