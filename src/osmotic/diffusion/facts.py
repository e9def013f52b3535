"""What each target and sampler needs, free of torch so that a configuration is checked at once."""

from __future__ import annotations

from dataclasses import dataclass

TARGETS = ("epsilon", "v", "sample", "edm")

# Table 1 of arXiv:2206.00364: pixels have a standard deviation near 0.5, and ln(sigma) ~ N(-1.2, 1.2^2) in training.
SIGMA_DATA = 0.5
SIGMA_MIN = 0.002
SIGMA_MAX = 80.0
LOG_SIGMA_MEAN = -1.2
LOG_SIGMA_STD = 1.2


@dataclass(frozen=True, kw_only=True)
class SamplerFacts:
    """`order`: global error falls with num_steps to minus this power; `ancestral`: draws noise at every step."""

    order: int
    ancestral: bool = False
    edm: bool = False


SAMPLERS = {
    "ddpm": SamplerFacts(order=1, ancestral=True),
    "ddim": SamplerFacts(order=1),
    "dpm-solver++": SamplerFacts(order=2),
    "unipc": SamplerFacts(order=2),
    "edm-euler": SamplerFacts(order=1, edm=True),
    "edm-dpm-solver++": SamplerFacts(order=2, edm=True),
}


def compatible(target: str, sampler: str) -> str | None:
    """None if the sampler can use a network of this target, else the reason why not."""
    if target not in TARGETS:
        return "target must be one of " + ", ".join(TARGETS)
    if sampler not in SAMPLERS:
        return "sampler must be one of " + ", ".join(SAMPLERS)
    if SAMPLERS[sampler].edm != (target == "edm"):
        fitting = ", ".join(name for name, facts in SAMPLERS.items() if facts.edm == (target == "edm"))
        return f"sampler {sampler} cannot use target {target}: use one of {fitting}"
    return None


def steps_fit(sampler: str, steps: int, timesteps: int) -> str | None:
    """None if a schedule of so many timesteps has so many distinct stops for the sampler, else the reason.

    EDM samplers choose noise levels freely, so any number of steps fits; unipc never stops at timestep 0.
    """
    most = timesteps - 1 if sampler == "unipc" else timesteps
    if SAMPLERS[sampler].edm or steps <= most:
        return None
    return f"sampler {sampler} takes at most {most} steps with {timesteps} timesteps"


def guidance_fits(guidance: float, num_classes: int, label_dropout: float) -> str | None:
    """None if classifier-free guidance of this scale can work, else the reason; a scale of 1 is off."""
    if guidance == 1:
        return None
    if num_classes == 0:
        return "guidance needs a class-conditional network"
    if label_dropout == 0:
        return "guidance needs a network trained with label_dropout > 0"
    return None


def nfe(steps: int, guidance: float) -> int:
    """Network evaluations per image: one per step, two with guidance (none of the samplers evaluates twice)."""
    return steps if guidance == 1 else 2 * steps


def contract(target: str, schedule: str, timesteps: int) -> dict[str, str | int | float | None]:
    """What server and clients must agree on about the process; null where the target does not use it."""
    edm = target == "edm"
    return {
        "target": target,
        "schedule": None if edm else schedule,
        "timesteps": None if edm else timesteps,
        "sigma_data": SIGMA_DATA if edm else None,
        "sigma_min": SIGMA_MIN if edm else None,
        "sigma_max": SIGMA_MAX if edm else None,
    }
