"""A client's private state as typed fields, and its way to and from the one table of tensors that the store keeps.

The names in the table are a contract: states written by earlier versions are read, and their hashes stay.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from osmotic.tensors import Tensors, group, grouped


@dataclass
class ClientState:
    """What a client keeps from round to round; every field may be empty.

    Args:
        personal: parts of the network that are its own, name -> float32 [...].
        average: the average of its own model over rounds, float32 [...], where no global model exists.
        ema, ema_mass: what this average comes from, float64 [...] and [half-lives] (`diffusion/ema.py`).
        optimizer: moments, "NAME|SLOT" -> float32 [...].
        residual: what the codec of the way up remembers.
        codec: weights of a codec that is itself trained.
        pieces: private state of the pieces, "PIECE/NAME".
        replica, heard: what it holds of the server's weights, and part -> round in which it was sent.
    """

    personal: Tensors = field(default_factory=dict)
    average: Tensors = field(default_factory=dict)
    ema: Tensors = field(default_factory=dict)
    ema_mass: np.ndarray | None = None
    optimizer: Tensors = field(default_factory=dict)
    residual: Tensors = field(default_factory=dict)
    codec: Tensors = field(default_factory=dict)
    pieces: Tensors = field(default_factory=dict)
    replica: Tensors = field(default_factory=dict)
    heard: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, tensors: Mapping[str, np.ndarray]) -> ClientState:
        """From the store's table, "FIELD/NAME" -> array [...]."""
        fields = {name: group(tensors, prefix) for name, prefix in PREFIXES.items()}
        heard = {part: int(number[0]) for part, number in group(tensors, "heard").items()}
        return cls(**fields, ema_mass=tensors.get("ema-mass"), heard=heard)

    def tensors(self) -> Tensors:
        """For the store, "FIELD/NAME" -> array [...].

        The rounds of `heard` are arrays too: the store holds nothing else.
        """
        table: Tensors = {}
        for name, prefix in PREFIXES.items():
            table |= grouped(prefix, getattr(self, name))
        table |= {f"heard/{part}": np.array([number], np.int64) for part, number in self.heard.items()}
        return table if self.ema_mass is None else {**table, "ema-mass": self.ema_mass}

    def own_model(self) -> Tensors:
        """What its own model is drawn from and published as, name -> float32 [...].

        Its average, else its personal parts.
        """
        return self.average or self.personal


# Field -> the name in the table. Where they differ the name is the older one, which states on disk have.
PREFIXES = {
    "personal": "personal",
    "average": "average",
    "ema": "ema",
    "optimizer": "optimizer",
    "residual": "memory",
    "codec": "codec",
    "pieces": "piece",
    "replica": "replica",
}
