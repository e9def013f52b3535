"""Who stands beside the server: what it is handed by study.py, and all it knows of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Protocol

import numpy as np

from osmotic.protocol.messages import Client, Phase, Tensors

Stage = Literal["before", "after"]  # personal models: without the last average of shared parts, or with it


class Lab(Protocol):
    """Server-side training and sampling, for methods that learn after the average."""

    def fit(
        self,
        weights: Tensors,
        images: np.ndarray,
        labels: np.ndarray | None,
        steps: int,
        learning_rate: float,
        seed: int,
    ) -> Tensors: ...
    def sample(self, weights: Tensors, labels: np.ndarray | None, samples: int, seed: int) -> np.ndarray: ...


class Scorer(Protocol):
    """Scores models; knows the data sets, which the server does not."""

    def score_global(self, weights: Tensors, server_round: int) -> dict[str, Any]: ...
    def wanted(self, client: Client) -> Mapping[str, Any]: ...
    def score_personal(
        self, pools: Mapping[str, np.ndarray], stage: Stage, server_round: int
    ) -> dict[str, Any]: ...
    def with_after(self, before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]: ...


class Observer(Protocol):
    """Is told what happens: progress bars, trackers."""

    def phase_started(self, phase: Phase, index: int, count: int) -> None: ...
    def answered(self, client: str) -> None: ...
    def phase_done(self, line: Mapping[str, Any]) -> None: ...
