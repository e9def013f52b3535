"""A curious server: a piece that changes nothing, and writes down the weights and changes that the server sees anyway."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

import osmotic
from osmotic.pieces import Piece
from osmotic.pieces.base import Metrics, Section
from osmotic.protocol.messages import Phase, Reply
from osmotic.protocol.view import View
from osmotic.tensors import Tensors, grouped


@osmotic.register("listening")
@dataclass(frozen=True, kw_only=True)
class Listening(Piece):
    """PHASE-ROUND.npz in a folder: "before/NAME" the weights that all were sent, "CLIENT/NAME" the change of each, float32 [...]."""

    section: ClassVar[Section] = "server"
    folder: str = osmotic.key("", "where they are written")

    def gather(self, view: View, gathered: Any, reply: Reply) -> dict[str, Tensors]:
        """Changes by client, copied: a reply is dropped afterwards."""
        return {**(gathered or {}), reply.task.client.name: {n: t.copy() for n, t in reply.change.items()}}

    def change(
        self, view: View, state: Tensors, gathered: Any, phase: Phase, mean: Tensors
    ) -> tuple[Tensors, Tensors, Metrics]:
        """The mean as it is."""
        seen = grouped("before", dict(view.weights))
        for client, change in (gathered or {}).items():
            seen |= grouped(client, change)
        Path(self.folder).mkdir(parents=True, exist_ok=True)
        np.savez(Path(self.folder) / f"{phase.name}-{phase.server_round}.npz", **seen)
        return mean, state, {}
