"""Personalise: a model for each client, beside the global one; both are kept, both are scored.

The fine-tuning that summaries of FedDM (arXiv 2407.14730) describe: after the rounds every client starts from the model as it
is published and trains it on its own images. Which part of it may move is `trains`; where the client holds images out
(`data.holdout`), half of them say by the mean of which pass it was best, and that mean is kept, or the published model itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from osmotic.config.keys import key
from osmotic.methods.base import Method, no_weights
from osmotic.models.parts import PARTS
from osmotic.pieces.base import Piece, PieceError, Section
from osmotic.pieces.low_rank import LowRank, of_layers, shapes_of
from osmotic.protocol.messages import TRAIN, Phase, Task
from osmotic.protocol.view import Extension, Step, View
from osmotic.tensors import Tensors

if TYPE_CHECKING:
    from torch import Tensor

PERSONALISE = "personalise"
KEPT_PASS = "kept_pass"  # of a client's private state: which pass its own model is of, int64 [1]
OF_ADAPTER = ("rank",)  # options of trains = adapter alone
MOST_EMBEDDING = 2**14  # values of an embedding: 64 KB in float32


@dataclass
class Work:
    """Fine-tuning under way.

    Args:
        pass_steps: optimiser steps of one pass over the images.
        moving: what is trained, changed in place: parameters, or the factors of an adapter, float32 [...].
        low_rank: the adapter, where that is what is trained.
        means: of what is moving, over the `steps` of this pass so far, float32 [...] each.
        best_loss, best: the lowest watched loss so far, and the weights that had it, name -> float32 [...] on the device.
        looks, kept: how often it was looked at, and at which look, counted from 0, it was best; None before there is one.
    """

    pass_steps: int
    moving: list[Tensor]
    low_rank: LowRank | None = None
    means: list[Tensor] = field(default_factory=list)
    steps: int = 0
    best_loss: float = math.inf
    best: dict[str, Tensor] = field(default_factory=dict)
    looks: int = 0
    kept: int | None = None


@dataclass(frozen=True, kw_only=True)
class Personalise(Piece):
    """theta^k = the best of the published model and the means over each of `epochs` passes over the images of k from there.

    The mean of the weights after each step of a pass, for the reason that the published model is a mean over rounds: single
    steps at a constant rate are noisy (Polyak and Juditsky 1992).
    """

    section: ClassVar[Section] = "after"
    personal: ClassVar[bool] = True
    stateless: ClassVar[bool] = (
        True  # the client's own model is no piece's state; which pass it is of is told with it
    )
    client_copies: ClassVar[int] = (
        4  # the best so far and the best now, a pass's means, and what goes on from there
    )
    title: ClassVar[str] = "a model for each: every client fine-tunes the global one on its own images"
    paper: ClassVar[str] = "2407.14730"
    left: ClassVar[str] = (
        "images that the client's own model draws, for the scores, and at the end that model itself"
    )

    reveals: ClassVar[str] = (
        "the site's own model was last trained on its images alone, and can hold more of them than the global one"
    )

    epochs: float = key(2.0, "passes over a client's own images after the rounds", 0, 10_000, above=True)
    trains: Literal["all", "decoder", "adapter", "embedding"] = key(
        "all",
        "what may move: all weights, the decoder, a low-rank adapter of its layers, or the embedding of class and time (at most 64 KB)",
    )
    rank: int = key(4, "rank of the adapter", 1, 1024)
    # At 1 the noise of the steps undoes a part of what the average over rounds has gained (experiments/personal).
    rate: float = key(0.3, "learning rate, as a share of training.learning_rate", 0, 100, above=True)
    when: Literal["after", "rounds"] = key(
        "after",
        "after: fine-tuned after the rounds; rounds: what the client's own training made in the last round that it took part in, at no cost",
    )

    def __post_init__(self) -> None:
        # An option without effect is refused: who sets it believes that it has one.
        own = {f.name: f.default for f in fields(self)}
        idle: tuple[str, ...] = () if self.trains == "adapter" else OF_ADAPTER
        if self.when == "rounds":
            idle = ("epochs", "trains", "rank", "rate")
        if odd := [name for name in idle if getattr(self, name) != own[name]]:
            why = "when = rounds trains nothing" if self.when == "rounds" else "is of trains = adapter"
            raise ValueError(f"{odd[0]}: {why}: leave it out")

    @property
    def watches(self) -> bool:
        """Where it trains."""
        return self.when == "after"

    def unfit(self, layout: Mapping[str, tuple[int, ...]]) -> str | None:
        """None where the network has what is to be trained."""
        if self.trains == "embedding" and not embedding(layout):
            return "trains = embedding, and this network has no embedding of class or time"
        if self.trains == "adapter" and not of_layers(layout, self.rank):
            return f"rank = {self.rank}: no layer of this network is wider"
        return None

    def unfit_parts(self, part_names: Mapping[str, Sequence[str]]) -> str | None:
        """None where the part that is to be trained has weights."""
        needed = ("decoder",) if self.trains == "decoder" else ()
        return no_weights(part_names, needed, "is all that trains = decoder moves")

    def misfit(self, method: Method) -> str | None:
        """None where clients train one global model."""
        if method.pools_data:
            return "one trainer holds all images: there is nobody to personalise for"
        if method.server_trains and self.when == "rounds":
            return "no client trains in its rounds: when must be after"
        return None if method.global_model else "every client has a model of its own already"

    # --- server half ---

    def phases(self, rounds: int) -> Iterator[Phase]:
        """One phase after the last round, for everybody; its traffic is not of the four totals."""
        after = self.when == "after"
        yield Phase(PERSONALISE, rounds + 1, totals=False, everybody=True, asks=after, published=after)

    def looks(self, phase: Phase) -> int:
        """Before the first step, and after every pass."""
        return 1 + math.ceil(self.epochs) if phase.name == PERSONALISE and phase.asks else 0

    def extend(self, view: View, state: Tensors, phase: Phase, task: Task) -> Extension:
        """Nothing is asked back, all parts stay with the client, and `epochs` take the place of its own."""
        if phase.name == TRAIN and self.when == "rounds":
            return Extension(keep=PARTS)
        if phase.name != PERSONALISE:
            return Extension()
        rate = self.rate * view.config.training.learning_rate
        return Extension(returns=(), keep=PARTS, local_epochs=self.epochs, learning_rate=rate)

    # --- client half ---

    def trainable(self, step: Step) -> set[str] | None:
        """As `trains` says."""
        if step.phase != PERSONALISE or self.trains == "all":
            return None
        if self.trains == "decoder":
            return set(step.part_names["decoder"])
        if self.trains == "embedding":
            return set(embedding(shapes_of(step.parameters)))
        return set(of_layers(shapes_of(step.parameters), self.rank))

    def client_begin(self, step: Step, state: Tensors) -> Work | None:
        """The published model is the first that is looked at: who cannot do better keeps it."""
        if step.phase != PERSONALISE:
            return None
        low_rank = None
        if self.trains == "adapter":
            low_rank = LowRank(step, self.rank, seed=int(step.rng(PERSONALISE).integers(2**62)))
            moving = [factor for pair in low_rank.factors.values() for factor in pair]
        else:
            names = self.trainable(step)
            moving = [p.data for name, p in step.parameters.items() if names is None or name in names]
        work = Work(math.ceil(len(step.images) / step.training.batch_size), moving, low_rank)
        self._look(step, work)
        return work

    def after_backward(self, step: Step, work: Work | None) -> None:
        """An adapter takes its own step by the gradients of the layers, which stay as they are themselves."""
        if work is not None and work.low_rank is not None:
            work.low_rank.step(step.parameters)

    def stepped(self, step: Step, work: Work | None) -> None:
        """After every pass the held-out images are looked at, by the mean of the pass."""
        if work is None:
            return
        work.steps += 1
        if work.steps == 1:
            work.means = [one.clone() for one in work.moving]
        else:
            import torch  # only where it trains: configurations are read without it

            # One call for all of them: on a GPU each tensor would cost a launch at every step.
            torch._foreach_lerp_(work.means, work.moving, 1 / work.steps)
        self._merged(step, work)
        if work.steps == work.pass_steps:
            self._look_at_mean(step, work)

    def client_end(self, step: Step, work: Work | None, state: Tensors) -> tuple[Tensors, Tensors]:
        """The best takes the place of the last, and the client keeps which it was; nothing is sent.

        Raises: PieceError for a model that training has broken.
        """
        if work is not None and work.steps:
            self._look_at_mean(step, work)  # at the last pass, which was not a whole one
        if work is not None and work.best:
            for name, parameter in step.parameters.items():
                parameter.data.copy_(work.best[name])
        if work is not None and not all(bool(p.isfinite().all()) for p in step.parameters.values()):
            raise PieceError(
                PERSONALISE, "leaves weights that are not finite: a smaller rate, or fewer epochs"
            )
        if work is None or work.kept is None:
            return {}, {}
        return {}, {KEPT_PASS: np.array([work.kept], np.int64)}

    @classmethod
    def _look_at_mean(cls, step: Step, work: Work) -> None:
        """Looks at the mean of the pass that is over, and goes on from where that pass has ended."""
        ended = [one.clone() for one in work.moving]
        for one, mean in zip(work.moving, work.means, strict=True):
            one.copy_(mean)
        cls._merged(step, work)
        cls._look(step, work)
        for one, last in zip(work.moving, ended, strict=True):
            one.copy_(last)
        cls._merged(step, work)
        work.means, work.steps = [], 0

    @staticmethod
    def _merged(step: Step, work: Work) -> None:
        if work.low_rank is not None:
            work.low_rank.merge(step.parameters)

    @staticmethod
    def _look(step: Step, work: Work) -> None:
        """Keeps the network as it stands if it is the best so far; the latest where there is nothing to watch."""
        loss = None if step.watch is None else step.watch()
        if not work.best or loss is None or loss < work.best_loss:
            work.best = {name: p.detach().clone() for name, p in step.parameters.items()}
            if loss is not None:
                # A loss that is not a number is no bound: the next that is one is better.
                work.best_loss, work.kept = min(work.best_loss, loss), work.looks
        work.looks += 1


def embedding(shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Names of the embedding of class and time among parameters of these shapes [...], together at most `MOST_EMBEDDING` values; [] for none.

    The last bias of the time embedding is a vector that is added to it at every step; the class embedding is a row a class.
    """
    found, values = [], 0
    for name in sorted(shapes, key=lambda n: (n.startswith("class_embedding"), n)):
        ours = name == "time_embedding.linear_2.bias" or name.startswith("class_embedding")
        if ours and values + (size := math.prod(shapes[name])) <= MOST_EMBEDDING:
            found.append(name)
            values += size
    return found
