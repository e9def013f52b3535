"""What a codec is, and the byte form that all of them share: a checked header, then raw sections.

Packet layout (little-endian): b"OSM1" | u32 CRC-32 of everything after it | u32 header length | header JSON | sections.
The header lists codec, and for each tensor its name, dtype and shape; section sizes follow from these alone, so that a
reader knows every size before it allocates.
"""

from __future__ import annotations

import json
import math
import struct
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from osmotic.tensors import Tensors

MAGIC = b"OSM1"
HEAD = struct.Struct("<4sII")
MAX_HEADER = 64 * 2**20
MAX_AXES, MAX_AXIS = 32, 2**31
DTYPES = ("float32", "float16", "uint8", "int8", "int32", "int64")


class BadPacket(ValueError):
    """Bytes that are no packet of ours: torn, altered, of another codec, or of impossible sizes."""


@dataclass(frozen=True)
class Entry:
    """One tensor in a header: name, numpy dtype name and shape of the decoded tensor, and how it is coded."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    form: str

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


class Codec(ABC):
    """How an exchange is written to bytes. A stateless codec defines the four abstract methods only.

    A codec with options is a dataclass: its fields are the configuration's `codec.NAME.KEY`.
    `memory` is what one end keeps between exchanges (a residual, say); the codec reads it and leaves its new content
    there. Each end has its own: clients in their Store, the server in its checkpoint.
    """

    name = "?"
    absolute = False  # True: down-link sends the weights themselves, not the change against the replica

    @abstractmethod
    def form(self, name: str, dtype: str, shape: tuple[int, ...]) -> str:
        """How a tensor of this name, dtype and shape is coded, e.g. "f4" or "i8"; data-independent."""

    @abstractmethod
    def section_bytes(self, entry: Entry) -> int:
        """Length of a tensor's section in bytes, or an upper bound if `bounded`."""

    bounded = (
        False  # True: the length of a section depends on the data and section_bytes is only its upper bound
    )

    @abstractmethod
    def encode_tensor(
        self, entry: Entry, tensor: np.ndarray, rng: np.random.Generator | None = None
    ) -> bytes:
        """One tensor as its section; `rng` is the sender's own stream, for codecs that round at random."""

    @abstractmethod
    def decode_tensor(self, entry: Entry, data: memoryview) -> np.ndarray:
        """One section as an array of entry.shape and entry.dtype; it may be a read-only view of `data`."""

    # --- exchanges; a wrapper such as error feedback overrides these ---
    def encode(
        self, tensors: Mapping[str, np.ndarray], memory: Tensors, rng: np.random.Generator | None = None
    ) -> bytes:
        """The packet of these tensors, in sorted order of names.

        Args:
            memory: what this end keeps; changed in place.
            rng: the stream of this sender in this round, so that a repeated step gives the same bytes.
        """
        entries = [
            self.entry(name, tensors[name].dtype.name, tensors[name].shape) for name in sorted(tensors)
        ]
        sections = [self.encode_tensor(e, tensors[e.name], rng) for e in entries]
        return pack(self.name, entries, sections, self.bounded)

    def decode(self, data: bytes, memory: Tensors) -> Iterator[tuple[str, np.ndarray]]:
        """(name, read-only tensor) pairs of a packet, one at a time. Raises BadPacket before anything is allocated."""
        entries, sections = unpack(data, self)
        for entry, section in zip(entries, sections, strict=True):
            yield entry.name, self.decode_tensor(entry, section)

    def packet_bytes(self, shapes: Mapping[str, tuple[str, tuple[int, ...]]]) -> int:
        """Length of the packet of tensors {name: (dtype, shape)}; exact, or an upper bound if `bounded`."""
        entries = [self.entry(name, *shapes[name]) for name in sorted(shapes)]
        sizes = [self.section_bytes(e) for e in entries]
        return HEAD.size + len(header_bytes(self.name, entries, sizes if self.bounded else None)) + sum(sizes)

    def entry(self, name: str, dtype: str, shape: tuple[int, ...]) -> Entry:
        """Header entry of a tensor; numbers that are not floats are always sent as they are."""
        if dtype not in DTYPES:
            raise ValueError(f"{name}: dtype {dtype} cannot be sent; use one of {', '.join(DTYPES)}")
        form = self.form(name, dtype, shape) if dtype == "float32" else "raw"
        return Entry(name, dtype, tuple(int(n) for n in shape), form)

    remembers = False  # True: `memory` matters from packet to packet, at both ends; for the way up only
    trained = False  # True: `refresh` gives weights that both ends must have

    # --- a codec that is itself trained ---
    def observe(self, tensors: Mapping[str, np.ndarray], client: str = "") -> Tensors:
        """What the server is to remember of this client's decoded reply until the phase counts; changes nothing.

        Replies come in any order and are dropped at once, so this picks out what `learn` will need.
        """
        return {}

    def learn(self, observed: Mapping[str, Tensors]) -> None:
        """A phase counts: what was picked out of its replies, by client, sorted by name, so that order never matters."""

    def refresh(self, server_round: int, rng: np.random.Generator | None = None) -> Tensors | None:
        """New weights of the codec itself, to be broadcast under "codec/" before this round; None for no change.

        Args:
            rng: the server's own stream of this round, for training.
        """
        return None

    def adopt(self, tensors: Mapping[str, np.ndarray]) -> None:
        """A client takes over weights that `refresh` gave."""

    def state(self) -> Tensors:
        """The codec's part of the checkpoint."""
        return {}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """The inverse of `state`."""


