"""What an exchange is: which parts of the network go to whom, what comes back, and how it is averaged.

An exchange (the configuration's `method`) never sees bytes and never loops over batches: the server and the client do,
and call these hooks. What bends local training, what the server does with the mean change and what follows the rounds
are pieces of the learning rule (`osmotic/pieces`), which go with every exchange. Neither imports torch or diffusers at
the top, so that `osmotic plan` and `osmotic methods` answer at once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from osmotic.models.parts import PARTS
from osmotic.protocol.aggregate import Accumulator
from osmotic.protocol.messages import TRAIN, Client, Phase, Reply, Task
from osmotic.protocol.view import Step, View


@dataclass(frozen=True, kw_only=True)
class Method(ABC):
    """Base of all exchanges. Options are the fields of the dataclass, checked in __post_init__; it holds no state."""

    shared: ClassVar[tuple[str, ...]] = PARTS  # parts the server averages; the others are personal
    global_model: ClassVar[bool] = True  # a full model exists at the server and is scored there
    pools_data: ClassVar[bool] = False  # one trainer holds everybody's images (the centralised baseline)
    server_trains: ClassVar[bool] = False  # no client is asked in a round: a piece must train on the server
    whole: ClassVar[bool] = True  # a client returns all that is shared; False: a part of it
    travels: ClassVar[bool] = True  # False: nothing goes over a network, so the ledger counts no traffic

    # --- how it is told: by the lists, the page, the card and the comparison, none of which knows a method by name ---
    # A template for str.format, of the fields {clients}, {model} (with its article), {data}, {rounds}, {split},
    # {shared} (words for the parts averaged) and {method} (the name, and the pieces of the learning rule).
    sentence: ClassVar[str] = (
        "{clients} trained {model} together on {data} with {method}, for {rounds}; the images were {split}."
    )
    left: ClassVar[str] = (
        "No image of a client's own leaves it in training."  # opens the card's "What left the clients"
    )
    # What a curious server can learn from what comes back, for a site that decides whether to join.
    reveals: ClassVar[str] = (
        "a change of weights is computed from one site's images alone: images can be reconstructed from it, the better the "
        "fewer images and steps it holds (arXiv 1906.08935, 2003.14053), and so can whether an image was among them"
    )
    paper: ClassVar[str] = ""  # arXiv id, or ""
    exchanges: ClassVar[str] = "all weights down, all changes up, every round"  # what travels, in a few words

    # --- server half, in the order of a round ---
    def phases(self, rounds: int) -> Iterator[Phase]:
        """The phases of this exchange, in order; known before the run starts. Pieces add theirs before and after."""
        for r in range(1, rounds + 1):
            yield Phase(TRAIN, r)

    def tied_to(self, rounds: int) -> str | None:
        """Why round 1 to `rounds` would have been otherwise in a longer run, which this one then cannot become; or None."""
        return None

    def unfit_parts(self, part_names: Mapping[str, Sequence[str]]) -> str | None:
        """Why it cannot work with a network whose parts hold these parameters, part -> names; or None."""
        return no_weights(part_names, self.shared, "is all that it shares")

    @abstractmethod
    def tasks(self, view: View, phase: Phase, clients: Iterable[Client]) -> Iterator[Task]:
        """A task per client; clients come sorted by name.

        In a phase that is not its own the exchange only brings clients up to date: it sends, and asks nothing back.
        """

    @abstractmethod
    def fold(self, total: Accumulator, reply: Reply) -> None:
        """Takes in one reply of a round that passed the gate; order must not matter.

        Its "model/NAME" are changes, float32 [...]: views of the packet, which is dropped afterwards.
        """

    @abstractmethod
    def mean(self, total: Accumulator) -> Iterator[tuple[str, np.ndarray]]:
        """After the last reply: ("NAME", mean change float32 [...]) pairs; parameters left out stay still."""

    # --- client half ---
    def trainable(self, step: Step) -> set[str] | None:
        """Names of the parameters that this client trains; None for all."""
        return None

    def keep(self) -> tuple[str, ...]:
        """Parts that stay on the client from round to round: what is not shared, or all where no global model exists.

        What the server sends comes over them, so a client's own model is always the one it trained last.
        """
        return tuple(p for p in PARTS if p not in self.shared or not self.global_model)


def no_weights(part_names: Mapping[str, Sequence[str]], needed: Sequence[str], why: str) -> str | None:
    """A reason where parts are needed, and none of them holds a weight that is trained; else None.

    Args:
        part_names: part -> its parameters.
        why: what they are needed for, as in "in the decoder, which WHY".
    """
    if not needed or any(part_names[part] for part in needed):
        return None
    return f"nothing can be trained in the {' and '.join(needed)}, which {why}"
