"""What the network predicts, one class per target: the noise, v, the clean image, or EDM's preconditioned output.

Sources: arXiv:2006.11239 (epsilon), arXiv:2202.00512, sec. 4 and app. D (v), arXiv:2206.00364, Table 1 (EDM),
arXiv:2303.09556, sec. 3.4 (the min-SNR weights).
torch is imported inside functions alone: a configuration is checked, and a plan made, against the names here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol

from osmotic.diffusion.schedule import LINEAR_TIMESTEPS, linear_ends, snr

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Contract = dict[str, str | int | float | None]

# Table 1 of arXiv:2206.00364: pixels have a standard deviation near 0.5 (`model.sigma_data`), and ln(sigma) ~ N(-1.2, 1.2^2) in training.
SIGMA_DATA = 0.5
SIGMA_MIN = 0.002
SIGMA_MAX = 80.0
LOG_SIGMA_MEAN = -1.2
LOG_SIGMA_STD = 1.2


@dataclass(frozen=True, eq=False)
class Draw:
    """What chance decides of a training step, on the generator's device.

    Args:
        level: each image's noise level, [B]: timesteps, int64, or for EDM sigmas, float32.
        noise: standard normal, [B, C, H, W], float32.
    """

    level: Tensor
    noise: Tensor


@dataclass(frozen=True, eq=False)
class Example:
    """What a batch of clean images asks of the network in one training step.

    Args:
        seen: the noisy images that the network is shown, [B, C, H, W], on the images' device.
        level: each image's noise level as the network is told it, [B], on the generator's device: the timestep, int64,
            or for EDM c_noise = ln(sigma) / 4, float32.
        goal: what it should answer, [B, C, H, W].
        weight: of each image's distance to its goal, [B], on the generator's device; None is 1 for all.
    """

    seen: Tensor
    level: Tensor
    goal: Tensor
    weight: Tensor | None


class Target(Protocol):
    """What a network may be trained to predict, [B, C, H, W]."""

    @property
    def edm(self) -> bool:
        """Whether noise levels are EDM's sigmas and not timesteps of a schedule; the sampler must be of the same kind."""

    @property
    def prediction_type(self) -> str:
        """What diffusers' schedulers call this prediction."""

    def draw(
        self, shape: Sequence[int], timesteps: int, generator: torch.Generator, cleanest: float = 0.0
    ) -> Draw:
        """The noise levels first, then the noise.

        Args:
            shape: of the images, (B, C, H, W).
            timesteps: of the schedule; EDM ignores it.
            generator: where all draws come from, on its own device; it is moved on.
            cleanest: share of the noise levels, from the cleanest, of which none is drawn, in [0, 1).
        """

    def example(self, x0: Tensor, alpha_bar: Tensor, min_snr: float, draw: Draw) -> Example:
        """Noisy images and what to make of them.

        Args:
            x0: clean images in [-1, 1], float32, [B, C, H, W].
            alpha_bar: signal power kept at each timestep of the schedule, [timesteps], in (0, 1); EDM ignores it.
            min_snr: gamma of the min-SNR weight, >= 0, 0 is off; EDM ignores it.
            draw: of images of this shape.
        Raises: ValueError if min_snr < 0.
        """

    def contract(self, schedule: str, timesteps: int) -> Contract:
        """What server and clients must agree on about the process; None where this target does not use it."""


