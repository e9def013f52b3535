"""Which targets, schedules and samplers there are, and which of them go together; imports neither torch nor diffusers."""

from __future__ import annotations

from osmotic.diffusion.schedule import SCHEDULES
from osmotic.diffusion.solvers import SAMPLERS
from osmotic.diffusion.target import TARGETS

__all__ = ["SAMPLERS", "SCHEDULES", "TARGETS", "compatible", "nfe", "steps_fit", "timesteps_fit"]


def compatible(target: str, sampler: str) -> str | None:
    """None if the sampler can use a network of this target, else the reason why not; both may be any text."""
    if target not in TARGETS:
        return "target must be one of " + ", ".join(TARGETS)
    if sampler not in SAMPLERS:
        return "sampler must be one of " + ", ".join(SAMPLERS)
    # An EDM network is told c_noise and answers F, the others are told a timestep: neither can stand in for the other.
    edm = TARGETS[target].edm
    if SAMPLERS[sampler].edm != edm:
        fitting = ", ".join(name for name, entry in SAMPLERS.items() if entry.edm == edm)
        return f"sampler {sampler} cannot use target {target}: use one of {fitting}"
    return None


def timesteps_fit(schedule: str, timesteps: int) -> str | None:
    """None if the schedule, a key of `SCHEDULES`, can have so few timesteps, else the reason why not."""
    fewest = SCHEDULES[schedule].fewest
    return None if timesteps >= fewest else f"schedule {schedule} takes {fewest} timesteps or more"


def steps_fit(sampler: str, steps: int, timesteps: int) -> str | None:
    """None if a schedule of so many timesteps has `steps` distinct stops for the sampler, else the reason why not.

    Args: sampler is a key of `SAMPLERS`; steps and timesteps are >= 1.
    """
    most = SAMPLERS[sampler].most_steps(timesteps)
    if most is None or steps <= most:
        return None
    return f"sampler {sampler} takes at most {most} steps with {timesteps} timesteps"


def nfe(steps: int, guidance: float) -> int:
    """Network evaluations per image, for `steps` >= 1 sampler steps at this guidance scale (1 is off)."""
    # No sampler here evaluates twice in a step, as Heun would; guidance does, with label and without.
    return steps if guidance == 1 else 2 * steps
