"""learned: a network predicts a change from a short code; encoder at the sender, decoder at the receiver, both ways.

The widely read summary of FedDM (arXiv 2407.14730) has such a network and says no more of it; its form is ours. Changes are turned into
the directions in which those before them lay (`codecs/subspaces.py`, at most `share` of the model's size), rounded to
steps, and coded by a range coder (the library `constriction`) under what the network expects of each: most are 0 and take a fraction of a bit.
The step is chosen for each packet so that it takes `bits` per weight. What is lost is kept by the sender: `codec.error_feedback`.

The first `warmup` rounds travel as `warmup_codec`, and the network is learned on the server from what they brought, in closed form:
nothing is drawn. Every `every` rounds it is learned anew from all replies as decoded, those of `every` rounds ago at half their
weight, and sent to each client once. No raw chunks are attached: with a square network nothing is out of its reach, so that what is
decoded over some rounds has the directions of what was meant. Offline (experiments/frontier/renewal.py: 20 rounds of real changes of 10 clients, 0.5 bits a weight, feedback)
residuals came level at 2.4 times the change's energy with the network of the warm-up, at 1.7 renewed every five rounds from decoded
replies, at 1.7 with one raw change a round beside them, at 1.5 with all of them raw. A network costs 39 kB for `unet-8`, 0.45 bits a weight once.

Section: u32 version of the network | f32 step | for each class of coefficients that occurs the largest code, how often each magnitude
occurs, what a code of 1 stands for | words of the range coder.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np

from osmotic.codecs import scales, subspaces
from osmotic.codecs.base import BadPacket, Codec
from osmotic.codecs.buffer import BufferCodec, Row
from osmotic.codecs.subspaces import CLASSES, Subspaces
from osmotic.codecs.uniform import Int2, Int4, Int8
from osmotic.config.keys import key
from osmotic.flat import FlatLayout
from osmotic.tensors import Tensors, group, grouped

HEAD = struct.Struct("<If")
LARGEST = 127  # of a code
DEAD = np.float32(0.62)  # a coefficient below this many steps becomes 0; 0.5 would be plain rounding
SAMPLE = 8  # every so many-th coefficient tells the rate
SLACK = 1.25  # a packet may be longer than it aimed at, by so much
WARM = {"int8": Int8, "int4": Int4, "int2": Int2}


@dataclass(kw_only=True, eq=False)
class Learned(BufferCodec):
    """Section as above. The network is the codec's state: set by `learn` and `refresh` on the server, by `adopt` elsewhere."""

    name = "learned"
    bounded = True
    trained = True
    reveals = "the network that every site is sent holds the main directions of all sites' changes, mixed, and how large they are along them"

    bits: float = key(0.5, "bits per weight that a packet of the way up aims at", 0.01, 4)
    down_bits: float = key(0.5, "likewise of the way down", 0.01, 4)
    warmup: int = key(2, "first rounds, which travel as warmup_codec and are learned from", 1, 1000)
    warmup_codec: Literal["int8", "int4", "int2"] = key(
        "int8", "codec of the first rounds, with entropy coding"
    )
    every: int = key(10, "rounds after which the network is learned anew and sent again", 1, 100_000)
    share: float = key(0.1, "largest size of the network, as a share of the model's weights", 0.001, 0.1)

    def __post_init__(self) -> None:
        # No fields of the dataclass: these are its options.
        self._layout: FlatLayout | None = None
        self._aim = self.bits
        self._data: np.ndarray | None = None  # weights of the network, uint8 [bytes]
        self._before: np.ndarray | None = None  # those before them
        self._sums: Tensors = {}  # moments of changes, "NAME/AXIS" -> float32 [n, n]

    # --- which codec, which network ---

    def prepare(self, layout: FlatLayout, direction: str = "up") -> None:
        """As `Codec.prepare`."""
        self._layout = layout
        self._aim = self.down_bits if direction == "down" else self.bits

    def in_round(self, server_round: int) -> Codec:
        """The codec of the warm-up in its rounds, else this one."""
        return WARM[self.warmup_codec](entropy=True) if server_round <= self.warmup else self

    def new_weights(self, server_round: int) -> Mapping[str, tuple[str, tuple[int, ...]]] | None:
        """As `Codec.new_weights`; needs `prepare`."""
        learns = server_round > self.warmup and (server_round - self.warmup - 1) % self.every == 0
        if not learns or self._layout is None:
            return {}
        return {"net": ("uint8", (subspaces.most_bytes(self._layout, self.share),))}

    def _nets(self, row: Row) -> list[Subspaces]:
        """The network in use, then those of which packets may still be about."""
        _one_thread()
        layout = self._layout
        if layout is None or not set(subspaces.names(row.layout)) <= set(layout):
            return [
                subspaces.subspaces(row.layout.named(""), None)
            ]  # tensors of no network that it was told of
        # Last the one that has learned nothing: before there was any, packets were written with it.
        used = [data for data in (self._data, self._before) if data is not None]
        return [subspaces.subspaces(layout, data) for data in [*used, None]]

    # --- learning, on the server ---

    def observe(self, tensors: Mapping[str, np.ndarray], client: str = "") -> Tensors:
        """Second moments of a reply's change, "NAME/AXIS" -> float32 [n, n]."""
        if self._layout is None:
            return {}
        return subspaces.moments(group(tensors, "model"), self._layout)

    def learn(self, observed: Mapping[str, Tensors]) -> None:
        """Adds the moments [n, n] of a phase that counts; those before it fade."""
        if not any(observed.values()):
            return
        fade = np.float32(0.5 ** (1 / self.every))
        sums = {name: moment * fade for name, moment in self._sums.items()}
        for client in sorted(observed):
            for name, moment in observed[client].items():
                sums[name] = sums[name] + moment if name in sums else moment
        self._sums = sums

    def refresh(self, server_round: int, rng: np.random.Generator | None = None) -> Tensors | None:
        """Weights of a network learned anew, "net" uint8 [bytes], every `every` rounds, else None. Nothing is drawn."""
        if not self.new_weights(server_round) or not self._sums or self._layout is None:
            return None
        _one_thread()
        self._data = subspaces.trained(self._layout, self._sums, self.share)
        return {"net": self._data}

    def kept(self, old: Tensors, new: Tensors) -> Tensors:
        """The network's weights, "net" uint8 [bytes], and those before them, "before": packets that were missed may need these."""
        return {**new, "before": old["net"]} if "net" in old else new

    def adopt(self, tensors: Mapping[str, np.ndarray]) -> None:
        """Takes over the network's weights, "net" uint8 [bytes], and "before", where there are any."""
        self._data, self._before = tensors["net"], tensors.get("before")

    def state(self) -> Tensors:
        """Network and moments, for the checkpoint: "net" uint8 [bytes], "sums/NAME/AXIS" float32 [n, n]."""
        return grouped("sums", self._sums) | ({} if self._data is None else {"net": self._data})

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """The inverse of `state`, of arrays [...]."""
        self._data, self._sums = state.get("net"), group(state, "sums")

    # --- packets ---

    def row_bytes(self, row: Row) -> tuple[int, int]:
        """Least and most bytes, as `BufferCodec.row_bytes`."""
        if not row.size:
            return 0, 0
        return HEAD.size, HEAD.size + self._most(row)

    def _most(self, row: Row) -> int:
        """Most bytes of tables and words; those of a change of zeros always fit."""
        return int(SLACK * self._aim * row.size / 8) + 256

    def write(self, values: np.ndarray, row: Row, rng: np.random.Generator | None) -> bytes:
        """As `BufferCodec.write`: float32 [row.size]; nothing is drawn.

        Raises: ValueError naming the tensor for what is not finite or too large for a scale.
        """
        if not row.size:
            return b""
        size = np.abs(values)
        if not size.max() <= scales.MAX_SCALE:
            place = int(np.flatnonzero(~(size <= scales.MAX_SCALE))[0])
            name = next(n for n in row.names if place < row.layout.slices[n].stop)
            raise ValueError(f"{name}: a value is not finite or too large for a scale")
        net = self._nets(row)[0]
        order, classes = _order(net, row)
        coefficients = net.turned(values, row.layout)[order]
        step, most = _step(coefficients, classes, self._aim), self._most(row)
        while True:
            data = _coded(coefficients, classes, step)
            # The sample may have been too kind, or the tables be much beside few numbers.
            if len(data.tables) + len(data.words) <= most:
                return HEAD.pack(net.version, step) + data.tables + data.words
            step = float(np.float32(step * 1.1))

    def load(self, data: memoryview, row: Row) -> np.ndarray:
        """As `BufferCodec.load`: float32 [row.size].

        Raises: BadPacket for another version of the network, and for what nobody could have written.
        """
        if not row.size:
            return np.zeros(0, np.float32)
        nets = self._nets(row)
        version, step = HEAD.unpack(data[: HEAD.size])
        if version not in (known := [net.version for net in nets]):
            raise BadPacket(f"is of version {version:08x} of the learned network, here is {known[0]:08x}")
        net = nets[known.index(version)]
        if not 0 <= step <= scales.MAX_SCALE:  # also false for NaN
            raise BadPacket(f"a scale is not in 0..{scales.MAX_SCALE:g}")
        order, classes = _order(net, row)
        sorted_values = _decoded(data[HEAD.size :], classes, np.float32(step))
        coefficients = np.empty(row.size, np.float32)
        coefficients[order] = sorted_values
        with np.errstate(
            over="ignore", invalid="ignore"
        ):  # what overflows is not finite, which the gate refuses
            return net.turned(coefficients, row.layout, back=True)


