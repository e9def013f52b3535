"""The autoencoder of latent diffusion (arXiv 2112.10752): diffusers' `AutoencoderKL`, trained like any other network here.

Images [N, c, h, w] become latents [N, 4, h/4, w/4]; a run of this network is a federation for an autoencoder, and its model is a
folder that `model.autoencoder` of another run takes. Neither torch nor diffusers is imported before it is built.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from osmotic.models.layout import Layout
from osmotic.models.parts import Prefixes

if TYPE_CHECKING:
    from diffusers import AutoencoderKL
    from torch import Tensor

    from osmotic.models.spec import NetworkSpec

LATENT_CHANNELS = 4


@dataclass(frozen=True)
class Autoencoder:
    """Convolutions alone; each level after the first has half the side of the one before.

    Args:
        widths: channels of each level.
        layers: residual blocks per level.
        norm_groups: groups of every group norm.
    """

    widths: tuple[int, ...]
    layers: int
    norm_groups: int

    has_dropout: ClassVar[bool] = False
    own: ClassVar[bool] = False
    parts: ClassVar[Prefixes] = {
        "encoder": ("encoder", "quant_conv"),
        "decoder": ("decoder", "post_quant_conv"),
    }

    @property
    def multiple(self) -> int:
        """Sides of images, in pixels, are multiples of this."""
        return 2 ** (len(self.widths) - 1)

    def latent_shape(self, image_size: int) -> tuple[int, int, int]:
        """Lengths C, H, W of the latents of an image of this side."""
        side = image_size // self.multiple
        return LATENT_CHANNELS, side, side

    def layout(self, spec: NetworkSpec) -> Layout:
        """Every parameter's name and shape, read off the built module."""
        from osmotic.models import construct

        return {name: tuple(p.shape) for name, p in construct.skeleton(spec).named_parameters()}

    def construct(self, spec: NetworkSpec) -> AutoencoderKL:
        """The network with the weights that torch's global generator gives it."""
        from types import MethodType

        from diffusers import AutoencoderKL

        levels = len(self.widths)
        model = AutoencoderKL(
            in_channels=spec.channels,
            out_channels=spec.channels,
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            block_out_channels=self.widths,
            layers_per_block=self.layers,
            latent_channels=LATENT_CHANNELS,
            norm_num_groups=self.norm_groups,
            sample_size=spec.image_size,
            # The loss brings latents to mean 0 and standard deviation 1, so that no factor need be measured on anybody's images.
            scaling_factor=1.0,
            mid_block_add_attention=False,
        )
        model.forward = MethodType(_forward, model)
        return model.train()


def _forward(
    model: AutoencoderKL,
    images: Tensor,
    noise: Tensor,
    class_labels: Tensor | None = None,
    return_dict: bool = False,
) -> tuple[Any, ...]:
    """(images again [B, c, h, w], mean and log variance of their latents [B, C, H, W] both).

    Args:
        noise: of the latents, [B, C, H, W]; of any other form there is none, and the mean is decoded.
        class_labels, return_dict: as networks here are called; of no effect.
    """
    posterior = model.encode(images).latent_dist
    drawn = posterior.mean + posterior.std * noise if noise.ndim == images.ndim else posterior.mean
    return model.decode(drawn).sample, posterior.mean, posterior.logvar
