"""A million packets nobody would send: bytes altered, heads edited and sealed again, bombs. Each is decoded as the server does.

Both forms: coded packets, whose head says what codec wrote them and what they hold, and packets that describe themselves. Whatever a packet holds, the server must get the tensors that it asked for or a BadPacket; it must not allocate more than
these tensors need, nor be held up.
"""

from __future__ import annotations

import copy
import json
import multiprocessing
import random
import struct
import time
import tracemalloc
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import zstandard
from xxhash import xxh3_64

from osmotic import codecs
from osmotic.codecs import described
from osmotic.codecs.base import HEAD, MAGIC, BadPacket, Codec, contents, contents_of, padded, tag
from osmotic.codecs.buffer import BufferCodec, row_of
from osmotic.codecs.learned import Learned
from osmotic.federation.uplink import UpLink
from osmotic.flat import Flat, FlatLayout
from osmotic.protocol.gate import Expectation, Refused
from osmotic.protocol.messages import Packet, Spec

SEED = 20
LATE = 100  # a round in which no codec is warming up
SLOW = 0.050  # seconds of processor time that no packet may take
TRACED = 100  # every so many packets are decoded with all allocations counted
FIXED = 64 * 2**10  # bytes beside tensors and packet: the parsed header
GROWTH = (
    48 * 2**20
)  # bytes of a process while large bombs are decoded: a window of 8 MiB, and what an allocator keeps
CODECS: dict[str, dict[str, Any]] = {
    "fp32": {"name": "fp32"},
    "fp16": {"name": "fp16"},
    "int8": {"name": "int8"},
    "int8-stochastic": {"name": "int8", "options": {"int8": {"stochastic": True}}},
    "int8-feedback": {"name": "int8", "error_feedback": True},
    "int8-entropy": {"name": "int8", "options": {"int8": {"entropy": True}}},
    "int4": {"name": "int4"},
    "int4-entropy": {"name": "int4", "options": {"int4": {"entropy": True}}},
    "int2": {"name": "int2"},
    "sparse": {"name": "sparse", "options": {"sparse": {"density": 0.05, "chunk": 256}}},
    "sparse-signs": {"name": "sparse", "options": {"sparse": {"density": 0.05, "chunk": 256, "bits": 1}}},
    "learned": {"name": "learned", "options": {"learned": {"bits": 2.0}}},
    "described": {},
    "described-open": {},  # one axis is open, so that no length of the whole packet is known beforehand
}
DESCRIBED_KINDS = ("described", "described-open")
LAYOUT = {
    "model/conv_in.weight": (8, 1, 3, 3),
    "model/conv_in.bias": (8,),
    "model/time.weight": (8, 2),
    "model/mid.weight": (8, 8, 3, 3),
    "model/norm.weight": (8,),
    "model/out.weight": (1, 16, 3, 3),
    "model/scale": (),
    "model/none": (4, 0, 2),
}
WHOLE = FlatLayout.whole(
    LAYOUT
)  # honest packets are one buffer, and are read as one; what is changed in them is read by name


# Large enough that a frame of 1 GiB fits into the length that its packet may have.
LARGE = FlatLayout.whole({"model/mid.weight": (64, 64, 3, 3), "model/mid.bias": (64,)})


@dataclass
class Bench:
    """One codec at the server, what it waits for, and an honest packet of it."""

    link: UpLink
    expected: Expectation
    honest: bytes
    others: list[bytes]  # honest packets of other codecs

    @property
    def most(self) -> int:
        """Bytes that a decoder may allocate: the tensors twice (codes, values), a copy of the header, its parsed form."""
        return 2 * sum(4 * s.size for s in self.expected.tensors.values()) + FIXED

    @property
    def codec(self) -> Codec:
        return self.link.codec

    @property
    def layout(self) -> FlatLayout:
        return self.expected.layout or WHOLE

    @property
    def most_body(self) -> int:
        """The longest body that is not refused for its length alone."""
        return self.codec.packet_bytes(self.layout.wanted) - padded(self.codec, HEAD.size)


def made(codec: str) -> Codec:
    """A new codec of this kind; packets that describe themselves go beside those of fp32."""
    kind = CODECS[codec]
    return codecs.make(kind.get("name", "fp32"), kind.get("error_feedback", False), kind.get("options"))


