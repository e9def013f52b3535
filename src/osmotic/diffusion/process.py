"""The diffusion process of a run: from clean images to the training loss.

Next on the reader's path: `models/unet.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from osmotic.config.schema import ModelConfig, RecipeConfig
from osmotic.diffusion import facts
from osmotic.diffusion import loss as losses
from osmotic.diffusion import schedule as schedules
from osmotic.diffusion import target as targets

# Called as model(noisy, timestep, class_labels=..., return_dict=False)[0], the way of diffusers' UNet2DModel.
Denoiser = Callable[..., Any]


@dataclass(frozen=True, kw_only=True, eq=False)
class Process:
    """Target, schedule and loss; holds no weights and no random state, so threads may share it.

    Args:
        target: "epsilon", "v", "sample" or "edm".
        schedule: "linear" or "cosine"; not used by "edm".
        timesteps: length of the schedule; not used by "edm".
        num_classes: 0 is unconditional; else label `num_classes` means "no label".
        distance: "mse" or "huber".
        min_snr: gamma of the min-SNR weight, 0 is off; "edm" has its own weight.
        label_dropout: share of labels replaced by "no label" in training, in [0, 1].
    Raises: ValueError for unknown names.
    """

    target: str
    schedule: str = "cosine"
    timesteps: int = 1000
    num_classes: int = 0
    distance: str = "mse"
    min_snr: float = 5.0
    label_dropout: float = 0.1

    def __post_init__(self) -> None:
        if self.target not in facts.TARGETS:
            raise ValueError(f"target must be one of {', '.join(facts.TARGETS)}, got {self.target!r}")
        object.__setattr__(self, "_alpha_bar", schedules.alpha_bar(self.schedule, self.timesteps))

    @classmethod
    def from_config(cls, model: ModelConfig, recipe: RecipeConfig, num_classes: int) -> Process:
        """The process a configuration describes; `num_classes` is 0 for an unconditional network."""
        return cls(
            target=model.target,
            schedule=model.schedule,
            timesteps=model.timesteps,
            num_classes=num_classes,
            distance=recipe.loss,
            min_snr=recipe.min_snr,
            label_dropout=recipe.label_dropout,
        )

    @property
    def alpha_bar(self) -> Tensor:
        """Signal power kept at each timestep, [timesteps], float32, on the CPU."""
        table: Tensor = self._alpha_bar  # type: ignore[attr-defined]
        return table

    @property
    def null_class(self) -> int:
        """The label that stands for "no label"."""
        return self.num_classes

    def contract(self) -> dict[str, str | int | float | None]:
        """What server and clients must agree on: target, schedule, timesteps, sigma_data, sigma_min, sigma_max."""
        return facts.contract(self.target, self.schedule, self.timesteps)

    def loss(self, model: Denoiser, x0: Tensor, labels: Tensor | None, generator: torch.Generator) -> Tensor:
        """Weighted denoising loss, mean over pixels and images, a scalar in float32.

        Every image has its own timestep, uniform over the schedule (EDM: its own log-normal noise level). All draws
        come from `generator`, on its own device and moved to that of `x0`, always in the order noise level, noise,
        label dropout: a CPU generator therefore gives the same draws on every device and memory layout.
        Args:
            model: the network, called as diffusers' UNet2DModel.
            x0: clean images in [-1, 1], float32, [B, C, H, W].
            labels: int64 in [0, num_classes), [B]; None trains a conditional network without labels.
            generator: where all draws come from; it is moved on.
        Raises: ValueError if labels are given to an unconditional process.
        """
        return self.image_losses(model, x0, labels, generator).mean()

    def image_losses(
        self, model: Denoiser, x0: Tensor, labels: Tensor | None, generator: torch.Generator
    ) -> Tensor:
        """The loss of each image, [B], whose mean is `loss`; arguments and errors as there."""
        where = generator.device
        if self.target == "edm":
            sigma = targets.draw_sigma(len(x0), generator)
            scaling = targets.edm_scaling(sigma)
            noise = torch.randn(x0.shape, generator=generator, device=where).to(x0.device)
            noisy = x0 + targets.per_image(sigma, x0) * noise
            seen = targets.per_image(scaling.c_in, x0) * noisy
            goal = targets.edm_target(x0, noisy, scaling)
            level, weight = scaling.c_noise, None  # lambda * c_out^2 = 1, see loss.edm_weight
        else:
            level = torch.randint(0, self.timesteps, (len(x0),), generator=generator, device=where)
            alpha_bar = self.alpha_bar.to(where)[level]
            noise = torch.randn(x0.shape, generator=generator, device=where).to(x0.device)
            seen = targets.add_noise(x0, noise, alpha_bar)
            goal = targets.regression_target(self.target, x0, noise, alpha_bar)
            weight = losses.min_snr_weight(self.target, schedules.snr(alpha_bar), self.min_snr)
        given = self._training_labels(labels, x0, generator)
        output = model(seen, level.to(x0.device), class_labels=given, return_dict=False)[0]
        distances = losses.distance(output, goal, self.distance)
        return distances if weight is None else weight.to(x0.device) * distances

    def _training_labels(
        self, labels: Tensor | None, x0: Tensor, generator: torch.Generator
    ) -> Tensor | None:
        if self.num_classes == 0:
            if labels is not None:
                raise ValueError("labels were given to an unconditional process (num_classes is 0)")
            return None
        if labels is None:
            return torch.full((len(x0),), self.null_class, dtype=torch.int64, device=x0.device)
        dropped = torch.rand(len(x0), generator=generator, device=generator.device) < self.label_dropout
        return labels.to(x0.device).masked_fill(dropped.to(x0.device), self.null_class)
