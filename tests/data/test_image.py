"""One image: channels and size, by hand-worked values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from osmotic.data import convert

Load = Callable[..., Any]  # the fixture of conftest.py


RNG = np.random.default_rng(0)


def grey(count: int, side: int = 4) -> np.ndarray:
    return RNG.integers(0, 256, (count, side, side), np.uint8)


def test_grey_is_the_luma_and_colour_repeats_grey() -> None:
    # red, green, blue at 255: 0.299, 0.587 and 0.114 of it are 76.2, 149.7 and 29.1
    primaries = np.eye(3, dtype=np.uint8)[None] * 255
    assert convert.to_channels(primaries, 1).ravel().tolist() == [76, 150, 29]
    back = convert.to_channels(np.array([[[7]]], np.uint8), 3)
    assert back.tolist() == [[[7, 7, 7]]] and back.dtype == np.uint8
    assert convert.to_channels(convert.to_channels(grey(1)[0][..., None], 3), 1).dtype == np.uint8


def test_shrinking_averages_instead_of_picking_pixels() -> None:
    # a checkerboard of 0 and 255 has mean 127.5 everywhere; picking pixels would give 0 or 255
    board = (np.indices((16, 16)).sum(axis=0) % 2 * 255).astype(np.uint8)[..., None]
    assert np.abs(convert.resize(board, 4)[1:-1, 1:-1].astype(int) - 127).max() <= 2
    # a 16-bit edge overshoots under a bicubic filter: kept inside [0, 1]
    edge = np.repeat((np.arange(8) > 3).astype(np.float32)[None], 8, axis=0)[..., None]
    resized = convert.resize(edge, 20)
    assert resized.dtype == np.float32 and resized.min() == 0 and resized.max() == 1
