"""The denoising loss: a distance per image and a weight per noise level.

Sources: arXiv:2303.09556, sec. 3.4 (min-SNR weight), arXiv:2206.00364, Table 1 (EDM's weight).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from osmotic.diffusion import facts


def distance(prediction: Tensor, target: Tensor, kind: str) -> Tensor:
    """Distance of each image to its target, the mean over its pixels, in float32.

    "mse" is d^2; "huber" is smooth L1 with beta 1: d^2 / 2 where |d| < 1, else |d| - 1/2.
    Args:
        prediction: the network's output, any float type, [B, C, H, W].
        target: [B, C, H, W].
        kind: "mse" or "huber".
    Returns: [B].
    Raises: ValueError for another kind, or if the shapes differ.
    """
    if prediction.shape != target.shape:
        raise ValueError(f"prediction and target must have one shape: {prediction.shape}, {target.shape}")
    prediction, target = prediction.float(), target.float()
    if kind == "mse":
        pixels = functional.mse_loss(prediction, target, reduction="none")
    elif kind == "huber":
        pixels = functional.smooth_l1_loss(prediction, target, reduction="none", beta=1.0)
    else:
        raise ValueError(f"loss must be mse or huber, got {kind!r}")
    return pixels.mean(dim=tuple(range(1, pixels.ndim)))


def min_snr_weight(target: str, snr: Tensor, gamma: float) -> Tensor:
    """Weight of each image's distance: min(SNR, gamma) as seen from the clean image, [B].

    One unit of distance in x0 is 1 / SNR units in epsilon and 1 / (SNR + 1) in v, hence
    min(SNR, gamma), min(SNR, gamma) / SNR and min(SNR, gamma) / (SNR + 1) for sample, epsilon and v.
    Source: arXiv:2303.09556, sec. 3.4 and app. B.
    Args:
        target: "epsilon", "v" or "sample".
        snr: signal-to-noise ratio at each image's timestep, > 0, [B].
        gamma: largest weight in x0 units; 0 gives every timestep weight 1.
    Raises: ValueError for another target or gamma < 0.
    """
    if gamma < 0:
        raise ValueError(f"gamma must be >= 0, got {gamma}")
    if target not in ("epsilon", "v", "sample"):
        raise ValueError(f"target must be epsilon, v or sample, got {target!r}")
    if gamma == 0:
        return torch.ones_like(snr)
    if target == "epsilon":
        # min(SNR, gamma) / SNR, written so that an infinite SNR gives 0 and not inf / inf.
        return (gamma / snr).clamp(max=1.0)
    if target == "v":
        return snr.clamp(max=gamma) / (snr + 1.0)
    return snr.clamp(max=gamma)


def edm_weight(sigma: Tensor, sigma_data: float = facts.SIGMA_DATA) -> Tensor:
    """Weight lambda of |D - x0|^2: (sigma^2 + sigma_data^2) / (sigma * sigma_data)^2, [B].

    It is 1 / c_out^2, so |F - target|^2 of the raw network has weight 1 at every noise level.
    Source: arXiv:2206.00364, Table 1.
    """
    return (sigma.square() + sigma_data**2) / (sigma * sigma_data).square()
