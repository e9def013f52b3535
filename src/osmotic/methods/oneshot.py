"""One shot: clients train alone and are asked once; the server then learns one model from what their models draw.

The limit of FedDDPM (arXiv 2503.06426) with no federated round at all: its phase 0, and the server's training. The images
come from the piece `correction`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar

from osmotic.methods.fedavg import FedAvg
from osmotic.protocol.messages import TRAIN, Client, Phase, Task
from osmotic.protocol.view import View


@dataclass(frozen=True, kw_only=True)
class OneShot(FedAvg):
    """Nobody is asked in a round: theta_r = theta_{r-1}, which the server's pieces train on."""

    server_trains: ClassVar[bool] = True
    sentence: ClassVar[str] = (
        "{clients} each trained {model} alone on its own part of {data}, {split}, and were asked once; a server trained one model "
        "on synthetic images that theirs drew, with {method}, in {rounds}."
    )
    paper: ClassVar[str] = (
        ""  # the set of images is FedDDPM's, and told with `correction`; a run without rounds is ours
    )
    exchanges: ClassVar[str] = (
        "once: initial weights down, what a model of one's own draws up; nothing in rounds"
    )

    def tasks(self, view: View, phase: Phase, clients: Iterable[Client]) -> Iterator[Task]:
        """None in a round; in a piece's own phase as `fedavg`."""
        if phase.name != TRAIN:
            yield from super().tasks(view, phase, clients)