def _written(codec: str, tensors: Flat, rng: np.random.Generator) -> bytes:
    return described.encode(tensors) if codec in DESCRIBED_KINDS else made(codec).encode(tensors, {}, rng)


@cache
def bench(codec: str, layout: FlatLayout = WHOLE) -> Bench:
    """Made once per process."""
    rng = np.random.default_rng(SEED)
    tensors = Flat.of(layout, {n: rng.normal(0, 0.01, s).astype(np.float32) for n, s in layout.items()})
    coded = {n: _written(n, tensors, rng) for n in CODECS}
    wire = "exact" if codec in DESCRIBED_KINDS else "codec"
    specs = {n: Spec(s, wire=wire, counts=True) for n, s in layout.items()}  # type: ignore[arg-type]
    if codec == "described-open":
        specs["model/time.weight"] = Spec((None, 2), counts=True)
    if codec in DESCRIBED_KINDS:
        expected = Expectation({}, specs, 100, 1000.0, 10, 100)
    else:
        expected = Expectation(specs, {}, 100, 1000.0, 10, 100, layout)
    return Bench(UpLink(made(codec)), expected, coded[codec], [d for n, d in coded.items() if n != codec])


# --- mutations of coded packets ---


def sealed(head: bytes, body: bytes) -> bytes:
    """A coded packet whose checksum fits, whatever it holds; `head` is the honest one, or 11 bytes of it."""
    start = head[: HEAD.size - 8]
    return start + struct.pack("<Q", xxh3_64(start + body).intdigest()) + body


def taken_apart(data: bytes) -> tuple[bytes, bytes]:
    """Head and all after it of a coded packet."""
    return data[: HEAD.size], data[HEAD.size :]


def other_fields(data: bytes, draw: random.Random) -> tuple[bytes, int, int, int]:
    """Magic, tag, version and contents of a head, one or more of them others."""
    magic, name, version, holds, _ = HEAD.unpack(data[: HEAD.size])
    rows = [(n, "float32", s) for n, s in LAYOUT.items()]
    while True:
        way = draw.randrange(4)
        if way == 0:
            magic = draw.choice((b"OSM1", b"OSM2", b"OSM4", described.MAGIC, b"\0\0\0\0", magic[::-1]))
        elif way == 1:
            names = [tag(n) for n in (*codecs.CODECS, "", "described", "osm")]
            name = draw.choice((*names, 0, 0xFFFF, name ^ 1, draw.randrange(2**16)))
        elif way == 2:
            version = draw.choice((0, 1, 2, 3, 255, draw.randrange(256)))
        else:
            odd = (contents([]), contents(rows[::-1]), contents(rows[1:]), contents_of(WHOLE.named("x/")))
            holds = draw.choice((*odd, 0, 2**32 - 1, holds ^ 1, draw.randrange(2**32)))
        if draw.random() < 0.7:
            return magic, name, version, holds


def head_edit(data: bytes, draw: random.Random) -> bytes:
    """Other fields under a checksum that fits."""
    return sealed(HEAD.pack(*other_fields(data, draw), 0), data[HEAD.size :])


def head_torn(data: bytes, draw: random.Random) -> bytes:
    """Other fields under the old checksum."""
    return HEAD.pack(*other_fields(data, draw), HEAD.unpack(data[: HEAD.size])[4]) + data[HEAD.size :]


def sections_edit(data: bytes, draw: random.Random) -> bytes:
    head, body = taken_apart(data)
    return sealed(head, flipped(body, draw))


def sections_blotted(data: bytes, draw: random.Random) -> bytes:
    """A stretch of one byte: scales that are negative, infinite, no number; codes that none is."""
    head, body = taken_apart(data)
    start, length = draw.randrange(len(body)), draw.choice((1, 2, 4, 16, 64, 4096))
    byte = draw.choice((b"\0", b"\x7f", b"\x80", b"\xff", b"\xc0", b"\x01", bytes([draw.randrange(256)])))
    length = min(length, len(body) - start)
    return sealed(head, body[:start] + byte * length + body[start + length :])


