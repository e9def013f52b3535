"""A million packets nobody would send: bytes altered, headers edited and sealed again, bombs. Each is decoded as the server does.

Whatever a packet holds, the server must get the tensors that it asked for or a BadPacket; it must not allocate more than
these tensors need, nor be held up.
"""

from __future__ import annotations

import copy
import json
import multiprocessing
import random
import time
import tracemalloc
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from itertools import product
from typing import Any

import numpy as np
from xxhash import xxh3_64

from osmotic import codecs
from osmotic.codecs.base import HEAD, MAGIC, BadPacket
from osmotic.federation.uplink import UpLink
from osmotic.flat import Flat, FlatLayout
from osmotic.protocol.gate import Expectation, Refused
from osmotic.protocol.messages import Packet, Spec

SEED = 20
SLOW = 0.050  # seconds of processor time that no packet may take
TRACED = 100  # every so many packets are decoded with all allocations counted
FIXED = 64 * 2**10  # bytes beside tensors and packet: the parsed header
CODECS: dict[str, dict[str, Any]] = {
    "fp32": {"name": "fp32"},
    "fp16": {"name": "fp16"},
    "int8": {"name": "int8"},
    "int8-stochastic": {"name": "int8", "options": {"int8": {"stochastic": True}}},
    "int8-feedback": {"name": "int8", "error_feedback": True},
}
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
        return 2 * sum(4 * s.size for s in self.expected.coded.values()) + FIXED


@cache
def bench(codec: str) -> Bench:
    """Made once per process."""
    rng = np.random.default_rng(SEED)
    tensors = Flat.of(WHOLE, {n: rng.normal(0, 0.01, s).astype(np.float32) for n, s in LAYOUT.items()})
    coded = {
        n: codecs.make(k["name"], k.get("error_feedback", False), k.get("options")).encode(tensors, {}, rng)
        for n, k in CODECS.items()
    }
    kind = CODECS[codec]
    expected = Expectation(
        {n: Spec(s, wire="codec", counts=True) for n, s in LAYOUT.items()}, {}, 100, 1000.0, 10, 100, WHOLE
    )
    link = UpLink(codecs.make(kind["name"], kind.get("error_feedback", False), kind.get("options")))
    return Bench(link, expected, coded[codec], [data for n, data in coded.items() if n != codec])


# --- mutations ---


def sealed(header: bytes, body: bytes, length: int | None = None) -> bytes:
    """A packet whose checksum fits, whatever it holds."""
    crc = xxh3_64(header + body).intdigest()
    return HEAD.pack(MAGIC, crc, len(header) if length is None else length) + header + body


def taken_apart(data: bytes) -> tuple[bytes, bytes]:
    """Header and sections of an honest packet."""
    end = HEAD.size + HEAD.unpack_from(data)[2]
    return data[HEAD.size : end], data[end:]


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
    header, body = taken_apart(data)
    value = json.loads(header)
    for _ in range(draw.choice((1, 1, 2, 4))):
        value = edited(value, draw)
    return sealed(json.dumps(value, separators=(",", ":")).encode(errors="surrogatepass"), body)


def header_bytes_edit(data: bytes, draw: random.Random) -> bytes:
    header, body = taken_apart(data)
    return sealed(flipped(header, draw), body)


def sections_edit(data: bytes, draw: random.Random) -> bytes:
    header, body = taken_apart(data)
    return sealed(header, flipped(body, draw))


def sections_swapped(data: bytes, draw: random.Random) -> bytes:
    header, body = taken_apart(data)
    value = json.loads(header)
    draw.shuffle(value["tensors"])
    cut = draw.randrange(len(body))
    return sealed(json.dumps(value, separators=(",", ":")).encode(), body[cut:] + body[:cut])


def sections_length(data: bytes, draw: random.Random) -> bytes:
    header, body = taken_apart(data)
    return sealed(header, resized(body, draw))


def head_edit(data: bytes, draw: random.Random) -> bytes:
    header, body = taken_apart(data)
    length = draw.choice((0, 1, len(header) - 1, len(header) + 1, len(header) + len(body), 2**31, 2**32 - 1))
    return sealed(header, body, length)


