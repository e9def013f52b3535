"""What a codec is, and the byte form that all of them share: a checked header, then raw sections.

Packet layout (little-endian): b"OSM2" | u64 XXH3 of everything after it | u32 header length | header JSON | sections.
The header is padded with blanks, so that sections begin at a multiple of ALIGNED bytes and can be read where they lie. It
lists codec, and for each tensor its name, dtype and shape; section sizes follow from these alone, so that a
reader knows every size before it allocates. Who knows what must come back (`Wanted`) also knows the header's length
beforehand, so that a longer one is not even parsed.
"""

from __future__ import annotations

import json
import math
import struct
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from xxhash import xxh3_64

from osmotic.errors import plain, shown
from osmotic.flat import FlatLayout
from osmotic.tensors import Tensors

MAGIC = b"OSM2"
HEAD = struct.Struct("<4sQI")
ALIGNED = 64  # bytes, a cache line
# Most that a header may hold and claim where nobody has said what it must: bytes, axes, elements per axis and in all,
# an axis of 0 left out, as numpy does. It is a stranger's text.
MAX_HEADER = 2**20
MAX_AXES, MAX_AXIS, MAX_SIZE = 32, 2**31, 2**48
# No object arrays: they would be pickled, and a packet must never hold code.
DTYPES = ("float32", "float16", "uint8", "int8", "int32", "int64")
# What a packet must hold, no more and no less: name -> (dtype, shape). None leaves an axis open.
Wanted = Mapping[str, tuple[str, tuple[int | None, ...]]]


class BadPacket(ValueError):
    """Bytes that are no packet of ours: torn, altered, of another codec, of impossible sizes, or not what was asked for.

    Its text is one short printable line, whatever the packet held.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(plain(reason))


@dataclass(frozen=True)
class Entry:
    """One tensor [...] in a header: name, numpy dtype name and shape once decoded, and how it is coded."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    form: str

    @property
    def size(self) -> int:
        """Number of elements, of the decoded tensor [...]; 1 for a scalar, 0 for an empty one."""
        return math.prod(self.shape)


class Codec(ABC):
    """How an exchange, name -> tensor [...], becomes bytes. A stateless codec defines the abstract methods.

    A codec with options is a dataclass: its fields are the configuration's `codec.NAME.KEY`.
    `memory` is what one end keeps between exchanges (a residual, say); the codec reads it and leaves its new content
    there. Each end has its own: clients in their Store, the server in its checkpoint.
    """

    name = "?"
    absolute = False  # True: down-link sends the weights themselves, not the change against the replica

    @abstractmethod
    def form(self, name: str, dtype: str, shape: tuple[int, ...]) -> str:
        """How a tensor of this name, dtype and shape is coded, e.g. "f2" or "q8".

        It follows from these alone, never from the values: a plan asks it of tensors that do not exist yet,
        and the receiver works it out again to see whether the sender told the truth.
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

    # --- exchanges; a wrapper such as error feedback overrides these ---
    def encode(
        self, tensors: Mapping[str, np.ndarray], memory: Tensors, rng: np.random.Generator | None = None
    ) -> bytes:
        """The packet of these tensors, in sorted order of names.

        Args:
            tensors: name -> array [...] of a dtype of DTYPES.
            memory: what this end keeps, name -> array [...]; changed in place.
            rng: the stream of this sender in this round, so that a repeated step gives the same bytes.
        Raises: ValueError for another dtype, and as `encode_tensor`.
        """
        entries = [
            self.entry(name, tensors[name].dtype.name, tensors[name].shape) for name in sorted(tensors)
        ]
        sections = [self.encode_tensor(e, tensors[e.name], rng) for e in entries]
        return pack(self.name, entries, sections, self.bounded)

    def decode(
        self, data: bytes, memory: Tensors, wanted: Wanted | None = None
    ) -> Iterator[tuple[str, np.ndarray]]:
        """(name, read-only tensor [...]) pairs of a packet, one at a time.

        Args:
            wanted: what the packet must hold; None takes any packet of this codec.
        Raises: BadPacket when the first pair is asked for, before anything is allocated; for a section that cannot be,
            when its turn comes.
        """
        entries, sections = unpack(data, self, wanted)
        for entry, section in zip(entries, sections, strict=True):
            yield entry.name, self.decode_tensor(entry, section)

    def read(
        self, data: bytes, memory: Tensors, wanted: Wanted | None = None, layout: FlatLayout | None = None
    ) -> Mapping[str, np.ndarray]:
        """All tensors of a packet, name -> read-only array [...].

        Args:
            wanted: as `decode`.
            layout: where they are all of a network, or of some of its parts: a codec that keeps them in that order need not
                take them apart (`flat.Flat`).
        Raises: BadPacket as `decode`.
        """
        return dict(self.decode(data, memory, wanted))

    def packet_bytes(self, shapes: Mapping[str, tuple[str, tuple[int, ...]]]) -> int:
        """Bytes of the packet of tensors {name: (dtype, shape)}; exact, or an upper bound if `bounded`.

        Raises: ValueError as `entry`.
        """
        entries = [self.entry(name, *shapes[name]) for name in sorted(shapes)]
        sizes = [self.section_bytes(e) for e in entries]
        return HEAD.size + len(header_bytes(self.name, entries, sizes if self.bounded else None)) + sum(sizes)

    def entry(self, name: str, dtype: str, shape: tuple[int, ...]) -> Entry:
        """Header entry of a tensor; numbers that are not floats are always sent as they are.

        Raises: ValueError for a dtype that is not of DTYPES.
        """
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

    def adopt(self, tensors: Mapping[str, np.ndarray]) -> None:
        """A client takes over weights that `refresh` gave, name -> array [...]."""

    def state(self) -> Tensors:
        """The codec's part of the checkpoint, name -> array [...]."""
        return {}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """The inverse of `state`: name -> array [...]."""


