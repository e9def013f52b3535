"""What codecs share that write all float32 tensors of an exchange as one row of numbers: quantisers, `sparse`, `learned`.

The row is the network's buffer where the tensors are one (`osmotic/flat.py`); else they stand side by side, in the order of
`FlatLayout.whole`. Tensors
of four axes lie channels-last in it. What is no float32 follows the coded row as it is.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np

from osmotic.codecs.base import (
    HEAD,
    BadPacket,
    Codec,
    Entry,
    Wanted,
    closed,
    contents,
    contents_of,
    decode_raw,
    encode_raw,
    opened,
    padded,
    seal,
)
from osmotic.flat import Flat, FlatLayout
from osmotic.tensors import Tensors


@dataclass(frozen=True, eq=False)
class Row:
    """Where tensors and their channels lie in a row of numbers.

    Args:
        layout: name -> shape of the float32 tensors, in the order of the row.

    A channel is the part of a tensor with two axes or more that makes one output, layout[name][0] of them; vectors and scalars
    are one channel. Empty tensors have none.
    """

    layout: FlatLayout

    @property
    def size(self) -> int:
        """Numbers in the row."""
        return self.layout.size

    @cached_property
    def _tensors(self) -> list[tuple[str, int, int, bool]]:
        """(name, channels, numbers per channel, whether a vector) of every tensor that is not empty."""
        found = []
        for name, shape in self.layout.items():
            place = self.layout.slices[name]
            size = place.stop - place.start
            if size:
                channels = shape[0] if len(shape) >= 2 else 1
                found.append((name, channels, size // channels, len(shape) < 2))
        return found

    @cached_property
    def names(self) -> list[str]:
        """The tensors that are not empty."""
        return [name for name, _, _, _ in self._tensors]

    @cached_property
    def channels(self) -> np.ndarray:
        """Channels of each tensor, int64 [tensors]."""
        return np.array([n for _, n, _, _ in self._tensors], np.int64)

    @cached_property
    def lengths(self) -> np.ndarray:
        """Numbers in each channel, int64 [channels]."""
        return np.repeat(np.array([n for _, _, n, _ in self._tensors], np.int64), self.channels)

    @cached_property
    def starts(self) -> np.ndarray:
        """Where each channel begins, int64 [channels]."""
        return np.concatenate([[0], np.cumsum(self.lengths)])[:-1].astype(np.int64)

    @cached_property
    def first(self) -> np.ndarray:
        """The first channel of each tensor, int64 [tensors]."""
        return np.cumsum(self.channels) - self.channels

    @cached_property
    def is_vector(self) -> np.ndarray:
        """Whether a channel is a vector or scalar, bool [channels]."""
        return np.repeat(np.array([vector for *_, vector in self._tensors], bool), self.channels)

    @cached_property
    def shared(self) -> np.ndarray:
        """The channels of tensors that have more than one, int64 [n]."""
        return np.flatnonzero(np.repeat(self.channels > 1, self.channels))

    @cached_property
    def vectors(self) -> list[slice]:
        """Where vectors and scalars lie; those side by side are one slice."""
        return self._runs(True)

    @cached_property
    def matrices(self) -> list[slice]:
        """Where all other tensors lie."""
        return self._runs(False)

    def _runs(self, vector: bool) -> list[slice]:
        runs: list[slice] = []
        start = 0
        for _, channels, length, is_vector in self._tensors:
            stop = start + channels * length
            if is_vector == vector:
                if runs and runs[-1].stop == start:
                    runs[-1] = slice(runs[-1].start, stop)
                else:
                    runs.append(slice(start, stop))
            start = stop
        return runs

    @cached_property
    def blocks(self) -> list[tuple[slice, slice]]:
        """(channels, numbers) of pieces that fit into the second-level cache, each of whole channels."""
        ends = self.starts + self.lengths
        cuts, begun = [0], 0
        for channel, end in enumerate(ends.tolist()):
            if end - begun >= BLOCK:
                cuts.append(channel + 1)
                begun = end
        if cuts[-1] != len(ends):
            cuts.append(len(ends))
        return [(slice(a, b), slice(int(self.starts[a]), int(ends[b - 1]))) for a, b in pairwise(cuts)]


BLOCK = 128 * 1024  # numbers


def row_of(layout: FlatLayout) -> Row:
    """The row of a network's buffer, or of some of its parts; worked out once."""
    found: Row | None = layout.__dict__.get("_row")
    if found is None:
        found = layout.__dict__["_row"] = Row(layout)
    return found


