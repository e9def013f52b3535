"""What a codec is, and the byte form that all of them share: a head of 19 bytes, then what the codec writes.

Packet layout (little-endian): b"OSM3" | u16 of the codec's name | u8 its version | u32 of what the packet holds | u64 XXH3
of all of the packet but this field | sections.

Names, types, shapes and order do not travel: both ends know what a packet must hold (`Wanted`, or the layout of a network),
and the head carries a hash of it. So a reader knows every size before it allocates. What the receiver cannot know
beforehand, by name or by length, travels in a packet that describes itself (`codecs/described.py`).
"""

from __future__ import annotations

import json
import math
import struct
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np
from xxhash import xxh3_64

from osmotic.errors import plain
from osmotic.flat import Flat, FlatLayout
from osmotic.tensors import Tensors

MAGIC = b"OSM3"
HEAD = struct.Struct("<4sHBIQ")
LENGTH = struct.Struct("<I")
ALIGNED = 64  # bytes, a cache line
# No object arrays: they would be pickled, and a packet must never hold code.
DTYPES = ("float32", "float16", "uint8", "int8", "int32", "int64")
# What a packet must hold, no more and no less: name -> (dtype, shape). None leaves an axis open, in described packets alone.
Wanted = Mapping[str, tuple[str, tuple[int | None, ...]]]


class BadPacket(ValueError):
    """Bytes that are no packet of ours: torn, altered, of another codec, of impossible sizes, or not what was asked for.

    Its text is one short printable line, whatever the packet held.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(plain(reason))


@dataclass(frozen=True)
class Entry:
    """One tensor [...] of a packet: name, numpy dtype name, shape, and how it is coded."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    form: str

    @property
    def size(self) -> int:
        """Number of elements, of the decoded tensor [...]; 1 for a scalar, 0 for an empty one."""
        return math.prod(self.shape)


