"""Noise schedules: how much signal power is left at each timestep, with the same float32 values as diffusers.

Sources: linear, arXiv:2006.11239, sec. 4; cosine, arXiv:2102.09672, eq. 17.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

# The names diffusers' schedulers give the same betas.
DIFFUSERS_NAMES = {"linear": "linear", "cosine": "squaredcos_cap_v2"}
BETA_START, BETA_END = 1e-4, 0.02
LARGEST_BETA = 0.999


def betas(schedule: str, timesteps: int) -> Tensor:
    """Noise variance added at each timestep, [timesteps], float32, in (0, 1).

    Raises: ValueError if the schedule is unknown or there is no timestep.
    """
    if timesteps < 1:
        raise ValueError(f"timesteps must be >= 1, got {timesteps}")
    if schedule == "linear":
        return torch.linspace(BETA_START, BETA_END, timesteps, dtype=torch.float32)
    if schedule == "cosine":
        kept = [math.cos((t / timesteps + 0.008) / 1.008 * math.pi / 2) ** 2 for t in range(timesteps + 1)]
        return torch.tensor(
            [min(1 - after / before, LARGEST_BETA) for before, after in itertools.pairwise(kept)],
            dtype=torch.float32,
        )
    raise ValueError(f"schedule must be one of {', '.join(DIFFUSERS_NAMES)}, got {schedule!r}")


def alpha_bar(schedule: str, timesteps: int) -> Tensor:
    """Signal power kept at each timestep: prod_{s<=t} (1 - beta_s), [timesteps], float32, falling, in (0, 1).

    Source: arXiv:2006.11239, eq. 4.
    Raises: ValueError as `betas`.
    """
    return torch.cumprod(1.0 - betas(schedule, timesteps), dim=0)


def snr(alpha_bar: Tensor) -> Tensor:
    """Signal-to-noise ratio alpha_bar / (1 - alpha_bar), same shape; inf where alpha_bar is 1.

    Source: arXiv:2107.00630, eq. 2.
    """
    return alpha_bar / (1.0 - alpha_bar)
