"""From what a network predicts back to image and noise: the inverses of the targets, which training never needs."""

from __future__ import annotations

from torch import Tensor

from osmotic.diffusion.target import EdmScaling, per_image


def to_x0(target: str, prediction: Tensor, noisy: Tensor, alpha_bar: Tensor) -> Tensor:
    """Clean images that a prediction [B, C, H, W] stands for; undefined for "epsilon" where alpha_bar [B] is 0."""
    kept = per_image(alpha_bar, noisy)
    ways = {
        "epsilon": lambda: (noisy - (1.0 - kept).sqrt() * prediction) / kept.sqrt(),
        "sample": lambda: prediction,
        "v": lambda: kept.sqrt() * noisy - (1.0 - kept).sqrt() * prediction,
    }
    return ways[target]()


def to_noise(target: str, prediction: Tensor, noisy: Tensor, alpha_bar: Tensor) -> Tensor:
    """Noise that a prediction [B, C, H, W] stands for; undefined for "sample" where alpha_bar [B] is 1."""
    kept = per_image(alpha_bar, noisy)
    ways = {
        "epsilon": lambda: prediction,
        "sample": lambda: (noisy - kept.sqrt() * prediction) / (1.0 - kept).sqrt(),
        "v": lambda: kept.sqrt() * prediction + (1.0 - kept).sqrt() * noisy,
    }
    return ways[target]()


def edm_denoised(output: Tensor, noisy: Tensor, scaling: EdmScaling) -> Tensor:
    """Clean images D = c_skip * noisy + c_out * F of a raw output F [B, C, H, W] (arXiv:2206.00364, eq. 7)."""
    return per_image(scaling.c_skip, noisy) * noisy + per_image(scaling.c_out, noisy) * output
