"""Who stands beside the server: all that it knows of the world, of training on its own machine, of scores, of observers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, Protocol

import numpy as np

from osmotic.federation.feature_sums import Sums, Wanted
from osmotic.protocol.messages import Answer, Client, Phase, Sent
from osmotic.tensors import Tensors

# What takes a run's time, and its unit: optimiser steps of clients, noisy images that they watch while they train, images
# drawn for a score, optimiser steps of the encoder, images that it has looked at.
Work = Literal["train", "watch", "draw", "encoder", "score"]
Stage = Literal["before", "after"]  # personal models: without the last average of shared parts, or with it


class Unscored(RuntimeError):
    """A score cannot be taken, for a reason that ends nothing: the round has counted, and the run says why and goes on."""


class Engine(Protocol):
    """Where clients run. Adding one means these three calls, its words in `engines/__init__.py`, and a line in `runs/launch.py`."""

    def clients(self, at_least: int, wait_seconds: float) -> list[Client]:
        """Clients sorted by their stable name; waits until `at_least` are there. Raises TimeoutError."""
        ...

    def exchange(self, tasks: Iterable[Sent], deadline_seconds: float) -> Iterator[Answer]:
        """One Answer per task, as they arrive. Tasks are taken from the iterable only as room for them comes free.

        Whoever has not answered after `deadline_seconds` is a failure `late`; 0 waits for all.
        """
        ...

    def close(self) -> None:
        """Gives back what the engine holds: threads, processes, connections."""
        ...


class Trainer(Protocol):
    """Training and sampling of images [N, H, W, C] on the server's own machine."""

    def fit(
        self,
        weights: Tensors,
        images: np.ndarray,
        labels: np.ndarray | None,
        steps: int,
        learning_rate: float,
        seed: int,
        batch_size: int,
        moments: Tensors,
        cleanest: float,
    ) -> tuple[Tensors, Tensors]:
        """(new weights after `steps` optimiser steps from `weights`, the optimiser's moments then), name -> float32 [...].

        Args:
            images: uint8 [N, H, W, C].
            labels: int64 [N], or None.
            moments: to go on from; {} starts afresh.
            cleanest: share of the noise levels, from the cleanest, that is left out, in [0, 1).
        """
        ...

    def sample(self, weights: Tensors, labels: np.ndarray | None, samples: int, seed: int) -> np.ndarray:
        """Images of these weights, uint8 [samples, H, W, C]; labels int64 [samples], or None."""
        ...

    def features(self, images: np.ndarray) -> np.ndarray:
        """Features of images [N, H, W, C] by the encoder of the scores, float32 [N, D]."""
        ...

    @property
    def flops_per_drawn(self) -> int:
        """Cost of drawing one image."""
        ...


class Scorer(Protocol):
    """Scores models; knows the data sets, which the server does not."""

    def score_global(self, weights: Mapping[str, np.ndarray], server_round: int) -> dict[str, Any]:
        """Quality of the global model, name -> float32 [...], by the names of the summary."""

    def sums_wanted(self) -> Wanted | None:
        """What sites are to tell of their images before a score, and which; None where the images are here."""

    def take_sums(self, found: Mapping[str, Sums], held_out: Mapping[str, Sums]) -> None:
        """What they told, by name, of the images that they train on, and of those that they hold out."""

    def distances_wanted(self) -> Mapping[str, np.ndarray]:
        """Features [M, D] that sites are to compare their own images with, after a score, by name; {} where the images are here."""

    def with_distances(self, quality: dict[str, Any], found: Mapping[str, float]) -> dict[str, Any]:
        """The last score, and beside it KID of those sites that told."""

    def wanted(self, client: Client) -> Mapping[str, Any]:
        """What a client is told to draw, in JSON: how many samples, labels [samples], seed and guidance."""

    def score_personal(
        self, pools: Mapping[str, np.ndarray], stage: Stage, server_round: int
    ) -> dict[str, Any]:
        """Quality of clients' own models, given what each drew: client -> uint8 [N, H, W, C]."""

    def with_after(self, before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
        """The quality of personal models as trained, and beside it that with the last average merged."""


class Observer(Protocol):
    """Is told what happens: progress bars, trackers, callbacks."""

    def phase_started(self, phase: Phase, index: int, count: int) -> None:
        """A phase begins, the `index`-th of `count`, from 0."""

    def answered(self, client: str) -> None:
        """A client has answered, well or not; in any order."""

    def worked(self, work: Work, amount: float) -> None:
        """So much of one kind of work is done; called for every batch or for a few, from any thread, so it must be quick."""

    def phase_done(self, line: Mapping[str, Any]) -> None:
        """A phase is closed; `line` is its line of metrics.jsonl, already written."""
