"""USplit: every client gets all weights and trains them, but returns only a part; pairs of clients make up a whole.

Source: arXiv:2406.12575, sec. 3 (USPLIT), with the pairs and coins of its code. `freeze` departs from it: there a client
trains also what it throws away.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from osmotic import seeds
from osmotic.config.keys import key
from osmotic.methods.base import PARTS, Method
from osmotic.models import parts
from osmotic.protocol.messages import Client, Phase, Task

if TYPE_CHECKING:
    from osmotic.federation.client import Local
    from osmotic.federation.server import Server


@dataclass(frozen=True, kw_only=True)
class USplit(Method):
    """theta_r[part] = theta_{r-1}[part] + mean over the clients that returned the part, weighted by their images.

    The clients of a round come in random order. Of each pair the first returns the decoder, the second the encoder,
    and a fair coin gives one of them the bottleneck too. A client left over returns the bottleneck and, by coin,
    encoder or decoder. A part that nobody returned stays as it is.
    """

    freeze: bool = key(False, "clients train only the parts that they return")

    def tasks(self, server: Server, phase: Phase, clients: Iterable[Client]) -> Iterator[Task]:
        rng = seeds.rng(server.config.seed, seeds.METHOD, phase.server_round)
        everyone = list(clients)
        order = [everyone[i] for i in rng.permutation(len(everyone))]
        for first, second in zip(order[::2], order[1::2], strict=False):
            with_first = bool(rng.integers(2))
            yield _task(first, "decoder", with_first)
            yield _task(second, "encoder", not with_first)
        if len(order) % 2:
            yield _task(order[-1], "encoder" if rng.integers(2) else "decoder", True)

    def trainable(self, local: Local) -> set[str] | None:
        return set(parts.names(local.received, local.returns)) if self.freeze else None


def _task(client: Client, part: str, with_bottleneck: bool) -> Task:
    """All weights down; `part` back, and the bottleneck with it or not."""
    returns = {part, "bottleneck"} if with_bottleneck else {part}
    return Task(client, "train", send=PARTS, returns=tuple(p for p in PARTS if p in returns))
