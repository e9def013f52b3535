"""Personal parts: the server averages some parts of the network, the others live and stay on each client.

Source: arXiv:2406.12575, sec. 3 (ULATDEC and UDEC, which differ in what is shared). No full model exists at the server:
every client's own is sampled and scored, before the last average is merged (as in the paper) and after.
`encoder_every` departs from the paper.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from osmotic.config.keys import key
from osmotic.methods.base import no_weights
from osmotic.methods.fedavg import FedAvg
from osmotic.models.parts import PARTS
from osmotic.protocol.messages import MERGE, TRAIN, Client, Phase, Task
from osmotic.protocol.view import View


@dataclass(frozen=True, kw_only=True)
class PersonalParts(FedAvg):
    """theta_r[shared] = theta_{r-1}[shared] + sum_k p_k (theta_r^k - theta_{r-1})[shared], p_k = n_k / sum of n_j.

    At first contact a client gets all weights, afterwards the shared parts. It trains all, returns the shared parts.
    """

    global_model: ClassVar[bool] = False
    sentence: ClassVar[str] = (
        "Each of {clients} trained {model} of its own on {data} with {method}, for {rounds}: they share {shared}, "
        "the rest is personal; the images were {split}."
    )
    paper: ClassVar[str] = "2406.12575"

    encoder_every: int = key(
        0, "average the personal encoder too, every so many rounds but the last; 0 is never", 0
    )

    def phases(self, rounds: int) -> Iterator[Phase]:
        """The rounds, then one phase in which the last average is merged and scored, and nobody trains."""
        yield from super().phases(rounds)
        yield Phase(MERGE, rounds + 1, totals=False, everybody=True)

    def tied_to(self, rounds: int) -> str | None:
        """A reason where the encoder would be averaged in round `rounds` if it were not the last."""
        averages = self.encoder_every and rounds % self.encoder_every == 0
        return f"the encoder would have been averaged in round {rounds}" if averages else None

    def unfit_parts(self, part_names: Mapping[str, Sequence[str]]) -> str | None:
        """None where something is shared, if only in some rounds."""
        returned = self._with_encoder() if self.encoder_every else self.shared
        return no_weights(part_names, returned, "is all that it shares")

    def tasks(self, view: View, phase: Phase, clients: Iterable[Client]) -> Iterator[Task]:
        """All weights down to a newcomer, else the shared parts; the changes of the shared parts back."""
        if phase.name == MERGE:
            return  # nobody trains any more; the server has the merged models scored
        number = phase.server_round
        # After the last round nobody trains from an average any more.
        last = number >= view.config.training.rounds
        averages = self.encoder_every and number % self.encoder_every == 0 and not last
        returns = self._with_encoder() if averages else self.shared
        for client in clients:
            yield Task(
                client,
                "train",
                send=self._news(view, client),
                returns=returns if phase.name == TRAIN else (),
            )

    def _news(self, view: View, client: Client) -> tuple[str, ...]:
        """What a client must be sent: all at first contact; an encoder averaged since its last round, else the shared parts."""
        if client.name not in view.counted:
            return PARTS
        averaged = view.changed.get("encoder")
        heard = averaged is None or averaged < view.counted[client.name]
        return self.shared if heard else self._with_encoder()

    def _with_encoder(self) -> tuple[str, ...]:
        return tuple(p for p in PARTS if p in self.shared or p == "encoder")
