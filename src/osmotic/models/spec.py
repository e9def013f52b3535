"""A network as a value, and what stands behind its name; the networks themselves are entered by `models/__init__.py`."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from osmotic.errors import ConfigError
from osmotic.models import parts as network_parts
from osmotic.models.adapter import A, Adapter, B
from osmotic.models.layout import Layout
from osmotic.models.parts import Prefixes

if TYPE_CHECKING:
    from torch import nn


class Network(Protocol):
    """What a network's name stands for: which images it takes, its parameters, and how it is made."""

    @property
    def multiple(self) -> int:
        """Sides of images, in pixels, must be multiples of this."""

    @property
    def norm_groups(self) -> int:
        """Groups of every group norm, 0 if it has none."""

    @property
    def has_dropout(self) -> bool:
        """Whether it can drop activations in training."""

    @property
    def own(self) -> bool:
        """Whether it comes from outside the package, so that its parameters are known from the built module alone."""

    @property
    def parts(self) -> Prefixes:
        """Which parameters are encoder, bottleneck and decoder."""

    def layout(self, spec: NetworkSpec) -> Layout:
        """Every parameter's name and shape, in no particular order."""

    def construct(self, spec: NetworkSpec) -> nn.Module:
        """The network in training mode, with weights drawn from torch's global generator."""


NETWORKS: dict[str, Network] = {}  # by name


@dataclass(frozen=True)
class NetworkSpec:
    """A network as a value: all that `layout` and `build` need.

    Args:
        name: a key of `NETWORKS`.
        image_size: side S of the images [B, C, S, S], in pixels.
        channels: image channels, 1 or 3.
        num_classes: classes the network is conditioned on, 0 for none. Its class embedding has one row
            more: row `num_classes` is the null class of classifier-free guidance.
        dropout: share of activations dropped in training, in [0, 1).
        adapter: of a pretrained network; then its factors alone are parameters.
    """

    name: str
    image_size: int
    channels: int
    num_classes: int = 0
    dropout: float = 0.0
    adapter: Adapter | None = None

    @property
    def network(self) -> Network:
        """What the name stands for, adapted if it is."""
        whole = NETWORKS[self.name]
        return whole if self.adapter is None else Adapted(whole, self.adapter)

    @property
    def whole(self) -> NetworkSpec:
        """The network without its adapter."""
        return replace(self, adapter=None)

    def part_names(self) -> dict[str, list[str]]:
        """The parameters of every part of `PARTS`, sorted; a part that the network does not have is an empty list.

        Raises: ConfigError as `layout`, and if a parameter of an own network belongs to no part or to two.
        """
        try:
            return network_parts.table(layout(self), self.network.parts)
        except ConfigError:
            raise
        except ValueError as error:
            raise ConfigError("model.network", self.name, str(error)) from None


@dataclass(frozen=True)
class Adapted:
    """The network that a spec with an adapter stands for.

    Args:
        whole: the network that is adapted.
        adapter: how.
    """

    whole: Network
    adapter: Adapter

    @property
    def own(self) -> bool:
        """As the whole network's: its constants follow from a seed of their own."""
        return self.whole.own

    @property
    def multiple(self) -> int:
        """As the whole network's."""
        return self.whole.multiple

    @property
    def norm_groups(self) -> int:
        """As the whole network's."""
        return self.whole.norm_groups

    @property
    def has_dropout(self) -> bool:
        """As the whole network's."""
        return self.whole.has_dropout

    @property
    def parts(self) -> Prefixes:
        """A factor belongs to the part of its layer."""
        return self.whole.parts

    def layout(self, spec: NetworkSpec) -> Layout:
        """Names and shapes of the factors that are trained, in no particular order."""
        rank, found = self.adapter.rank, Layout()
        for layer, shape in self.adapter.layers(self.whole.layout(spec.whole)).items():
            found[f"{layer}.{B}"] = (shape[0], rank)
            if self.adapter.trains == "both":
                found[f"{layer}.{A}"] = (rank, math.prod(shape[1:]))
        return found

    def construct(self, spec: NetworkSpec) -> nn.Module:
        """The whole network with its layers adapted; its constants are yet to be loaded (`adapted_layers.load_base`)."""
        from osmotic.models import adapted_layers

        return adapted_layers.adapt(self.whole.construct(spec.whole), self.adapter)


def layout(spec: NetworkSpec) -> Layout:
    """Every parameter's name and shape, sorted by name; equal to the named parameters of `build(spec)`.

    Imports torch and builds the module only for a network of the user's own.
    Raises: ConfigError for an own network that cannot be used, see `register_network`.
    """
    return dict(sorted(spec.network.layout(spec).items()))
