"""fp16: half precision, two bytes per weight, rounded to nearest even.

Source: IEEE 754 binary16, 11 bits of mantissa: the rounding error is at most 2^-11 of a weight of 6.1e-5 or
more, and at most 3e-8 below that, so what is smaller than 3e-8 becomes zero. Values beyond +-65504 do not fit
and are refused.
"""

from __future__ import annotations

import numpy as np

from osmotic.codecs.base import Codec, Entry, decode_raw, encode_raw


class Fp16(Codec):
    """Two bytes per weight; everything that is no float travels as it is."""

    name = "fp16"

    def form(self, name: str, dtype: str, shape: tuple[int, ...]) -> str:
        """Form f2 for every float32 tensor [...], whatever its shape."""
        return "f2"

    def section_bytes(self, entry: Entry) -> int:
        """Bytes of the section of a tensor [...], exact: 2 per weight; what is no float goes as it is."""
        return entry.size * (2 if entry.form == "f2" else np.dtype(entry.dtype).itemsize)

    def encode_tensor(
        self, entry: Entry, tensor: np.ndarray, rng: np.random.Generator | None = None
    ) -> bytes:
        """The tensor [...] rounded to two bytes per weight, little-endian.

        Args:
            tensor: float32 in [-65504, 65504], or of another dtype, which goes as it is.
            rng: not used, nothing is drawn.
        Raises: ValueError naming the tensor if a value does not fit or is NaN.
        """
        if entry.form == "raw":
            return encode_raw(tensor)
        # Refused and not clipped: an infinite weight would only be found by the receiver, and a clipped one
        # by nobody. Written as "not <=", so that it holds for NaN too.
        if tensor.size and not np.abs(tensor).max() <= 65504:
            raise ValueError(f"{entry.name}: a value is outside the fp16 range of +-65504")
        return encode_raw(tensor.astype(np.float16))

    def decode_tensor(self, entry: Entry, data: memoryview) -> np.ndarray:
        """float32 [...] of entry.shape; every half is a float32 too, so nothing more is lost."""
        if entry.form == "raw":
            return decode_raw(entry, data)
        return np.frombuffer(data, "<f2").reshape(entry.shape).astype(np.float32)
