"""Central: one trainer holds all images; the baseline that federated training is measured against.

It walks the same rounds with the same recipe, so at equal rounds and local epochs it sees equally many images. Its
optimiser keeps its moments from round to round, as plain training does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from osmotic.methods.base import Method


@dataclass(frozen=True, kw_only=True)
class Central(Method):
    """FedAvg with one client that holds the union; nothing travels."""

    pools_data: ClassVar[bool] = True
    travels: ClassVar[bool] = False
