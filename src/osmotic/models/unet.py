"""The U-Net of every preset: diffusers' `UNet2DModel`, unwrapped, so that it saves and loads natively.

Source: arXiv:2006.11239, app. B; the class condition is a learned vector added to the time embedding.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping

import numpy as np
import torch
from diffusers import UNet2DModel

from osmotic.models import NetworkSpec

# Fresh layers draw from torch's one global generator, which threads share.
_drawing = threading.Lock()


def build(spec: NetworkSpec) -> UNet2DModel:
    """The network in training mode, its weights yet to be set; torch's global generator is left as it was.

    Called as `model(x, t, class_labels=y, return_dict=False)[0]`: x float [B, C, H, W], t int or float tensor [B]
    (a Python float would be cut to a whole number), y int64 [B] or None if unconditional; the answer is shaped like x.
    """
    with _drawing, torch.random.fork_rng(devices=[]):
        return _construct(spec)


def initial(spec: NetworkSpec, seed: int) -> dict[str, np.ndarray]:
    """Fresh weights by sorted name, float32, drawn from `seed` alone; torch's global generator is left as it was.

    Safe to call from several threads.
    """
    with _drawing, torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        state = _construct(spec).state_dict()
    return {name: state[name].numpy().astype(np.float32, copy=False) for name in sorted(state)}


def with_weights(spec: NetworkSpec, weights: Mapping[str, np.ndarray]) -> UNet2DModel:
    """The network in evaluation mode with float32 copies of `weights`; nothing is drawn.

    Raises: RuntimeError if a name is missing or too many, or a shape differs.
    """
    with torch.device("meta"):
        model = _construct(spec)
    copies = {name: torch.tensor(value, dtype=torch.float32, device="cpu") for name, value in weights.items()}
    model.load_state_dict(copies, assign=True)
    return model.eval()


def _construct(spec: NetworkSpec) -> UNet2DModel:
    preset = spec.preset
    return UNet2DModel(
        sample_size=spec.image_size,
        in_channels=spec.channels,
        out_channels=spec.channels,
        block_out_channels=preset.widths,
        layers_per_block=preset.layers,
        down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in preset.attention),
        up_block_types=tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(preset.attention)),
        norm_num_groups=preset.norm_groups,
        attention_head_dim=preset.head_width,
        dropout=spec.dropout,
        num_class_embeds=spec.num_classes + 1 if spec.num_classes else None,
        **dict(preset.extra),
    )
