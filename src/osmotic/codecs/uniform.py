"""int8, int4, int2: numbers rounded to equal steps, one scale per output channel.

The quantisation of FedDM-quant (arXiv 2407.14730), whose bit widths and calibration are not published: 8 bits is its
factor of 4, the others are ours. Symmetric; q = round(x / s), x' = q s:

    int8  q in -127..127         s from the channel's peak
    int4  q in -7..7             s by least squared error, or from the peak
    int2  q in -1.5 -0.5 0.5 1.5 likewise: four levels beside zero err less than three with it

Biases and norms are 8 bits in all three, with one scale for each vector: there are few of them, and 4 bytes each would be
more than all codes of `int2` may cost together. A weight of int8 is off by at most 0.42 % of its channel's peak, down to peaks a
60,000th of the tensor's.

Section: bases of the tensors' scales, 16 bits each | 8 bits for the scale of each channel of the others than vectors | codes: of
int8 as they lie, else those of the vectors, then those of the others, packed. With `entropy` a byte says whether all of it is compressed by Zstandard (RFC 8878).
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np

from osmotic.codecs import entropy as zstd
from osmotic.codecs import scales
from osmotic.codecs.base import BadPacket
from osmotic.codecs.buffer import BufferCodec, Row
from osmotic.config.keys import key

BYTE_LEVELS = 127  # of int8's -128 to 127: as many steps below zero as above
# Candidates for a clipped scale, as shares of the peak's: 1 down to 0.35 in steps of 1/8 octave.
CLIPS = scales.STEPS[: 2 * 13 : 2]
SAMPLES = 48  # numbers of a channel by which its scale is chosen
THREADED = 4 * 2**20  # numbers from which two threads pay


@dataclass(frozen=True, kw_only=True)
class Uniform(BufferCodec):
    """What the three have in common. Section as above."""

    stochastic: bool = key(
        False,
        "round up or down at random, so that the mean of many codes is the value itself, where none is clipped",
    )
    entropy: bool = key(False, "compress the codes without loss (Zstandard)")

    bits = 8
    version = 2  # 1 had vectors in fp32

    @property
    def bounded(self) -> bool:  # type: ignore[override]
        """Whether lengths depend on the data."""
        return self.entropy

    @property
    def _clips(self) -> bool:
        return False

    @property
    def _levels(self) -> float:
        """The largest code, in steps."""
        return {8: 127.0, 4: 7.0, 2: 1.5}[self.bits]

    # --- bytes ---

    def row_bytes(self, row: Row) -> tuple[int, int]:
        """Least and most bytes, as `BufferCodec.row_bytes`."""
        most = self._plain_bytes(row)
        return (1, 1 + most) if self.entropy else (most, most)

    def _plain_bytes(self, row: Row) -> int:
        many = sum(s.stop - s.start for s in row.matrices)
        few = row.size - many
        codes = few + -(-many * self.bits // 8) if self.bits < 8 else row.size
        return 2 * len(row.names) + len(row.shared) + codes

    def write(self, values: np.ndarray, row: Row, rng: np.random.Generator | None) -> bytes:
        """As `BufferCodec.write`: float32 [row.size] as bytes.

        Args:
            rng: where `stochastic` draws from; None rounds to nearest.
        Raises: ValueError naming the tensor for NaN, or where a scale would be above MAX_SCALE.
        """
        levels = _levels(row, self._levels)
        need = self._needed(values, row, levels)
        if row.names and not np.all(need <= scales.MAX_SCALE):  # also false for NaN
            raise ValueError(f"{_first_bad(row, need)}: a value is not finite or too large for a scale")
        peaks = np.maximum.reduceat(need, row.first) if row.names else need
        upper = scales.bases(peaks)
        base = np.repeat(scales.widened(upper), row.channels)
        down = scales.steps_down(base, need)
        own = row.shared
        # A tensor of one channel has its base for a scale.
        alone = np.ones(len(need), bool)
        alone[own] = False
        down[alone & (base > 0)] = 0
        scale = base * scales.STEPS[down]
        codes = self._codes(values, row, scale, levels, rng)
        data = upper.astype("<u2").tobytes() + down[own].tobytes() + self._packed(codes, row)
        return zstd.compress(data) if self.entropy else data

    def load(self, data: memoryview, row: Row) -> np.ndarray:
        """As `BufferCodec.load`: float32 [row.size]; off by at most half a scale, by a scale where `stochastic`, by more where it was clipped.

        Raises: BadPacket for a scale that is negative, not finite or above MAX_SCALE; for codes beside a scale of zero.
        """
        plain = memoryview(zstd.decompress(data, self._plain_bytes(row))) if self.entropy else data
        count, own = len(row.names), row.shared
        base = np.repeat(scales.checked(np.frombuffer(plain[: 2 * count], "<u2")), row.channels)
        down = np.zeros(len(base), np.uint8)
        down[own] = np.frombuffer(plain[2 * count : 2 * count + len(own)], np.uint8)
        scale = base * scales.STEPS[down]
        codes = self._unpacked(plain[2 * count + len(own) :], row)
        values = np.empty(row.size, np.float32)

        def fill(block: tuple[slice, slice]) -> None:
            channels, numbers = block
            part = values[numbers]
            np.copyto(part, codes[numbers])
            if self.bits == 2:
                part -= np.repeat(_offsets(row)[channels], row.lengths[channels])
            part *= np.repeat(scale[channels], row.lengths[channels])

        _each(fill, row)
        zero = scale == 0
        if self.bits == 2:  # a level beside zero times zero is zero
            zero &= row.is_vector
        if zero.any():
            bad = np.logical_or.reduceat(codes != 0, row.starts)[zero] if len(row.starts) else zero
            if np.any(bad):
                raise BadPacket("a scale is zero before codes that are not")
        return values

    # --- scales ---

    def _needed(self, values: np.ndarray, row: Row, levels: np.ndarray) -> np.ndarray:
        """The scale that each channel asks for, float32 [channels]."""
        need = np.empty(len(row.starts), np.float32)

        def peaks(block: tuple[slice, slice]) -> None:
            channels, numbers = block
            starts = row.starts[channels] - numbers.start
            need[channels] = np.maximum.reduceat(np.abs(values[numbers]), starts)

        _each(peaks, row)
        with np.errstate(invalid="ignore"):
            need /= levels
        # The quotient may have been rounded down: one more bit, so that no code leaves its range.
        need = np.nextafter(need, np.float32(np.inf), where=need > 0, out=need)
        if not self._clips or not np.all(np.isfinite(need)):
            return need
        return self._clipped(values, row, need, levels)

    def _clipped(self, values: np.ndarray, row: Row, need: np.ndarray, levels: np.ndarray) -> np.ndarray:
        """Scales of least squared error on a strided sample of each channel, float32 [channels]."""
        own = np.flatnonzero(~row.is_vector)
        if not len(own):
            return need
        at = row.starts[own, None] + (np.arange(SAMPLES) * row.lengths[own, None]) // SAMPLES
        sample = values[at]  # [channels, SAMPLES]
        best, error = need[own], np.full(len(own), np.inf, np.float32)
        half = np.float32(0.5 if self.bits == 2 else 0)  # the four levels of 2 bits lie half-way
        for clip in CLIPS:
            scale = need[own] * clip
            inverse = np.where(scale >= scales.LEAST, 1 / np.maximum(scale, scales.LEAST), 0)
            off = np.rint(sample * inverse[:, None] - half) + half
            np.clip(off, -self._levels, self._levels, out=off)
            off *= scale[:, None]
            off -= sample
            found = np.einsum("ij,ij->i", off, off)
            better = found < error
            best, error = np.where(better, scale, best), np.where(better, found, error)
        need = need.copy()
        need[own] = best
        return need

    # --- codes ---

    def _codes(
        self,
        values: np.ndarray,
        row: Row,
        scale: np.ndarray,
        levels: np.ndarray,
        rng: np.random.Generator | None,
    ) -> np.ndarray:
        """Codes as they are stored, int8 [row.size]: of 2 bits 0 to 3, else the steps themselves."""
        codes = np.empty(row.size, np.int8)
        inverse = np.where(scale > 0, 1 / np.where(scale > 0, scale, 1), 0).astype(np.float32)
        draws = rng.random(row.size, np.float32) if rng is not None and self.stochastic else None
        vector = row.is_vector

        def fill(block: tuple[slice, slice]) -> None:
            channels, numbers = block
            lengths = row.lengths[channels]
            x = values[numbers] * np.repeat(inverse[channels], lengths)
            half = np.repeat(_offsets(row)[channels], lengths) if self.bits == 2 else None
            if half is not None:
                x += half  # codes 0 to 3 are whole again
            if draws is not None:
                x += draws[numbers]
                np.floor(x, out=x)
            else:
                np.rint(x, out=x)
            # A scale from the peak keeps every code within its range, as the least bit more that it has outweighs all rounding.
            if half is None and (self._clips or draws is not None):
                most = np.repeat(levels[channels], lengths)
                np.clip(x, -most, most, out=x)
            elif half is not None:
                most = np.repeat(levels[channels], lengths)
                np.clip(x, np.where(half > 0, 0, -most), np.where(half > 0, 3, most), out=x)
                x[np.repeat((scale[channels] == 0) & ~vector[channels], lengths)] = 0
            codes[numbers] = x

        _each(fill, row)
        return codes

    def _packed(self, codes: np.ndarray, row: Row) -> bytes:
        if self.bits == 8:
            return codes.tobytes()
        few = np.concatenate([codes[s] for s in row.vectors] or [codes[:0]])
        many = np.concatenate([codes[s] for s in row.matrices] or [codes[:0]])
        share = 8 // self.bits
        padded = np.zeros(-(-len(many) // share) * share, np.uint8)
        np.add(many, 8 if self.bits == 4 else 0, out=padded[: len(many)], casting="unsafe")
        packed = padded[::share].copy()
        for i in range(1, share):
            packed |= padded[i::share] << (self.bits * i)
        return few.tobytes() + packed.tobytes()

    def _unpacked(self, data: memoryview, row: Row) -> np.ndarray:
        if self.bits == 8:
            codes = np.frombuffer(data, np.int8)
            if np.any(codes == -128):
                raise BadPacket("a code is -128, which none is")
            return codes
        count = sum(s.stop - s.start for s in row.vectors)
        few, packed = np.frombuffer(data[:count], np.int8), np.frombuffer(data[count:], np.uint8)
        many = _codes_in_a_byte(self.bits)[packed].reshape(-1)
        size = row.size - count
        if np.any(many[size:] != (-8 if self.bits == 4 else 0)) or np.any(few == -128):
            raise BadPacket("a code is none of its codec's")
        many = many[:size]
        if self.bits == 4 and np.any(many == -8):
            raise BadPacket("a code is none of its codec's")
        codes, seen = np.empty(row.size, np.int8), [0, 0]
        for which, (places, source) in enumerate(((row.vectors, few), (row.matrices, many))):
            for place in places:
                n = place.stop - place.start
                codes[place] = source[seen[which] : seen[which] + n]
                seen[which] += n
        return codes


@dataclass(frozen=True, kw_only=True)
class Int8(Uniform):
    """8 bits a weight."""

    name = "int8"
    bits = 8


@dataclass(frozen=True, kw_only=True)
class Clipped(Uniform):
    """Few bits: the largest numbers of a channel may be cut, where that loses less than coarser steps."""

    clip: Literal["mse", "max"] = key("mse", "scale of a channel: by least squared error, or from its peak")

    version = 1

    @property
    def _clips(self) -> bool:
        return self.clip == "mse"


@dataclass(frozen=True, kw_only=True)
class Int4(Clipped):
    """4 bits a weight."""

    name = "int4"
    bits = 4


@dataclass(frozen=True, kw_only=True)
class Int2(Clipped):
    """2 bits a weight."""

    name = "int2"
    bits = 2


def _levels(row: Row, most: float) -> np.ndarray:
    """The largest code of each channel, float32 [channels]."""
    return np.where(row.is_vector, np.float32(BYTE_LEVELS), np.float32(most)).astype(np.float32)


def _offsets(row: Row) -> np.ndarray:
    """What turns the four levels of 2 bits into 0 to 3, by channel, float32 [channels]: 1.5, of vectors 0."""
    return np.where(row.is_vector, np.float32(0), np.float32(1.5)).astype(np.float32)


def _first_bad(row: Row, need: np.ndarray) -> str:
    channel = int(np.flatnonzero(~(need <= scales.MAX_SCALE))[0])
    return row.names[int(np.searchsorted(np.cumsum(row.channels), channel, side="right"))]


@lru_cache
def _codes_in_a_byte(bits: int) -> np.ndarray:
    """The codes of every byte, int8 [256, 8 / bits], lowest bits first; of 4 bits less 8."""
    byte = np.arange(256)[:, None] >> (bits * np.arange(8 // bits)) & (2**bits - 1)
    return (byte - (8 if bits == 4 else 0)).astype(np.int8)


def _each(work: object, row: Row) -> None:
    """Calls `work` with each block of the row; on two threads where that pays."""
    if row.size < THREADED:
        for block in row.blocks if row.size else ():
            work(block)  # type: ignore[operator]
        return
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(work, row.blocks))  # type: ignore[arg-type]
