"""A low-rank adapter of a pretrained network (LoRA, arXiv 2106.09685) as a network of its own: only the adapter is trained, sent and averaged.

A layer W0 [out, in, ...] of the pretrained network becomes W0 + (alpha / rank) B A, with A [rank, in ...] and B [out, rank]. W0 and all
other weights are constants, which every site has. With A frozen, the average of B A over clients is that of B, times A, exactly
(arXiv 2403.12313); with both trained it is only near it. Neither torch nor diffusers is imported before it is built.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from osmotic.models.layout import Layout

if TYPE_CHECKING:
    import numpy as np

A, B, BASE = "lora_A", "lora_B", "base"  # names of the factors, and of the constant, in a layer


@dataclass(frozen=True)
class Adapter:
    """What is adapted, and how.

    Args:
        rank: r, >= 1.
        alpha: the product is multiplied by alpha / rank.
        targets: last components of the names of layers, such as "to_q" or "to_out.0".
        trains: "both" factors, or "b" with A drawn once and frozen.
    """

    rank: int
    alpha: float
    targets: tuple[str, ...]
    trains: Literal["both", "b"]

    @property
    def scale(self) -> float:
        """What the product is multiplied by."""
        return self.alpha / self.rank

    def layers(self, whole: Layout) -> Layout:
        """Layers of a network of this layout that are adapted: name -> shape of the weight [out, in, ...], sorted."""
        found = {
            name.removesuffix(".weight"): shape
            for name, shape in whole.items()
            if name.endswith(".weight") and len(shape) >= 2 and self._takes(name.removesuffix(".weight"))
        }
        return dict(sorted(found.items()))

    def _takes(self, layer: str) -> bool:
        return any(layer == target or layer.endswith(f".{target}") for target in self.targets)

    def frozen(self, layer: str, shape: tuple[int, ...]) -> np.ndarray:
        """The constant A of a layer, float32 [rank, in ...]: the same at every site, in every run."""
        import numpy as np  # layouts are worked out without it

        width = math.prod(shape[1:])
        seed = int.from_bytes(hashlib.sha256(layer.encode()).digest()[:8], "little")
        draws = np.random.default_rng([seed, self.rank]).uniform(-1, 1, (self.rank, width))
        return (draws / math.sqrt(width)).astype(np.float32)


def merged(
    adapter: Adapter, base: Mapping[str, np.ndarray], factors: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Weights of the whole network with the adapter in them, name -> float32 [...]; `base` and `factors` by name, float32 [...]."""
    import numpy as np

    whole: dict[str, Any] = dict(base)
    for layer, shape in adapter.layers({name: w.shape for name, w in base.items()}).items():
        first = factors.get(f"{layer}.{A}")
        first = adapter.frozen(layer, shape) if first is None else first
        product = factors[f"{layer}.{B}"].astype(np.float32) @ first
        whole[f"{layer}.weight"] = base[f"{layer}.weight"] + np.float32(adapter.scale) * product.reshape(
            shape
        )
    return whole
