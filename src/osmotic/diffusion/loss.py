"""The denoising loss: a distance per image; `target.py` has its weight per noise level.

Next on the reader's path: `process.py`, which brings the two together.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

# smooth_l1_loss has beta 1: d^2 / 2 where |d| < 1, else |d| - 1/2.
DISTANCES = {"mse": functional.mse_loss, "huber": functional.smooth_l1_loss}


def distance(prediction: Tensor, target: Tensor, kind: str) -> Tensor:
    """Distance of each image to its target, the mean over its pixels, [B], float32.

    Args:
        prediction: the network's output, any float type, [B, C, H, W].
        target: [B, C, H, W].
        kind: "mse" is d^2, "huber" is smooth L1 with beta 1.
    Raises: ValueError for another kind, or if the shapes differ.
    """
    # A network that answers [C, H, W] would otherwise be broadcast over the batch and seem to train.
    if prediction.shape != target.shape:
        raise ValueError(f"prediction and target must have one shape: {prediction.shape}, {target.shape}")
    if kind not in DISTANCES:
        raise ValueError(f"loss must be one of {', '.join(DISTANCES)}, got {kind!r}")
    # Under autocast the output is bfloat16; its squares, 8 bits each, would make a coarse mean.
    pixels = DISTANCES[kind](prediction.float(), target.float(), reduction="none")
    return pixels.mean(dim=tuple(range(1, pixels.ndim)))
