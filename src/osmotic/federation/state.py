"""What the server knows after a whole phase: exactly what a checkpoint holds, and its way to and from one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from osmotic.diffusion.ema import Ema
from osmotic.federation import ledger
from osmotic.federation.blueprint import Blueprint
from osmotic.federation.downlink import DownLink, drawn_hash
from osmotic.federation.uplink import UpLink
from osmotic.flat import Flat
from osmotic.tensors import Tensors, group, grouped


@dataclass
class ServerState:
    """The server between two phases.

    Args:
        weights: the global ones, name -> float32 [...]. The buffer is replaced, never changed in place.
        ema: their averages over rounds.
        up, down: the two links.
        pieces: state of the learning rule, "PIECE/NAME" -> array [...].
        step: phases done.
        changed: part -> round at whose end its global weights last moved.
        counted: client -> round in which it last counted.
        state_hashes: client -> SHA-256 of its private state after that round.
        pending: the metrics line of the last phase, if its score is still to be taken.
    """

    weights: Flat
    ema: Ema
    up: UpLink
    down: DownLink
    pieces: Tensors = field(default_factory=dict)
    step: int = 0
    changed: dict[str, int] = field(default_factory=dict)
    counted: dict[str, int] = field(default_factory=dict)
    state_hashes: dict[str, str] = field(default_factory=dict)
    totals: ledger.Totals = field(default_factory=ledger.Totals)
    failures: list[dict[str, Any]] = field(default_factory=list)
    server_steps: int = 0
    wall_seconds: float = 0.0
    last_quality: dict[str, Any] | None = None
    pending: dict[str, Any] | None = None

    @classmethod
    def initial(cls, blueprint: Blueprint, weights: Flat, pieces: Tensors) -> ServerState:
        """Before the first phase: round 0's weights, name -> float32 [...], nothing sent, nothing counted."""
        config = blueprint.config
        down = blueprint.codec("down")
        draws = config.codec.first_contact == "seed"
        return cls(
            weights.copy(),
            Ema(config.recipe.ema_half_lives),
            UpLink(blueprint.codec("up"), config.seed),
            DownLink(
                down,
                blueprint.flat,
                config.codec.changed_only,
                config.seed,
                {p: drawn_hash(weights.part(p)) for p in blueprint.part_names} if draws else None,
            ),
            pieces,
        )

    def scored_weights(self) -> Mapping[str, np.ndarray]:
        """The average of the first half-life, else the raw weights: name -> float32 [...]."""
        return average_of(self.weights, self.ema)

    def to_checkpoint(self) -> tuple[Tensors, dict[str, Any]]:
        """Tensors [...], which stay as they are while the server goes on, and JSON, to be taken down at once.

        The names are a contract: checkpoints of earlier versions are read.
        """
        down_tensors, down_notes = self.down.state()
        ema_tensors, ema_notes = self.ema.state()
        up_tensors, up_notes = self.up.state()
        tensors = grouped("weights", self.weights) | grouped("down", down_tensors) | up_tensors
        # Averages are changed in place, and what a piece does with its arrays is its own affair.
        moving = grouped("ema", ema_tensors) | grouped("pieces", self.pieces)
        tensors |= {name: tensor.copy() for name, tensor in moving.items()}
        notes = {
            "down": down_notes,
            "ema": ema_notes,
            **up_notes,
            "counted": self.counted,
            "changed": self.changed,
            "state_hashes": self.state_hashes,
            "totals": vars(self.totals),
            "failures": self.failures,
            "server_steps": self.server_steps,
            "wall_seconds": self.wall_seconds,
            "last_quality": self.last_quality,
            "pending": self.pending,
        }
        return tensors, notes

    def from_checkpoint(self, step: int, tensors: Mapping[str, np.ndarray], notes: Mapping[str, Any]) -> None:
        """The inverse of `to_checkpoint`: its tensors [...] and JSON."""
        self.step, self.weights = step, Flat.of(self.weights.layout, group(tensors, "weights"))
        self.ema.restore(group(tensors, "ema"), notes["ema"])
        self.down.restore(group(tensors, "down"), notes["down"])
        self.up.restore(tensors, notes)
        self.pieces = group(tensors, "pieces")
        # `get`: checkpoints of earlier versions lack what was added since.
        self.counted, self.changed = notes["counted"], notes.get("changed", {})
        self.state_hashes, self.failures = notes["state_hashes"], notes["failures"]
        self.totals = ledger.Totals(**notes["totals"])
        self.server_steps, self.wall_seconds = notes["server_steps"], notes["wall_seconds"]
        self.last_quality, self.pending = notes["last_quality"], notes.get("pending")


def average_of(
    weights: Mapping[str, np.ndarray], ema: Ema, half_life: float | None = None
) -> Mapping[str, np.ndarray]:
    """The average over `half_life` images, name -> float32 [...]; by default the first one kept.

    The weights themselves where nothing was averaged yet, or for a half-life of 0.
    Raises: ValueError for a half-life that is not kept.
    """
    kept = ema.half_lives
    if ema.empty or not kept or half_life == 0:
        return weights
    return ema.average(kept[0] if half_life is None else half_life)
