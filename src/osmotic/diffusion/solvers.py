"""The samplers by name, one entry each: what it needs, and the diffusers scheduler that does its steps.

Sources: ddpm arXiv:2006.11239, ddim 2010.02502, dpm-solver++ (2M) 2211.01095, unipc 2302.04867, edm 2206.00364.
torch and diffusers are imported inside functions alone: a configuration is checked, and a plan made, against the
names here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from osmotic.diffusion import schedule as schedules
from osmotic.diffusion.target import SIGMA_MAX, SIGMA_MIN, TARGETS

if TYPE_CHECKING:
    import torch

    from osmotic.diffusion.process import Process

# Starting where log(alpha / sigma) is below this multiplies the network's error by more than 160 and changes the
# images by less than 1 %; it is diffusers' advice for the cosine schedule, and the linear one ends just above it.
SMALLEST_LAMBDA = -5.1
# Signal power that the first stop may hold: every schedule ends below it.
LARGEST_START = 1e-3
# Of 1.5, 1.75, 2, 2.25, 2.5 and 3 the one that keeps the variance of Gaussians best at 20 steps, whether narrow or wide,
# with an ideal network (experiments/samplers): at most 6 % are lost or gained, where 1.5 loses 24 to 50 % at a spread of 0.05.
SPACING_POWER = 2.5
# With a largest value of 1, diffusers' dynamic thresholding is a plain clip to [-1, 1]; with any other it would scale.
PLAIN_CLIP = {"thresholding": True, "sample_max_value": 1.0}


def scheduler_arguments(target: str, schedule: str, timesteps: int) -> dict[str, Any]:
    """What every diffusers scheduler of a scheduled target is told, whatever its steps: the betas and the prediction.

    Args: keys of `TARGETS` and `schedule.SCHEDULES`, not checked here; length of the schedule.
    """
    beta_start, beta_end = schedules.linear_ends(timesteps)  # the cosine schedule does not look at them
    return {
        "num_train_timesteps": timesteps,
        "beta_schedule": schedules.SCHEDULES[schedule].diffusers_name,
        "beta_start": beta_start,
        "beta_end": beta_end,
        "prediction_type": TARGETS[target].prediction_type,
    }


@dataclass(frozen=True, kw_only=True)
class Sampler(ABC):
    """One way from noise to images.

    Args:
        order: the global error falls with the number of steps to minus this power.
        ancestral: whether it draws noise at every step.
        edm: whether it walks EDM's noise levels and not timesteps; the target must be of the same kind.
    """

    order: int
    ancestral: bool = False
    edm: bool = False

    def most_steps(self, timesteps: int) -> int | None:
        """Distinct stops that a schedule of so many timesteps offers; None is any number."""
        return timesteps

    @abstractmethod
    def scheduler(
        self, process: Process, steps: int, *, clip: bool = True, device: torch.device | str = "cpu"
    ) -> Any:
        """A diffusers scheduler with `timesteps` [steps]; the last step always goes to zero noise.

        Args:
            process: what the network was trained with.
            steps: sampler steps, in 1..`most_steps`.
            clip: whether every step's estimate of x0 is clipped to [-1, 1]; the EDM samplers never do.
            device: where the scheduler's tables are.
        """


@dataclass(frozen=True, kw_only=True)
class Ddpm(Sampler):
    """The reverse chain itself, with the smaller of its two variances (arXiv:2006.11239, alg. 2)."""

    order: int = 1
    ancestral: bool = True

    def scheduler(
        self, process: Process, steps: int, *, clip: bool = True, device: torch.device | str = "cpu"
    ) -> Any:
        """As `Sampler.scheduler`, at the even stops [steps]."""
        from diffusers import DDPMScheduler  # its default variance, "fixed_small", is the smaller one

        common = scheduler_arguments(process.target, process.schedule, process.timesteps)
        found = DDPMScheduler(**common, clip_sample=clip, clip_sample_range=1.0)
        found.set_timesteps(timesteps=even_stops(process, steps), device=device)
        return found


@dataclass(frozen=True, kw_only=True)
class DpmSolver(Sampler):
    """DPM-Solver++ of order 1 or 2 over chosen stops (arXiv:2211.01095, alg. 2).

    ddim is order 1, which is the same update (sec. 4.1): diffusers' own DDIM scheduler loses its place where the steps
    do not divide the timesteps. No Karras sigmas: they fall between timesteps, and diffusers then tells the network a
    rounded one.

    Args:
        stops: (process, steps) -> the timesteps visited, strictly falling.
    """

    stops: Callable[[Process, int], list[int]]

    def scheduler(
        self, process: Process, steps: int, *, clip: bool = True, device: torch.device | str = "cpu"
    ) -> Any:
        """As `Sampler.scheduler`, at the stops [steps] of this sampler."""
        from diffusers import DPMSolverMultistepScheduler

        common = scheduler_arguments(process.target, process.schedule, process.timesteps)
        found = DPMSolverMultistepScheduler(
            **common, **(PLAIN_CLIP if clip else {}), final_sigmas_type="zero", solver_order=self.order
        )
        found.set_timesteps(timesteps=self.stops(process, steps), device=device)
        return found


@dataclass(frozen=True, kw_only=True)
class UniPC(Sampler):
    """UniPC of order 2 (arXiv:2302.04867).

    diffusers' scheduler takes no list of timesteps: it keeps its "linspace" stops, over the usable part of the schedule.
    """

    order: int = 2

    def most_steps(self, timesteps: int) -> int | None:
        """One fewer than timesteps: "linspace" never stops at timestep 0."""
        return timesteps - 1

    def scheduler(
        self, process: Process, steps: int, *, clip: bool = True, device: torch.device | str = "cpu"
    ) -> Any:
        """As `Sampler.scheduler`, at the "linspace" stops [steps] of the usable part of the schedule."""
        from diffusers import UniPCMultistepScheduler

        usable = usable_timesteps(process, steps + 1)
        # Given betas win over the named schedule, which would be stretched over the shorter length.
        cut = schedules.betas(process.schedule, process.timesteps)[:usable].tolist()
        common = scheduler_arguments(process.target, process.schedule, usable)
        found = UniPCMultistepScheduler(
            **common,
            **(PLAIN_CLIP if clip else {}),
            trained_betas=cut,
            timestep_spacing="linspace",
            final_sigmas_type="zero",
            solver_order=self.order,
        )
        found.set_timesteps(steps, device=device)
        return found


@dataclass(frozen=True, kw_only=True)
class EdmSolver(Sampler):
    """A solver over EDM's noise levels, spaced as in arXiv:2206.00364, eq. 5 (rho = 7).

    Args:
        scheduler_class: name of the scheduler in diffusers.
    """

    scheduler_class: str
    edm: bool = True

    def most_steps(self, timesteps: int) -> int | None:
        """None: noise levels are chosen freely."""
        return None

    def scheduler(
        self, process: Process, steps: int, *, clip: bool = True, device: torch.device | str = "cpu"
    ) -> Any:
        """As `Sampler.scheduler`, at noise levels [steps] and not timesteps.

        `clip` changes nothing, as in the paper, which clips no estimate on the way.
        """
        import diffusers

        found = getattr(diffusers, self.scheduler_class)(
            sigma_min=SIGMA_MIN,
            sigma_max=SIGMA_MAX,
            sigma_data=process.sigma_data,
            prediction_type=TARGETS[process.target].prediction_type,
            final_sigmas_type="zero",
        )
        found.set_timesteps(steps, device=device)
        return found


def even_stops(process: Process, steps: int) -> list[int]:
    """Timesteps [steps] evenly spaced, strictly falling, from the noisiest one to one stride above clean.

    The noisiest timestep must be among them: the network has seen it, and sampling starts there ("trailing",
    arXiv:2305.08891, Table 2).
    """
    stride = -process.timesteps / steps
    return [round(index * stride + process.timesteps) - 1 for index in range(steps)]


def crowded_stops(process: Process, steps: int) -> list[int]:
    """Timesteps [steps] from the end of the usable part, strictly falling, >= 0, closer towards clean.

    That is where pixels of small variance are settled (cf. the quadratic spacing of arXiv:2010.02502, app. D.2).
    """
    usable = usable_timesteps(process, steps)
    above = 0
    rising = []
    for index in range(1, steps + 1):
        # Rounding near the clean end must not make two stops one.
        above = max(above + 1, round(usable * (index / steps) ** SPACING_POWER))
        rising.append(above - 1)
    return rising[::-1]


def usable_timesteps(process: Process, at_least: int) -> int:
    """Length of the schedule without the end where the network's error is blown up; `at_least` are kept."""
    # lambda = log(alpha / sigma) is half the log SNR (arXiv:2211.01095, sec. 2).
    usable = int((schedules.snr(process.alpha_bar).log() / 2 >= SMALLEST_LAMBDA).sum())
    # In a short schedule the timestep before the end may still hold signal, and sampling starts from noise alone.
    noise = int((process.alpha_bar >= LARGEST_START).sum()) + 1
    return min(max(usable, noise, at_least), process.timesteps)


SAMPLERS: dict[str, Sampler] = {
    "ddpm": Ddpm(),
    "ddim": DpmSolver(order=1, stops=even_stops),
    "dpm-solver++": DpmSolver(order=2, stops=crowded_stops),
    "unipc": UniPC(),
    "edm-euler": EdmSolver(order=1, scheduler_class="EDMEulerScheduler"),
    "edm-dpm-solver++": EdmSolver(order=2, scheduler_class="EDMDPMSolverMultistepScheduler"),
}
