"""ULatDec: bottleneck and decoder are shared, the encoder is personal. Source: arXiv:2406.12575, sec. 3."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from osmotic.methods.personal import PersonalParts


@dataclass(frozen=True, kw_only=True)
class ULatDec(PersonalParts):
    """Weights conveyed with K clients in R rounds: K P + K (M + U) (2 R - 1), of P = encoder + M + U."""

    shared: ClassVar[tuple[str, ...]] = ("bottleneck", "decoder")
    exchanges: ClassVar[str] = "bottleneck and decoder both ways; the encoder stays on its client"
