"""Local: every client trains alone on its own images; the baseline that shows what federation is worth."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from osmotic.methods.base import Method
from osmotic.protocol.aggregate import Accumulator
from osmotic.protocol.messages import Client, Phase, Reply, Task
from osmotic.protocol.view import View


@dataclass(frozen=True, kw_only=True)
class Local(Method):
    """All parts are personal. Clients draw the same initial weights from the run's seed, so nothing travels at all."""

    shared: ClassVar[tuple[str, ...]] = ()
    global_model: ClassVar[bool] = False
    travels: ClassVar[bool] = False
    sentence: ClassVar[str] = (
        "Each of {clients} trained {model} alone on its own part of {data}, {split}, for {rounds}: the lower baseline."
    )
    left: ClassVar[str] = "Every client trains alone. No weights and no images leave a client in training."
    reveals: ClassVar[str] = (
        "no weights come back while training: of the images what the figures tell, such as the mean loss over them"
    )
    exchanges: ClassVar[str] = "nothing: every client trains alone (lower baseline)"

    def tasks(self, view: View, phase: Phase, clients: Iterable[Client]) -> Iterator[Task]:
        """Training, with nothing sent and nothing asked back."""
        for client in clients:
            yield Task(client, "train")

    def fold(self, total: Accumulator, reply: Reply) -> None:
        """Nothing came back."""
        pass

    def mean(self, total: Accumulator) -> Iterator[tuple[str, np.ndarray]]:
        """Nothing to apply."""
        return iter(())
