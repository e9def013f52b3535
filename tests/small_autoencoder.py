"""An untrained autoencoder of a few thousand weights as a folder: grey images to latents of four channels, a quarter of the side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch


def write(folder: Path, seed: int = 0, **form: Any) -> Path:
    """The folder of one with these weights; `form` are further arguments of `AutoencoderKL`."""
    from diffusers import AutoencoderKL

    keys: dict[str, Any] = {
        "in_channels": 1,
        "out_channels": 1,
        "down_block_types": ("DownEncoderBlock2D",) * 3,
        "up_block_types": ("UpDecoderBlock2D",) * 3,
        "block_out_channels": (8, 8, 8),
        "layers_per_block": 1,
        "latent_channels": 4,
        "norm_num_groups": 4,
        "sample_size": 16,
        "scaling_factor": 2.0,
        "mid_block_add_attention": False,
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        AutoencoderKL(**(keys | form)).save_pretrained(str(folder))
    return folder