@dataclass(frozen=True)
class _Data:
    tables: bytes
    words: bytes


@cache
def _one_thread() -> None:
    """Products of matrices on one thread from here on: their last bits may depend on how many there are."""
    from threadpoolctl import threadpool_limits

    threadpool_limits(1, user_api="blas")


def _order(net: Subspaces, row: Row) -> tuple[np.ndarray, np.ndarray]:
    """Places of the coefficients sorted by class, int64 [size], and their classes in that order, uint8 [size]."""
    key = tuple(row.names)
    found = net.orders.get(key)
    if found is None:
        classes = net.classes(row.layout)
        order = np.argsort(classes, kind="stable")
        found = order, classes[order]
        net.orders[key] = found
    return found


def _step(coefficients: np.ndarray, classes: np.ndarray, bits: float) -> float:
    """The step at which these coefficients, sorted by class, take `bits` each: by bisection on a sample, a float32."""
    if not coefficients.any():
        return 0.0
    every = SAMPLE if coefficients[::SAMPLE].any() else 1
    part, kinds = coefficients[::every], classes[::every].astype(np.int64) * (LARGEST + 1)
    power = float(np.mean(np.square(part, dtype=np.float64)))
    low, high = np.log2(power) / 2 - 5, np.log2(power) / 2 + 6
    # Where few coefficients hold nearly all, the bits would go into noise while these are cut at the largest code.
    least = float(np.abs(coefficients).max()) / LARGEST
    for _ in range(12):
        middle = (low + high) / 2
        magnitudes = np.abs(_rounded(part, np.float32(2.0**middle))).astype(np.int64)
        table = np.bincount(kinds + magnitudes, minlength=CLASSES * (LARGEST + 1))
        counts = table.reshape(CLASSES, LARGEST + 1).astype(np.float64)
        logs = np.log2(np.maximum(counts, 1)) - np.log2(np.maximum(counts.sum(axis=1, keepdims=True), 1))
        rate = (counts[:, 1:].sum() - (counts * logs).sum()) / len(part)  # a sign is a bit
        low, high = (middle, high) if rate > bits else (low, middle)
    return float(np.float32(max(2.0**high, least)))


