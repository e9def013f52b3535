"""USplit: every client gets all weights and trains them, but returns only a part; pairs of clients make up a whole.

Source: arXiv:2406.12575, sec. 3 (USPLIT), with the pairs and coins of its code. `freeze` departs from it: there a client
trains also what it throws away.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from osmotic import seeds
from osmotic.config.keys import key
from osmotic.methods.base import no_weights
from osmotic.methods.fedavg import FedAvg
from osmotic.models.parts import PARTS
from osmotic.protocol.messages import TRAIN, Client, Phase, Task
from osmotic.protocol.view import Step, View


@dataclass(frozen=True, kw_only=True)
class USplit(FedAvg):
    """theta_r[part] = theta_{r-1}[part] + mean over the clients that returned the part, weighted by their images.

    The clients of a round come in random order. Of each pair the first returns the decoder, the second the encoder,
    and a fair coin gives one of them the bottleneck too. A client left over returns the bottleneck and, by coin,
    encoder or decoder. A part that nobody returned stays as it is.
    """

    sentence: ClassVar[str] = (
        "{clients} trained {model} together on {data} with {method}, each returning a part of it, for {rounds}; "
        "the images were {split}."
    )
    whole: ClassVar[bool] = False
    paper: ClassVar[str] = "2406.12575"
    exchanges: ClassVar[str] = "all weights down, changes of one or two parts of the network up, by lot"

    freeze: bool = key(False, "clients train only the parts that they return")

    def unfit_parts(self, part_names: Mapping[str, Sequence[str]]) -> str | None:
        """With `freeze` everybody trains encoder or decoder, and one of them alone where another client has the bottleneck."""
        whys = [
            no_weights(part_names, (part,), "is all that some clients train (method.freeze)")
            for part in ("encoder", "decoder")
        ]
        return next(filter(None, whys), None) if self.freeze else super().unfit_parts(part_names)

    def tasks(self, view: View, phase: Phase, clients: Iterable[Client]) -> Iterator[Task]:
        """All weights down, one part or two of their changes back, by the lots of this round."""
        if phase.name != TRAIN:
            yield from super().tasks(view, phase, clients)
            return
        # The round's own stream: a repeated phase draws the same pairs, whatever was drawn before.
        rng = seeds.rng(view.config.seed, seeds.METHOD, phase.server_round)
        everyone = list(clients)
        order = [everyone[i] for i in rng.permutation(len(everyone))]
        # One coin for both: the bottleneck comes back from exactly one of a pair.
        for first, second in zip(order[::2], order[1::2], strict=False):
            with_first = bool(rng.integers(2))
            yield _task(first, "decoder", with_first)
            yield _task(second, "encoder", not with_first)
        if len(order) % 2:
            yield _task(order[-1], "encoder" if rng.integers(2) else "decoder", True)

    def trainable(self, step: Step) -> set[str] | None:
        """The parameters that are returned where `freeze` is set, else None."""
        # In a piece's own phase nothing is asked back, so there is nothing to freeze for.
        return set(step.names(step.returns)) if self.freeze and step.returns else None


def _task(client: Client, part: str, with_bottleneck: bool) -> Task:
    """All weights down; `part` back, and the bottleneck with it or not."""
    returns = {part, "bottleneck"} if with_bottleneck else {part}
    return Task(client, "train", send=PARTS, returns=tuple(p for p in PARTS if p in returns))