def flipped(data: bytes, draw: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 8))):
        changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def resized(data: bytes, draw: random.Random) -> bytes:
    cut = draw.randrange(len(data))
    return draw.choice((data[:cut], data + data[cut:], data[cut:], data[:cut] + b"\0" + data[cut:], b""))


def spliced(data: bytes, draw: random.Random, others: list[bytes]) -> bytes:
    other = draw.choice(others)
    cut = draw.randrange(len(data))
    return draw.choice((other, data[:cut] + other[cut:], other[:cut] + data[cut:], data + other))


def bombs() -> Iterator[bytes]:
    """Headers that would cost a careless reader memory or time; every one with a checksum that fits."""

    def header(tensors: Any, **more: Any) -> bytes:
        return json.dumps({"codec": "CODEC", "tensors": tensors, **more}).encode()

    for count in (1_000, 100_000):
        yield header([[f"n{i}", "float32", [0], "raw"] for i in range(count)])
        yield header([["n", "float32", [0], "raw"]] * count)
        yield header([[]] * count)
        yield b"[" * count + b"]" * count
        yield b'{"codec":' * count
        yield header([["n" * count, "float32", [1], "raw"]])
        yield header([["n", "float32", [1] * count, "raw"]])
        yield header([["n", "float32", [1], "raw" * count]])
        yield header([], lengths=["1" * count])
        yield b'{"codec":"CODEC","tensors":[["n","float32",[' + b"9" * count + b'],"raw"]]}'
        yield b'{"codec":"CODEC","tensors":[["n","float32",[' + b"1e9," * count + b'1],"raw"]]}'
        yield b" " * count + header([])
        yield b'"' + b"\\u0000" * count + b'"'
    shapes = ([2**31 - 1], [2**31 - 1] * 2, [2**31 - 1] * 3 + [0], [2**30, 0], [1] * 33, [-1], [1.0], [True])
    for shape, form, name in product(shapes, ("raw", "q8", "f2", "f4"), ("model/scale", "model/none", "n")):
        yield header([[name, "float32", shape, form]])
    yield b'{"codec":"CODEC","tensors":[["n","float32",[1' + b"0" * 5000 + b'],"raw"]]}'
    yield from (b"", b"null", b"[]", b"{}", b'"x"', b"1", b"\xff\xfe", b"NaN", b'{"codec":1}')
    yield b'{"codec":"CODEC","tensors":{}}'


MUTATIONS: tuple[tuple[int, Callable[..., bytes]], ...] = (
    (40, header_edit), (10, header_bytes_edit), (8, sections_edit), (6, sections_swapped), (6, sections_length),
    (4, head_edit), (14, flipped), (8, resized), (4, spliced),
)  # fmt: skip


def mutated(codec: str, number: int) -> tuple[str, bytes]:
    """Packet `number` of a codec, and what was done to it; the same every time."""
    all_bombs = bombs_of(codec)
    if number < len(all_bombs):
        return "bomb", all_bombs[number]
    draw = random.Random(SEED * 10**9 + number)
    weights, ways = zip(*MUTATIONS, strict=True)
    [way] = draw.choices(ways, weights)
    data, others = bench(codec).honest, bench(codec).others
    return way.__name__, way(data, draw, others) if way is spliced else way(data, draw)


@cache
def bombs_of(codec: str) -> list[bytes]:
    """The first packets of every codec."""
    _, body = taken_apart(bench(codec).honest)
    name = CODECS[codec]["name"].encode()
    return [sealed(text.replace(b"CODEC", name), end) for text in bombs() for end in (b"", body)]


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
        tensors = on.link.decode("client-000", Packet({}, (data,)), on.expected)
        on.expected.check(tensors, 10)
    except (BadPacket, Refused) as error:
        assert len(str(error)) <= 250 and str(error).isprintable(), "the reason is one short line"
        return False
    return True


def raw(on: Bench, data: bytes) -> None:
    """As whoever does not know what must come reads it."""
    try:
        for _ in on.link.codec.decode(data, {}):
            pass
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
    return result
