"""The forward pass of diffusers' `UNet2DModel` for the networks of `unet.py`, channels-last from end to end.

diffusers' own blocks turn images into the default layout and back (before every shortcut in training, around attention,
from 64 images on before every upsampling), divide by 1, and project the same time embedding anew for each block. What is
computed is the same; a step of `unet-8` takes 0.88 of the time (benchmarks/README.md). Layers are called as modules: dropout with
masks of its own, guarded norms and layers of many clients in their place (`stacked.py`) work here as they do there.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

# Up to so many tokens a fused kernel costs more than it saves: with two products a step of 128 images takes 0.93 of its time.
FEW_TOKENS = 16


def forward(
    self: Any,
    sample: Tensor,
    timestep: Tensor | float,
    class_labels: Tensor | None = None,
    return_dict: bool = True,
) -> Any:
    """As `UNet2DModel.forward`, for one with positional time embedding, default scale and shift, and no skip images.

    Args:
        self: the network.
        sample: noisy images, [B, C, H, W].
        timestep: [B], [1] or a number.
        class_labels: int64 [B]; for a network with a class embedding, and for no other.
        return_dict: False gives a tuple of one tensor.
    Returns: the answer, [B, C, H, W].
    Raises: ValueError for labels that are missing or too many.
    """
    if (class_labels is None) != (self.class_embedding is None):
        raise ValueError(
            f"class_labels must {'not ' if self.class_embedding is None else ''}be given to this network"
        )
    given = timestep if isinstance(timestep, Tensor) else torch.tensor([timestep], dtype=torch.long)
    times = given.to(sample.device).expand(len(sample))
    embedding = self.time_embedding(self.time_proj(times).to(sample.dtype))  # [B, 4 * width]
    if self.class_embedding is not None:
        embedding = embedding + self.class_embedding(class_labels)
    told = functional.silu(embedding)

    x = self.conv_in(sample)
    skips = [x]
    for block in self.down_blocks:
        for residual, attention in _layers(block):
            x = _attend(attention, _residual(residual, x, told))
            skips.append(x)
        for downsampler in block.downsamplers or ():
            x = downsampler(x)  # [B, C, H / 2, W / 2]
            skips.append(x)
    first, *rest = self.mid_block.resnets
    x = _residual(first, x, told)
    for residual, attention in zip(rest, self.mid_block.attentions, strict=True):
        x = _residual(residual, _attend(attention, x), told)
    for block in self.up_blocks:
        for residual, attention in _layers(block):
            x = _attend(attention, _residual(residual, torch.cat([x, skips.pop()], dim=1), told))
        for upsampler in block.upsamplers or ():
            x = upsampler.conv(functional.interpolate(x, scale_factor=2.0, mode="nearest"))
    answer = self.conv_out(functional.silu(self.conv_norm_out(x)))
    if not return_dict:
        return (answer,)
    from diffusers.models.unets.unet_2d import UNet2DOutput

    return UNet2DOutput(sample=answer)


def _layers(block: Any) -> list[tuple[Any, Any]]:
    """The residual blocks of a level, each with the attention after it, or None."""
    attentions = getattr(block, "attentions", None) or [None] * len(block.resnets)
    return list(zip(block.resnets, attentions, strict=True))


def _residual(block: Any, x: Tensor, told: Tensor) -> Tensor:
    """A residual block (arXiv:2006.11239, app. B), [B, C, H, W] -> [B, C', H, W]; told [B, T] is time and class."""
    h = block.conv1(functional.silu(block.norm1(x)))
    h = h + block.time_emb_proj(told)[:, :, None, None]
    h = block.conv2(block.dropout(functional.silu(block.norm2(h))))
    return h + (x if block.conv_shortcut is None else block.conv_shortcut(x))


def _attend(layer: Any, x: Tensor) -> Tensor:
    """Each pixel attends to all of its image, [B, C, H, W] -> [B, C, H, W]; `layer` None leaves x as it is."""
    if layer is None:
        return x
    batch, channels, height, width = x.shape
    tokens = layer.group_norm(x).permute(0, 2, 3, 1).reshape(batch, height * width, channels)
    query, key, value = (
        projection(tokens)
        .view(batch, height * width, layer.heads, -1)
        .transpose(1, 2)  # [B, heads, HW, C / heads]
        for projection in (layer.to_q, layer.to_k, layer.to_v)
    )
    if x.device.type == "cpu" and height * width <= FEW_TOKENS:
        found = ((query * layer.scale) @ key.transpose(2, 3)).softmax(dim=-1) @ value
    else:
        found = functional.scaled_dot_product_attention(query, key, value)
    found = layer.to_out[0](found.transpose(1, 2).reshape(batch, height * width, channels))
    return x + found.view(batch, height, width, channels).permute(0, 3, 1, 2)