def sections_swapped(data: bytes, draw: random.Random) -> bytes:
    head, body = taken_apart(data)
    cut = draw.randrange(len(body))
    return sealed(head, body[cut:] + body[:cut])


def sections_doubled(data: bytes, draw: random.Random) -> bytes:
    head, body = taken_apart(data)
    start = draw.randrange(len(body))
    stop = draw.randrange(start, len(body)) + 1
    return sealed(head, body[:stop] + body[start:stop] + body[stop:])


def sections_length(data: bytes, draw: random.Random) -> bytes:
    head, body = taken_apart(data)
    return sealed(head, resized(body, draw))


def sections_recoded(data: bytes, draw: random.Random) -> bytes:
    """The codes of a compressed section altered, and compressed again; where nothing is compressed the section itself."""
    head, body = taken_apart(data)
    place = body.find(ZSTD)
    if place < 1:
        return sections_edit(data, draw)
    codes = zstandard.ZstdDecompressor().decompress(body[place:], max_output_size=2**20)
    codes = draw.choice((flipped, resized))(codes, draw)
    if draw.random() < 0.2:
        return sealed(head, body[: place - 1] + b"\0" + codes)
    params = zstandard.ZstdCompressor(level=draw.choice((1, 3, 19)), write_content_size=draw.random() < 0.1)
    return sealed(head, body[:place] + params.compress(codes))


def frame_edit(data: bytes, draw: random.Random) -> bytes:
    """Bytes of the compressed section altered: its frame's own head most often."""
    head, body = taken_apart(data)
    place = body.find(ZSTD)
    if place < 1:
        return sections_edit(data, draw)
    stop = draw.choice((place + 8, place + 12, len(body)))
    return sealed(head, body[: place - 1] + flipped(body[place - 1 : stop], draw) + body[stop:])


def spliced(data: bytes, draw: random.Random, others: list[bytes]) -> bytes:
    other = draw.choice(others)
    cut = draw.randrange(len(data))
    return draw.choice((other, data[:cut] + other[cut:], other[:cut] + data[cut:], data + other))


def relabelled(data: bytes, draw: random.Random, others: list[bytes]) -> bytes:
    """What another codec wrote under the head of this one, or this under another's, wholly or in part; it fits."""
    other = draw.choice(others)
    mine, theirs = (HEAD.unpack(d[: HEAD.size]) for d in (data, other))
    body = draw.choice((data, other, other))[HEAD.size :]
    mixed = [draw.choice((a, a, a, b)) for a, b in zip(mine, theirs, strict=True)]
    return sealed(HEAD.pack(*mixed), draw.choice((body, body[: len(data) - HEAD.size])))


ZSTD = b"\x28\xb5\x2f\xfd"


def frame(
    blocks: Iterable[tuple[int, int, bytes]],
    window: int = 0x38,
    size: int | None = None,
    *,
    single: bool = False,
    check: bool = False,
    dictionary: int | None = None,
    reserved: bool = False,
) -> bytes:
    """A Zstandard frame by hand (RFC 8878, 3.1.1): blocks of (type, size, content); 0x38 is a window of 128 KiB.

    Args:
        size: what it claims to hold, 8 bytes.
    """
    flags = (3 if size is not None else 0) << 6 | single << 5 | reserved << 3 | check << 2
    flags |= 3 if dictionary is not None else 0
    head = ZSTD + bytes([flags]) + (b"" if single else bytes([window]))
    head += b"" if dictionary is None else struct.pack("<I", dictionary)
    head += b"" if size is None else struct.pack("<Q", size)
    table = list(blocks)
    body = b"".join(
        (int(i == len(table) - 1) | kind << 1 | length << 3).to_bytes(3, "little") + content
        for i, (kind, length, content) in enumerate(table)
    )
    return head + body + (bytes(4) if check else b"")


RAW, RLE, PACKED, FORBIDDEN = range(4)
BLOCK = 2**17  # bytes that a block may come to


