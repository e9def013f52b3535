"""What a method is: who trains which weights, what is returned, what the server does with it. Both halves in one file.

A method never sees bytes and never loops over batches: server.py and client.py do, and call these hooks. Method files
import neither torch nor diffusers at the top, so that `osmotic plan` and `osmotic methods` answer at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from osmotic.protocol.messages import Client, Phase, Reply, Task, Tensors

if TYPE_CHECKING:
    from torch import Tensor, nn

    from osmotic.federation.client import Local
    from osmotic.federation.server import Server

PARTS = ("encoder", "bottleneck", "decoder")


@dataclass(frozen=True, kw_only=True)
class Method:
    """Base of all methods; its defaults are FedAvg's. Options are the fields of the dataclass, checked in __post_init__."""

    shared: ClassVar[tuple[str, ...]] = PARTS  # parts the server averages; the others are personal
    global_model: ClassVar[bool] = True  # a full model exists at the server and is scored there
    pools_data: ClassVar[bool] = False  # one trainer holds everybody's images (the centralised baseline)
    stateful: ClassVar[bool] = (
        False  # clients keep something between rounds beyond what codec and optimiser keep
    )
    travels: ClassVar[bool] = (
        True  # False: nothing is exchanged over a network, so the ledger counts no traffic
    )

    # --- server half ---
    def phases(self, rounds: int) -> Iterator[Phase]:
        """All phases of a run, in order; known before it starts."""
        for r in range(1, rounds + 1):
            yield Phase("train", r)

    def start(self, server: Server) -> None:
        """Sets up the method's own state, before the first phase and before `restore`."""

    def tasks(self, server: Server, phase: Phase, clients: Iterable[Client]) -> Iterator[Task]:
        """A task per client; clients come sorted by name."""
        for client in clients:
            yield Task(client, "train", send=PARTS, returns=self.shared)

    def fold(self, server: Server, reply: Reply) -> None:
        """Takes in one reply that passed the gate; it is dropped afterwards. Order of arrival must not matter."""
        server.sum.add(reply.tensors, reply.weight)

    def finish(self, server: Server, phase: Phase) -> dict[str, float]:
        """After the last reply: moves the global weights, trains on the server, decides. Returns further metrics."""
        server.apply(server.sum.drain())
        return {}

    def state(self) -> Tensors:
        """The method's part of the checkpoint. Arrays are replaced, never changed in place: a failed round goes back."""
        return {}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """The inverse of `state`."""

    def auxiliary(self) -> dict[str, Any] | None:
        """{"images", "filtered", "sha256"} of synthetic images the method made, for the summary; None without any."""
        return None

    # --- client half: bends the one training loop of client.py ---
    def trainable(self, local: Local) -> set[str] | None:
        """Names of the parameters to train; None for all."""
        return None

    def begin(self, local: Local) -> None:
        """Before the first local step: may read and set `local.state`."""

    def local_loss(self, local: Local, loss: Tensor, model: nn.Module) -> Tensor:
        """The loss to minimise, given the diffusion loss of the batch."""
        return loss

    def after_backward(self, local: Local, model: nn.Module) -> None:
        """Between backward pass and optimiser step; may change gradients."""

    def end(self, local: Local) -> Tensors:
        """After the last local step: extras to return ("control/...", "image/..."); may change `local.state`."""
        return {}

    def keep(self) -> tuple[str, ...]:
        """Parts that stay on the client from round to round: what is not shared, or all where no global model exists.

        What the server sends comes over them, so a client's own model is always the one it trained last.
        """
        return tuple(p for p in PARTS if p not in self.shared or not self.global_model)
