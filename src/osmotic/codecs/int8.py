"""int8: one byte per weight and one fp16 scale per output channel, symmetric, rounded to nearest.

The quantisation of FedDM-quant (arXiv 2407.14730) in its plain max-abs form: q = round(x / s), s = max|x| / 127 over an
output channel (the first axis). Vectors (biases, norms) and scalars stay fp32: they are few and touchy.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from osmotic.codecs.base import Codec, Entry, decode_raw, encode_raw
from osmotic.config.keys import key

# Of int8's -128 to 127: as many steps below zero as above.
LEVELS = 127


@dataclass(frozen=True, kw_only=True)
class Int8(Codec):
    """Section of a tensor [channels, ...]: fp16 scales [channels], then int8 codes in the tensor's order."""

    name = "int8"

    stochastic: bool = key(
        False, "round up or down at random, so that the mean of many codes is the value itself"
    )

    def form(self, name: str, dtype: str, shape: tuple[int, ...]) -> str:
        """Form i8 for float32 of two axes or more; raw for scalars, vectors [N] and what has no channel."""
        return "i8" if len(shape) >= 2 and shape[0] > 0 else "raw"

    def section_bytes(self, entry: Entry) -> int:
        """Bytes of the section of a tensor [channels, ...]: 2 per channel for its scale, 1 per weight."""
        if entry.form == "i8":
            return 2 * entry.shape[0] + entry.size
        return entry.size * np.dtype(entry.dtype).itemsize

    def encode_tensor(
        self, entry: Entry, tensor: np.ndarray, rng: np.random.Generator | None = None
    ) -> bytes:
        """Scales s [channels] and codes q = round(x / s) of a tensor [channels, ...].

        Args:
            tensor: float32, or of another dtype, which goes as it is.
            rng: where `stochastic` draws from; None rounds to nearest.
        Raises: ValueError naming the tensor for NaN, or where max|x| / 127 is no fp16.
        """
        if entry.form == "raw":
            return encode_raw(tensor)
        rows = np.ascontiguousarray(tensor, np.float32).reshape(entry.shape[0], -1)
        peak = np.abs(rows).max(axis=1, initial=0.0)
        if not np.all(peak / LEVELS <= 65504):  # also false for NaN
            raise ValueError(f"{entry.name}: a value is not finite or too large for an fp16 scale")
        # Rounding the scale up keeps every code within +-127.
        scale = (peak / LEVELS).astype(np.float16)
        low = scale.astype(np.float32) * LEVELS < peak
        scale[low] = np.nextafter(scale[low], np.float16(np.inf))
        # A channel of zeros has scale 0; its codes are 0 whatever they are divided by.
        divisor = np.where(scale > 0, scale, 1).astype(np.float32)
        codes = rows / divisor[:, None]
        if self.stochastic and rng is not None:
            # floor(x + u) with u uniform in [0, 1) is unbiased; the clip undoes what rounding may add at the ends.
            codes = np.clip(np.floor(codes + rng.random(codes.shape, np.float32)), -LEVELS, LEVELS)
        else:
            codes = np.rint(codes)
        return encode_raw(scale) + codes.astype(np.int8).tobytes()

    def decode_tensor(self, entry: Entry, data: memoryview) -> np.ndarray:
        """q * s, float32 [channels, ...]; off by at most s / 2 per weight, by s where `stochastic`."""
        if entry.form == "raw":
            return decode_raw(entry, data)
        channels = entry.shape[0]
        scale = np.frombuffer(data[: 2 * channels], "<f2").astype(np.float32)
        codes = np.frombuffer(data[2 * channels :], np.int8).reshape(channels, -1)
        return (codes * scale[:, None]).reshape(entry.shape)
