"""Everything that server and clients have in common before round 1, and no image: what a site needs to take part.

Network, diffusion process, space, exchange, pieces, codecs, and the contract that all of them agree on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from osmotic import codecs, methods, models, pieces, seeds
from osmotic.codecs import Codec
from osmotic.config.schema import Config
from osmotic.diffusion.process import Process
from osmotic.diffusion.reconstruction import Reconstruction
from osmotic.diffusion.sampler import Sampling
from osmotic.diffusion.space import Pixels, Space
from osmotic.errors import ConfigError
from osmotic.federation.unfit import refuse_unfit
from osmotic.flat import Flat, FlatLayout
from osmotic.methods import Method
from osmotic.models import autoencoder_file, norms, pretrained
from osmotic.models.adapter import Adapter, merged
from osmotic.models.autoencoder import Autoencoder
from osmotic.models.dropout import make_seeded
from osmotic.models.layout import Layout
from osmotic.pieces import Chain

if TYPE_CHECKING:
    from osmotic.models import NetworkSpec


@dataclass(frozen=True)
class Blueprint:
    """A run without its data.

    Args:
        config: the run's configuration.
        spec: the network.
        process: the diffusion process, or what stands in its place for an autoencoder.
        space: what the network works in.
        image_size, channels: of the images.
    """

    config: Config
    spec: NetworkSpec
    process: Process
    space: Space
    image_size: int
    channels: int

    @classmethod
    def of(cls, config: Config, image_size: int, channels: int, num_classes: int) -> Blueprint:
        """For images [N, side, side, C] of this side and these channels; `num_classes` 0 is unconditional.

        Raises: ConfigError for a size that the network cannot take, and as `refuse_unfit`.
        """
        space = space_of(config, image_size, channels)
        spec = network_of(config, image_size, channels, num_classes)
        process: Process
        if isinstance(spec.network, Autoencoder):
            latent = spec.network.latent_shape(image_size)
            process = Reconstruction(target="v", precision=config.engine.precision, latent=latent)
        else:
            process = Process.from_config(config.model, config.recipe, num_classes, config.engine.precision)
        refuse_unfit(config, spec)
        return cls(config, spec, process, space, image_size, channels)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of an image."""
        return self.image_size, self.image_size, self.channels

    @property
    def autoencoder(self) -> autoencoder_file.Described | None:
        """In whose latents the network works; None in pixels."""
        return getattr(self.space, "described", None)

    @cached_property
    def layout(self) -> Layout:
        """Parameter name -> shape, sorted by name; every parameter is float32 [...]."""
        return models.layout(self.spec)

    @cached_property
    def part_names(self) -> dict[str, list[str]]:
        """Part of the network -> its parameter names, sorted."""
        return self.spec.part_names()

    @cached_property
    def flat(self) -> FlatLayout:
        """Where each parameter lies in the one buffer of all weights."""
        return FlatLayout(self.layout, self.part_names)

    def method(self) -> Method:
        """The exchange; everyone makes their own, so that one half cannot lean on what the other has seen."""
        return methods.make(self.config.method.name, dict(self.config.method.options))

    def chain(self) -> Chain:
        """The pieces of the learning rule."""
        return pieces.make(self.config)

    def codec(self, direction: Literal["up", "down"], error_feedback: bool = False) -> Codec:
        """A new codec of one direction.

        Each end makes its own, as what a codec remembers is one end's alone.
        """
        return codecs.of(self.config.codec, direction, error_feedback, self.flat)

    @cached_property
    def keeps_moments(self) -> bool:
        """Whether optimiser moments live from round to round; the centralised baseline always keeps them."""
        # It is what federated training is measured against, and plain training restarts no optimiser.
        return self.config.training.optimizer_state == "keep" or self.method().pools_data

    @property
    def guidance(self) -> float:
        """Classifier-free guidance scale; "auto" is 1.5 where the network is told the class and saw dropped labels."""
        asked = self.config.score.guidance
        if asked != "auto":
            return asked
        # Without dropped labels "no class" was never trained, so guidance would go by chance.
        return 1.5 if self.spec.num_classes and self.config.recipe.label_dropout > 0 else 1.0

    def contract(self) -> dict[str, Any]:
        """What server and clients must agree on before round 1."""
        return {
            "parameters": {n: list(s) for n, s in self.layout.items()},
            "dtype": "float32",
            "layout": self.flat.sha256,
            "norm_groups": models.norm_groups(self.spec),
            "process": self.process.contract(),
            "image": list(self.image_shape),
            "classes": self.spec.num_classes,
            "encoder": self.config.score.encoder,
            **self.space.contract(),
            **self._started_from(),
        }

    def _started_from(self) -> dict[str, Any]:
        """Of the contract, what a run has that starts from pretrained weights, or adapts them."""
        found: dict[str, Any] = {}
        if agreed := self.config.model.pretrained_sha256:
            found["pretrained"] = agreed
        elif self.config.model.pretrained:
            found["pretrained"] = pretrained.sha256(self.pretrained)
        if (adapter := self.spec.adapter) is not None:
            found["adapter"] = [adapter.rank, adapter.alpha, adapter.trains]
        return found

    def initial(self) -> Flat:
        """The weights of round 0, name -> float32 [...]: a function of network and seed alone, or the pretrained ones."""
        if self.config.model.pretrained and self.spec.adapter is None:
            return Flat.of(self.flat, self.pretrained)
        drawn = models.initial(self.spec, seeds.integer(self.config.seed, seeds.WEIGHTS))
        return Flat.of(self.flat, drawn)

    @cached_property
    def pretrained(self) -> dict[str, np.ndarray]:
        """The weights of `model.pretrained`, name -> float32 [...]. Raises: ConfigError for others than those agreed on."""
        model = self.config.model
        return pretrained.read(model.pretrained, models.layout(self.spec.whole), model.pretrained_sha256)

    def agreed(self) -> Blueprint:
        """With the hash of the pretrained weights in its configuration."""
        found = pretrained.sha256(self.pretrained)
        config = replace(self.config, model=replace(self.config.model, pretrained_sha256=found))
        return replace(self, config=config)

    def whole(self, weights: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        """Weights of the whole network, name -> float32 [...]: those given, or the pretrained ones with this adapter in them."""
        adapter = self.spec.adapter
        return weights if adapter is None else merged(adapter, self.pretrained, weights)

    def model(self, device: torch.device) -> torch.nn.Module:
        """A network for [B, C, H, W] on the device, channels-last: on CPUs 1.25 times as fast."""
        model = models.build(self.spec)
        # Clients side by side share torch's global generator, so dropout must not draw from it.
        make_seeded(model)
        # At the border of a frozen part torch 2.13 would crash the process.
        norms.guard(model)
        if self.spec.adapter is not None:
            from osmotic.models import adapted_layers

            adapted_layers.load_base(model, self.pretrained)
        return model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def sampling(self, guidance: float | None = None) -> Sampling:
        """How images [N, C, H, W] are drawn, as the configuration says; its guidance too if none is given."""
        score = self.config.score
        return Sampling(
            process=self.process,
            space=self.space,
            sampler=score.sampler,
            steps=score.steps,
            guidance=self.guidance if guidance is None else guidance,
        )

    def draw(
        self,
        model: torch.nn.Module,
        labels: np.ndarray | None,
        samples: int,
        seed: int,
        guidance: float | None = None,
        drawn: Callable[[float], object] = lambda images: None,
    ) -> tuple[np.ndarray, int]:
        """Images of one network, uint8 [samples, H, W, C], and network evaluations per image.

        Args:
            labels: int64 [samples], or None for no class.
            drawn: as `Sampling.draw`.
        Raises: ValueError as `Sampling.draw`.
        """
        if isinstance(self.process, Reconstruction):
            return self.space.decode(self.process.images(model, samples, seed)), 1
        sampling = self.sampling(guidance)
        device = next(model.parameters()).device
        given = None if labels is None else torch.from_numpy(labels)
        images = sampling.draw(model, given, samples, seed, device=device, drawn=drawn)
        return self.space.decode(images), sampling.nfe

    def draw_chunks(
        self,
        networks: Sequence[torch.nn.Module],
        labels: np.ndarray | None,
        samples: int,
        seed: int,
        drawn: Callable[[float], object] = lambda images: None,
    ) -> tuple[np.ndarray, int]:
        """As `draw`, uint8 [samples, H, W, C], by any number of replicas side by side: the same bits."""
        if isinstance(self.process, Reconstruction):
            return self.draw(networks[0], labels, samples, seed)
        sampling = self.sampling()
        images = sampling.draw_chunks(
            networks,
            None if labels is None else torch.from_numpy(labels),
            samples,
            seed,
            threads=self.config.engine.threads,
            device=next(networks[0].parameters()).device,
            drawn=drawn,
        )
        return self.space.decode(images), sampling.nfe


def space_of(config: Config, image_size: int, channels: int) -> Space:
    """What the network works in: pixels, or latents of `model.autoencoder`. Raises: ConfigError for one that these images do not fit."""
    if not config.model.autoencoder:
        return Pixels((channels, image_size, image_size))
    from osmotic.models.latents import Latents

    found = autoencoder_file.describe(config.model.autoencoder)
    if found.channels != channels:
        kind = {1: "grey images", 3: "colour images"}
        rule = f"takes {kind[found.channels]}, and these are {kind[channels]}: data.channels = {found.channels} converts them"
        raise ConfigError("model.autoencoder", config.model.autoencoder, rule)
    found.latent_shape(image_size)
    device = config.engine.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return Latents(found, image_size, device)


def network_of(config: Config, image_size: int, channels: int, num_classes: int) -> NetworkSpec:
    """The network for these images, or for their latents, and its adapter. Raises: ConfigError as `models.resolve` and `space_of`."""
    spec = _whole_network(config, image_size, channels, num_classes)
    chosen = config.adapter
    if not chosen.rank:
        return spec
    adapter, layout = Adapter(chosen.rank, chosen.alpha, chosen.targets, chosen.trains), models.layout(spec)
    for target in chosen.targets:
        if not replace(adapter, targets=(target,)).layers(layout):
            rule = f"name no layer of network {spec.name} with {target!r}: they are ends of names such as to_q or conv1"
            raise ConfigError("adapter.targets", list(chosen.targets), rule)
    widest = max(min(shape[0], math.prod(shape[1:])) for shape in adapter.layers(layout).values())
    if chosen.rank >= widest:
        rule = f"must be below {widest}, the narrower side of the widest layer that is adapted"
        raise ConfigError("adapter.rank", chosen.rank, rule)
    return replace(spec, adapter=adapter)


def _whole_network(config: Config, image_size: int, channels: int, num_classes: int) -> NetworkSpec:
    name, dropout = config.model.network, config.recipe.dropout
    if name in models.NETWORKS and isinstance(models.NETWORKS[name], Autoencoder):
        return models.resolve(name, image_size, channels, 0, dropout)
    if not config.model.autoencoder:
        return models.resolve(name, image_size, channels, num_classes, dropout)
    latent_channels, side, _ = space_of(config, image_size, channels).shape
    try:
        return models.resolve(name, side, latent_channels, num_classes, dropout)
    except ConfigError as error:
        if error.key != "data.image_size":
            raise
        rule = f"its latents have {side} pixels a side, and that {error.rule}"
        raise ConfigError("data.image_size", image_size, rule) from None
