"""The networks: which there are, which one fits an image size, and their parameters.

Nothing here imports torch or diffusers before `build` or `initial` is called.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from osmotic.errors import ConfigError
from osmotic.models.layout import count, layout

if TYPE_CHECKING:
    import numpy as np
    from diffusers import UNet2DModel

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


@dataclass(frozen=True)
class Preset:
    """The shape of a U-Net; each level after the first has half the side of the one before.

    Args:
        widths: channels of each level.
        layers: residual blocks per level on the way down (one more on the way up).
        attention: whether a level attends, level by level.
        norm_groups: groups of every group norm.
        head_width: channels per attention head; None is a single head.
        extra: further arguments of `UNet2DModel`, which change no parameter's shape.
    """

    widths: tuple[int, ...]
    layers: int
    attention: tuple[bool, ...]
    norm_groups: int
    head_width: int | None
    extra: tuple[tuple[str, Any], ...] = ()


PRESETS: dict[str, Preset] = {
    "unet-8": Preset((32, 64), 1, (False, True), 8, 8),
    "unet-28": Preset((64, 128, 128), 1, (False, False, True), 16, 32),
    # The network of arXiv:2006.11239, app. B, as in the configuration of google/ddpm-cifar10-32.
    "unet-32": Preset(
        (128, 256, 256, 256),
        2,
        (False, True, False, False),
        32,
        None,
        (("downsample_padding", 0), ("flip_sin_to_cos", False), ("freq_shift", 1), ("norm_eps", 1e-6)),
    ),
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
        """The shape of this network."""
        return PRESETS[self.name]


def resolve(network: str, image_size: int, channels: int, num_classes: int, dropout: float) -> NetworkSpec:
    """The network called `network`; `"auto"` takes `unet-8` up to 16 pixels, `unet-28` up to 28, else `unet-32`.

    Args:
        network: `"auto"` or a key of `PRESETS`.
        image_size: side of the images in pixels.
        channels: image channels.
        num_classes: classes to condition on, 0 for none.
        dropout: share of activations dropped in training.
    Raises: ConfigError for an unknown network, or a size it cannot halve once per level after the first.
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
    multiple = 2 ** (len(PRESETS[name].widths) - 1)
    if image_size < 1 or image_size % multiple:
        raise ConfigError(
            "data.image_size", image_size, f"must be a multiple of {multiple} pixels for network {name}"
        )
    return NetworkSpec(name, image_size, channels, num_classes, dropout)


def norm_groups(spec: NetworkSpec) -> int:
    """Groups of every group norm: weights of another grouping have the same shapes but another meaning."""
    return spec.preset.norm_groups


def build(spec: NetworkSpec) -> UNet2DModel:
    """The network as a diffusers model, its weights yet to be set; see `unet.build`."""
    from osmotic.models import unet

    return unet.build(spec)


def initial(spec: NetworkSpec, seed: int) -> dict[str, np.ndarray]:
    """Round 0's weights, a function of `spec` and `seed` alone; see `unet.initial`."""
    from osmotic.models import unet

    return unet.initial(spec, seed)
