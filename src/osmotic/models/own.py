"""A network of the user's own: any module called like diffusers' U-Nets, registered by name from outside the package.

`models.register_network` makes one; torch is imported once its parameters are asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from osmotic.errors import ConfigError
from osmotic.models.layout import Layout
from osmotic.models.parts import Prefixes

if TYPE_CHECKING:
    from torch import nn

    from osmotic.models.spec import NetworkSpec


@dataclass(frozen=True, eq=False)
class OwnNetwork:
    """What `register_network` was told; its arguments are explained there."""

    make: Callable[[NetworkSpec], nn.Module]
    multiple: int
    parts: Prefixes
    norm_groups: int
    has_dropout: bool

    own: ClassVar[bool] = True

    def layout(self, spec: NetworkSpec) -> Layout:
        """Every parameter's name and shape, read off the built module.

        Raises: ConfigError if it is no module, or holds numbers that are not float32.
        """
        from osmotic.models import construct

        return {name: tuple(p.shape) for name, p in construct.skeleton(spec).named_parameters()}

    def construct(self, spec: NetworkSpec) -> nn.Module:
        """The module in training mode, with the weights that torch's global generator gives it.

        It is made on the device of the caller's `torch.device` context. Raises: ConfigError as `layout`.
        """
        model = self.make(spec)
        _check(spec, model)
        return model.train()


def _check(spec: NetworkSpec, model: Any) -> None:
    """Raises ConfigError for what could not travel, or would be lost on the way."""
    import torch

    if not isinstance(model, torch.nn.Module):
        rule = f"its build must return a torch.nn.Module, not {type(model).__name__}"
        raise ConfigError("model.network", spec.name, rule)
    if next(model.parameters(), None) is None:
        raise ConfigError("model.network", spec.name, "its module has no parameters to train")
    # Also what is no parameter but saved: counts, as of batch norm, mark statistics that training moves and that no
    # packet carries. What is not saved is made anew at every build, so it may be of any kind.
    for name, value in model.state_dict().items():
        if not isinstance(value, torch.Tensor) or value.dtype != torch.float32:
            kind = value.dtype if isinstance(value, torch.Tensor) else type(value).__name__
            rule = f"parameter or buffer {name} is {kind}: must be torch.float32"
            raise ConfigError("model.network", spec.name, rule)
