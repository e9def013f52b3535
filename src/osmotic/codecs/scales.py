"""Scales of quantised numbers in few bytes: one of 16 bits for a group, one of 8 bits for each member of it.

A group's base is the upper half of a float32 (bfloat16), rounded up: 8 bits of significand at any size. A member's scale is
base * 2^(-k / 16) with k in 0..254, so at most 4.4 % larger than need be down to a 60,000th of the base; k = 255 is zero.
What needs a scale below 2^-100 is taken as zero: its inverse would leave float32.
"""

from __future__ import annotations

import numpy as np

from osmotic.codecs.base import BadPacket

# The largest scale, so that no product with a code of 8 bits leaves float32: 128 * 2^120 = 2^127.
MAX_SCALE = np.float32(2.0**120)
LEAST = np.float32(2.0**-100)
PER_OCTAVE = 16
NONE = 255
# 2^(-j / 16), written down: a library's power may differ in its last bit from machine to machine.
_FRACTIONS = np.array(
    [
        1.0, 0.9576033, 0.91700405, 0.8781261, 0.8408964, 0.80524516, 0.7711054, 0.7384131,
        0.70710677, 0.6771278, 0.6484198, 0.6209289, 0.59460354, 0.5693943, 0.5452539, 0.52213687,
    ],
    np.float32,
)  # fmt: skip
STEPS = np.concatenate([np.ldexp(_FRACTIONS[np.arange(255) % 16], -(np.arange(255) // 16)), [0.0]]).astype(
    np.float32
)


def bases(needed: np.ndarray) -> np.ndarray:
    """The least bases that are not below what is needed, float32 [n] in 0..MAX_SCALE, as 16 bits each, uint16 [n]."""
    needed = np.where(needed < LEAST, np.float32(0), needed).astype(np.float32)
    upper = (needed.view(np.uint32) + 0xFFFF) >> 16
    return upper.astype(np.uint16)


def widened(upper: np.ndarray) -> np.ndarray:
    """Bases of 16 bits each, uint16 [n], as float32 [n]."""
    return (upper.astype(np.uint32) << 16).view(np.float32)


def checked(upper: np.ndarray) -> np.ndarray:
    """Bases that came in a packet, uint16 [n], as float32 [n]. Raises: BadPacket for one that nobody could have written."""
    found = widened(upper)
    if not np.all((found >= 0) & (found <= MAX_SCALE)) or np.signbit(found).any():  # also for NaN
        raise BadPacket(f"a scale is not in 0..{MAX_SCALE:g}")
    return found


def steps_down(base: np.ndarray, needed: np.ndarray) -> np.ndarray:
    """k of the least scale of a base that is not below what is needed, uint8 [n]; NONE where nothing is needed.

    Args:
        base: float32 [n], each at least what is needed.
        needed: float32 [n], >= 0.
    """
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        k = np.floor(PER_OCTAVE * np.log2(base.astype(np.float64) / needed))
    k = np.clip(np.nan_to_num(k, nan=NONE, posinf=NONE), 0, NONE - 1).astype(np.int64)
    # The logarithm may be off by a step where the quotient is one exactly.
    k -= (base * STEPS[k] < needed) & (k > 0)
    return np.where((needed <= 0) | (base == 0), NONE, k).astype(np.uint8)
