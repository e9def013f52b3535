"""Kernel distance: squared maximum mean discrepancy of features under a cubic kernel (arXiv:1801.01401, sec. 4).

Unlike FD it is unbiased, so it may be averaged over clients (arXiv:2310.11714); it can come out slightly below 0.
"""

from __future__ import annotations

import warnings

import numpy as np

SUBSET_SIZE = 100
SUBSETS = 100


def kernel_distance(real: np.ndarray, generated: np.ndarray, seed: int = 0) -> float:
    """Mean over 100 random subsets, without replacement, of size min(N, M, 100).

    Args:
        real, generated: features [N, D] and [M, D].
        seed: of the subsets.
    Raises: ValueError if one side has under 2 images.
    """
    import torch
    from torchmetrics.image.kid import KernelInceptionDistance

    size = min(len(real), len(generated), SUBSET_SIZE)
    if size < 2:
        raise ValueError(f"KID needs at least 2 images on both sides, got {len(real)} and {len(generated)}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that it keeps all features: they are here already
        metric = KernelInceptionDistance(feature=torch.nn.Identity(), subsets=SUBSETS, subset_size=size)
    metric.set_dtype(torch.float64)
    metric.update(torch.from_numpy(real.astype(np.float64)), real=True)
    metric.update(torch.from_numpy(generated.astype(np.float64)), real=False)
    # torchmetrics draws the subsets from the global generator: seed a copy of it, then put it back.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        mean, _ = metric.compute()
    return float(mean)
