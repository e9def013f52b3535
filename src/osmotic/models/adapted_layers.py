"""Layers whose weight is a constant and a low-rank product, computed whenever it is asked for; every other weight a constant, too."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from osmotic.errors import ConfigError
from osmotic.models.adapter import BASE, A, Adapter, B


class _Adapted:
    """In the place of a layer's parameter `weight`."""

    scale: float

    @property
    def weight(self) -> Tensor:
        """W0 + scale B A, [out, in, ...]."""
        this: Any = self
        base: Tensor = getattr(this, BASE)
        product = getattr(this, B) @ getattr(this, A)
        return base + self.scale * product.view(base.shape)


# What torch declares as a parameter is computed here.
class AdaptedConv2d(_Adapted, nn.Conv2d):  # type: ignore[override]
    """A convolution with an adapter."""


class AdaptedLinear(_Adapted, nn.Linear):  # type: ignore[override]
    """A linear layer with an adapter."""


class AdaptedEmbedding(_Adapted, nn.Embedding):  # type: ignore[override]
    """An embedding with an adapter: a row W0 + scale B A of each class, [classes, width]."""


KINDS = {nn.Conv2d: AdaptedConv2d, nn.Linear: AdaptedLinear, nn.Embedding: AdaptedEmbedding}


def adapt(model: nn.Module, adapter: Adapter) -> nn.Module:
    """The model, changed in place: its parameters are the factors that are trained, all else is buffers.

    Raises: ConfigError for a layer that is no convolution, linear layer or embedding.
    """
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    layers = adapter.layers(shapes)
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            delattr(module, name)
            module.register_buffer(name, parameter.detach())
    for name, shape in layers.items():
        layer: Any = model.get_submodule(name)
        if type(layer) not in KINDS:
            rule = f"{name} is a {type(layer).__name__}: only convolutions, linear layers and embeddings can be adapted"
            raise ConfigError("adapter.targets", list(adapter.targets), rule)
        base = layer.weight
        del layer.weight
        layer.__class__ = KINDS[type(layer)]
        layer.scale = adapter.scale
        layer.register_buffer(BASE, base)
        layer.register_parameter(B, nn.Parameter(torch.zeros(shape[0], adapter.rank, device=base.device)))
        if adapter.trains == "both":
            width = math.prod(shape[1:])
            first = torch.empty(adapter.rank, width, device=base.device).uniform_(-1, 1) / math.sqrt(width)
            layer.register_parameter(A, nn.Parameter(first))
        else:
            layer.register_buffer(A, torch.from_numpy(adapter.frozen(name, shape)).to(base.device))
    return model


def load_base(model: nn.Module, weights: Mapping[str, np.ndarray]) -> None:
    """Puts the pretrained weights, name -> float32 [...], where `adapt` has left constants."""
    held = dict(model.named_buffers())
    with torch.no_grad():
        for name, weight in weights.items():
            layer, _, leaf = name.rpartition(".")
            place = f"{layer}.{BASE}" if leaf == "weight" and f"{layer}.{BASE}" in held else name
            held[place].copy_(torch.from_numpy(np.ascontiguousarray(weight)))