def _rounded(coefficients: np.ndarray, step: np.float32) -> np.ndarray:
    """Codes, int8 [n], in -LARGEST..LARGEST."""
    if step == 0:
        return np.zeros(len(coefficients), np.int8)
    up = np.abs(coefficients) / step + (1 - DEAD)
    return np.copysign(np.minimum(np.floor(up), LARGEST), coefficients).astype(np.int8)


def _coded(coefficients: np.ndarray, classes: np.ndarray, step: float) -> _Data:
    """Tables and words of coefficients sorted by class."""
    import constriction

    codes = _rounded(coefficients, np.float32(step))
    magnitudes = np.abs(codes)
    coder, tables = constriction.stream.queue.RangeEncoder(), []
    for _, start, stop in subspaces.runs(classes):
        counts = np.bincount(magnitudes[start:stop])
        top = len(counts) - 1
        tables.append(bytes([top]))
        if not top:
            continue
        # Of 8 bits each, none of them 0: so both ends make the same model of them.
        shown = np.clip(np.round(counts * (255 / counts.max())), 1, 255).astype(np.uint8)
        one = magnitudes[start:stop] == 1
        mean = float(np.abs(coefficients[start:stop][one]).mean()) / step if one.any() else 1.0
        tables.append(shown.tobytes() + bytes([int(np.clip(round((mean - 0.5) * 255), 0, 255))]))
        coder.encode(codes[start:stop].astype(np.int32) + top, _model(shown))
    return _Data(b"".join(tables), coder.get_compressed().astype("<u4").tobytes())


def _decoded(data: memoryview, classes: np.ndarray, step: np.float32) -> np.ndarray:
    """The inverse of `_coded`, float32 [n]. Raises: BadPacket."""
    import constriction

    found: list[tuple[int, int, np.ndarray, int]] = []
    at = 0

    def take(size: int) -> np.ndarray:
        nonlocal at
        if at + size > len(data):
            raise BadPacket("is too short for its tables")
        at += size
        return np.frombuffer(data[at - size : at], np.uint8)

    for _, start, stop in subspaces.runs(classes):
        top = int(take(1)[0])
        if top > LARGEST:
            raise BadPacket(f"a code of {top} is above {LARGEST}")
        if top:
            shown = take(top + 1)
            if not shown.all():
                raise BadPacket("a table has a magnitude that never occurs")
            found.append((start, stop, shown, int(take(1)[0])))
    if (len(data) - at) % 4:
        raise BadPacket("holds no whole words")
    coder = constriction.stream.queue.RangeDecoder(np.frombuffer(data[at:], "<u4").astype(np.uint32))
    values = np.zeros(len(classes), np.float32)
    for start, stop, shown, one in found:
        levels = np.arange(len(shown), dtype=np.float32)
        levels[1] = np.float32(0.5) + np.float32(one) / np.float32(255)
        both = np.concatenate([-levels[:0:-1], levels]) * step
        try:
            values[start:stop] = both[coder.decode(_model(shown), stop - start)]
        except (AssertionError, ValueError):
            raise BadPacket("words of the range coder cannot be read") from None
    if not coder.maybe_exhausted():
        raise BadPacket("has more words than codes")
    return values


def _model(shown: Sequence[int] | np.ndarray) -> Any:
    """What is expected of codes -top..top, given how often each magnitude occurs, uint8 [top + 1]."""
    import constriction

    share = np.asarray(shown, np.float64)
    half = share[1:] / 2
    return constriction.stream.model.Categorical(np.concatenate([half[::-1], share[:1], half]), perfect=False)
