"""fp16: half precision, two bytes per weight, rounded to nearest even.

Values beyond +-65504 do not fit and are refused when encoding; below 6e-8 they round to zero.
"""

from __future__ import annotations

import numpy as np

from osmotic.codecs.base import Codec, Entry, decode_raw, encode_raw


class Fp16(Codec):
    """Two bytes per weight; everything that is no float travels as it is."""

    name = "fp16"

    def form(self, name: str, dtype: str, shape: tuple[int, ...]) -> str:
        return "f2"

    def section_bytes(self, entry: Entry) -> int:
        return entry.size * (2 if entry.form == "f2" else np.dtype(entry.dtype).itemsize)

    def encode_tensor(self, entry: Entry, tensor: np.ndarray) -> bytes:
        if entry.form == "raw":
            return encode_raw(tensor)
        if tensor.size and not np.abs(tensor).max() <= 65504:
            raise ValueError(f"{entry.name}: a value is outside the fp16 range of +-65504")
        return encode_raw(tensor.astype(np.float16))

    def decode_tensor(self, entry: Entry, data: memoryview) -> np.ndarray:
        if entry.form == "raw":
            return decode_raw(entry, data)
        return np.frombuffer(data, "<f2").reshape(entry.shape).astype(np.float32)
