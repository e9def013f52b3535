"""The space a network works in: what becomes of images before it sees them, and how its answers become images again.

Pixels stand here; latents of an autoencoder are in `models/latents.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor


class Space(Protocol):
    """From pixels [N, c, h, w] to what the network sees, [N, C, H, W], and back.

    Holds no random state, so threads may share it.
    """

    @property
    def shape(self) -> tuple[int, int, int]:
        """The lengths C, H, W of what the network sees, [N, C, H, W]."""

    @property
    def range(self) -> tuple[float, float] | None:
        """Lowest and highest value of what the network sees; None is unbounded, and samplers clip nothing.

        Other bounds than (-1, 1) are refused by `sampler.Sampling`.
        """

    def prepare(self, images: np.ndarray) -> np.ndarray:
        """Images [N, h, w, c], uint8 or float32 in [0, 1], as they are kept while training lasts, [N, H, W, C]."""

    def encode(self, pixels: Tensor) -> Tensor:
        """What `prepare` gave, [N, C, H, W], as what the network sees, float32."""

    def decode(self, values: Tensor) -> np.ndarray:
        """What the network drew, [N, C, H, W], as images, uint8 [N, h, w, c], on the CPU."""

    def contract(self) -> dict[str, Any]:
        """What server and clients must agree on about the space, as JSON."""


@dataclass(frozen=True)
class Pixels:
    """The images themselves, [N, C, H, W], brought to [-1, 1].

    Args:
        shape: (C, H, W) of the images.
    """

    shape: tuple[int, int, int]

    range: ClassVar[tuple[float, float]] = (-1.0, 1.0)

    def prepare(self, images: np.ndarray) -> np.ndarray:
        """The images themselves, [N, h, w, c]."""
        return images

    def encode(self, pixels: Tensor) -> Tensor:
        """Images in [-1, 1], float32, [N, C, H, W], in the memory layout of `pixels`, which stay as they are.

        Args:
            pixels: [N, C, H, W], uint8 in 0..255, or float32 in [0, 1].
        """
        if pixels.dtype == torch.uint8:
            # In place on the fresh float copy: this runs at every training step, and saves two passes over the memory.
            return pixels.float().div_(127.5).sub_(1)
        return pixels * 2 - 1

    def decode(self, values: Tensor) -> np.ndarray:
        """Images of `values` [N, C, H, W], cut to [-1, 1] and rounded: uint8 [N, H, W, C], on the CPU."""
        # Rounded, since the plain cast cuts off and would darken every image by half a level on average.
        pixels = values.clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8)
        return pixels.permute(0, 2, 3, 1).contiguous().cpu().numpy()

    def contract(self) -> dict[str, Any]:
        """{"latent_scale": None}: pixels; a latent space puts its factor here."""
        return {"latent_scale": None}
