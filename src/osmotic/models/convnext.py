"""The ConvNeXt U-Net of FedDiffuse: its widths follow from the image size; see `convnext_unet_2d.py`.

Source: arXiv:2406.12575, Fig. 2, and its code. Departs from it: it may be told the class, by a learned vector added to
the time embedding. Imports neither torch nor diffusers before `construct` is called.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from osmotic.models.layout import Layout, classes, conv, linear, norm
from osmotic.models.parts import UNET, Prefixes

if TYPE_CHECKING:
    from osmotic.models.convnext_unet_2d import ConvNeXtUNet2DModel
    from osmotic.models.spec import NetworkSpec

ATTENTION_WIDTH = 4 * 32  # heads times channels per head


@dataclass(frozen=True)
class ConvNeXtUNet:
    """Three levels of S, 2 S and 4 S channels for images [B, C, S, S]: as wide as the images are."""

    multiple: ClassVar[int] = 4  # sides are halved twice; the smallest, 4, leaves one pixel in the middle
    norm_groups: ClassVar[int] = 1
    has_dropout: ClassVar[bool] = False
    own: ClassVar[bool] = False
    parts: ClassVar[Prefixes] = UNET

    def layout(self, spec: NetworkSpec) -> Layout:
        """Every parameter's name and shape, in no particular order."""
        size = spec.image_size
        # The paper's code makes networks as wide as their images.
        stem, time = 2 * (size // 3), 4 * size
        high, mid, low = size, 2 * size, 4 * size
        return {
            **conv("conv_in", spec.channels, stem, kernel=7),
            **linear("time_embedding.linear_1", size, time),
            **linear("time_embedding.linear_2", time, time),
            **classes(spec.num_classes, time),
            **_level("down_blocks.0", stem, high, time),
            **conv("down_blocks.0.resample", high, high, kernel=4),
            **_level("down_blocks.1", high, mid, time),
            **conv("down_blocks.1.resample", mid, mid, kernel=4),
            **_level("down_blocks.2", mid, low, time),
            **_block("mid_block.blocks.0", low, low, time),
            **_attention("mid_block.attention", low),
            **_block("mid_block.blocks.1", low, low, time),
            # Twice the width: the skip connection comes beside what arrives from below.
            **_level("up_blocks.0", 2 * low, mid, time),
            **conv("up_blocks.0.resample", mid, mid, kernel=4),
            **_level("up_blocks.1", 2 * mid, high, time),
            **conv("up_blocks.1.resample", high, high, kernel=4),
            **_block("block_out", high, high),
            **conv("conv_out", high, spec.channels, kernel=1),
        }

    def construct(self, spec: NetworkSpec) -> ConvNeXtUNet2DModel:
        """The network with the weights that torch's global generator gives it."""
        from osmotic.models.convnext_unet_2d import ConvNeXtUNet2DModel

        return ConvNeXtUNet2DModel(
            sample_size=spec.image_size,
            in_channels=spec.channels,
            out_channels=spec.channels,
            num_class_embeds=spec.num_classes + 1 if spec.num_classes else None,
        )


def _level(name: str, entering: int, leaving: int, time: int) -> Layout:
    """Two blocks and linear attention, which has one norm more than the full attention in the middle."""
    return {
        **_block(f"{name}.blocks.0", entering, leaving, time),
        **_block(f"{name}.blocks.1", leaving, leaving, time),
        **_attention(f"{name}.attention", leaving),
        **norm(f"{name}.attention.norm_out", leaving),
    }


def _block(name: str, entering: int, leaving: int, time: int = 0) -> Layout:
    """One ConvNeXt block; `time` is the width of the time embedding, 0 for a block that is not told the time."""
    return {
        # Depthwise: every channel is convolved by itself.
        f"{name}.depthwise.weight": (entering, 1, 7, 7),
        f"{name}.depthwise.bias": (entering,),
        **(linear(f"{name}.time_emb_proj", time, entering) if time else {}),
        **norm(f"{name}.norm1", entering),
        **conv(f"{name}.conv1", entering, 2 * leaving),
        **norm(f"{name}.norm2", 2 * leaving),
        **conv(f"{name}.conv2", 2 * leaving, leaving),
        **(conv(f"{name}.conv_shortcut", entering, leaving, kernel=1) if entering != leaving else {}),
    }


def _attention(name: str, width: int) -> Layout:
    return {
        **norm(f"{name}.norm", width),
        # Queries, keys and values from one 1x1 convolution without bias.
        f"{name}.to_qkv.weight": (3 * ATTENTION_WIDTH, width, 1, 1),
        **conv(f"{name}.to_out", ATTENTION_WIDTH, width, kernel=1),
    }