class BufferCodec(Codec):
    """A codec of one row of numbers; defines `write`, `load` and `row_bytes` instead of what goes tensor by tensor."""

    @abstractmethod
    def write(self, values: np.ndarray, row: Row, rng: np.random.Generator | None) -> bytes:
        """The numbers, float32 [row.size], as bytes; `values` stays as it is.

        Raises: ValueError naming a tensor with a value that cannot be coded.
        """

    @abstractmethod
    def load(self, data: memoryview, row: Row) -> np.ndarray:
        """The inverse: float32 [row.size], an array of its own.

        Raises: BadPacket for bytes that nobody could have written.
        """

    @abstractmethod
    def row_bytes(self, row: Row) -> tuple[int, int]:
        """Least and most bytes of what `write` gives; equal unless `bounded`."""

    # --- exchanges ---

    def encode(
        self, tensors: Mapping[str, np.ndarray], memory: Tensors, rng: np.random.Generator | None = None
    ) -> bytes:
        """As `Codec.encode`, of name -> array [...]."""
        if isinstance(tensors, Flat):
            row, what = row_of(tensors.layout), contents_of(tensors.layout)
            return seal(self, what, self.write(tensors.buffer, row, rng))
        entries = self.entries_of(tensors)
        floats, others = _apart(entries)
        what = contents([(e.name, e.dtype, e.shape) for e in entries])
        values = Flat.of(floats, {n: tensors[n] for n in floats})
        rest = [encode_raw(tensors[e.name]) for e in others]
        return seal(self, what, self.write(values.buffer, Row(floats), rng), *rest)

    def decode(
        self, data: bytes, memory: Tensors, wanted: Wanted | None = None
    ) -> Iterator[tuple[str, np.ndarray]]:
        """As `Codec.decode`: (name, array [...]) by name."""
        yield from self.read(data, memory, wanted).items()

    def read(
        self, data: bytes, memory: Tensors, wanted: Wanted | None = None, layout: FlatLayout | None = None
    ) -> Mapping[str, np.ndarray]:
        """As `Codec.read`: name -> array [...], of a network one buffer."""
        if layout is not None:
            row = row_of(layout)
            return Flat(layout, self.load(opened(self, data, contents_of(layout), *self.row_bytes(row)), row))
        shapes = closed(wanted)
        entries = [self.entry(name, *shapes[name]) for name in shapes]
        floats, others = _apart(entries)
        row, rest = Row(floats), sum(map(_raw_bytes, others))
        least, most = self.row_bytes(row)
        what = contents([(e.name, e.dtype, e.shape) for e in entries])
        body = opened(self, data, what, least + rest, most + rest)
        end = len(body) - rest
        found: Tensors = dict(Flat(floats, self.load(body[:end], row)))
        for entry in others:
            found[entry.name] = decode_raw(entry, body[end : end + _raw_bytes(entry)])
            end += _raw_bytes(entry)
        return {name: found[name] for name in shapes}

    def packet_bytes(self, shapes: Mapping[str, tuple[str, tuple[int, ...]]]) -> int:
        """As `Codec.packet_bytes`."""
        floats, others = _apart([self.entry(name, *shapes[name]) for name in shapes])
        return padded(self, HEAD.size) + self.row_bytes(Row(floats))[1] + sum(map(_raw_bytes, others))

    # --- tensor by tensor: a row of one ---

    def form(self, name: str, dtype: str, shape: tuple[int, ...]) -> str:
        """Form row for every float32 tensor [...]."""
        return "row"

    def section_bytes(self, entry: Entry) -> int:
        """Bytes of a tensor [...] by itself."""
        floats, others = _apart([entry])
        return self.row_bytes(Row(floats))[1] + sum(map(_raw_bytes, others))

    def encode_tensor(
        self, entry: Entry, tensor: np.ndarray, rng: np.random.Generator | None = None
    ) -> bytes:
        """A tensor [...] by itself. Raises: ValueError as `write`."""
        if entry.form == "raw":
            return encode_raw(tensor)
        floats, _ = _apart([entry])
        return self.write(Flat.of(floats, {entry.name: tensor}).buffer, Row(floats), rng)

    def decode_tensor(self, entry: Entry, data: memoryview) -> np.ndarray:
        """The inverse of `encode_tensor`, [...]. Raises: BadPacket as `load`."""
        if entry.form == "raw":
            return decode_raw(entry, data)
        floats, _ = _apart([entry])
        least, most = self.row_bytes(Row(floats))
        if not least <= len(data) <= most:
            raise BadPacket(f"{entry.name}: {len(data)} bytes are not in {least}..{most}")
        return Flat(floats, self.load(data, Row(floats)))[entry.name]


def _apart(entries: Sequence[Entry]) -> tuple[FlatLayout, list[Entry]]:
    """The float32 tensors as a row in this order, and all others."""
    shapes = {e.name: e.shape for e in entries if e.form != "raw"}
    return FlatLayout.whole(shapes), [e for e in entries if e.form == "raw"]


def _raw_bytes(entry: Entry) -> int:
    return entry.size * np.dtype(entry.dtype).itemsize
