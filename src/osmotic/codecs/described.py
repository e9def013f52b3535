"""Packets that say themselves what they hold: what pieces, scores and trained codecs send beside the weights, exactly.

Their names or lengths are not known to the receiver beforehand, as those of the network are (`codecs/base.py`).

Packet layout (little-endian): b"OSD1" | u64 XXH3 of everything after it | u32 header length | header JSON | sections.
The header lists name, dtype and shape of each tensor; sections are its values, row-major. Who knows what must come back
(`Wanted`) also knows the header's length beforehand, so that a longer one is not even parsed.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping, Sequence

import numpy as np
from xxhash import xxh3_64

from osmotic.codecs.base import ALIGNED, DTYPES, BadPacket, Entry, Wanted, decode_raw, encode_raw
from osmotic.errors import plain
from osmotic.tensors import Tensors

MAGIC = b"OSD1"
SENT = (*DTYPES, "float64")  # sums of squares are differences of large numbers, so these travel whole
HEAD = struct.Struct("<4sQI")
# Most that a header may hold and claim where nobody has said what it must: bytes, axes, elements per axis and in all,
# an axis of 0 left out, as numpy does. It is a stranger's text.
MAX_HEADER = 2**20
MAX_AXES, MAX_AXIS, MAX_SIZE = 32, 2**31, 2**48


def encode(tensors: Mapping[str, np.ndarray]) -> bytes:
    """The packet of these tensors, name -> array [...] of a dtype of SENT, in sorted order of names.

    Raises: ValueError for another dtype.
    """
    entries = [_entry(name, tensors[name].dtype.name, tensors[name].shape) for name in sorted(tensors)]
    header, sections = _header(entries), [encode_raw(tensors[e.name]) for e in entries]
    check = xxh3_64(header)
    for section in sections:
        check.update(section)
    return b"".join([HEAD.pack(MAGIC, check.intdigest(), len(header)), header, *sections])


def packet_bytes(shapes: Mapping[str, tuple[str, tuple[int, ...]]]) -> int:
    """Bytes of the packet of tensors {name: (dtype, shape)}, exact. Raises: ValueError as `encode`."""
    entries = [_entry(name, *shapes[name]) for name in sorted(shapes)]
    return HEAD.size + len(_header(entries)) + sum(map(_bytes, entries))


def decode(data: bytes | memoryview, wanted: Wanted | None = None) -> Tensors:
    """All tensors of a packet, name -> read-only array [...]: views of `data`.

    Args:
        wanted: what the packet must hold, no more and no less; None takes any.
    Raises: BadPacket before anything is allocated.
    """
    view = memoryview(data)
    most_header, most = (MAX_HEADER, None) if wanted is None else _most(wanted)
    if most is not None and len(view) > most:
        raise BadPacket(f"{len(view)} bytes are more than the {most} of what was asked for")
    entries, start = _read(view, most_header)
    if wanted is not None:
        _refuse_other(entries, wanted)
    sizes = [_bytes(e) for e in entries]
    if start + sum(sizes) != len(view):
        raise BadPacket(f"sections of {sum(sizes)} bytes do not fill the packet of {len(view)}")
    tensors: Tensors = {}
    for entry, size in zip(entries, sizes, strict=True):
        tensors[entry.name] = decode_raw(entry, view[start : start + size])
        start += size
    return tensors


def _entry(name: str, dtype: str, shape: Sequence[int]) -> Entry:
    if dtype not in SENT:
        raise ValueError(f"{name}: dtype {dtype} cannot be sent; use one of {', '.join(SENT)}")
    return Entry(name, dtype, tuple(int(n) for n in shape), "raw")


def _bytes(entry: Entry) -> int:
    return entry.size * np.dtype(entry.dtype).itemsize


def _header(entries: list[Entry]) -> bytes:
    """Header JSON, padded with blanks so that sections begin where they can be read as they lie."""
    text = json.dumps([[e.name, e.dtype, list(e.shape)] for e in entries], separators=(",", ":")).encode()
    return text + b" " * (-(HEAD.size + len(text)) % ALIGNED)


def _most(wanted: Wanted) -> tuple[int, int | None]:
    """Bytes of the longest header that names what is wanted, and of the longest packet; None where an axis is open."""
    closed = [
        _entry(n, d, tuple(MAX_AXIS - 1 if k is None else k for k in s))
        for n, (d, s) in sorted(wanted.items())
    ]
    header = len(_header(closed))
    if any(None in shape for _, shape in wanted.values()):
        return header, None
    return header, HEAD.size + header + sum(map(_bytes, closed))


def _read(view: memoryview, most_header: int) -> tuple[list[Entry], int]:
    """The entries of a packet, and where its sections begin; nothing is parsed before the checksum fits.

    Raises: BadPacket for what is torn, altered, no packet, or has a longer header than `most_header`.
    """
    if len(view) < HEAD.size:
        raise BadPacket(f"{len(view)} bytes are shorter than a packet head")
    magic, check, length = HEAD.unpack(view[: HEAD.size])
    if magic != MAGIC:
        raise BadPacket("does not start like a packet that describes itself")
    if length > most_header or HEAD.size + length > len(view):
        raise BadPacket(f"header of {length} bytes does not fit")
    # Before the JSON is parsed: a torn packet is told from one that was written wrongly.
    if xxh3_64(view[HEAD.size :]).intdigest() != check:
        raise BadPacket("checksum does not match: torn or altered")
    try:
        entries = [_checked(*row) for row in json.loads(bytes(view[HEAD.size : HEAD.size + length]))]
    # RecursionError: brackets in brackets. No text of the packet goes into the message.
    except (ValueError, LookupError, TypeError, OverflowError, RecursionError) as error:
        raise BadPacket(f"header cannot be read ({type(error).__name__})") from None
    if len({e.name for e in entries}) != len(entries):
        raise BadPacket("names a tensor twice")
    return entries, HEAD.size + length


def _checked(name: object, dtype: object, shape: object) -> Entry:
    """One row of a header. Raises: TypeError or ValueError for what is no row of ours."""
    if not (isinstance(name, str) and isinstance(dtype, str) and isinstance(shape, list)):
        raise TypeError
    if dtype not in SENT or len(shape) > MAX_AXES:
        raise ValueError
    if not all(type(n) is int and 0 <= n < MAX_AXIS for n in shape):
        raise ValueError
    # An axis of 0 beside huge ones has no bytes, so a check of lengths alone would let it through to numpy.
    if math.prod(n or 1 for n in shape) > MAX_SIZE:
        raise ValueError
    return Entry(name, dtype, tuple(shape), "raw")


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