def header_bytes(codec: str, entries: list[Entry], lengths: list[int] | None) -> bytes:
    """Header JSON without spaces; `lengths` only for codecs whose sections vary with the data."""
    header: dict[str, Any] = {
        "codec": codec,
        "tensors": [[e.name, e.dtype, list(e.shape), e.form] for e in entries],
    }
    if lengths is not None:
        header["lengths"] = [
            f"{n:010d}" for n in lengths
        ]  # fixed width: the header's own length stays predictable
    return json.dumps(header, separators=(",", ":")).encode()


def pack(codec: str, entries: list[Entry], sections: list[bytes], with_lengths: bool) -> bytes:
    """Header and sections as one packet."""
    header = header_bytes(codec, entries, [len(s) for s in sections] if with_lengths else None)
    crc = zlib.crc32(header)
    for section in sections:
        crc = zlib.crc32(section, crc)
    return b"".join([HEAD.pack(MAGIC, crc, len(header)), header, *sections])


def unpack(data: bytes, codec: Codec) -> tuple[list[Entry], list[memoryview]]:
    """Entries and sections of a packet, every size checked against its length. Raises BadPacket."""
    view = memoryview(data)
    if len(view) < HEAD.size:
        raise BadPacket(f"{len(view)} bytes are shorter than a packet head")
    magic, crc, length = HEAD.unpack(view[: HEAD.size])
    if magic != MAGIC:
        raise BadPacket("does not start like a packet")
    if length > MAX_HEADER or HEAD.size + length > len(view):
        raise BadPacket(f"header of {length} bytes does not fit")
    if zlib.crc32(view[HEAD.size :]) != crc:
        raise BadPacket("checksum does not match: torn or altered")
    try:
        header = json.loads(bytes(view[HEAD.size : HEAD.size + length]))
        name = header["codec"]
        entries = [
            Entry(str(n), str(d), tuple(int(k) for k in s), str(f)) for n, d, s, f in header["tensors"]
        ]
        if any(len(e.shape) > MAX_AXES or not all(0 <= n < MAX_AXIS for n in e.shape) for e in entries):
            raise ValueError
        lengths = (
            [int(n) for n in header["lengths"]]
            if codec.bounded
            else [codec.section_bytes(e) for e in entries]
        )
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise BadPacket(f"header cannot be read ({type(error).__name__})") from None
    if name != codec.name:
        raise BadPacket(f"is coded with {name!r}, expected {codec.name!r}")
    for e in entries:
        if e.dtype not in DTYPES or codec.entry(e.name, e.dtype, e.shape) != e:
            raise BadPacket(
                f"{e.name}: form {e.form!r} of {e.dtype} {list(e.shape)} is not one of codec {codec.name}"
            )
    if len({e.name for e in entries}) != len(entries):
        raise BadPacket("names a tensor twice")
    start = HEAD.size + length
    if start + sum(lengths) != len(view) or any(n < 0 for n in lengths):
        raise BadPacket(f"sections of {sum(lengths)} bytes do not fill the packet of {len(view)}")
    sections = []
    for n in lengths:
        sections.append(view[start : start + n])
        start += n
    return entries, sections


def encode_raw(tensor: np.ndarray) -> bytes:
    """An array's bytes, little-endian, row-major."""
    return np.ascontiguousarray(tensor, dtype=tensor.dtype.newbyteorder("<")).tobytes()


def decode_raw(entry: Entry, data: memoryview) -> np.ndarray:
    """The inverse of `encode_raw`: a read-only view of the packet, which a fold needs no copy of."""
    array = np.frombuffer(data, np.dtype(entry.dtype).newbyteorder("<")).reshape(entry.shape)
    return array.astype(entry.dtype, copy=False)
