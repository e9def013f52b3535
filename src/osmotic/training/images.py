"""Images on the device, and batches of them in the space that the network sees."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from osmotic.diffusion.space import Pixels, Space


@dataclass
class Images:
    """Images on the device: 8-bit ones stay uint8 and go through `space.encode` batch by batch.

    Args:
        pixels: [N, C, H, W], uint8, or float32 in [0, 1].
        labels: int64 [N], or None.
        space: what the network sees of them.
    """

    pixels: torch.Tensor
    labels: torch.Tensor | None
    space: Space

    @classmethod
    def of(
        cls, images: np.ndarray, labels: np.ndarray | None, device: torch.device, space: Space | None = None
    ) -> Images:
        """From arrays: images [N, H, W, C] uint8 or float32 in [0, 1], labels [N] of whole numbers or None.

        Args:
            space: what the network sees; by default the pixels themselves.
        """
        pixels = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))).to(device)
        on_device = None if labels is None else torch.from_numpy(labels.astype(np.int64)).to(device)
        _, channels, height, width = pixels.shape
        return cls(pixels, on_device, space or Pixels((channels, height, width)))

    def __len__(self) -> int:
        return len(self.pixels)

    def batch(self, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """What the network sees of these images, float32 [B, C, H, W] channels-last, and their labels [B].

        Args:
            index: int64 [B].
        """
        # Channels-last is 1.25 times as fast as the default layout on CPUs (benchmarks/README.md).
        x = self.space.encode(self.pixels[index]).contiguous(memory_format=torch.channels_last)
        return x, None if self.labels is None else self.labels[index]