def frames(codes: bytes, room: int) -> Iterator[bytes]:
    """Compressed sections that would cost a careless reader memory or time, the byte before them included.

    Args:
        codes: what an honest one holds.
        room: bytes that a section may have.
    """
    many = max(1, (room - 16) // 4)
    honest = zstandard.ZstdCompressor(level=3, write_content_size=False).compress(codes)
    for window in (0x38, 0x00, 0x68, 0x70, 0xF8, 0xFF):  # 128 KiB, 1 KiB, 8 MiB, 16 MiB, 2^41, the largest
        for count in (1, 8, many, 2**13):  # 2^13 blocks are 1 GiB
            yield b"\1" + frame([(RLE, BLOCK, b"\0")] * count, window)
        yield b"\1" + frame([(RAW, 0, b"")] * max(1, (room - 16) // 3), window)
        yield b"\1" + frame([(RLE, len(codes), b"\0")], window)
    for size in (0, 1, len(codes), len(codes) + 1, 2**30, 2**40, 2**63, 2**64 - 2, 2**64 - 1):
        for single in (False, True):
            yield b"\1" + frame([(RLE, min(len(codes), BLOCK), b"\0")], size=size, single=single)
            yield b"\1" + frame([(RLE, BLOCK, b"\0")] * many, size=size, single=single)
            yield b"\1" + frame([(RAW, 0, b"")], size=size, single=single)
    for size in (len(codes) - 1, len(codes) + 1, 10 * len(codes)):
        yield b"\1" + frame([(RLE, min(max(size, 0), BLOCK), b"\0")])
    for kind in (PACKED, FORBIDDEN):
        for length in (0, 1, 5, BLOCK, 2**21 - 1):
            yield b"\1" + frame([(kind, length, b"\0" * min(length, 64))])
    yield b"\1" + frame([(RLE, 2**21 - 1, b"\0")] * many)
    yield b"\1" + frame([(RLE, BLOCK, b"\0")], check=True)
    yield b"\1" + frame([(RLE, len(codes), b"\0")], dictionary=7)
    yield b"\1" + frame([(RLE, len(codes), b"\0")], reserved=True)
    yield from (b"\1" + frame([])[:n] for n in range(7))
    pack = zstandard.ZstdCompressor(level=19).compress
    nested = bytes(2**24)
    for _ in range(4):  # frames in a frame
        nested = pack(nested)
        yield b"\1" + nested
        yield b"\0" + nested
    for skipped in (0, 8, 2**31, 2**32 - 1):
        skip = struct.pack("<II", 0x184D2A50, skipped)
        yield b"\1" + skip
        yield b"\1" + skip + bytes(min(skipped, 8)) + honest
        yield b"\1" + (struct.pack("<II", 0x184D2A50, 0)) * (many // 2) + honest
    yield b"\1" + honest * 2
    yield b"\1" + honest + b"\0"
    yield b"\1" + honest[:-1]
    yield b"\1" + frame([(RLE, BLOCK, b"\0")]) * (many // 4)
    for how in (b"", b"\0", b"\1", b"\2", b"\x80", b"\xff"):
        yield how + codes
        yield how + honest
        yield how + b"\0" * room
        yield how + b"\xff" * room


def coded_bombs(on: Bench) -> Iterator[bytes]:
    """Coded packets with a checksum that fits."""
    head, body = taken_apart(on.honest)
    filling = bytes(padded(on.codec, HEAD.size) - HEAD.size)
    length = len(body) - len(filling)
    yield from (sealed(head, filling + byte * n) for byte in (b"\0", b"\xff", b"\x80", b"\x7f", b"\1")
                for n in (0, 1, length - 1, length, length + 1, on.most_body, on.most_body + 1))  # fmt: skip
    yield sealed(head, filling + bytes(2**26))
    yield sealed(head, body + bytes(2**20))
    for scale in (
        0x7F80,
        0x7FC0,
        0x8000,
        0xFF80,
        0x7B81,
        0x7F7F,
        0x0001,
    ):  # infinite, no number, below zero, too large
        for count in (1, 2, 6, 20):
            start = len(filling)
            yield sealed(head, body[:start] + struct.pack("<H", scale) * count + body[start + 2 * count :])
    old = json.dumps({"codec": on.codec.name, "tensors": []}).encode()
    for magic in (b"OSM1", b"OSM2", MAGIC, described.MAGIC):
        yield struct.pack("<4sQI", magic, xxh3_64(old).intdigest(), len(old)) + old
    yield from (on.honest[:n] for n in range(HEAD.size + 2))
    inner = on.codec.inner if hasattr(on.codec, "inner") else on.codec
    # Those with a frame of Zstandard; `learned` has words of a range coder, which any bytes are.
    if on.codec.bounded and isinstance(inner, BufferCodec) and not isinstance(inner, Learned):
        least, most = inner.row_bytes(row_of(on.layout))
        prefix, room = body[: least - 1], most - (least - 1)
        plain = (
            body[least:]
            if body[least - 1] == 0
            else zstandard.ZstdDecompressor().decompress(body[least:], 2**24)
        )
        for section in frames(plain, room):
            yield sealed(head, prefix + section)


# --- mutations of packets that describe themselves ---


def resealed(header: bytes, body: bytes, length: int | None = None) -> bytes:
    """A packet that describes itself, whose checksum fits, whatever it holds."""
    check = xxh3_64(header + body).intdigest()
    return (
        described.HEAD.pack(described.MAGIC, check, len(header) if length is None else length) + header + body
    )


def parts_of(data: bytes) -> tuple[bytes, bytes]:
    """Header and sections of an honest one."""
    end = described.HEAD.size + described.HEAD.unpack_from(data)[2]
    return data[described.HEAD.size : end], data[end:]


ODD: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 2, 2**31 - 1, 2**31, 2**63, 2**64, 10**30, 1.5, 1e400, -0.0, float("nan"), "", "3", "x",
    "\ud800", "\x00\x1b[2J", "\u202egnp", "raw", "f4", "f2", "q8", "float32", "float64", "object", "int64", "bool", "codec",
    [], {}, [[]], [None], [0], [2**31 - 1, 0], [1] * 40, {"a": 1}, "n" * 2000, [2**31 - 1] * 3 + [0], "model/scale",
)  # fmt: skip


def edited(header: Any, draw: random.Random) -> Any:
    """A header with one thing in it changed, at any depth."""
    place: Any = header
    while True:
        keys = list(place) if isinstance(place, dict) else range(len(place))
        if not keys:
            return header
        key = draw.choice(keys)
        inner = place[key]
        if not isinstance(inner, list | dict) or draw.random() < 0.15:
            break
        place = inner
    way = draw.randrange(5)
    if way == 0 and isinstance(place, list):
        place.insert(key, copy.deepcopy(place[draw.randrange(len(place))]))
    elif way == 1:
        del place[key]
    elif way == 2 and isinstance(place, list):
        other = draw.randrange(len(place))
        place[key], place[other] = place[other], place[key]
    elif way == 3 and isinstance(place[key], int):
        place[key] += draw.choice((-1, 1, -place[key], 2**31, 10**9))
    else:
        place[key] = copy.deepcopy(draw.choice(ODD))
    return header


def header_edit(data: bytes, draw: random.Random) -> bytes:
    header, body = parts_of(data)
    value = json.loads(header)
    for _ in range(draw.choice((1, 1, 2, 4))):
        value = edited(value, draw)
    return resealed(json.dumps(value, separators=(",", ":")).encode(errors="surrogatepass"), body)


def header_bytes_edit(data: bytes, draw: random.Random) -> bytes:
    header, body = parts_of(data)
    return resealed(flipped(header, draw), body)


def values_edit(data: bytes, draw: random.Random) -> bytes:
    header, body = parts_of(data)
    return resealed(header, flipped(body, draw))


def values_swapped(data: bytes, draw: random.Random) -> bytes:
    header, body = parts_of(data)
    value = json.loads(header)
    draw.shuffle(value)
    cut = draw.randrange(len(body))
    return resealed(json.dumps(value, separators=(",", ":")).encode(), body[cut:] + body[:cut])


def values_length(data: bytes, draw: random.Random) -> bytes:
    header, body = parts_of(data)
    return resealed(header, resized(body, draw))


def length_edit(data: bytes, draw: random.Random) -> bytes:
    header, body = parts_of(data)
    length = draw.choice((0, 1, len(header) - 1, len(header) + 1, len(header) + len(body), 2**31, 2**32 - 1))
    return resealed(header, body, length)


def flipped(data: bytes, draw: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 8))):
        changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def resized(data: bytes, draw: random.Random) -> bytes:
    cut = draw.randrange(len(data))
    return draw.choice((data[:cut], data + data[cut:], data[cut:], data[:cut] + b"\0" + data[cut:], b""))


def header_bombs() -> Iterator[bytes]:
    """Headers that would cost a careless reader memory or time."""

    def header(rows: Any) -> bytes:
        return json.dumps(rows).encode()

    for count in (1_000, 100_000):
        yield header([[f"n{i}", "float32", [0]] for i in range(count)])
        yield header([["n", "float32", [0]]] * count)
        yield header([[]] * count)
        yield b"[" * count + b"]" * count
        yield b'{"n":' * count
        yield header([["n" * count, "float32", [1]]])
        yield header([["n", "float32", [1] * count]])
        yield header([["n", "float32" * count, [1]]])
        yield b'[["n","float32",[' + b"9" * count + b"]]]"
        yield b'[["n","float32",[' + b"1e9," * count + b"1]]]"
        yield b" " * count + header([])
        yield b'"' + b"\\u0000" * count + b'"'
    shapes = ([2**31 - 1], [2**31 - 1] * 2, [2**31 - 1] * 3 + [0], [2**30, 0], [1] * 33, [-1], [1.0], [True])
    kinds = ("float32", "float16", "int64", "object")
    for shape, dtype, name in product(shapes, kinds, ("model/scale", "model/none", "n")):
        yield header([[name, dtype, shape]])
    yield b'[["n","float32",[1' + b"0" * 5000 + b"]]]"
    yield from (
        b"",
        b"null",
        b"[]",
        b"{}",
        b'"x"',
        b"1",
        b"\xff\xfe",
        b"NaN",
        b'[{"a":1}]',
        b'{"tensors":{}}',
    )


Ways = tuple[tuple[int, Callable[..., bytes]], ...]
MUTATIONS: Ways = (
    (16, head_edit), (4, head_torn), (20, sections_edit), (10, sections_blotted), (6, sections_swapped), (6, sections_doubled),
    (6, sections_length), (10, sections_recoded), (8, frame_edit), (10, flipped), (6, resized), (4, spliced), (8, relabelled),
)  # fmt: skip
DESCRIBED: Ways = (
    (40, header_edit), (10, header_bytes_edit), (8, values_edit), (6, values_swapped), (6, values_length),
    (4, length_edit), (14, flipped), (8, resized), (4, spliced),
)  # fmt: skip


def mutated(codec: str, number: int) -> tuple[str, bytes]:
    """Packet `number` of a codec, and what was done to it; the same every time."""
    all_bombs = bombs_of(codec)
    if number < len(all_bombs):
        return "bomb", all_bombs[number]
    draw = random.Random(SEED * 10**9 + number)
    weights, ways = zip(*(DESCRIBED if codec in DESCRIBED_KINDS else MUTATIONS), strict=True)
    [way] = draw.choices(ways, weights)
    data, others = bench(codec).honest, bench(codec).others
    among = way in (spliced, relabelled)
    return way.__name__, way(data, draw, others) if among else way(data, draw)


@cache
def bombs_of(codec: str) -> list[bytes]:
    """The first packets of every codec."""
    on = bench(codec)
    if codec not in DESCRIBED_KINDS:
        return list(coded_bombs(on))
    _, body = parts_of(on.honest)
    return [resealed(text, end) for text in header_bombs() for end in (b"", body)]


# --- the check ---


@dataclass
class Result:
    """What was tried; what was taken and what refused; the slowest, and the largest allocation; what went wrong."""

    tried: Counter[str] = field(default_factory=Counter)
    taken: int = 0
    traced: int = 0
    slowest: float = 0.0
    largest: float = 0.0  # share of what the codec may allocate
    wrong: list[str] = field(default_factory=list)

    def __iadd__(self, other: Result) -> Result:
        self.tried += other.tried
        self.taken, self.traced = self.taken + other.taken, self.traced + other.traced
        self.slowest, self.largest = max(self.slowest, other.slowest), max(self.largest, other.largest)
        self.wrong += other.wrong
        return self


def decoded(on: Bench, data: bytes) -> bool:
    """Whether the server takes the packet. What it takes has been through the gate too."""
    try:
        tensors = on.link.decode("client-000", Packet({}, (data,)), on.expected, LATE)
        on.expected.check(tensors, 10)
    except (BadPacket, Refused) as error:
        assert len(str(error)) <= 250 and str(error).isprintable(), "the reason is one short line"
        return False
    return True


def raw(on: Bench, data: bytes) -> None:
    """As whoever does not know what must come reads it."""
    try:
        if on.expected.coded:
            dict(on.codec.decode(data, {}))
        else:
            described.decode(data)
    except BadPacket:
        pass


def check(codec: str, numbers: Iterable[int]) -> Result:
    """Decodes these packets of a codec."""
    on, result = bench(codec), Result()
    warnings.simplefilter("error")  # a stranger's packet must not make the server say things either
    for number in numbers:
        way, data = mutated(codec, number)
        result.tried[f"{codec} {way}"] += 1
        repeat = f"python -m tests.chaos packets --codec {codec} --number {number}"
        try:
            began = time.process_time()
            result.taken += decoded(on, data)
            seconds = time.process_time() - began
            if seconds > SLOW:  # the machine may have been busy: the fastest of three more counts
                seconds = min(seconds, *(_timed(on, data) for _ in range(3)))
            result.slowest = max(result.slowest, seconds)
            if seconds > SLOW:
                result.wrong.append(f"{repeat}: {way} took {seconds:.3f} s")
            if number % TRACED == 0 or way == "bomb":
                share = _allocated(on, data) / on.most
                result.traced, result.largest = result.traced + 1, max(result.largest, share)
                if share > 1:
                    result.wrong.append(f"{repeat}: {way} allocates {share * on.most:.0f} bytes of {on.most}")
            if number % 10 == 0 or way == "bomb":
                raw(on, data)
        except Exception as error:
            result.wrong.append(f"{repeat}: {way} raised {type(error).__name__}: {str(error)[:100]}")
    return result


def check_large(codec: str) -> Result:
    """Bombs against a network for which a frame of 1 GiB is not too long a packet: none costs more than an honest packet."""
    on, result = bench(codec, LARGE), Result()
    packets = list(coded_bombs(on))
    most = max(on.most, 1.1 * max(_allocated(on, on.honest) for _ in range(2)))
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    before = _resident()
    for number, data in enumerate(packets):
        result.tried[f"{codec} large bomb"] += 1
        try:
            seconds = min(_timed(on, data) for _ in range(2))
            share = _allocated(on, data) / most
        except Exception as error:
            result.wrong.append(
                f"large bomb {number} of {codec} raised {type(error).__name__}: {str(error)[:100]}"
            )
            continue
        result.traced += 1
        result.slowest, result.largest = max(result.slowest, seconds), max(result.largest, share)
        if seconds > SLOW or share > 1:
            result.wrong.append(
                f"large bomb {number} of {codec}: {seconds:.3f} s, {share:.2f} of what it may allocate"
            )
    if _resident("VmHWM") - before > GROWTH:  # also what a library allocates beside Python
        result.wrong.append(f"large bombs of {codec} took {_resident('VmHWM') - before} bytes of memory")
    return result


def _resident(which: str = "VmRSS") -> int:
    """Bytes of this process in memory, now or at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(which)).split()[1])


def _timed(on: Bench, data: bytes) -> float:
    began = time.process_time()
    decoded(on, data)
    return time.process_time() - began


def _allocated(on: Bench, data: bytes) -> int:
    """Most bytes that were held at once while decoding, beside the packet."""
    tracemalloc.start()
    try:
        decoded(on, data)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def check_all(total: int, workers: int = 2, chunk: int = 5_000) -> Result:
    """`total` packets, in equal shares over the codecs, on `workers` processes."""
    share = total // len(CODECS)
    tasks = [(c, range(n, min(n + chunk, share))) for c in CODECS for n in range(0, share, chunk)]
    result = Result()
    with ProcessPoolExecutor(workers, multiprocessing.get_context("forkserver")) as pool:
        for part in pool.map(check, *zip(*tasks, strict=True)):
            result += part
        for part in pool.map(check_large, [c for c in CODECS if c not in DESCRIBED_KINDS]):
            result += part
    return result
