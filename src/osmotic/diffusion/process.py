"""The diffusion process of a run: from clean images to the training loss.

Next on the reader's path: `models/unet.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from osmotic.diffusion import loss as losses
from osmotic.diffusion import schedule as schedules
from osmotic.diffusion.target import SIGMA_DATA, TARGETS, Contract, Draw, Edm, Example, Target

if TYPE_CHECKING:
    from osmotic.config.schema import ModelConfig, RecipeConfig

# Called as model(noisy, timestep, class_labels=..., return_dict=False)[0], the way of diffusers' UNet2DModel:
# noisy float [B, C, H, W], timestep [B], class_labels int64 [B] or None; the answer is shaped like noisy.
Denoiser = Callable[..., Any]


@dataclass(frozen=True, eq=False)
class StepDraw(Draw):
    """A step's draw, label dropout with it.

    Args:
        dropped: whether the image's label is left out, bool [B]; None without labels.
    """

    dropped: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Question(Example):
    """An example on the images' device, with the class that the network is told.

    Args:
        labels: int64 [B]; None for a network without classes.
    """

    labels: Tensor | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Process:
    """Target, schedule and loss of images [B, C, H, W]; has no weights or random state: threads may share it.

    Args:
        target: a key of `target.TARGETS`.
        schedule: a key of `schedule.SCHEDULES`; not used by "edm".
        timesteps: length of the schedule, >= its `fewest`; not used by "edm".
        num_classes: 0 is unconditional; else label `num_classes` means "no label".
        distance: a key of `loss.DISTANCES`.
        min_snr: gamma of the min-SNR weight, >= 0, 0 is off; "edm" has its own weight.
        label_dropout: share of labels replaced by "no label" in training, in [0, 1].
        sigma_data: standard deviation of the images that "edm" expects, > 0; the other targets do not use it.
        cleanest: share of the noise levels, from the cleanest, that training leaves out, in [0, 1).
        precision: "bf16" trains with products and convolutions in bfloat16 where torch's autocast takes them; weights,
            gradients and the loss stay float32. "fp32" rounds nothing.
    Raises: ValueError for an unknown target or schedule, or too few timesteps for it.
    """

    target: str
    schedule: str = "cosine"
    timesteps: int = 1000
    num_classes: int = 0
    distance: str = "mse"
    min_snr: float = 5.0
    label_dropout: float = 0.1
    sigma_data: float = SIGMA_DATA
    precision: str = "fp32"
    cleanest: float = 0.0

    def __post_init__(self) -> None:
        if self.target not in TARGETS:
            raise ValueError(f"target must be one of {', '.join(TARGETS)}, got {self.target!r}")
        made = Edm(self.sigma_data) if TARGETS[self.target].edm else TARGETS[self.target]
        object.__setattr__(self, "_target", made)
        object.__setattr__(self, "_alpha_bar", schedules.alpha_bar(self.schedule, self.timesteps))

    @classmethod
    def from_config(
        cls, model: ModelConfig, recipe: RecipeConfig, num_classes: int, precision: str = "fp32"
    ) -> Process:
        """The process a configuration describes; `num_classes` is 0 for an unconditional network.

        Raises: ValueError as the class.
        """
        return cls(
            target=model.target,
            schedule=model.schedule,
            timesteps=model.timesteps,
            num_classes=num_classes,
            distance=recipe.loss,
            min_snr=recipe.min_snr,
            label_dropout=recipe.label_dropout,
            sigma_data=model.sigma_data,
            precision=precision,
        )

    @property
    def alpha_bar(self) -> Tensor:
        """Signal power kept at each timestep, [timesteps], float32, in (0, 1), on the CPU."""
        table: Tensor = self._alpha_bar  # type: ignore[attr-defined]
        return table

    @property
    def null_class(self) -> int:
        """The label that stands for "no label"."""
        return self.num_classes

    def contract(self) -> Contract:
        """What server and clients must agree on: target, schedule, timesteps, sigma_data, sigma_min, sigma_max."""
        return {"target": self.target, **self._rule.contract(self.schedule, self.timesteps)}

    @property
    def _rule(self) -> Target:
        rule: Target = self._target  # type: ignore[attr-defined]
        return rule

    def loss(self, model: Denoiser, x0: Tensor, labels: Tensor | None, generator: torch.Generator) -> Tensor:
        """Weighted denoising loss, mean over pixels and images, a scalar [] in float32.

        All draws come from `generator`, on its own device and moved to that of `x0`, always in the order noise level,
        noise, label dropout: a CPU generator therefore gives the same draws on every device and memory layout.
        Args:
            model: the network, called as diffusers' UNet2DModel.
            x0: clean images in [-1, 1], float32, [B, C, H, W].
            labels: int64 in [0, num_classes), [B]; None trains a conditional network without labels.
            generator: where all draws come from; it is moved on.
        Raises: ValueError if labels are given to an unconditional process, the distance is unknown, min_snr < 0, or
            the network's answer is not shaped like x0.
        """
        return self.image_losses(model, x0, labels, generator).mean()

    def image_losses(
        self, model: Denoiser, x0: Tensor, labels: Tensor | None, generator: torch.Generator
    ) -> Tensor:
        """The loss of each image, [B], float32, whose mean is `loss`; arguments and errors as there."""
        return self.losses_of(model, self.ask(x0, labels, self.draw(x0.shape, labels is not None, generator)))

    def draw(self, shape: Sequence[int], labelled: bool, generator: torch.Generator) -> StepDraw:
        """All that chance decides of a step on images of this shape (B, C, H, W), in the order that `loss` says."""
        drawn = self._rule.draw(shape, len(self.alpha_bar), generator, self.cleanest)
        dropped = None
        # Last, so that a conditional network sees the timesteps and the noise of an unconditional one.
        if self.num_classes and labelled:
            dropped = torch.rand(shape[0], generator=generator, device=generator.device) < self.label_dropout
        return StepDraw(drawn.level, drawn.noise, dropped)

    def ask(self, x0: Tensor, labels: Tensor | None, draw: StepDraw) -> Question:
        """What the network is asked about images [B, C, H, W]; those of several draws may stand side by side."""
        example = self._rule.example(x0, self.alpha_bar, self.min_snr, draw)
        return Question(
            seen=example.seen,
            level=example.level.to(x0.device),
            goal=example.goal,
            weight=None if example.weight is None else example.weight.to(x0.device),
            labels=self._training_labels(labels, x0, draw),
        )

    def losses_of(self, model: Denoiser, question: Question) -> Tensor:
        """The loss of each image, [B], float32; arguments and errors as `loss`."""
        lower = self.precision == "bf16"
        # A caller's own autocast stays as it is. The backward pass finds each operation's arithmetic by itself.
        with torch.autocast(question.seen.device.type, torch.bfloat16) if lower else nullcontext():
            output = model(question.seen, question.level, class_labels=question.labels, return_dict=False)[0]
        distances = losses.distance(output, question.goal, self.distance)
        return distances if question.weight is None else question.weight * distances

    def _training_labels(self, labels: Tensor | None, x0: Tensor, draw: StepDraw) -> Tensor | None:
        """Labels with their share dropped for classifier-free guidance (arXiv:2207.12598, alg. 1), [B]."""
        if self.num_classes == 0:
            if labels is not None:
                raise ValueError("labels were given to an unconditional process (num_classes is 0)")
            return None
        if labels is None or draw.dropped is None:
            return torch.full((len(x0),), self.null_class, dtype=torch.int64, device=x0.device)
        return labels.to(x0.device).masked_fill(draw.dropped.to(x0.device), self.null_class)
