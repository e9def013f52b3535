"""How small training images can be sent: the yardstick for what a run sends instead of them.

The smallest of three lossless forms, each of all images as one: per-image files would pay for a header each, which on
small images is more than the image.
"""

from __future__ import annotations

import bz2
import io
import lzma
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

# Above it a sample is compressed, which takes 2 to 4 s. Its estimate was 0.3 % above the size of all Fashion-MNIST at
# 14x14, and 1.1 % below that of all CIFAR-10.
SAMPLE_BYTES = 2**22


@dataclass(frozen=True)
class Compressed:
    """Bytes of images compressed without loss.

    Args:
        bytes: of all images; an estimate where `sampled` is not None.
        sampled: images that the estimate was made from; None where all were compressed.
        form: which of FORMS was the smallest.
    """

    bytes: int
    sampled: int | None
    form: str


def compress(images: np.ndarray, holdings: Sequence[np.ndarray]) -> Compressed:
    """The images that clients hold in the smallest of FORMS, sorted by client, then position.

    Of more than SAMPLE_BYTES as many are taken as fit into it, evenly spaced, at least one; no others are read.

    Args:
        images: [N, H, W, C], uint8, or float32 in [0, 1], rounded to uint8; mapped ones stay on the disk.
        holdings: positions of each client's training images, int64 [n] each.
    """
    rows = np.concatenate([np.sort(held) for held in holdings])
    if not len(rows):
        return Compressed(0, 0, "")
    most = max(1, SAMPLE_BYTES // math.prod(images.shape[1:]))
    few = rows if len(rows) <= most else rows[np.arange(most) * len(rows) // most]
    pixels = np.asarray(images[few])
    if pixels.dtype != np.uint8:
        pixels = np.rint(pixels * 255).astype(np.uint8)  # as own metrics and grids are given them
    size, form = min((len(write(pixels)), form) for form, write in FORMS.items() if _can(form))
    return Compressed(round(size * len(rows) / len(few)), len(few) if len(few) < len(rows) else None, form)


def _xz(pixels: np.ndarray) -> bytes:
    """uint8 [N, H, W, C] as one LZMA stream. Four bits of context: neighbours say more of a pixel than its address does."""
    how = {"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "lc": 4, "lp": 0, "pb": 0}
    return lzma.compress(pixels.tobytes(), filters=[how])


def _bz2(pixels: np.ndarray) -> bytes:
    """uint8 [N, H, W, C] as one bzip2 stream; the smallest where images have few grey levels."""
    return bz2.compress(pixels.tobytes())


def _webp(pixels: np.ndarray) -> bytes:
    """uint8 [N, H, W, C] as one sheet in lossless WebP; the smallest where there is colour."""
    from PIL import Image

    count, height, width, channels = pixels.shape
    across = math.isqrt(count - 1) + 1
    down = -(-count // across)
    sheet = np.zeros((across * down, *pixels.shape[1:]), np.uint8)
    sheet[:count] = pixels
    # [down, across, H, W, C] -> [down, H, across, W, C]
    sheet = sheet.reshape(down, across, *pixels.shape[1:]).swapaxes(1, 2)
    sheet = sheet.reshape(down * height, across * width, channels)
    file = io.BytesIO()
    # On Fashion-MNIST at 14x14 the most thorough setting gained 0.02 % and took a hundred times as long; at 8x8 it
    # gained 6 %, and xz was still smaller.
    Image.fromarray(sheet[..., 0] if channels == 1 else sheet).save(
        file, "WEBP", lossless=True, method=2, quality=50
    )
    return file.getvalue()


def _can(form: str) -> bool:
    """Whether this installation writes a form: Pillow can be built without WebP, and a run must not end for that."""
    from PIL import features

    return form != "webp" or bool(features.check("webp"))


FORMS: dict[str, Callable[[np.ndarray], bytes]] = {"xz": _xz, "bz2": _bz2, "webp": _webp}