def header_bytes(codec: str, entries: list[Entry], lengths: list[int] | None) -> bytes:
    """Header JSON, padded; `lengths`, in bytes, only for codecs whose sections vary with the data."""
    header: dict[str, Any] = {
        "codec": codec,
        "tensors": [[e.name, e.dtype, list(e.shape), e.form] for e in entries],
    }
    if lengths is not None:
        # Fixed width: the header's own length stays predictable.
        header["lengths"] = [f"{n:010d}" for n in lengths]
    text = json.dumps(header, separators=(",", ":")).encode()
    return text + b" " * (-(HEAD.size + len(text)) % ALIGNED)


def pack(codec: str, entries: list[Entry], sections: list[bytes], with_lengths: bool) -> bytes:
    """Header and sections as one packet; `sections` in the order of `entries`."""
    return seal(header_bytes(codec, entries, [len(s) for s in sections] if with_lengths else None), *sections)


def seal(header: bytes, *sections: bytes | memoryview) -> bytes:
    """A packet of a header and what follows it: the head with the checksum before them."""
    check = xxh3_64(header)
    for section in sections:
        check.update(section)
    return b"".join([HEAD.pack(MAGIC, check.intdigest(), len(header)), header, *sections])


def unpack(data: bytes, codec: Codec, wanted: Wanted | None = None) -> tuple[list[Entry], list[memoryview]]:
    """Entries and sections of a packet, every size checked against its length.

    Args:
        wanted: what the packet must hold; None takes any packet of this codec.
    Returns: entries, and for each its section as a view, uint8 [bytes].
    Raises: BadPacket for anything but a whole packet of this codec that holds what is wanted.
    """
    view = memoryview(data)
    most_header, most = (MAX_HEADER, None) if wanted is None else _most(codec, wanted)
    if most is not None and len(view) > most:
        raise BadPacket(f"{len(view)} bytes are more than the {most} of what was asked for")
    length = checked(view, most_header)
    entries, lengths = _read_header(bytes(view[HEAD.size : HEAD.size + length]), codec)
    if wanted is not None:
        _refuse_other(entries, wanted)
    start = HEAD.size + length
    if start + sum(lengths) != len(view):
        raise BadPacket(f"sections of {sum(lengths)} bytes do not fill the packet of {len(view)}")
    sections = []
    for n in lengths:
        sections.append(view[start : start + n])
        start += n
    return entries, sections


def checked(view: memoryview, most_header: int) -> int:
    """Bytes of a packet's header, once head and checksum are found in order.

    Raises: BadPacket for what is torn, altered, no packet, or has a longer header than `most_header`.
    """
    if len(view) < HEAD.size:
        raise BadPacket(f"{len(view)} bytes are shorter than a packet head")
    magic, check, length = HEAD.unpack(view[: HEAD.size])
    if magic != MAGIC:
        raise BadPacket("does not start like a packet")
    if length > most_header or HEAD.size + length > len(view):
        raise BadPacket(f"header of {length} bytes does not fit")
    # Before the JSON is parsed: a torn packet is told from one that was written wrongly.
    if xxh3_64(view[HEAD.size :]).intdigest() != check:
        raise BadPacket("checksum does not match: torn or altered")
    return int(length)


