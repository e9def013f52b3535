"""Local: every client trains alone on its own images; the baseline that shows what federation is worth."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from osmotic.methods.base import Method
from osmotic.protocol.messages import Client, Phase, Reply, Task

if TYPE_CHECKING:
    from osmotic.federation.server import Server


@dataclass(frozen=True, kw_only=True)
class Local(Method):
    """All parts are personal. Clients draw the same initial weights from the run's seed, so nothing travels at all."""

    shared: ClassVar[tuple[str, ...]] = ()
    global_model: ClassVar[bool] = False
    stateful: ClassVar[bool] = True
    travels: ClassVar[bool] = False

    def tasks(self, server: Server, phase: Phase, clients: Iterable[Client]) -> Iterator[Task]:
        for client in clients:
            yield Task(client, "train")

    def fold(self, server: Server, reply: Reply) -> None:
        pass

    def finish(self, server: Server, phase: Phase) -> dict[str, float]:
        return {}
