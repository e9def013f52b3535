"""The networks: which there are, which one fits an image size, and their parameters.

Nothing here imports torch or diffusers before `build` or `initial` is called.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from osmotic.errors import ConfigError
from osmotic.models.convnext import ConvNeXtUNet
from osmotic.models.layout import Layout, count, layout
from osmotic.models.unet import ResidualUNet

if TYPE_CHECKING:
    import numpy as np
    from diffusers import ModelMixin

__all__ = [
    "PRESETS",
    "NetworkSpec",
    "Preset",
    "build",
    "count",
    "initial",
    "layout",
    "norm_groups",
    "resolve",
]


class Preset(Protocol):
    """What a network's name stands for: which images it takes, its parameters, and how it is made."""

    @property
    def multiple(self) -> int:
        """Sides of images, in pixels, must be multiples of this."""

    @property
    def norm_groups(self) -> int:
        """Groups of every group norm."""

    @property
    def has_dropout(self) -> bool:
        """Whether it can drop activations in training."""

    def layout(self, spec: NetworkSpec) -> Layout:
        """Every parameter's name and shape, in no particular order; torch is not imported."""

    def construct(self, spec: NetworkSpec) -> ModelMixin:
        """The network, ready to be saved by diffusers, with weights drawn from torch's global generator."""


PRESETS: dict[str, Preset] = {
    "unet-8": ResidualUNet((32, 64), 1, (False, True), 8, 8),
    "unet-28": ResidualUNet((64, 128, 128), 1, (False, False, True), 16, 32),
    # The network of arXiv:2006.11239, app. B, as in the configuration of google/ddpm-cifar10-32.
    "unet-32": ResidualUNet(
        (128, 256, 256, 256),
        2,
        (False, True, False, False),
        32,
        None,
        (("downsample_padding", 0), ("flip_sin_to_cos", False), ("freq_shift", 1), ("norm_eps", 1e-6)),
    ),
    "convnext-unet": ConvNeXtUNet(),
}


@dataclass(frozen=True)
class NetworkSpec:
    """A network as a value: all that `layout` and `build` need.

    Args:
        name: a key of `PRESETS`.
        image_size: side of the square images, in pixels.
        channels: image channels, 1 or 3.
        num_classes: classes the network is conditioned on, 0 for none. Its class embedding has one row
            more: row `num_classes` is the null class of classifier-free guidance.
        dropout: share of activations dropped in training, in [0, 1).
    """

    name: str
    image_size: int
    channels: int
    num_classes: int = 0
    dropout: float = 0.0

    @property
    def preset(self) -> Preset:
        """What the name stands for."""
        return PRESETS[self.name]


def resolve(network: str, image_size: int, channels: int, num_classes: int, dropout: float) -> NetworkSpec:
    """The network called `network`; `"auto"` takes `unet-8` up to 16 pixels, `unet-28` up to 28, else `unet-32`.

    Args:
        network: `"auto"` or a key of `PRESETS`.
        image_size: side of the images in pixels.
        channels: image channels.
        num_classes: classes to condition on, 0 for none.
        dropout: share of activations dropped in training.
    Raises: ConfigError for an unknown network, a size it cannot halve as often as it has to, or dropout that it has not.
    """
    if network not in ("auto", *PRESETS):
        valid = ("auto", *PRESETS)
        near = difflib.get_close_matches(network, valid, n=1)
        raise ConfigError(
            "model.network", network, "must be one of " + ", ".join(valid), near[0] if near else None
        )
    name = network
    if network == "auto":
        name = "unet-8" if image_size <= 16 else "unet-28" if image_size <= 28 else "unet-32"
    preset = PRESETS[name]
    if image_size < 1 or image_size % preset.multiple:
        rule = f"must be a multiple of {preset.multiple} pixels for network {name}"
        raise ConfigError("data.image_size", image_size, rule)
    if dropout and not preset.has_dropout:
        raise ConfigError("recipe.dropout", dropout, f"network {name} has no dropout: use 0")
    return NetworkSpec(name, image_size, channels, num_classes, dropout)


def norm_groups(spec: NetworkSpec) -> int:
    """Groups of every group norm: weights of another grouping have the same shapes but another meaning."""
    return spec.preset.norm_groups


def build(spec: NetworkSpec) -> ModelMixin:
    """The network as a diffusers model, its weights yet to be set; see `construct.build`."""
    from osmotic.models import construct

    return construct.build(spec)


def initial(spec: NetworkSpec, seed: int) -> dict[str, np.ndarray]:
    """Round 0's weights, a function of `spec` and `seed` alone; see `construct.initial`."""
    from osmotic.models import construct

    return construct.initial(spec, seed)
