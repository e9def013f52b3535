"""Names and shapes of a network's parameters, worked out without building it.

`osmotic plan` counts bytes from this within its two seconds, so nothing here imports torch or diffusers.
Source: diffusers' `UNet2DModel` with its convolutional down- and upsamplers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from osmotic.models import NetworkSpec

Shape = tuple[int, ...]
Layout = dict[str, Shape]


def layout(spec: NetworkSpec) -> Layout:
    """Every parameter's name and shape, sorted by name; equal to the state dict of `build(spec)`."""
    widths, layers = spec.preset.widths, spec.preset.layers
    time = 4 * widths[0]
    shapes = {
        **_conv("conv_in", spec.channels, widths[0]),
        **_linear("time_embedding.linear_1", widths[0], time),
        **_linear("time_embedding.linear_2", time, time),
        **_down(widths, layers, spec.preset.attention, time),
        **_mid(widths[-1], time),
        **_up(widths, layers, spec.preset.attention, time),
        **_norm("conv_norm_out", widths[0]),
        **_conv("conv_out", widths[0], spec.channels),
    }
    if spec.num_classes:
        shapes["class_embedding.weight"] = (spec.num_classes + 1, time)
    return dict(sorted(shapes.items()))


def count(layout: Mapping[str, Shape]) -> int:
    """The number of weights in a layout."""
    return sum(math.prod(shape) for shape in layout.values())


def _down(widths: Shape, layers: int, attention: tuple[bool, ...], time: int) -> Layout:
    shapes: Layout = {}
    for level, width in enumerate(widths):
        block = f"down_blocks.{level}"
        for layer in range(layers):
            entering = widths[max(level - 1, 0)] if layer == 0 else width
            shapes |= _resnet(f"{block}.resnets.{layer}", entering, width, time)
            shapes |= _attention(f"{block}.attentions.{layer}", width) if attention[level] else {}
        if level < len(widths) - 1:
            shapes |= _conv(f"{block}.downsamplers.0.conv", width, width)
    return shapes


def _mid(width: int, time: int) -> Layout:
    return {
        **_resnet("mid_block.resnets.0", width, width, time),
        **_attention("mid_block.attentions.0", width),
        **_resnet("mid_block.resnets.1", width, width, time),
    }


def _up(widths: Shape, layers: int, attention: tuple[bool, ...], time: int) -> Layout:
    shapes: Layout = {}
    arriving = widths[-1]
    for index, level in enumerate(reversed(range(len(widths)))):
        block, width = f"up_blocks.{index}", widths[level]
        for layer in range(layers + 1):
            # The last skip connection of a level comes from before its first layer, at the width of the level above.
            skip = widths[max(level - 1, 0)] if layer == layers else width
            shapes |= _resnet(f"{block}.resnets.{layer}", arriving + skip, width, time)
            shapes |= _attention(f"{block}.attentions.{layer}", width) if attention[level] else {}
            arriving = width
        if level > 0:
            shapes |= _conv(f"{block}.upsamplers.0.conv", width, width)
    return shapes


def _resnet(name: str, entering: int, width: int, time: int) -> Layout:
    shapes = {
        **_norm(f"{name}.norm1", entering),
        **_conv(f"{name}.conv1", entering, width),
        **_linear(f"{name}.time_emb_proj", time, width),
        **_norm(f"{name}.norm2", width),
        **_conv(f"{name}.conv2", width, width),
    }
    return shapes | (_conv(f"{name}.conv_shortcut", entering, width, kernel=1) if entering != width else {})


def _attention(name: str, width: int) -> Layout:
    shapes = _norm(f"{name}.group_norm", width)
    for projection in ("to_q", "to_k", "to_v", "to_out.0"):
        shapes |= _linear(f"{name}.{projection}", width, width)
    return shapes


def _conv(name: str, entering: int, leaving: int, kernel: int = 3) -> Layout:
    return {f"{name}.weight": (leaving, entering, kernel, kernel), f"{name}.bias": (leaving,)}


def _linear(name: str, entering: int, leaving: int) -> Layout:
    return {f"{name}.weight": (leaving, entering), f"{name}.bias": (leaving,)}


def _norm(name: str, width: int) -> Layout:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}