def _most(codec: Codec, wanted: Wanted) -> tuple[int, int | None]:
    """Bytes of the longest header that names what is wanted, and of the longest packet; None where an axis is open."""
    closed = {n: (d, tuple(MAX_AXIS - 1 if k is None else k for k in s)) for n, (d, s) in wanted.items()}
    entries = [codec.entry(name, *closed[name]) for name in sorted(closed)]
    header = len(header_bytes(codec.name, entries, [0] * len(entries) if codec.bounded else None))
    if any(None in shape for _, shape in wanted.values()):
        return header + 16 * len(
            entries
        ) + ALIGNED, None  # the form, a short word, may change with the open axis
    return header, HEAD.size + header + sum(codec.section_bytes(e) for e in entries)


def _read_header(text: bytes, codec: Codec) -> tuple[list[Entry], list[int]]:
    """Entries and lengths of sections, in bytes, of a header that this codec could have written."""
    try:
        header = json.loads(text)
        name, entries = header["codec"], [_entry(*row) for row in header["tensors"]]
        told = [int(n) for n in header["lengths"]] if codec.bounded else None
    # RecursionError: brackets in brackets. No text of the packet goes into the message.
    except (ValueError, LookupError, TypeError, OverflowError, RecursionError) as error:
        raise BadPacket(f"header cannot be read ({type(error).__name__})") from None
    if name != codec.name:
        raise BadPacket(f"is coded with {shown(name, 40)}, expected {codec.name!r}")
    for e in entries:
        # The form is worked out again, before any size: a sender does not choose how its bytes are read.
        if e.dtype not in DTYPES or codec.entry(e.name, e.dtype, e.shape) != e:
            raise BadPacket(
                f"{plain(e.name, 100)}: form {shown(e.form, 20)} of {plain(e.dtype, 20)} {list(e.shape)} "
                f"is not one of codec {codec.name}"
            )
    if len({e.name for e in entries}) != len(entries):
        raise BadPacket("names a tensor twice")
    sizes = [codec.section_bytes(e) for e in entries]
    if told is None:
        return entries, sizes
    if len(told) != len(sizes) or not all(0 <= n <= most for n, most in zip(told, sizes, strict=True)):
        raise BadPacket("a section is longer than its tensor can be")
    return entries, told


def _entry(name: object, dtype: object, shape: object, form: object) -> Entry:
    """One row of a header. Raises: TypeError or ValueError for what is no row of ours."""
    if not (isinstance(name, str) and isinstance(dtype, str) and isinstance(form, str)):
        raise TypeError
    if not isinstance(shape, list) or len(shape) > MAX_AXES:
        raise TypeError
    if not all(type(n) is int and 0 <= n < MAX_AXIS for n in shape):
        raise ValueError
    # An axis of 0 beside huge ones has no bytes, so a check of lengths alone would let it through to numpy.
    if math.prod(n or 1 for n in shape) > MAX_SIZE:
        raise ValueError
    return Entry(name, dtype, tuple(shape), form)


def _refuse_other(entries: list[Entry], wanted: Wanted) -> None:
    """Raises BadPacket unless the entries are what is wanted, no more and no less."""
    found = {e.name: e for e in entries}
    if missing := [n for n in wanted if n not in found]:
        raise BadPacket(f"{min(missing)} is missing ({len(missing)} in all)")
    if unasked := [n for n in found if n not in wanted]:
        raise BadPacket(f"{plain(min(unasked), 100)} was not asked for ({len(unasked)} in all)")
    for name, (dtype, shape) in wanted.items():
        got = found[name]
        fits = len(got.shape) == len(shape) and all(
            want is None or want == n for want, n in zip(shape, got.shape, strict=True)
        )
        if got.dtype != dtype or not fits:
            raise BadPacket(f"{name} is {got.dtype} {list(got.shape)}, not {dtype} {list(shape)}")


def encode_raw(tensor: np.ndarray) -> bytes:
    """The bytes of an array [...] of any dtype, little-endian, row-major."""
    return np.ascontiguousarray(tensor, dtype=tensor.dtype.newbyteorder("<")).tobytes()


def decode_raw(entry: Entry, data: memoryview) -> np.ndarray:
    """The inverse of `encode_raw`: an array [...] of entry.shape, a view that a fold needs no copy of."""
    array = np.frombuffer(data, np.dtype(entry.dtype).newbyteorder("<")).reshape(entry.shape)
    # Back to the native byte order: a copy on big-endian machines alone.
    return array.astype(entry.dtype, copy=False)
