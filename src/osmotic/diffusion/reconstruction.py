"""The loss of an autoencoder in the place of a diffusion loss: the same calls, so that the same loop and federation train it.

Source: arXiv 2112.10752, app. G, without its discriminator and its network of perception, whose weights would be needed at every
site. Departs from it: latents are drawn to mean 0 and standard deviation 1 per channel, over the batch, by a term of the
loss, so that the factor of latents is 1 for everybody and nothing is measured on anybody's images.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from osmotic.diffusion.process import Denoiser, Process, Question, StepDraw

if TYPE_CHECKING:
    from osmotic.diffusion.target import Contract

KL = 1e-4  # weight of the divergence from a standard normal, mean over latents
SPREAD = 1e-2  # weight of what keeps latents at mean 0 and standard deviation 1


@dataclass(frozen=True, kw_only=True, eq=False)
class Reconstruction(Process):
    """Squared error of images [B, c, h, w] in [-1, 1] that went through latents, mean over pixels.

    Args:
        latent: lengths C, H, W of the latents.
    """

    latent: tuple[int, int, int]

    def contract(self) -> Contract:
        """What server and clients must agree on: that it is this loss."""
        return {"target": "autoencoder", "latent": list(self.latent)}  # type: ignore[dict-item]

    def draw(self, shape: Sequence[int], labelled: bool, generator: torch.Generator) -> StepDraw:
        """The noise of the latents, [B, C, H, W]; there are no noise levels, and no labels."""
        noise = torch.randn(shape[0], *self.latent, generator=generator, device=generator.device)
        return StepDraw(torch.zeros(shape[0]), noise)

    def ask(self, x0: Tensor, labels: Tensor | None, draw: StepDraw) -> Question:
        """What the network is asked about images [B, c, h, w]: themselves, with this noise between."""
        noise = draw.noise.to(x0.device).contiguous(memory_format=torch.channels_last)
        return Question(seen=x0, level=noise, goal=x0, weight=None)

    def losses_of(self, model: Denoiser, question: Question) -> Tensor:
        """The loss of each image, [B], float32; the last term is the batch's, and the same for all."""
        lower = self.precision == "bf16"
        with torch.autocast(question.seen.device.type, torch.bfloat16) if lower else nullcontext():
            again, mean, log_variance = model(
                question.seen, question.level, class_labels=None, return_dict=False
            )
        again, mean, log_variance = again.float(), mean.float(), log_variance.float()
        error = (again - question.goal).square().flatten(1).mean(1)
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).flatten(1).mean(1)
        drawn = mean + (0.5 * log_variance).exp() * question.level
        centre, spread = drawn.mean((0, 2, 3)), drawn.var((0, 2, 3), unbiased=False).add(1e-8).sqrt()
        return error + KL * divergence + SPREAD * (centre.square() + (spread - 1).square()).mean()

    def images(self, model: Any, count: int, seed: int) -> Tensor:
        """Images of latents drawn from a standard normal, [count, c, h, w] in [-1, 1], on the CPU: what an autoencoder draws by itself."""
        device = next(model.parameters()).device
        was, found = model.training, []
        model.eval()
        with torch.no_grad():
            for start in range(0, count, 250):
                rows = [
                    np.random.default_rng([seed, row]).standard_normal(self.latent, np.float32)
                    for row in range(start, min(start + 250, count))
                ]
                latents = torch.from_numpy(np.stack(rows)).to(device)
                found.append(model.decode(latents.contiguous(memory_format=torch.channels_last)).sample.cpu())
        model.train(was)
        return torch.cat(found)
