"""fp32: every tensor as it is; the reference for all other codecs."""

from __future__ import annotations

import numpy as np

from osmotic.codecs.base import Codec, Entry, decode_raw, encode_raw


class Fp32(Codec):
    """Four bytes per weight. Down-link sends the weights themselves, so clients need no replica."""

    name = "fp32"
    absolute = True

    def form(self, name: str, dtype: str, shape: tuple[int, ...]) -> str:
        return "raw"

    def section_bytes(self, entry: Entry) -> int:
        return entry.size * np.dtype(entry.dtype).itemsize

    def encode_tensor(self, entry: Entry, tensor: np.ndarray) -> bytes:
        return encode_raw(tensor)

    def decode_tensor(self, entry: Entry, data: memoryview) -> np.ndarray:
        return decode_raw(entry, data)