class Codec(ABC):
    """How an exchange, name -> tensor [...], becomes bytes. A codec that works tensor by tensor defines the abstract methods.

    A codec with options is a dataclass: its fields are the configuration's `codec.NAME.KEY`.
    `memory` is what one end keeps between exchanges (a residual, say); the codec reads it and leaves its new content
    there. Each end has its own: clients in their Store, the server in its checkpoint.
    """

    name = "?"
    version = 1  # of its byte form, 0 to 255: packets of another one are refused
    absolute = False  # True: down-link sends the weights themselves, not the change against the replica
    alignment = 1  # sections begin at a multiple of so many bytes

    @abstractmethod
    def form(self, name: str, dtype: str, shape: tuple[int, ...]) -> str:
        """How a tensor of this name, dtype and shape is coded, e.g. "f2" or "q8".

        It follows from these alone, never from the values: a plan asks it of tensors that do not exist yet,
        and the receiver works it out for itself.
        """

    @abstractmethod
    def section_bytes(self, entry: Entry) -> int:
        """Bytes of the section of a tensor [...], or an upper bound if `bounded`."""

    # True: the length of a section depends on the data and section_bytes is only its upper bound
    bounded = False

    @abstractmethod
    def encode_tensor(
        self, entry: Entry, tensor: np.ndarray, rng: np.random.Generator | None = None
    ) -> bytes:
        """One tensor [...] of entry.shape and entry.dtype as its section.

        Args:
            rng: the sender's own stream, for codecs that round at random.
        Raises: ValueError naming the tensor, if it holds a value that cannot be coded.
        """

    @abstractmethod
    def decode_tensor(self, entry: Entry, data: memoryview) -> np.ndarray:
        """One section as an array [...] of entry.shape and entry.dtype; may be a read-only view of `data`."""

    # --- exchanges; codecs that work on all tensors at once override the first and the last three ---
    def encode(
        self, tensors: Mapping[str, np.ndarray], memory: Tensors, rng: np.random.Generator | None = None
    ) -> bytes:
        """The packet of these tensors: in the order of the buffer where they lie in one (`flat.Flat`), else by name.

        Args:
            tensors: name -> array [...] of a dtype of DTYPES.
            memory: what this end keeps, name -> array [...]; changed in place.
            rng: the stream of this sender in this round, so that a repeated step gives the same bytes.
        Raises: ValueError for another dtype, and as `encode_tensor`.
        """
        entries = self.entries_of(tensors)
        sections = [self.encode_tensor(e, tensors[e.name], rng) for e in entries]
        lengths = [LENGTH.pack(len(s)) for s in sections] if self.bounded else []
        return seal(self, contents([(e.name, e.dtype, e.shape) for e in entries]), *lengths, *sections)

    def decode(
        self, data: bytes, memory: Tensors, wanted: Wanted | None = None
    ) -> Iterator[tuple[str, np.ndarray]]:
        """(name, read-only tensor [...]) pairs of a packet, one at a time, by name.

        Args:
            wanted: what the packet must hold, as it does not say so itself; None is nothing at all.
        Raises: BadPacket when the first pair is asked for, before anything is allocated; for a section that cannot be,
            when its turn comes.
        """
        yield from self._sections(data, closed(wanted))

    def read(
        self, data: bytes, memory: Tensors, wanted: Wanted | None = None, layout: FlatLayout | None = None
    ) -> Mapping[str, np.ndarray]:
        """All tensors of a packet, name -> read-only array [...].

        Args:
            wanted: as `decode`.
            layout: where they are all of a network, or of some of its parts: the packet then has that order.
        Raises: BadPacket as `decode`.
        """
        return dict(self._sections(data, closed(wanted) if layout is None else layout.wanted))

    def _sections(
        self, data: bytes, shapes: Mapping[str, tuple[str, tuple[int, ...]]]
    ) -> Iterator[tuple[str, np.ndarray]]:
        entries = [self.entry(name, *shapes[name]) for name in shapes]
        what = contents([(e.name, e.dtype, e.shape) for e in entries])
        most = self.body_bytes(entries)
        body = opened(self, data, what, LENGTH.size * len(entries) if self.bounded else most, most)
        sizes = [self.section_bytes(e) for e in entries]
        if self.bounded:
            table = body[: LENGTH.size * len(entries)]
            told = [n for (n,) in LENGTH.iter_unpack(table)]
            if any(n > most for n, most in zip(told, sizes, strict=True)):
                raise BadPacket("a section is longer than its tensor can be")
            sizes, body = told, body[len(table) :]
        if sum(sizes) != len(body):
            raise BadPacket(f"holds {len(body)} bytes of sections, not {sum(sizes)}")
        start = 0
        for entry, size in zip(entries, sizes, strict=True):
            yield entry.name, self.decode_tensor(entry, body[start : start + size])
            start += size

    def packet_bytes(self, shapes: Mapping[str, tuple[str, tuple[int, ...]]]) -> int:
        """Bytes of the packet of tensors {name: (dtype, shape)}; exact, or an upper bound if `bounded`.

        Raises: ValueError as `entry`.
        """
        entries = [self.entry(name, *shapes[name]) for name in shapes]
        return padded(self, HEAD.size) + self.body_bytes(entries)

    def body_bytes(self, entries: Sequence[Entry]) -> int:
        """Bytes of all sections and what stands between them; an upper bound if `bounded`."""
        lengths = LENGTH.size * len(entries) if self.bounded else 0
        return lengths + sum(self.section_bytes(e) for e in entries)

    def entry(self, name: str, dtype: str, shape: tuple[int, ...]) -> Entry:
        """A tensor of a packet; numbers that are not floats are always sent as they are.

        Raises: ValueError for a dtype that is not of DTYPES.
        """
        if dtype not in DTYPES:
            raise ValueError(f"{name}: dtype {dtype} cannot be sent; use one of {', '.join(DTYPES)}")
        form = self.form(name, dtype, shape) if dtype == "float32" else "raw"
        return Entry(name, dtype, tuple(int(n) for n in shape), form)

    def entries_of(self, tensors: Mapping[str, np.ndarray]) -> list[Entry]:
        """The tensors [...] of a packet to be written, in its order. Raises: ValueError as `entry`."""
        names = list(tensors) if isinstance(tensors, Flat) else sorted(tensors)
        return [self.entry(name, tensors[name].dtype.name, tensors[name].shape) for name in names]

    def prepare(self, layout: FlatLayout, direction: str = "up") -> None:
        """Says the network whose changes will be coded, and which way, "up" or "down"; called once, before anything else, where there is one."""

    def in_round(self, server_round: int) -> Codec:
        """The codec that packets of this round are written with; another one in the first rounds of one that must learn."""
        return self

    reveals: ClassVar[str] = (
        ""  # what a site lets the server, or others, learn by this codec beyond its changes
    )
    remembers = False  # True: `memory` matters from packet to packet, at both ends; for the way up only
    trained = False  # True: `refresh` gives weights that both ends must have

    # --- a codec that is itself trained ---
    def observe(self, tensors: Mapping[str, np.ndarray], client: str = "") -> Tensors:
        """What the server is to remember of this client's decoded reply until the phase counts; changes nothing.

        Replies come in any order and are dropped at once, so this picks out what `learn` will need.
        Args:
            tensors: name -> array [...] as decoded, views of the packet: copy what is kept.
        """
        return {}

    def learn(self, observed: Mapping[str, Tensors]) -> None:
        """A phase counts: what was picked out of its replies, client -> name -> array [...].

        Clients come sorted by name, so that order never matters.
        """

    def refresh(self, server_round: int, rng: np.random.Generator | None = None) -> Tensors | None:
        """New weights of the codec itself, name -> array [...], or None for no change.

        Before this round, and until every client has them, they travel in its tasks under "codec/".
        Args:
            rng: the server's own stream of this round, for training.
        """
        return None

    def new_weights(self, server_round: int) -> Mapping[str, tuple[str, tuple[int, ...]]] | None:
        """Largest (dtype, shape) of the weights that `refresh` may give in this round, by name; None where nobody can say beforehand."""
        return None if self.trained else {}

    def kept(self, old: Tensors, new: Tensors) -> Tensors:
        """What a client keeps of the codec's weights, name -> array [...], once new ones have come."""
        return {**old, **new}

    def adopt(self, tensors: Mapping[str, np.ndarray]) -> None:
        """A client takes over what it has `kept`, the server's other end what `refresh` gave: name -> array [...]."""

    def state(self) -> Tensors:
        """The codec's part of the checkpoint, name -> array [...]."""
        return {}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """The inverse of `state`: name -> array [...]."""


