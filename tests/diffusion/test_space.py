"""Pixels: the way into [-1, 1] and back, by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from osmotic.diffusion.space import Pixels

SPACE = Pixels((1, 1, 3))


def test_bytes_and_shares_become_minus_one_to_one_by_hand() -> None:
    # 255 / 127.5 - 1 = 1; 51 / 127.5 - 1 = -0.6; 2 * 0.25 - 1 = -0.5.
    pixels = torch.tensor([[[[0, 51, 255]]]], dtype=torch.uint8)
    assert SPACE.encode(pixels).flatten().tolist() == pytest.approx([-1.0, -0.6, 1.0])
    shares = torch.tensor([[[[0.0, 0.25, 1.0]]]])
    assert SPACE.encode(shares).flatten().tolist() == [-1.0, -0.5, 1.0]
    # The images of a site are encoded again in every pass, so they must stay.
    assert pixels.flatten().tolist() == [0, 51, 255] and shares.flatten().tolist() == [0.0, 0.25, 1.0]


def test_every_byte_survives_the_way_there_and_back() -> None:
    pixels = torch.arange(256, dtype=torch.uint8).reshape(4, 1, 8, 8)
    images = Pixels((1, 8, 8)).decode(Pixels((1, 8, 8)).encode(pixels))
    assert images.dtype == np.uint8 and images.shape == (4, 8, 8, 1)
    assert np.array_equal(images[..., 0], pixels[:, 0].numpy())


def test_what_lies_beyond_the_bounds_is_cut_and_the_rest_rounded() -> None:
    # 0.006 is (1.006) * 127.5 = 128.265, rounded 128; -0.999 is 0.1275, rounded 0.
    images = SPACE.decode(torch.tensor([[[[-3.0, 0.006, 7.0]]], [[[-0.999, 1.0, -1.0]]]]))
    assert images[..., 0].tolist() == [[[0, 128, 255]], [[0, 255, 0]]]


def test_memory_layout_is_kept_on_the_way_in_and_colours_come_last_on_the_way_out() -> None:
    pixels = torch.zeros(2, 3, 4, 4, dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
    assert Pixels((3, 4, 4)).encode(pixels).is_contiguous(memory_format=torch.channels_last)
    assert Pixels((3, 4, 4)).decode(torch.zeros(2, 3, 4, 4)).flags.c_contiguous


def test_pixels_have_no_latent_scale() -> None:
    assert SPACE.contract() == {"latent_scale": None} and SPACE.range == (-1.0, 1.0)
