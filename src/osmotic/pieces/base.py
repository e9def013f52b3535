"""What a piece of the learning rule is: both halves in one file, in the order of a round. Pieces chain.

A run is an exchange (`osmotic/methods`) and a chain of pieces, in the order of the configuration: those of `[local]` bend
local training, those of `[server]` work on the mean change, those of `[after]` follow the rounds. A piece may use any
hook, whatever its section. It holds its options and nothing else: state is a table of arrays that comes in and goes out,
kept by the server's checkpoint and by the client's store. So a phase that does not count leaves no trace.

Names of a piece's extras, state and control values are its own; `pieces/chain.py` puts the piece's name before them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from osmotic.errors import ConfigError
from osmotic.methods.base import Method
from osmotic.protocol.messages import Phase, Reply, Task
from osmotic.protocol.view import Extension, Lab, Step, View
from osmotic.tensors import Tensors

if TYPE_CHECKING:
    from torch import Tensor, nn

Metrics = dict[str, float]
Section = Literal["local", "server", "after"]
# A piece that says nothing must not stand on a model card as one that sends nothing.
NOT_STATED = "not stated by the piece"


class PieceError(ConfigError):
    """A piece that breaks the rules of its hooks, told in one line that names it; it holds nothing private."""

    def __init__(self, piece: str, rule: str) -> None:
        super().__init__(f"piece {piece}", None, rule)


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Base of all pieces: every hook does nothing. Options are the fields of the dataclass, checked in __post_init__."""

    section: ClassVar[Section] = "local"  # the section of the configuration that names it
    personal: ClassVar[bool] = False  # it leaves every client a model of its own

    stateless: ClassVar[bool] = False  # clients keep nothing of it, though it has a `client_end`
    # Tables as large as the network, for `osmotic plan`: what the server holds for it, and a client while it trains.
    server_copies: ClassVar[int] = 0
    client_copies: ClassVar[int] = 0

    # --- how it is told ---
    title: ClassVar[str] = ""  # what it does, in a few words
    paper: ClassVar[str] = ""  # arXiv id, or ""
    left: ClassVar[str] = (
        NOT_STATED  # what it makes leave a site besides the exchange's changes; "" for nothing
    )

    reveals: ClassVar[str] = NOT_STATED  # what a curious server can learn from that

    @property
    def by_size(self) -> bool:
        """Whether what it sends hangs on how many images each client holds, which a plan does not know."""
        return False

    @property
    def tells_classes(self) -> bool:
        """Whether what it makes leave a site tells how many of its images are of each class."""
        return False

    @property
    def holds_models(self) -> bool:
        """Whether the server holds a model of every client at some time, for the memory that a plan states."""
        return False

    @property
    def draws_at_sites(self) -> bool:
        """Whether it makes a site draw images from a model of its own, and send them."""
        return False

    @property
    def needs_encoder(self) -> bool:
        """Whether the server looks at images by the encoder of the scores while the rounds go on."""
        return False

    @property
    def least_images(self) -> int:
        """Fewest images of a client that can take part in its phase before the rounds; 0 where it has none, or takes all."""
        return 0

    @property
    def watches(self) -> bool:
        """Whether it asks `Step.watch`, for which half of `data.holdout` is set aside."""
        return False

    def unfit(self, layout: Mapping[str, tuple[int, ...]]) -> str | None:
        """Why this piece cannot work with a network of these parameters, name -> shape; or None."""
        return None

    def unfit_parts(self, part_names: Mapping[str, Sequence[str]]) -> str | None:
        """Why this piece cannot work with a network whose parts hold these parameters, part -> names; or None."""
        return None

    def misfit(self, method: Method) -> str | None:
        """Why this piece cannot work with this exchange, or None."""
        return None

    def idle(self, rounds: int) -> str | None:
        """Why it would do nothing in a run of so many rounds, or None."""
        return None

    # --- server half, in the order of a round ---
    def phases(self, rounds: int) -> Iterator[Phase]:
        """Phases of its own, numbered below 0 (before the rounds) or above `rounds` (after them)."""
        return iter(())

    def tied_to(self, rounds: int) -> str | None:
        """Why round 1 to `rounds` would have been otherwise in a longer run, which this one then cannot become; or None."""
        return None

    def foreseen(self, view: View, phase: Phase) -> tuple[int, int]:
        """(optimiser steps of the server, images drawn for it, here or at sites) in this phase, as far as they are known beforehand."""
        return 0, 0

    def looks(self, phase: Phase) -> int:
        """How often a client looks at what it watches in this phase, for the estimate of time."""
        return 0

    def server_start(self, view: View) -> Tensors:
        """Its state before the first phase, name -> array [...]."""
        return {}

    def extend(self, view: View, state: Tensors, phase: Phase, task: Task) -> Extension:
        """What it adds to a task of the exchange: tensors [...] down and wanted back, control values."""
        return Extension()

    def gather(self, view: View, gathered: Any, reply: Reply) -> Any:
        """Takes in what one reply holds for this piece, and returns it with the rest.

        `gathered` is None at the first reply of a phase; `reply.tensors` is own name -> array [...], `reply.task.control` what
        its own `extend` gave.
        Order must not matter: use `view.accumulator`, or keep by client name and sort.
        """
        return gathered

    def object_to(self, view: View, phase: Phase, reply: Reply) -> str | None:
        """Why a reply whose tensors are what was asked for must not count all the same, in one short line; or None.

        `reply` is as in `gather`. Whoever sends it is a failure `bad` of this phase.
        """
        return None

    def change(
        self, view: View, state: Tensors, gathered: Any, phase: Phase, mean: Tensors
    ) -> tuple[Tensors, Tensors, Metrics]:
        """(change to apply, new state, metrics), given the mean change of the clients, name -> float32 [...].

        A name that is missing in `mean` was returned by nobody; one left out of the result stays as it is.
        """
        return mean, state, {}

    def after(self, lab: Lab, state: Tensors, phase: Phase) -> tuple[Tensors, Metrics]:
        """Work on the server once the change is applied: training, sampling.

        Returns: new state, name -> array [...], and metrics.
        """
        return state, {}

    def shelved(self, state: Tensors) -> list[str]:
        """Hashes of the tables that it has put on the shelf and will ask for."""
        return []

    def auxiliary(self, state: Tensors) -> dict[str, Any] | None:
        """{"images", "filtered", "sha256"} of synthetic images that it made, for the summary, and what else it has to say of
        them, in JSON; None without any."""
        return None

    # --- client half, in the order of a step ---
    def client_begin(self, step: Step, state: Tensors) -> Any:
        """Before the first batch: makes what it needs while training, on the device; comes back as `work`.

        Args:
            state: what it kept at this client, name -> array [...]; {} at the first step.
        """
        return None

    def trainable(self, step: Step) -> set[str] | None:
        """Names of the parameters that may be trained in this step; None for all. What any piece freezes is frozen."""
        return None

    def local_loss(self, step: Step, work: Any, loss: Tensor, model: nn.Module) -> Tensor:
        """The loss to minimise, given the diffusion loss of the batch: scalars [], with their graph."""
        return loss

    def after_backward(self, step: Step, work: Any) -> None:
        """Between backward pass and clipping: may change the gradients [...] of `step.parameters`."""

    def stepped(self, step: Step, work: Any) -> None:
        """After an optimiser step, which `step.taken` counts already: may change `step.parameters`."""

    def client_end(self, step: Step, work: Any, state: Tensors) -> tuple[Tensors, Tensors]:
        """After the last batch: (extras to return, as `extend` announced them; the private state to keep).

        Both are name -> array [...]. The change that leaves is taken only afterwards: what is put into `step.parameters`
        here is what leaves, or stays.
        """
        return {}, state

    def filter(self, step: Step, state: Tensors, change: Tensors) -> Tensors:
        """Before encoding: the change that leaves, given the change made, name -> float32 [...]."""
        return change
