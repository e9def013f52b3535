"""fp32: every tensor as it is, bit for bit; the reference for all other codecs."""

from __future__ import annotations

import numpy as np

from osmotic.codecs.base import Codec, Entry, decode_raw, encode_raw


class Fp32(Codec):
    """Four bytes per weight. Down-link sends the weights themselves, so clients need no replica."""

    name = "fp32"
    absolute = True

    def form(self, name: str, dtype: str, shape: tuple[int, ...]) -> str:
        """Form raw for every tensor [...], whatever its dtype and shape."""
        return "raw"

    def section_bytes(self, entry: Entry) -> int:
        """Bytes of the section of a tensor [...], exact: 4 per weight."""
        return entry.size * np.dtype(entry.dtype).itemsize

    def encode_tensor(
        self, entry: Entry, tensor: np.ndarray, rng: np.random.Generator | None = None
    ) -> bytes:
        """The bytes of a tensor [...], little-endian, row-major; `rng` is not used, nothing is rounded."""
        return encode_raw(tensor)

    def decode_tensor(self, entry: Entry, data: memoryview) -> np.ndarray:
        """A read-only view [...] of `data` with entry.shape: the packet must outlive it."""
        return decode_raw(entry, data)
