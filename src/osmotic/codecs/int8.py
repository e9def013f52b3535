"""int8: one byte per weight and a scale of two bytes per output channel, symmetric, rounded to nearest.

The quantisation of FedDM-quant (arXiv 2407.14730) in its plain max-abs form: q = round(x / s), s = max|x| / 127 over an
output channel (the first axis). Vectors (biases, norms) and scalars stay fp32: they are few and touchy.

The scale is the upper half of a float32 (bfloat16), rounded up: 8 bits of significand at any size. So s is at most
2^-7 larger than needed, and a weight is off by at most max|x| / 254 * (1 + 2^-7) = 0.4 % of its channel's peak. (fp16
becomes subnormal below 6e-5: at a peak of 1e-6, as changes late in training have, its scale alone would be 7 times too
large.)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from osmotic.codecs.base import BadPacket, Codec, Entry, decode_raw, encode_raw
from osmotic.config.keys import key

# Of int8's -128 to 127: as many steps below zero as above.
LEVELS = 127
# The largest scale, so that no product with a code leaves float32: 128 * 2^120 = 2^127.
MAX_SCALE = np.float32(2.0**120)


@dataclass(frozen=True, kw_only=True)
class Int8(Codec):
    """Section of a tensor [channels, ...]: scales [channels] of 2 bytes, then int8 codes in the tensor's order."""

    name = "int8"

    stochastic: bool = key(
        False, "round up or down at random, so that the mean of many codes is the value itself"
    )

    def form(self, name: str, dtype: str, shape: tuple[int, ...]) -> str:
        """Form q8 for float32 of two axes or more; raw for scalars, vectors [N] and what has no channel."""
        return "q8" if len(shape) >= 2 and shape[0] > 0 else "raw"

    def section_bytes(self, entry: Entry) -> int:
        """Bytes of the section of a tensor [channels, ...]: 2 per channel for its scale, 1 per weight."""
        if entry.form == "q8":
            return 2 * entry.shape[0] + entry.size
        return entry.size * np.dtype(entry.dtype).itemsize

    def encode_tensor(
        self, entry: Entry, tensor: np.ndarray, rng: np.random.Generator | None = None
    ) -> bytes:
        """Scales s [channels] and codes q = round(x / s) of a tensor [channels, ...].

        Args:
            tensor: float32, or of another dtype, which goes as it is.
            rng: where `stochastic` draws from; None rounds to nearest.
        Raises: ValueError naming the tensor for NaN, or where max|x| / 127 is above MAX_SCALE.
        """
        if entry.form == "raw":
            return encode_raw(tensor)
        rows = np.ascontiguousarray(tensor, np.float32).reshape(entry.shape[0], -1)
        peak = np.abs(rows).max(axis=1, initial=0.0)
        if not np.all(peak / LEVELS <= MAX_SCALE):  # also false for NaN
            raise ValueError(f"{entry.name}: a value is not finite or too large for a scale")
        # Rounding the scale up keeps every code within +-127.
        upper = ((peak / LEVELS).astype(np.float32).view(np.uint32) + 0xFFFF) >> 16
        upper += _widened(upper) * LEVELS < peak  # where the quotient itself was rounded down
        scale = _widened(upper)
        # A channel of zeros has scale 0; its codes are 0 whatever they are divided by.
        codes = rows / np.where(scale > 0, scale, np.float32(1))[:, None]
        if self.stochastic and rng is not None:
            # floor(x + u) with u uniform in [0, 1) is unbiased; the clip undoes what rounding may add at the ends.
            codes = np.clip(np.floor(codes + rng.random(codes.shape, np.float32)), -LEVELS, LEVELS)
        else:
            codes = np.rint(codes)
        return encode_raw(upper.astype(np.uint16)) + codes.astype(np.int8).tobytes()

    def decode_tensor(self, entry: Entry, data: memoryview) -> np.ndarray:
        """q * s, float32 [channels, ...]; off by at most s / 2 per weight, by s where `stochastic`.

        Raises: BadPacket for a scale that is negative, not finite or above MAX_SCALE.
        """
        if entry.form == "raw":
            return decode_raw(entry, data)
        channels = entry.shape[0]
        scale = _widened(np.frombuffer(data[: 2 * channels], "<u2"))
        if not np.all((scale >= 0) & (scale <= MAX_SCALE)):  # also false for NaN
            raise BadPacket(f"{entry.name}: a scale is not in 0..{MAX_SCALE:g}")
        codes = np.frombuffer(data[2 * channels :], np.int8).reshape(channels, -1)
        return (codes * scale[:, None]).reshape(entry.shape)


def _widened(upper: np.ndarray) -> np.ndarray:
    """float32 [channels] whose upper halves these are, whole numbers [channels]; the lower halves are 0."""
    return (upper.astype(np.uint32) << 16).view(np.float32)
