"""The residual U-Net: diffusers' `UNet2DModel`, unwrapped, so that it saves and loads natively; `unet_forward.py` calls its layers.

Source: arXiv:2006.11239, app. B; the class condition is a learned vector added to the time embedding.
Imports neither torch nor diffusers before `construct` is called.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from osmotic.models.layout import Layout, Shape, classes, conv, linear, norm
from osmotic.models.parts import UNET, Prefixes

if TYPE_CHECKING:
    from diffusers import UNet2DModel

    from osmotic.models.spec import NetworkSpec


@dataclass(frozen=True)
class ResidualUNet:
    """A residual U-Net for [B, C, H, W]; each level after the first has half the side of the one before.

    Args:
        widths: channels of each level.
        layers: residual blocks per level on the way down (one more on the way up).
        attention: whether a level attends, level by level.
        norm_groups: groups of every group norm.
        head_width: channels per attention head; None is a single head.
        extra: further arguments of `UNet2DModel`, which change no parameter's shape.
    """

    widths: tuple[int, ...]
    layers: int
    attention: tuple[bool, ...]
    norm_groups: int
    head_width: int | None
    extra: tuple[tuple[str, Any], ...] = ()

    has_dropout: ClassVar[bool] = True  # in every residual block, between its two convolutions
    own: ClassVar[bool] = False
    parts: ClassVar[Prefixes] = UNET

    @property
    def multiple(self) -> int:
        """Sides of images, in pixels, are multiples of this: they are halved once per level after the first."""
        return 2 ** (len(self.widths) - 1)

    def layout(self, spec: NetworkSpec) -> Layout:
        """Every parameter's name and shape, in no particular order."""
        time = 4 * self.widths[0]  # fixed inside UNet2DModel
        return {
            **conv("conv_in", spec.channels, self.widths[0]),
            **linear("time_embedding.linear_1", self.widths[0], time),
            **linear("time_embedding.linear_2", time, time),
            **classes(spec.num_classes, time),
            **_down(self.widths, self.layers, self.attention, time),
            **_mid(self.widths[-1], time),
            **_up(self.widths, self.layers, self.attention, time),
            **norm("conv_norm_out", self.widths[0]),
            **conv("conv_out", self.widths[0], spec.channels),
        }

    def construct(self, spec: NetworkSpec) -> UNet2DModel:
        """The network with the weights that torch's global generator gives it."""
        from types import MethodType

        from diffusers import UNet2DModel

        from osmotic.models.unet_forward import forward

        model = UNet2DModel(
            sample_size=spec.image_size,
            in_channels=spec.channels,
            out_channels=spec.channels,
            block_out_channels=self.widths,
            layers_per_block=self.layers,
            down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in self.attention),
            up_block_types=tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(self.attention)),
            norm_num_groups=self.norm_groups,
            attention_head_dim=self.head_width,
            dropout=spec.dropout,
            # One row more, for "no class" (arXiv:2207.12598, sec. 3.2).
            num_class_embeds=spec.num_classes + 1 if spec.num_classes else None,
            **dict(self.extra),
        )
        # Of this object alone: a subclass would be saved under a name that diffusers does not know.
        model.forward = MethodType(forward, model)
        return model


# Layouts follow the order and the names in which `UNet2DModel` makes its modules; `time` is the width of the embedding.
def _down(widths: Shape, layers: int, attention: tuple[bool, ...], time: int) -> Layout:
    shapes: Layout = {}
    for level, width in enumerate(widths):
        block = f"down_blocks.{level}"
        for layer in range(layers):
            # conv_in leaves at the first level's width, so the first level enters at its own.
            entering = widths[max(level - 1, 0)] if layer == 0 else width
            shapes |= _resnet(f"{block}.resnets.{layer}", entering, width, time)
            shapes |= _attention(f"{block}.attentions.{layer}", width) if attention[level] else {}
        if level < len(widths) - 1:
            shapes |= conv(f"{block}.downsamplers.0.conv", width, width)
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
        # One block more than on the way down: the way down also hands over what entered each level.
        block, width = f"up_blocks.{index}", widths[level]
        for layer in range(layers + 1):
            # The last skip connection of a level comes from before its first layer, at the width of the level above.
            skip = widths[max(level - 1, 0)] if layer == layers else width
            shapes |= _resnet(f"{block}.resnets.{layer}", arriving + skip, width, time)
            shapes |= _attention(f"{block}.attentions.{layer}", width) if attention[level] else {}
            arriving = width
        if level > 0:
            shapes |= conv(f"{block}.upsamplers.0.conv", width, width)
    return shapes


def _resnet(name: str, entering: int, width: int, time: int) -> Layout:
    shapes = {
        **norm(f"{name}.norm1", entering),
        **conv(f"{name}.conv1", entering, width),
        **linear(f"{name}.time_emb_proj", time, width),
        **norm(f"{name}.norm2", width),
        **conv(f"{name}.conv2", width, width),
    }
    # Widths that stay need no convolution beside the block.
    return shapes | (conv(f"{name}.conv_shortcut", entering, width, kernel=1) if entering != width else {})


def _attention(name: str, width: int) -> Layout:
    shapes = norm(f"{name}.group_norm", width)
    for projection in ("to_q", "to_k", "to_v", "to_out.0"):
        shapes |= linear(f"{name}.{projection}", width, width)
    return shapes
