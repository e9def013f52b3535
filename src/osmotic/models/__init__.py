"""The networks: which there are, which one fits an image size, and their parameters.

Nothing here imports torch or diffusers before `build` or `initial` is called, or `layout` of a network of your own.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from osmotic.errors import ConfigError
from osmotic.models.autoencoder import Autoencoder
from osmotic.models.convnext import ConvNeXtUNet
from osmotic.models.layout import count
from osmotic.models.own import OwnNetwork
from osmotic.models.parts import PARTS, WHOLE
from osmotic.models.spec import NETWORKS, Network, NetworkSpec, layout
from osmotic.models.unet import ResidualUNet

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

__all__ = [
    "NETWORKS",
    "PARTS",
    "PRESETS",
    "Network",
    "NetworkSpec",
    "build",
    "count",
    "initial",
    "layout",
    "norm_groups",
    "register_network",
    "resolve",
]


# The networks by name. Those of the package work their layouts out without torch.
_BUILT_IN: dict[str, Network] = {
    # Ours, small enough for a laptop: attention at the lowest level alone, where an image has few pixels.
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
    "autoencoder": Autoencoder((32, 64, 64), 1, 8),
}
NETWORKS.update(_BUILT_IN)
PRESETS = NETWORKS  # its name until now


def register_network(
    name: str,
    build: Callable[[NetworkSpec], nn.Module],
    *,
    multiple: int = 1,
    parts: Mapping[str, Sequence[str]] | None = None,
    norm_groups: int = 0,
    has_dropout: bool = False,
) -> None:
    """Makes a network of your own available as `model.network = "NAME"`; an own one of that name is replaced.

    Args:
        name: any name but "auto" and those of the package.
        build: called with the spec (sides, channels, classes, dropout); returns a module with the call of
            diffusers' U-Nets, `model(x, t, class_labels=y, return_dict=False)[0]` with x [B, C, H, W], see
            `construct.build`; `class_labels` and `return_dict` must have defaults. It draws from torch's
            global generator alone, parameters and saved buffers are float32, and all parameters are trained.
            Buffers are constants: they are built at each site and never sent. Dropout is `nn.Dropout`, whose
            masks are then drawn from the run's seed.
        multiple: sides of images, in pixels, must be multiples of this.
        parts: part of `PARTS` -> beginnings of its parameters' names, whole components ("down" covers "down.0.weight"
            and not "downsample.weight"); None makes all of them the decoder, the part that every method shares.
        norm_groups: groups of its group norms, if they are not seen in the shapes: sites must agree on them.
        has_dropout: whether `spec.dropout` has an effect.
    Raises: ValueError for a name that is taken, an unknown part, or a multiple below 1.
    """
    if name == "auto" or (name in NETWORKS and not isinstance(NETWORKS[name], OwnNetwork)):
        raise ValueError(f"name {name!r} is taken: give your network another one")
    for part in parts or ():
        if part not in PARTS:
            raise ValueError(f"part {part!r}: must be one of {', '.join(PARTS)}")
    if multiple < 1:
        raise ValueError(f"multiple must be >= 1, got {multiple}")
    # A lone text would be read letter by letter.
    given = {part: (b,) if isinstance(b, str) else tuple(b) for part, b in (parts or {}).items()}
    prefixes = WHOLE if parts is None else given
    NETWORKS[name] = OwnNetwork(build, multiple, prefixes, norm_groups, has_dropout)


def resolve(network: str, image_size: int, channels: int, num_classes: int, dropout: float) -> NetworkSpec:
    """The network called `network`; `"auto"` takes `unet-8` up to 16 pixels, `unet-28` up to 28, else `unet-32`.

    Args:
        network: `"auto"` or a key of `NETWORKS`.
        image_size: side of the images in pixels.
        channels: image channels.
        num_classes: classes to condition on, 0 for none.
        dropout: share of activations dropped in training.
    Raises: ConfigError for an unknown network, a size it cannot halve as often as it has to, or dropout that it has not.
    """
    if network not in ("auto", *NETWORKS):
        valid = ("auto", *NETWORKS)
        near = difflib.get_close_matches(network, valid, n=1)
        raise ConfigError(
            "model.network", network, "must be one of " + ", ".join(valid), near[0] if near else None
        )
    name = network
    if network == "auto":
        name = "unet-8" if image_size <= 16 else "unet-28" if image_size <= 28 else "unet-32"
    found = NETWORKS[name]
    if image_size < 1 or image_size % found.multiple:
        rule = f"must be a multiple of {found.multiple} pixels for network {name}"
        raise ConfigError("data.image_size", image_size, rule)
    if dropout and not found.has_dropout:
        raise ConfigError("recipe.dropout", dropout, f"network {name} has no dropout: use 0")
    return NetworkSpec(name, image_size, channels, num_classes, dropout)


def norm_groups(spec: NetworkSpec) -> int:
    """Groups of every group norm: weights of another grouping have the same shapes but another meaning."""
    return spec.network.norm_groups


def build(spec: NetworkSpec) -> nn.Module:
    """The network as a module, its weights yet to be set. Call and errors as in `construct.build`."""
    from osmotic.models import construct

    return construct.build(spec)


def initial(spec: NetworkSpec, seed: int) -> dict[str, np.ndarray]:
    """Round 0's weights by sorted name, name -> float32 [...], a function of `spec` and `seed` alone.

    Raises: ConfigError as `construct.initial`.
    """
    from osmotic.models import construct

    return construct.initial(spec, seed)