class ScheduledTarget(ABC):
    """A target on a schedule of timesteps; says what to predict and what one unit of error in it is worth."""

    edm: ClassVar[bool] = False
    prediction_type: ClassVar[str]

    @abstractmethod
    def goal(self, x0: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
        """What the network should output for `add_noise(x0, noise, alpha_bar)`, [B, C, H, W].

        Args and errors: as `add_noise`.
        """

    @abstractmethod
    def min_snr_weight(self, snr: Tensor, gamma: float) -> Tensor:
        """min(SNR, gamma) in units of x0, brought to the units of this target, [B]; snr [B] > 0, gamma > 0.

        One unit of distance in x0 is 1 / SNR units in epsilon and 1 / (SNR + 1) in v.
        Source: arXiv:2303.09556, sec. 3.4 and app. B.
        """

    def weight(self, snr: Tensor, gamma: float) -> Tensor:
        """Weight of each image's distance, [B]: `min_snr_weight`, or 1 for every timestep where gamma is 0.

        Args:
            snr: signal-to-noise ratio at each image's timestep, > 0, may be inf, [B].
            gamma: largest weight in x0 units, >= 0.
        Raises: ValueError if gamma < 0.
        """
        if gamma < 0:
            raise ValueError(f"gamma must be >= 0, got {gamma}")
        return snr.new_ones(snr.shape) if gamma == 0 else self.min_snr_weight(snr, gamma)

    def draw(
        self, shape: Sequence[int], timesteps: int, generator: torch.Generator, cleanest: float = 0.0
    ) -> Draw:
        """As `Target.draw`; timesteps [B] are uniform over the schedule (arXiv:2006.11239, alg. 1)."""
        import torch

        # Every draw is made where the generator is: drawn on the images' device, a GPU's numbers would differ.
        first = int(cleanest * timesteps)
        level = torch.randint(first, timesteps, (shape[0],), generator=generator, device=generator.device)
        return Draw(level, draw_noise(shape, generator))

    def example(self, x0: Tensor, alpha_bar: Tensor, min_snr: float, draw: Draw) -> Example:
        """As `Target.example`."""
        kept = alpha_bar.to(draw.level.device)[draw.level]
        noise = draw.noise.to(x0.device)
        return Example(
            seen=add_noise(x0, noise, kept),
            level=draw.level,
            goal=self.goal(x0, noise, kept),
            weight=self.weight(snr(kept), min_snr),
        )

    def contract(self, schedule: str, timesteps: int) -> Contract:
        """As `Target.contract`: schedule and timesteps, no sigma."""
        found: Contract = dict.fromkeys(("sigma_data", "sigma_min", "sigma_max"))
        if schedule == "linear" and timesteps != LINEAR_TIMESTEPS:
            # Earlier versions did not scale the betas: what they began must not go on with others.
            found["beta_end"] = linear_ends(timesteps)[1]
        return {"schedule": schedule, "timesteps": timesteps, **found}


class Epsilon(ScheduledTarget):
    """The noise, [B, C, H, W] (arXiv:2006.11239, eq. 14)."""

    prediction_type = "epsilon"

    def goal(self, x0: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
        """The noise itself, [B, C, H, W]. Args and errors: as `add_noise`."""
        _same_shape(x0, noise)
        return noise

    def min_snr_weight(self, snr: Tensor, gamma: float) -> Tensor:
        """min(SNR, gamma) / SNR, [B]."""
        # Written so that an infinite SNR gives 0 and not inf / inf.
        return (gamma / snr).clamp(max=1.0)


class V(ScheduledTarget):
    """v, [B, C, H, W], the velocity of the noisy image along the angle from clean image to noise.

    Source: arXiv:2202.00512, app. D.
    """

    prediction_type = "v_prediction"

    def goal(self, x0: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
        """v = sqrt(alpha_bar) * noise - sqrt(1 - alpha_bar) * x0, [B, C, H, W].

        Their alpha and sigma are the two square roots. Args and errors: as `add_noise`.
        """
        _same_shape(x0, noise)
        kept = per_image(alpha_bar, x0)
        return kept.sqrt() * noise - (1.0 - kept).sqrt() * x0

    def min_snr_weight(self, snr: Tensor, gamma: float) -> Tensor:
        """min(SNR, gamma) / (SNR + 1), [B]."""
        return snr.clamp(max=gamma) / (snr + 1.0)


class Sample(ScheduledTarget):
    """The clean image, [B, C, H, W] (arXiv:2202.00512, sec. 4)."""

    prediction_type = "sample"

    def goal(self, x0: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
        """The clean images themselves, [B, C, H, W]. Args and errors: as `add_noise`."""
        _same_shape(x0, noise)
        return x0

    def min_snr_weight(self, snr: Tensor, gamma: float) -> Tensor:
        """min(SNR, gamma), [B]."""
        return snr.clamp(max=gamma)


@dataclass(frozen=True)
class Edm:
    """The raw network F of D(x) = c_skip * x + c_out * F(c_in * x, c_noise), [B, C, H, W].

    D denoises x = x0 + sigma * noise. Source: arXiv:2206.00364, sec. 5 and Table 1.

    Args:
        sigma_data: standard deviation of the data that the scaling expects, > 0. Not measured: that of all clients' images
            would have to be sent.
    """

    sigma_data: float = SIGMA_DATA

    edm: ClassVar[bool] = True
    # Of two possible signs of c_out it names the one of Table 1.
    prediction_type: ClassVar[str] = "epsilon"

    def draw(
        self, shape: Sequence[int], timesteps: int, generator: torch.Generator, cleanest: float = 0.0
    ) -> Draw:
        """As `Target.draw`; log-normal sigmas [B]."""
        sigma = draw_sigma(shape[0], generator, cleanest)
        return Draw(sigma, draw_noise(shape, generator))

    def example(self, x0: Tensor, alpha_bar: Tensor, min_snr: float, draw: Draw) -> Example:
        """As `Target.example`; `seen` is c_in * x."""
        scaling = edm_scaling(draw.level, self.sigma_data)
        noisy = x0 + per_image(draw.level, x0) * draw.noise.to(x0.device)
        return Example(
            seen=per_image(scaling.c_in, x0) * noisy,
            level=scaling.c_noise,
            goal=edm_target(x0, noisy, scaling),
            # The paper weighs |D - x0|^2 by lambda = 1 / c_out^2 (Table 1), which is |F - goal|^2 unweighted (eq. 8).
            weight=None,
        )

    def contract(self, schedule: str, timesteps: int) -> Contract:
        """As `Target.contract`: the sigmas, no schedule."""
        sigmas = {"sigma_data": self.sigma_data, "sigma_min": SIGMA_MIN, "sigma_max": SIGMA_MAX}
        return {"schedule": None, "timesteps": None, **sigmas}


TARGETS: dict[str, Target] = {"epsilon": Epsilon(), "v": V(), "sample": Sample(), "edm": Edm()}


def per_image(values: Tensor, images: Tensor) -> Tensor:
    """`values` [B] as [B, 1, 1, 1] on the device of `images` [B, C, H, W], to scale each image by its own."""
    return values.to(images.device).reshape(-1, *[1] * (images.ndim - 1))


def draw_noise(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """A standard normal draw, [B, C, H, W], float32, on the generator's device."""
    import torch

    # In the default memory layout, so that neither device nor layout of the images changes it.
    return torch.randn(tuple(shape), generator=generator, device=generator.device)


def add_noise(x0: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
    """Noisy images sqrt(alpha_bar) * x0 + sqrt(1 - alpha_bar) * noise, [B, C, H, W].

    Source: arXiv:2006.11239, eq. 4.
    Args:
        x0: clean images in [-1, 1], [B, C, H, W].
        noise: standard normal draw, [B, C, H, W].
        alpha_bar: signal power kept at each image's timestep, in [0, 1], [B].
    Raises: ValueError if x0 and noise differ in shape.
    """
    _same_shape(x0, noise)
    kept = per_image(alpha_bar, x0)
    return kept.sqrt() * x0 + (1.0 - kept).sqrt() * noise


@dataclass(frozen=True)
class EdmScaling:
    """EDM's factors for a noise level: D(x) = c_skip * x + c_out * F(c_in * x, c_noise). Each [B]."""

    c_skip: Tensor
    c_out: Tensor
    c_in: Tensor
    c_noise: Tensor


def edm_scaling(sigma: Tensor, sigma_data: float = SIGMA_DATA) -> EdmScaling:
    """The factors of arXiv:2206.00364, Table 1, last column, for noise of standard deviation `sigma` [B] > 0.

    They give the network input and goal of unit variance at every sigma (app. B.6), if the data's is `sigma_data`^2.
    """
    total = sigma.square() + sigma_data**2  # variance of the noisy image
    return EdmScaling(
        c_skip=sigma_data**2 / total,
        c_out=sigma * sigma_data / total.sqrt(),
        c_in=1.0 / total.sqrt(),
        c_noise=sigma.log() / 4.0,
    )


def edm_target(x0: Tensor, noisy: Tensor, scaling: EdmScaling) -> Tensor:
    """What the raw network F should output: (x0 - c_skip * noisy) / c_out, [B, C, H, W].

    Source: arXiv:2206.00364, eq. 8.
    Args:
        x0: clean images in [-1, 1], [B, C, H, W].
        noisy: x0 + sigma * noise, [B, C, H, W].
        scaling: the factors of each image's sigma.
    Raises: ValueError if x0 and noisy differ in shape.
    """
    _same_shape(x0, noisy)
    return (x0 - per_image(scaling.c_skip, x0) * noisy) / per_image(scaling.c_out, x0)


def draw_sigma(count: int, generator: torch.Generator, cleanest: float = 0.0) -> Tensor:
    """Training noise levels, ln(sigma) ~ N(-1.2, 1.2^2), [count], float32, on the generator's device.

    Source: arXiv:2206.00364, Table 1.
    Args:
        cleanest: share of them, from the cleanest, of which none is drawn, in [0, 1).
    """
    import torch

    if cleanest:
        share = cleanest + (1 - cleanest) * torch.rand(count, generator=generator, device=generator.device)
        return (LOG_SIGMA_MEAN + LOG_SIGMA_STD * torch.special.ndtri(share.clamp(max=1 - 1e-6))).exp()
    draw = torch.randn(count, generator=generator, device=generator.device)
    return (LOG_SIGMA_MEAN + LOG_SIGMA_STD * draw).exp()


def _same_shape(first: Tensor, second: Tensor) -> None:
    # Broadcasting would turn a forgotten axis into a loss that still falls.
    if first.shape != second.shape:
        raise ValueError(f"images and noise must have one shape, got {first.shape} and {second.shape}")
