"""Personalise: after the rounds every client trains the model once more on its own images, and keeps the result.

The fine-tuning that summaries of FedDM (arXiv 2407.14730) describe, in its plain form: all weights, a fixed number of
passes. Nothing comes back; the global model stays as it was, and both are scored.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from osmotic.config.keys import key
from osmotic.methods.base import Method
from osmotic.models.parts import PARTS
from osmotic.pieces.base import Piece, Section
from osmotic.protocol.messages import Phase, Task
from osmotic.protocol.view import Extension, View
from osmotic.tensors import Tensors

PERSONALISE = "personalise"


@dataclass(frozen=True, kw_only=True)
class Personalise(Piece):
    """theta^k = the result of `epochs` passes over the images of k, from the weights after the last round."""

    section: ClassVar[Section] = "after"
    personal: ClassVar[bool] = True
    client_copies: ClassVar[int] = 1
    title: ClassVar[str] = "a model for each: every client fine-tunes the last weights on its own images"
    paper: ClassVar[str] = "2407.14730"
    left: ClassVar[str] = (
        "images that the client's own model draws, for the scores, and at the end that model itself"
    )

    reveals: ClassVar[str] = (
        "the site's own model was last trained on its images alone, and can hold more of them than the global one"
    )

    epochs: float = key(2.0, "passes over a client's own images after the rounds", 0, 10_000, above=True)

    def misfit(self, method: Method) -> str | None:
        """None where clients train one global model."""
        if method.pools_data:
            return "one trainer holds all images: there is nobody to personalise for"
        return None if method.global_model else "every client has a model of its own already"

    def phases(self, rounds: int) -> Iterator[Phase]:
        """One phase after the last round, for everybody; its traffic is not of the four totals."""
        yield Phase(PERSONALISE, rounds + 1, totals=False, everybody=True)

    def extend(self, view: View, state: Tensors, phase: Phase, task: Task) -> Extension:
        """Nothing is asked back, all parts stay with the client, and `epochs` take the place of its own."""
        if phase.name != PERSONALISE:
            return Extension()
        return Extension(returns=(), keep=PARTS, local_epochs=self.epochs)
