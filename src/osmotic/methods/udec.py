"""UDec: the decoder is shared, encoder and bottleneck are personal. Source: arXiv:2406.12575, sec. 3."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from osmotic.methods.personal import PersonalParts


@dataclass(frozen=True, kw_only=True)
class UDec(PersonalParts):
    """Weights conveyed with K clients in R rounds: K P + K U (2 R - 1), U of them in the decoder."""

    shared: ClassVar[tuple[str, ...]] = ("decoder",)
    exchanges: ClassVar[str] = "the decoder both ways; encoder and bottleneck stay on their client"
