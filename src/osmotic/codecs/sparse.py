"""sparse: the largest numbers of each chunk, their places coded as gaps, their values in one or two bits.

Source: SparseLoCo (arXiv 2508.15706): top-k within chunks of 4096, values of 2 bits, with error feedback at the sender
(`codec.error_feedback`; on the way down the difference to the replica is one by itself). Departs from it: places are coded as gaps,
on a change of `unet-8` within 2 % of log2 binomial(chunk, k) down to a density of 0.5 %, 10 % above it at 0.1 %, where it sends 12 bits each; and `bits = 1` keeps signs alone. Updates of AdamW are so nearly
normal that the second bit saves 1 % of what the first keeps, and costs as much as a tenth more places.

Section: base of the chunks' scales, 16 bits | with 2 bits: low and high magnitude, 16 bits each | 8 bits for the scale of each
chunk | signs | which are high | low bits of the gaps | their high parts, by Zstandard.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from osmotic.codecs import entropy as zstd
from osmotic.codecs import scales
from osmotic.codecs.base import BadPacket
from osmotic.codecs.buffer import BufferCodec, Row
from osmotic.config.keys import key

MORE = 255  # a symbol of a gap that goes on


@dataclass(frozen=True)
class _Form:
    """What follows from length, chunk and density alone: numbers kept in each chunk, int64 [chunks], and low bits of a gap."""

    size: int
    chunk: int
    kept: np.ndarray
    low_bits: int

    @property
    def count(self) -> int:
        """Numbers kept in all."""
        return int(self.kept.sum())

    @property
    def symbols(self) -> int:
        """Most symbols that the high parts of all gaps take."""
        return self.count + len(self.kept) * (self.chunk >> self.low_bits) // MORE


@lru_cache(maxsize=64)
def _form(size: int, chunk: int, density: float) -> _Form:
    lengths = np.array([min(chunk, size - start) for start in range(0, size, chunk)], np.int64)
    kept = np.minimum(lengths, np.maximum(1, np.round(density * lengths).astype(np.int64)))
    # Gaps are about geometric: of their low bits below the mean all but five are equally likely, and stay as they are.
    low = max(0, int(np.log2(max(1.0, 0.69 / density))) - 5)
    return _Form(size, chunk, kept, low)


@dataclass(frozen=True, kw_only=True)
class Sparse(BufferCodec):
    """Section as above."""

    name = "sparse"
    bounded = True

    density: float = key(0.01, "share of the numbers that are sent", 1e-5, 0.5)
    bits: int = key(2, "bits of a value: 1 is its sign alone, 2 one of two magnitudes too", 1, 2)
    chunk: int = key(4096, "numbers of which the largest are chosen together", 64, 2**22)

    def row_bytes(self, row: Row) -> tuple[int, int]:
        """Least and most bytes, as `BufferCodec.row_bytes`."""
        form = _form(row.size, self.chunk, self.density)
        fixed = self._fixed(form)
        return (fixed + 1, fixed + 1 + form.symbols) if row.size else (0, 0)

    def _fixed(self, form: _Form) -> int:
        signs = -(-form.count // 8)
        low = -(-form.count * form.low_bits // 8)
        return 2 + (4 + signs if self.bits == 2 else 0) + len(form.kept) + signs + low

    def write(self, values: np.ndarray, row: Row, rng: np.random.Generator | None) -> bytes:
        """As `BufferCodec.write`: float32 [row.size]; nothing is drawn.

        Raises: ValueError naming the tensor for what is not finite or too large for a scale.
        """
        if not row.size:
            return b""
        form = _form(row.size, self.chunk, self.density)
        size = np.abs(values)
        if not size.max() <= scales.MAX_SCALE:
            place = int(np.flatnonzero(~(size <= scales.MAX_SCALE))[0])
            name = next(n for n in row.names if place < row.layout.slices[n].stop)
            raise ValueError(f"{name}: a value is not finite or too large for a scale")
        places = _largest(size, form)
        chunks = np.repeat(np.arange(len(form.kept)), form.kept)
        kept = size[places].astype(np.float64)
        first = np.cumsum(form.kept) - form.kept
        means = np.add.reduceat(kept, first) / form.kept
        upper = scales.bases(means.max(keepdims=True).astype(np.float32))
        base = scales.widened(upper)
        down = scales.steps_down(np.repeat(base, len(means)), means.astype(np.float32))
        scale = (base * scales.STEPS[down])[chunks]
        parts = [upper.astype("<u2").tobytes()]
        high = np.zeros(0, bool)
        if self.bits == 2:
            high = kept > means[chunks]
            live = scale > 0  # a chunk of zeros must not make the low magnitude of all others smaller
            share = kept / np.where(live, scale, 1)
            pair = [share[which].mean() if which.any() else 1.0 for which in (live & ~high, live & high)]
            parts.append(scales.bases(np.array(pair, np.float32)).astype("<u2").tobytes())
        parts += [down.tobytes(), np.packbits(values[places] < 0).tobytes()]
        if self.bits == 2:
            parts.append(np.packbits(high).tobytes())
        gaps = np.diff(places, prepend=-1) - 1
        # Each chunk begins anew.
        gaps[first] = places[first] - form.chunk * np.arange(len(first))
        bits = (gaps[:, None] >> np.arange(form.low_bits)) & 1
        parts.append(np.packbits(bits.astype(np.uint8)).tobytes())
        parts.append(zstd.compress(_symbols(gaps >> form.low_bits).tobytes()))
        return b"".join(parts)

    def load(self, data: memoryview, row: Row) -> np.ndarray:
        """As `BufferCodec.load`: float32 [row.size], zero where nothing was sent.

        Raises: BadPacket for scales out of range, places outside their chunk, or gaps that are too many.
        """
        values = np.zeros(row.size, np.float32)
        if not row.size:
            return values
        form = _form(row.size, self.chunk, self.density)
        count, start = form.count, 0

        def take(size: int) -> memoryview:
            nonlocal start
            start += size
            return data[start - size : start]

        base = scales.checked(np.frombuffer(take(2), "<u2"))
        pair = scales.checked(np.frombuffer(take(4), "<u2")) if self.bits == 2 else np.ones(2, np.float32)
        if np.any(pair > form.chunk):
            raise BadPacket("a magnitude is not near the mean of its chunk")
        down = np.frombuffer(take(len(form.kept)), np.uint8)
        chunks = np.repeat(np.arange(len(form.kept)), form.kept)
        packed = -(-count // 8)
        found = (base * scales.STEPS[down])[chunks]
        negative = np.unpackbits(np.frombuffer(take(packed), np.uint8), count=count).astype(bool)
        if self.bits == 2:
            high = np.unpackbits(np.frombuffer(take(packed), np.uint8), count=count)
            with np.errstate(over="ignore"):  # of a stranger's magnitudes: infinity, which the gate refuses
                found = found * pair[high]
        low = np.unpackbits(
            np.frombuffer(take(-(-count * form.low_bits // 8)), np.uint8), count=count * form.low_bits
        )
        gaps = _gaps(np.frombuffer(zstd.decompress_most(data[start:], form.symbols), np.uint8), count)
        gaps = (gaps << form.low_bits) + low.reshape(count, form.low_bits).astype(np.int64) @ (
            1 << np.arange(form.low_bits, dtype=np.int64)
        )
        first = np.cumsum(form.kept) - form.kept
        steps = gaps + 1
        total = np.cumsum(steps)
        within = total - np.repeat(total[first] - steps[first], form.kept) - 1
        lengths = np.minimum(form.chunk, row.size - form.chunk * np.arange(len(form.kept)))
        if np.any(within >= lengths[chunks]):
            raise BadPacket("a place is outside its chunk")
        values[chunks * form.chunk + within] = np.where(negative, -found, found)
        return values


def _largest(size: np.ndarray, form: _Form) -> np.ndarray:
    """Places of the largest numbers of each chunk, ascending, int64 [form.count]; of equal ones the first."""
    whole = form.size // form.chunk
    found = []
    if whole:
        table, k = size[: whole * form.chunk].reshape(whole, form.chunk), int(form.kept[0])
        least = np.partition(table, form.chunk - k, axis=1)[:, form.chunk - k, None]
        chosen = table >= least
        for one in np.flatnonzero(
            np.count_nonzero(chosen, axis=1) > k
        ):  # of those equal to the least, the first
            above, equal = table[one] > least[one], np.flatnonzero(table[one] == least[one])
            chosen[one] = above
            chosen[one, equal[: k - np.count_nonzero(above)]] = True
        found.append(np.flatnonzero(chosen))
    if whole < len(form.kept):
        rest, k = size[whole * form.chunk :], int(form.kept[-1])
        order = np.argsort(-rest, kind="stable")[:k]
        found.append(np.sort(order) + whole * form.chunk)
    return np.concatenate(found)


def _symbols(numbers: np.ndarray) -> np.ndarray:
    """Whole numbers, int64 [n] >= 0, as symbols of 8 bits: one of MORE for every 255, then the rest."""
    more = numbers // MORE
    found = np.full(len(numbers) + int(more.sum()), MORE, np.uint8)
    found[np.cumsum(more + 1) - 1] = numbers % MORE
    return found


def _gaps(symbols: np.ndarray, count: int) -> np.ndarray:
    """The inverse of `_symbols`: int64 [count]. Raises: BadPacket where it is not as many numbers."""
    ends = np.flatnonzero(symbols != MORE)
    if len(ends) != count or (count and ends[-1] != len(symbols) - 1):
        raise BadPacket("does not say as many places as it must")
    sums = np.cumsum(symbols, dtype=np.int64)[ends]
    return np.diff(sums, prepend=0)
