"""Images on the device, or mapped from a file, and batches of them in the space that the network sees."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from osmotic.diffusion.space import Pixels, Space


@dataclass(frozen=True)
class Mapped:
    """Some images of a file that may be larger than memory; those of a batch alone are read.

    Args:
        images: [M, H, W, C], mapped.
        rows: positions in `images`, int64 [N].
        device: where batches go.
    """

    images: np.memmap
    rows: np.ndarray
    device: torch.device

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: torch.Tensor) -> torch.Tensor:
        """The images at `index`, int64 [B], on the device, [B, C, H, W]."""
        read = np.asarray(self.images)[self.rows[index.cpu().numpy()]]
        batch = torch.from_numpy(np.ascontiguousarray(read.transpose(0, 3, 1, 2)))
        if self.device.type == "cuda":  # from pinned memory the copy runs beside the step before
            return batch.pin_memory().to(self.device, non_blocking=True)
        return batch.to(self.device)


@dataclass
class Images:
    """Images on the device, as `space.prepare` gave them: 8-bit ones stay uint8 and go through `space.encode` batch by batch.

    Args:
        pixels: [N, C, H, W], uint8, or float32 in [0, 1]; or latents, float32.
        labels: int64 [N], or None.
        space: what the network sees of them.
        flip: whether training mirrors each image left to right at even odds (`data.flip`).
    """

    pixels: torch.Tensor | Mapped
    labels: torch.Tensor | None
    space: Space
    flip: bool = False

    @classmethod
    def of(
        cls,
        images: np.ndarray,
        labels: np.ndarray | None,
        device: torch.device,
        space: Space | None = None,
        *,
        rows: np.ndarray | None = None,
        flip: bool = False,
    ) -> Images:
        """From arrays: images [N, H, W, C] uint8 or float32 in [0, 1], labels [N] of whole numbers or None.

        Mapped images stay in their file; others are copied to the device.

        Args:
            space: what the network sees; by default the pixels themselves.
            rows: which of them, int64 [n]; None takes all.
            flip: as the field.
        """
        pixels: torch.Tensor | Mapped
        if isinstance(images, np.memmap):
            pixels = Mapped(images, np.arange(len(images)) if rows is None else rows, device)
        else:
            taken = images if rows is None else images[rows]
            pixels = torch.from_numpy(np.ascontiguousarray(taken.transpose(0, 3, 1, 2))).to(device)
        if labels is not None and rows is not None:
            labels = labels[rows]
        on_device = None if labels is None else torch.from_numpy(labels.astype(np.int64)).to(device)
        _, height, width, channels = images.shape
        return cls(pixels, on_device, space or Pixels((channels, height, width)), flip)

    def __len__(self) -> int:
        return len(self.pixels)

    def batch(
        self, index: torch.Tensor, coins: np.random.Generator | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """What the network sees of these images, float32 [B, C, H, W] channels-last, and their labels [B].

        Args:
            index: int64 [B].
            coins: tosses for every image whether it is mirrored; None mirrors none.
        """
        return self.seen(self.take(index, coins)), None if self.labels is None else self.labels[index]

    def take(self, index: torch.Tensor, coins: np.random.Generator | None = None) -> torch.Tensor:
        """These images as they are stored, [B, C, H, W], mirrored or not; arguments as `batch`."""
        pixels = self.pixels[index]
        if coins is not None:
            heads = torch.from_numpy(coins.random(len(index)) < 0.5).to(pixels.device)
            pixels = torch.where(heads[:, None, None, None], pixels.flip(3), pixels)
        return pixels

    def seen(self, pixels: torch.Tensor) -> torch.Tensor:
        """Stored images [B, C, H, W] as the network sees them, float32, channels-last."""
        # Channels-last is 1.25 times as fast as the default layout on CPUs (benchmarks/README.md).
        return self.space.encode(pixels).contiguous(memory_format=torch.channels_last)
