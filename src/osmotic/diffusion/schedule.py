"""Noise schedules: how much signal power is left at each timestep, with the same float32 values as diffusers.

Any admissible number of timesteps ends with less than a thousandth of the signal, since sampling starts from noise alone.
Sources: linear, arXiv:2006.11239, sec. 4, scaled as in the code of arXiv:2102.09672; cosine, arXiv:2102.09672, eq. 17.
torch is imported inside functions alone: a configuration is checked, and a plan made, against the names here.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

BETA_START, BETA_END = 1e-4, 0.02  # of the linear schedule with LINEAR_TIMESTEPS
LINEAR_TIMESTEPS = 1000
# The cosine schedule's last beta would be 1 and leave no signal: the SNR would be 0 and epsilon's x0 infinite
# (arXiv:2102.09672, sec. 3.2).
LARGEST_BETA = 0.999


@dataclass(frozen=True)
class Schedule:
    """One noise schedule.

    Args:
        betas: timesteps -> noise variance added at each of them, [timesteps], float32, in (0, 1).
        diffusers_name: what diffusers' schedulers call the same betas (`beta_schedule`).
        fewest: timesteps, from which on it is one.
    """

    betas: Callable[[int], Tensor]
    diffusers_name: str
    fewest: int = 1


def linear_ends(timesteps: int) -> tuple[float, float]:
    """First and last beta of the linear schedule: 1e-4 and 0.02 with 1000 timesteps, times 1000 / timesteps with others.

    So the noise added in all is the same for any number of them: unscaled, 100 would keep 36 % of the signal power, and
    9,000 leave none that float32 can hold. From the code of arXiv:2102.09672.
    """
    scale = LINEAR_TIMESTEPS / timesteps
    return scale * BETA_START, scale * BETA_END


def linear_betas(timesteps: int) -> Tensor:
    """Evenly spaced between `linear_ends`, [timesteps], float32 (arXiv:2006.11239, sec. 4)."""
    import torch

    return torch.linspace(*linear_ends(timesteps), timesteps, dtype=torch.float32)


def cosine_betas(timesteps: int) -> Tensor:
    """Those that leave cos^2(((t / T) + 0.008) / 1.008 * pi / 2) of the power, [timesteps], float32, at most 0.999.

    Source: arXiv:2102.09672, eq. 17; the offset 0.008 keeps the first betas from being too small to learn from.
    """
    import torch

    # In Python's float64 and rounded once, as diffusers does: in float32 the ratios differ in the last bit.
    kept = [math.cos((t / timesteps + 0.008) / 1.008 * math.pi / 2) ** 2 for t in range(timesteps + 1)]
    return torch.tensor(
        [min(1 - after / before, LARGEST_BETA) for before, after in itertools.pairwise(kept)],
        dtype=torch.float32,
    )


SCHEDULES: dict[str, Schedule] = {
    # With 20 timesteps the last beta, 20 / timesteps, would be 1 and leave no signal.
    "linear": Schedule(linear_betas, "linear", fewest=21),
    "cosine": Schedule(cosine_betas, "squaredcos_cap_v2"),
}


def betas(schedule: str, timesteps: int) -> Tensor:
    """Noise variance added at each timestep, [timesteps], float32, in (0, 1).

    Raises: ValueError if the schedule is unknown or there are too few timesteps for it.
    """
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}, got {schedule!r}")
    if timesteps < SCHEDULES[schedule].fewest:
        raise ValueError(f"timesteps must be >= {SCHEDULES[schedule].fewest} ({schedule}), got {timesteps}")
    return SCHEDULES[schedule].betas(timesteps)


def alpha_bar(schedule: str, timesteps: int) -> Tensor:
    """Signal power kept at each timestep: prod_{s<=t} (1 - beta_s), [timesteps], float32, falling, in (0, 1).

    Source: arXiv:2006.11239, eq. 4.
    Raises: ValueError as `betas`.
    """
    return (1.0 - betas(schedule, timesteps)).cumprod(dim=0)


def snr(alpha_bar: Tensor) -> Tensor:
    """Signal-to-noise ratio alpha_bar / (1 - alpha_bar), shaped like `alpha_bar` [...]; inf where that is 1.

    Source: arXiv:2107.00630, eq. 2.
    """
    return alpha_bar / (1.0 - alpha_bar)
