"""Central: one trainer holds all images; the baseline that federated training is measured against.

It walks the same rounds with the same recipe, so at equal rounds and local epochs it sees equally many images. Its
optimiser keeps its moments from round to round, as plain training does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from osmotic.methods.fedavg import FedAvg


@dataclass(frozen=True, kw_only=True)
class Central(FedAvg):
    """FedAvg with one client that holds the union; nothing travels."""

    pools_data: ClassVar[bool] = True
    travels: ClassVar[bool] = False
    paper: ClassVar[str] = ""
    sentence: ClassVar[str] = (
        "One trainer held all images of {data} and trained {model} for {rounds}: the upper baseline."
    )
    left: ClassVar[str] = (
        "This is the centralised baseline: one trainer held all images. Nothing about this run was federated."
    )
    reveals: ClassVar[str] = "everything: the trainer holds all images"
    exchanges: ClassVar[str] = "nothing: one trainer holds all images (upper baseline)"
