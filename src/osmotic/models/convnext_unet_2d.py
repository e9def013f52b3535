"""FedDiffuse's network: a small U-Net of ConvNeXt blocks, with linear attention on every level.

This file travels with the saved model, so it needs torch and diffusers only. To use it:

    from diffusers import DiffusionPipeline
    pipe = DiffusionPipeline.from_pretrained(FOLDER, trust_remote_code=True)

Source: arXiv:2406.12575, Fig. 2, and its code. Blocks: arXiv:2201.03545, with 3x3 convolutions and one-group norms
instead of 1x1 and layer norms. Linear attention: arXiv:1812.01243.
"""

import functools
import shutil
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import Tensor, nn

HEADS, HEAD_WIDTH = 4, 32


class ConvNeXtBlock(nn.Module):
    """A depthwise 7x7 convolution of [B, entering, H, W], two 3x3 ones over 2 * leaving, and a shortcut.

    Args:
        entering, leaving: channels of its input and of its output.
        time: width of the time embedding; None for a block that is not told the time.
    """

    def __init__(self, entering: int, leaving: int, time: int | None = None) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(entering, entering, 7, padding=3, groups=entering)
        self.time_emb_proj = nn.Linear(time, entering) if time else None
        self.norm1 = nn.GroupNorm(1, entering)  # one group over all channels: a layer norm of the whole image
        self.conv1 = nn.Conv2d(entering, 2 * leaving, 3, padding=1)
        self.norm2 = nn.GroupNorm(1, 2 * leaving)
        self.conv2 = nn.Conv2d(2 * leaving, leaving, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(entering, leaving, 1) if entering != leaving else nn.Identity()

    def forward(self, x: Tensor, time: Tensor | None = None) -> Tensor:
        """[B, entering, H, W] and the activated time embedding [B, time] -> [B, leaving, H, W]."""
        hidden = self.depthwise(x)
        if self.time_emb_proj is not None:
            hidden = hidden + self.time_emb_proj(time)[:, :, None, None]
        hidden = F.gelu(self.conv1(self.norm1(hidden)))
        return self.conv2(self.norm2(hidden)) + self.conv_shortcut(x)


class LinearAttention(nn.Module):
    """x + attention, [B, width, H, W], at a cost linear in the pixels.

    Keys and values are summed up before the queries come.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(1, width)
        self.to_qkv = nn.Conv2d(width, 3 * HEADS * HEAD_WIDTH, 1, bias=False)
        self.to_out = nn.Conv2d(HEADS * HEAD_WIDTH, width, 1)
        self.norm_out = nn.GroupNorm(1, width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, width, H, W] -> [B, width, H, W]."""
        q, k, v = split_heads(self.to_qkv(self.norm(x)))
        # Queries are softmaxed over channels, keys over pixels: together they stand in for the softmax of q @ k.
        q, k = q.softmax(dim=2) * HEAD_WIDTH**-0.5, k.softmax(dim=3)
        summary = v @ k.transpose(2, 3)  # [B, HEADS, HEAD_WIDTH, HEAD_WIDTH]
        heads = (summary @ q).reshape(len(x), -1, *x.shape[2:])
        return x + self.norm_out(self.to_out(heads))


class FullAttention(nn.Module):
    """x + attention of every pixel to every other, [B, width, H, W]: its weights are [B, HEADS, HW, HW]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(1, width)
        self.to_qkv = nn.Conv2d(width, 3 * HEADS * HEAD_WIDTH, 1, bias=False)
        self.to_out = nn.Conv2d(HEADS * HEAD_WIDTH, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, width, H, W] -> [B, width, H, W]."""
        q, k, v = split_heads(self.to_qkv(self.norm(x)))
        weights = (HEAD_WIDTH**-0.5 * q.transpose(2, 3) @ k).softmax(dim=3)  # [B, HEADS, HW, HW]
        heads = (v @ weights.transpose(2, 3)).reshape(len(x), -1, *x.shape[2:])
        return x + self.to_out(heads)


def split_heads(qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """[B, 3 * HEADS * HEAD_WIDTH, H, W] -> queries, keys, values, each [B, HEADS, HEAD_WIDTH, HW]."""
    q, k, v = qkv.flatten(2).unflatten(1, (3, HEADS, HEAD_WIDTH)).unbind(1)
    return q, k, v


class Level(nn.Module):
    """Two blocks and attention over [B, leaving, H, W], then `resample`, which leads on to the next level."""

    def __init__(self, entering: int, leaving: int, time: int, resample: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(ConvNeXtBlock(width, leaving, time) for width in (entering, leaving))
        self.attention = LinearAttention(leaving)
        self.resample = resample

    def forward(self, x: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        """[B, entering, H, W] -> [B, leaving, H, W] before resampling, and what it is resampled to."""
        for block in self.blocks:
            x = block(x, time)
        x = self.attention(x)
        return x, self.resample(x)


class Middle(nn.Module):
    """Block, full attention, block, at the smallest size, [B, width, H, W]."""

    def __init__(self, width: int, time: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(ConvNeXtBlock(width, width, time) for _ in range(2))
        self.attention = FullAttention(width)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """[B, width, H, W] -> [B, width, H, W]."""
        first, last = self.blocks
        return last(self.attention(first(x, time)), time)


class ConvNeXtUNet2DModel(ModelMixin, ConfigMixin):
    """A denoiser of images [B, C, S, S], called and configured like diffusers' `UNet2DModel`.

    Args:
        sample_size: side S of the images in pixels, a multiple of 4. The widths of the three levels follow from it:
            S, 2 S and 4 S channels, after 2 * floor(S / 3) from the first convolution.
        in_channels, out_channels: channels of the input and of the answer.
        num_class_embeds: rows of the class embedding, the last for "no class"; None for a network without classes.
    """

    # diffusers writes this name into `model_index.json` and looks there for the file of that name beside the weights.
    __module__ = __name__.rpartition(".")[2]

    @register_to_config
    def __init__(
        self,
        sample_size: int = 28,
        in_channels: int = 1,
        out_channels: int = 1,
        num_class_embeds: int | None = None,
    ) -> None:
        super().__init__()
        stem, time = 2 * (sample_size // 3), 4 * sample_size
        high, mid, low = sample_size, 2 * sample_size, 4 * sample_size
        self.time_proj = Timesteps(sample_size, flip_sin_to_cos=False, downscale_freq_shift=1)
        self.time_embedding = TimestepEmbedding(sample_size, time, act_fn="gelu")
        self.class_embedding = nn.Embedding(num_class_embeds, time) if num_class_embeds else None

        self.conv_in = nn.Conv2d(in_channels, stem, 7, padding=3)
        self.down_blocks = nn.ModuleList(
            [
                Level(stem, high, time, nn.Conv2d(high, high, 4, stride=2, padding=1)),
                Level(high, mid, time, nn.Conv2d(mid, mid, 4, stride=2, padding=1)),
                Level(mid, low, time, nn.Identity()),
            ]
        )
        self.mid_block = Middle(low, time)
        # One level fewer than down, each at the pixels of the skip connection it takes in: the paper's network has no
        # level that would take in the skip connection at full size.
        self.up_blocks = nn.ModuleList(
            [
                Level(2 * low, mid, time, nn.ConvTranspose2d(mid, mid, 4, stride=2, padding=1)),
                Level(2 * mid, high, time, nn.ConvTranspose2d(high, high, 4, stride=2, padding=1)),
            ]
        )
        self.block_out = ConvNeXtBlock(high, high)
        self.conv_out = nn.Conv2d(high, out_channels, 1)

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float | int,
        class_labels: Tensor | None = None,
        return_dict: bool = True,
    ) -> UNet2DOutput | tuple[Tensor]:
        """The answer, shaped like `sample`, as `.sample` or, without `return_dict`, as a tuple of one.

        Args:
            sample: noisy images, float [B, C, S, S].
            timestep: one for each image, [B], or one for all; may be a fraction.
            class_labels: rows of the class embedding, int64 [B]; None for a network without classes.
        Raises: ValueError if labels are given to a network without classes, or not given to one with classes.
        """
        if (class_labels is None) != (self.class_embedding is None):
            raise ValueError("class_labels: must be given if, and only if, the network has a class embedding")
        # No dtype is forced on it: EDM's levels are fractions.
        timesteps = torch.as_tensor(timestep, device=sample.device).expand(len(sample))
        time = self.time_embedding(self.time_proj(timesteps).to(sample.dtype))
        if self.class_embedding is not None:
            time = time + self.class_embedding(class_labels)
        time = F.gelu(time)

        x, skips = self.conv_in(sample), []
        for level in self.down_blocks:
            skip, x = level(x, time)
            skips.append(skip)
        x = self.mid_block(x, time)
        for level in self.up_blocks:
            _, x = level(torch.cat([x, skips.pop()], dim=1), time)
        x = self.conv_out(self.block_out(x))
        return UNet2DOutput(sample=x) if return_dict else (x,)

    @functools.wraps(ModelMixin.save_pretrained)  # pipelines look at the signature
    def save_pretrained(self, save_directory, *args, **kwargs):  # type: ignore[no-untyped-def]
        """Writes weights and configuration, and this file beside them."""
        super().save_pretrained(save_directory, *args, **kwargs)
        here = Path(__file__)
        target = Path(save_directory) / here.name
        if here.resolve() != target.resolve():
            shutil.copyfile(here, target)
