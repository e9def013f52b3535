"""A denoiser of some three thousand weights with the names of a U-Net, so that runs of it take a tenth of a second."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from osmotic import models

WIDTH = 8


class Tiny(nn.Module):
    """Five convolutions: in, down, middle, up, out; time and class shift the channels in the middle."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(channels, WIDTH, 3, padding=1)
        self.time_embedding = nn.Linear(2, WIDTH)
        self.down_blocks = nn.Conv2d(WIDTH, WIDTH, 3, padding=1, stride=2)
        self.mid_block = nn.Conv2d(WIDTH, WIDTH, 3, padding=1)
        self.up_blocks = nn.ConvTranspose2d(WIDTH, WIDTH, 2, stride=2)
        self.conv_out = nn.Conv2d(2 * WIDTH, channels, 3, padding=1)
        if num_classes:
            self.class_embedding = nn.Embedding(num_classes + 1, WIDTH)

    def forward(
        self, x: Tensor, t: Tensor, class_labels: Tensor | None = None, return_dict: bool = True
    ) -> Any:
        """As diffusers' UNet2DModel: x [B, C, H, W], t [B], class_labels int64 [B] -> ([B, C, H, W],)."""
        angle = t.float().reshape(-1, 1).expand(len(x), 1) / 100
        time = self.time_embedding(torch.cat([angle.sin(), angle.cos()], 1))
        if class_labels is not None:
            time = time + self.class_embedding(class_labels)
        first = torch.relu(self.conv_in(x))
        middle = torch.relu(self.mid_block(torch.relu(self.down_blocks(first) + time[:, :, None, None])))
        return (self.conv_out(torch.cat([first, self.up_blocks(middle)], 1)),)


def register() -> None:
    """Makes it known as the network "tiny"."""
    if "tiny" not in models.NETWORKS:
        models.register_network(
            "tiny",
            lambda spec: Tiny(spec.channels, spec.num_classes),
            multiple=2,
            parts={
                "encoder": ("conv_in", "time_embedding", "down_blocks"),
                "bottleneck": ("mid_block",),
                "decoder": ("up_blocks", "conv_out", "class_embedding"),
            },
        )