# --- the head ---


def seal(codec: Codec, what: int, *sections: bytes | memoryview) -> bytes:
    """A packet of its sections: the head with its hashes before them.

    Args:
        what: 32 bits of what it holds, as `contents` gives them.
    """
    head = HEAD.pack(MAGIC, tag(codec.name), codec.version, what, 0)[:-8]
    filling = bytes(padded(codec, HEAD.size) - HEAD.size)
    check = xxh3_64(head)
    for piece in (filling, *sections):
        check.update(piece)
    return b"".join([head, struct.pack("<Q", check.intdigest()), filling, *sections])


def opened(codec: Codec, data: bytes | memoryview, what: int, least: int, most: int) -> memoryview:
    """The body of a packet, once its length, head and checksum are found in order.

    Args:
        what: 32 bits of what it must hold, as `contents` gives them.
        least, most: bytes that its body may have.
    Raises: BadPacket for anything but a whole packet of this codec that holds what is wanted.
    """
    view, start = memoryview(data), padded(codec, HEAD.size)
    # Before a byte is summed: a load of them must cost nothing.
    if len(view) > start + most:
        raise BadPacket(f"{len(view)} bytes are more than the {start + most} of what was asked for")
    if len(view) < start:
        raise BadPacket(f"{len(view)} bytes are shorter than a packet head")
    magic, name, version, holds, check = HEAD.unpack(view[: HEAD.size])
    if magic != MAGIC:
        raise BadPacket("does not start like a packet")
    summed = xxh3_64(view[: HEAD.size - 8])
    summed.update(view[HEAD.size :])
    if summed.intdigest() != check:
        raise BadPacket("checksum does not match: torn or altered")
    if name != tag(codec.name):
        raise BadPacket(f"is coded with {_known(name)}, expected {codec.name!r}")
    if version != codec.version:
        raise BadPacket(f"is of version {version} of codec {codec.name}, expected {codec.version}")
    if holds != what:
        raise BadPacket("holds other tensors than were asked for, or in other shapes")
    if len(view) < start + least:
        raise BadPacket(f"{len(view)} bytes are less than the {start + least} of what was asked for")
    return view[start:]


def padded(codec: Codec, length: int) -> int:
    """Where sections begin after `length` bytes."""
    return length + -length % codec.alignment


@lru_cache(maxsize=256)
def tag(name: str) -> int:
    """16 bits of a codec's name."""
    return xxh3_64(name.encode()).intdigest() & 0xFFFF


def contents(rows: Sequence[tuple[str, str, tuple[int, ...]]]) -> int:
    """32 bits of what a packet holds: (name, dtype, shape) of its tensors [...], in order."""
    text = json.dumps([[name, dtype, list(shape)] for name, dtype, shape in rows])
    return xxh3_64(text.encode()).intdigest() & 0xFFFFFFFF


def contents_of(layout: FlatLayout) -> int:
    """`contents` of a network, or of some of its parts, in the order of the buffer; worked out once."""
    found: int | None = layout.__dict__.get("_contents")
    if found is None:
        found = contents([(name, "float32", shape) for name, shape in layout.items()])
        layout.__dict__["_contents"] = found
    return found


def _known(found: int) -> str:
    """The name of a codec by its 16 bits, for the one that is told of it."""
    waiting = Codec.__subclasses__()
    while waiting:
        cls = waiting.pop()
        if tag(cls.name) == found:
            return repr(cls.name)
        waiting += cls.__subclasses__()
    return "a codec that is not known here"


def closed(wanted: Wanted | None) -> dict[str, tuple[str, tuple[int, ...]]]:
    """What a packet must hold, in its order. Raises: BadPacket for an open axis, whose length such a packet cannot tell."""
    found: dict[str, tuple[str, tuple[int, ...]]] = {}
    for name in sorted(wanted or {}):
        dtype, shape = (wanted or {})[name]
        if None in shape:
            raise BadPacket(f"{name} has no fixed shape: it travels in a packet that describes itself")
        found[name] = dtype, tuple(n for n in shape if n is not None)
    return found


def encode_raw(array: np.ndarray) -> bytes:
    """The bytes of an array [...] of any dtype, little-endian, row-major."""
    return np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")).tobytes()


def decode_raw(entry: Entry, data: memoryview) -> np.ndarray:
    """The inverse of `encode_raw`: an array [...] of entry.shape, a view that a fold needs no copy of."""
    array = np.frombuffer(data, np.dtype(entry.dtype).newbyteorder("<")).reshape(entry.shape)
    # Back to the native byte order: a copy on big-endian machines alone.
    return array.astype(entry.dtype, copy=False)
