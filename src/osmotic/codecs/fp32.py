"""fp32: every tensor as it is, bit for bit; the reference for all other codecs.

All weights of a network, or of some of its parts, travel as the one buffer that they are (`osmotic/flat.py`).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from osmotic.codecs.base import (
    ALIGNED,
    Codec,
    Entry,
    Wanted,
    contents_of,
    decode_raw,
    encode_raw,
    opened,
    seal,
)
from osmotic.flat import Flat, FlatLayout, channels_last
from osmotic.tensors import Tensors


class Fp32(Codec):
    """Four bytes per weight. Down-link sends the weights themselves, so clients need no replica."""

    name = "fp32"
    absolute = True
    alignment = ALIGNED  # so that the numbers can be read where they lie

    def form(self, name: str, dtype: str, shape: tuple[int, ...]) -> str:
        """Form of a tensor [...]: last for four axes, which lie as [0, 2, 3, 1], channels-last; raw for all others."""
        return "last" if len(shape) == 4 else "raw"

    def section_bytes(self, entry: Entry) -> int:
        """Bytes of the section of a tensor [...], exact: 4 per weight."""
        return entry.size * np.dtype(entry.dtype).itemsize

    def encode_tensor(
        self, entry: Entry, tensor: np.ndarray, rng: np.random.Generator | None = None
    ) -> bytes:
        """The bytes of a tensor [...], little-endian, in the order of its form; `rng` is not used, nothing is rounded."""
        return encode_raw(channels_last(tensor) if entry.form == "last" else tensor)

    def decode_tensor(self, entry: Entry, data: memoryview) -> np.ndarray:
        """A read-only view [...] of `data` with entry.shape: the packet must outlive it."""
        if entry.form != "last":
            return decode_raw(entry, data)
        first, second, third, fourth = entry.shape
        stored = Entry(entry.name, entry.dtype, (first, third, fourth, second), "raw")
        return decode_raw(stored, data).transpose(0, 3, 1, 2)

    def encode(
        self, tensors: Mapping[str, np.ndarray], memory: Tensors, rng: np.random.Generator | None = None
    ) -> bytes:
        """As `Codec.encode`; of a network, name -> float32 [...] in one buffer, the packet is that buffer."""
        if isinstance(tensors, Flat) and tensors.buffer.dtype == np.float32:
            numbers = tensors.buffer.astype("<f4", copy=False).data.cast("B")
            return seal(self, contents_of(tensors.layout), numbers)
        return super().encode(tensors, memory, rng)

    def read(
        self, data: bytes, memory: Tensors, wanted: Wanted | None = None, layout: FlatLayout | None = None
    ) -> Mapping[str, np.ndarray]:
        """As `Codec.read`; what was written from one buffer, float32 [...] by name, is read as one."""
        if layout is None:
            return super().read(data, memory, wanted)
        size = 4 * layout.size
        body = opened(self, data, contents_of(layout), size, size)
        return Flat(layout, np.frombuffer(body, "<f4").astype(np.float32, copy=False))
