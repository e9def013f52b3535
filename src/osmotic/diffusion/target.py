"""What the network predicts (noise, v or clean image), the ways back, and EDM's preconditioning.

Sources: arXiv:2006.11239 (epsilon), arXiv:2202.00512, sec. 4 and app. D (v), arXiv:2206.00364, Table 1 (EDM).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from osmotic.diffusion import facts


def per_image(values: Tensor, images: Tensor) -> Tensor:
    """`values` [B] on the device of `images` and shaped [B, 1, 1, 1] to scale them."""
    return values.to(images.device).reshape(-1, *[1] * (images.ndim - 1))


def add_noise(x0: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
    """Noisy images sqrt(alpha_bar) * x0 + sqrt(1 - alpha_bar) * noise.

    Source: arXiv:2006.11239, eq. 4.
    Args:
        x0: clean images in [-1, 1], [B, C, H, W].
        noise: standard normal draw, [B, C, H, W].
        alpha_bar: signal power kept at each image's timestep, in [0, 1], [B].
    Returns: [B, C, H, W].
    """
    _same_shape(x0, noise)
    kept = per_image(alpha_bar, x0)
    return kept.sqrt() * x0 + (1.0 - kept).sqrt() * noise


def regression_target(target: str, x0: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
    """What a network of this target should output: noise, v or x0, [B, C, H, W].

    v = sqrt(alpha_bar) * noise - sqrt(1 - alpha_bar) * x0 (arXiv:2202.00512, sec. 4; their alpha and sigma are
    the two square roots).
    Args: as `add_noise`; `target` is "epsilon", "v" or "sample".
    Raises: ValueError for another target, or if x0 and noise differ in shape.
    """
    _same_shape(x0, noise)
    if target == "epsilon":
        return noise
    if target == "sample":
        return x0
    if target == "v":
        kept = per_image(alpha_bar, x0)
        return kept.sqrt() * noise - (1.0 - kept).sqrt() * x0
    raise _unknown(target)


def to_x0(target: str, prediction: Tensor, noisy: Tensor, alpha_bar: Tensor) -> Tensor:
    """Clean images that a prediction stands for, [B, C, H, W]; undefined for "epsilon" where alpha_bar is 0.

    Args:
        target: what `prediction` is: "epsilon", "v" or "sample".
        prediction: the network's output, [B, C, H, W].
        noisy: what the network saw, [B, C, H, W].
        alpha_bar: in [0, 1], [B].
    Raises: ValueError for another target.
    """
    kept = per_image(alpha_bar, noisy)
    if target == "epsilon":
        return (noisy - (1.0 - kept).sqrt() * prediction) / kept.sqrt()
    if target == "sample":
        return prediction
    if target == "v":
        return kept.sqrt() * noisy - (1.0 - kept).sqrt() * prediction
    raise _unknown(target)


def to_noise(target: str, prediction: Tensor, noisy: Tensor, alpha_bar: Tensor) -> Tensor:
    """Noise that a prediction stands for, [B, C, H, W]; undefined for "sample" where alpha_bar is 1.

    Args and errors: as `to_x0`.
    """
    kept = per_image(alpha_bar, noisy)
    if target == "epsilon":
        return prediction
    if target == "sample":
        return (noisy - kept.sqrt() * prediction) / (1.0 - kept).sqrt()
    if target == "v":
        return kept.sqrt() * prediction + (1.0 - kept).sqrt() * noisy
    raise _unknown(target)


@dataclass(frozen=True)
class EdmScaling:
    """EDM's factors for a noise level: D(x) = c_skip * x + c_out * F(c_in * x, c_noise). Each [B]."""

    c_skip: Tensor
    c_out: Tensor
    c_in: Tensor
    c_noise: Tensor


def edm_scaling(sigma: Tensor, sigma_data: float = facts.SIGMA_DATA) -> EdmScaling:
    """The factors of arXiv:2206.00364, Table 1, last column.

    Args:
        sigma: noise standard deviation, > 0, [B].
        sigma_data: standard deviation of the pixels, > 0.
    """
    total = sigma.square() + sigma_data**2
    return EdmScaling(
        c_skip=sigma_data**2 / total,
        c_out=sigma * sigma_data / total.sqrt(),
        c_in=1.0 / total.sqrt(),
        c_noise=sigma.log() / 4.0,
    )


def edm_target(x0: Tensor, noisy: Tensor, scaling: EdmScaling) -> Tensor:
    """What the raw network F should output: (x0 - c_skip * noisy) / c_out, [B, C, H, W].

    Source: arXiv:2206.00364, eq. 8.
    """
    _same_shape(x0, noisy)
    return (x0 - per_image(scaling.c_skip, x0) * noisy) / per_image(scaling.c_out, x0)


def edm_denoised(output: Tensor, noisy: Tensor, scaling: EdmScaling) -> Tensor:
    """Clean images D = c_skip * noisy + c_out * F that a raw output F stands for (arXiv:2206.00364, eq. 7)."""
    return per_image(scaling.c_skip, noisy) * noisy + per_image(scaling.c_out, noisy) * output


def draw_sigma(count: int, generator: torch.Generator) -> Tensor:
    """Training noise levels, ln(sigma) ~ N(-1.2, 1.2^2), [count], on the generator's device.

    Source: arXiv:2206.00364, Table 1.
    """
    draw = torch.randn(count, generator=generator, device=generator.device)
    return (facts.LOG_SIGMA_MEAN + facts.LOG_SIGMA_STD * draw).exp()


def _same_shape(first: Tensor, second: Tensor) -> None:
    if first.shape != second.shape:
        raise ValueError(f"images and noise must have one shape, got {first.shape} and {second.shape}")


def _unknown(target: str) -> ValueError:
    return ValueError(f"target must be epsilon, v or sample, got {target!r}")
