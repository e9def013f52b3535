"""Kernel distance: squared maximum mean discrepancy of features under a cubic kernel.

KID = mean k(r, r') + mean k(g, g') - 2 mean k(r, g), the first two over pairs of different images, with the
kernel k(x, y) = (x . y / D + 1)^3 of D features. Source: arXiv:1801.01401, sec. 4. Unlike FD it is unbiased,
so it may be averaged over clients (arXiv:2310.11714); it can come out slightly below 0.
"""

from __future__ import annotations

import numpy as np

# Images of a subset and number of subsets: part of what the score means, so no configuration key moves them.
SUBSET_SIZE = 100
SUBSETS = 100


def kernel_distance(real: np.ndarray, generated: np.ndarray, seed: int = 0) -> float:
    """Mean KID over 100 random subsets, drawn without replacement, of min(N, M, 100) images a side.

    Args:
        real, generated: features of any floating type, [N, D] and [M, D].
        seed: of the subsets.
    Returns: the distance, in no unit; it may come out slightly below 0.
    Raises: ValueError if one side has under 2 images.
    """
    import torch
    from torchmetrics.image.kid import poly_mmd

    size = min(len(real), len(generated), SUBSET_SIZE)
    if size < 2:
        raise ValueError(f"KID needs at least 2 images on both sides, got {len(real)} and {len(generated)}")
    # float64: cubes of float32 features leave few digits of a small difference.
    sides = [torch.from_numpy(side.astype(np.float64)) for side in (real, generated)]
    # A generator of its own, where torchmetrics' class draws from the global one: that is the run's.
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(SUBSETS):
        subset = [side[torch.randperm(len(side), generator=generator)[:size]] for side in sides]
        found.append(poly_mmd(*subset))
    return float(torch.stack(found).mean())
