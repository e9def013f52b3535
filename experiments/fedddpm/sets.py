"""Sets of images that the study gives the server, in the place of those that the run itself would ask sites for.

`real-set` is a control that no federation could run. `drawn-set` takes what another run of the same seed was sent: methods
that differ in the rounds alone then share one phase 0, the dearest part of a run. With all images their bits are those of a run with a
phase 0 of its own, and `costs` adds what that phase cost.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

import osmotic
from osmotic.data.sources import load
from osmotic.pieces.correction import LOCAL, Correction
from osmotic.protocol.messages import Phase
from osmotic.storage.store import read_checked
from osmotic.tensors import Tensors


@dataclass(frozen=True, kw_only=True)
class Given(Correction):
    """As `correction`, with images that are there when the rounds begin."""

    least_images = 0

    def phases(self, rounds: int) -> Iterator[Phase]:
        """None of its own."""
        return iter(())

    @abstractmethod
    def found(self, lab: Any) -> Tensors:
        """ "images" uint8 [M, H, W, C], "client" int64 [M], "labels" int64 [M] where there are any."""

    def after(self, lab: Any, state: Tensors, phase: Phase) -> tuple[Tensors, dict[str, float]]:
        """Takes the images when it is first asked, then trains on them as `correction` does."""
        if "set" not in state:
            state, _ = self._kept(lab, [self.found(lab)], 0, 0, state)
        return super().after(lab, state, phase)


@osmotic.register("real-set")
@dataclass(frozen=True, kw_only=True)
class RealSet(Given):
    """Real images of the training split, from all clients alike: the upper bound."""

    left: ClassVar[str] = "real images: this is a control, and no method"
    reveals: ClassVar[str] = "everything"

    def found(self, lab: Any) -> Tensors:
        """A share `size` of them, drawn with the run's seed."""
        train = load(lab.view.config.data).train
        rows = np.random.default_rng(lab.view.config.seed).permutation(len(train))
        rows = np.sort(rows[: round(self.size * len(train))])
        part = {"images": np.asarray(train.images)[rows], "client": np.full(len(rows), -1, np.int64)}
        return part if train.labels is None else part | {"labels": train.labels[rows].astype(np.int64)}


@osmotic.register("drawn-set")
@dataclass(frozen=True, kw_only=True)
class DrawnSet(Given):
    """What the sites of another run have drawn."""

    run: str = osmotic.key("", "folder of that run")
    share: float = osmotic.key(1.0, "share of its images, the same of every client", 0, 1, above=True)

    def found(self, lab: Any) -> Tensors:
        """All of them, or so many of each client, by chance, in their order."""
        [path] = sorted((Path(self.run) / "auxiliary").glob("*.safetensors"))
        whole = read_checked(path)
        if self.share == 1:
            return whole
        rng, clients = np.random.default_rng(lab.view.config.seed), whole["client"]
        rows = [np.flatnonzero(clients == client) for client in np.unique(clients)]
        kept = [rng.permutation(own)[: max(1, round(self.share * len(own)))] for own in rows]
        return {name: t[np.sort(np.concatenate(kept))] for name, t in whole.items()}


def costs(run: Path, share: float) -> dict[str, int]:
    """What phase 0 of a run cost, of which a share of the images was sent: entries of a row of results, to be added."""
    entries = [
        e for e in map(json.loads, (run / "ledger.jsonl").read_text().splitlines()) if e["phase"] == LOCAL
    ]
    up = [e for e in entries if e["direction"] == "up"]
    return {
        "bytes_up": round(share * sum(e["bytes"] for e in up)),
        "bytes_down": sum(e["bytes"] for e in entries if e["direction"] == "down"),
        "images_seen": sum(e["images"] for e in up),
        "client_steps": sum(e["steps"] for e in up),
        "flops": sum(e["flops"] for e in up),
    }
