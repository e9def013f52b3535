"""What exchanges and pieces may see: of the server (`View`), after the average (`Lab`), and of a client's step (`Step`).

`View` is narrow on purpose. The server makes one for every phase, and `osmotic plan` makes one without a server: an
exchange or a piece cannot tell them apart, so a plan asks exactly what a run asks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from osmotic import seeds
from osmotic.config.schema import Config, TrainingConfig
from osmotic.protocol.messages import Client, Phase
from osmotic.tensors import Tensors

if TYPE_CHECKING:
    import torch

    from osmotic.protocol.aggregate import Accumulator
    from osmotic.storage.shelf import Shelf


@dataclass(frozen=True)
class View:
    """The server as exchanges and pieces see it while they make tasks and take in replies. Nothing here may be changed.

    Args:
        config: the run's configuration.
        layout: parameter name -> shape of the global network.
        part_names: part of the network -> its parameter names, sorted.
        clients: everybody who is there, sorted by name.
        counted: client -> round in which its reply last counted; who is not in it has never been sent anything.
        changed: part -> round at whose end its global weights last moved.
        weights: the global weights of this phase, name -> float32 [...]; `plan` has zeros.
        image_shape: height, width and channels of an image.
        num_classes: classes that the network is told; 0 for none.
    """

    config: Config
    layout: Mapping[str, tuple[int, ...]]
    part_names: Mapping[str, list[str]]
    clients: Sequence[Client] = ()
    counted: Mapping[str, int] = field(default_factory=dict)
    changed: Mapping[str, int] = field(default_factory=dict)
    weights: Mapping[str, np.ndarray] = field(default_factory=dict)
    image_shape: tuple[int, int, int] = (0, 0, 0)
    num_classes: int = 0

    def names(self, parts: Sequence[str]) -> list[str]:
        """Parameter names of these parts, part after part."""
        return [n for part in parts for n in self.part_names[part]]

    def rng(self, piece: str, server_round: int) -> np.random.Generator:
        """The random stream of a piece (or exchange) on the server in this round."""
        return seeds.piece_rng(self.config.seed, piece, server_round)

    def accumulator(self, total_weight: int, max_abs: float) -> Accumulator:
        """An exact sum of tensors [...] whose order never matters, for extras; otherwise as `Accumulator`."""
        from osmotic.protocol.aggregate import Accumulator

        return Accumulator(total_weight, max_abs)


class Lab(Protocol):
    """What a piece may do on the server after the average: train the weights, draw images [N, H, W, C]."""

    @property
    def view(self) -> View:
        """The server as it was when the phase began."""

    @property
    def weights(self) -> Tensors:
        """The global weights after the average, as trained so far in this phase, name -> float32 [...]."""

    @property
    def shelf(self) -> Shelf:
        """Where a piece keeps a table that is too large for every checkpoint; its state holds the table's hash."""

    def train(
        self,
        images: np.ndarray,
        labels: np.ndarray | None,
        steps: int,
        learning_rate: float,
        batch_size: int | None = None,
        cleanest: float = 0.0,
    ) -> None:
        """Trains the global weights on images that the server holds, uint8 [N, H, W, C]; counted as server steps.

        Args:
            batch_size: images per step; None is `training.batch_size`.
            cleanest: share of the noise levels, from the cleanest, that is left out, in [0, 1).
        """

    def sample(
        self, weights: Mapping[str, np.ndarray], labels: np.ndarray | None, samples: int, client: str = ""
    ) -> np.ndarray:
        """Images of any weights of the network, uint8 [samples, H, W, C]; `client` names the random stream."""

    def features(self, images: np.ndarray) -> np.ndarray:
        """Features of images [N, H, W, C] by the encoder of the scores, float32 [N, D]."""


@dataclass
class Step:
    """One client's step under way, as the client halves see it.

    Args:
        client: whose it is.
        phase, server_round: of which phase.
        seed: the run's; `rng` gives a piece its own stream.
        training: the configuration of local training.
        learning_rate: of this round.
        returns: the parts whose change is asked for.
        part_names: part of the network -> its parameter names.
        control: what the server said, by piece.
        extras: tensors that came down, "PIECE/NAME" -> array [...]; a piece sees its own as "NAME".
        model: the network, with the weights that training starts from.
        received: copies of these weights, name -> float32 [...] on the device.
        parameters: the network's parameters, name -> float32 [...] on the device.
        images: the client's own (`training/images.py`), [N, C, H, W] on the device; they never leave but through what a
            piece returns.
        taken: optimiser steps taken so far.
        draw: images of the network as it stands, uint8 [n, H, W, C], given labels int64 [n] or None, n, and a seed.
        watch: mean denoising loss of the network as it stands on images of the client's that nobody trains on or scores by,
            with the same noise each time; None where there are none.
    """

    client: Client
    phase: str
    server_round: int
    seed: int
    training: TrainingConfig
    learning_rate: float
    returns: tuple[str, ...]
    part_names: Mapping[str, list[str]]
    control: Mapping[str, Any] = field(default_factory=dict)
    extras: Tensors = field(default_factory=dict)
    model: torch.nn.Module | None = None
    received: dict[str, torch.Tensor] = field(default_factory=dict)
    parameters: dict[str, torch.nn.Parameter] = field(default_factory=dict)
    images: Any = None
    taken: int = 0
    draw: Callable[[np.ndarray | None, int, int], np.ndarray] | None = None
    watch: Callable[[], float] | None = None

    def names(self, parts: Sequence[str]) -> list[str]:
        """Parameter names of these parts, part after part."""
        return [n for part in parts for n in self.part_names[part]]

    def rng(self, piece: str) -> np.random.Generator:
        """The random stream of a piece on this client in this round."""
        return seeds.piece_rng(self.seed, piece, self.server_round, self.client.name)


@dataclass(frozen=True)
class Extension:
    """What a piece adds to one task; names are the piece's own, the chain puts the piece's name before them.

    Args:
        extras: tensors [...] to send, exact.
        expects: tensors wanted back, each with shape, dtype, wire format and range (`Spec`).
        control: small JSON values for the piece's client half.
        send, returns, keep, local_epochs, learning_rate: take the place of the task's own; None leaves it.
    """

    extras: Mapping[str, np.ndarray] = field(default_factory=dict)
    expects: Mapping[str, Any] = field(default_factory=dict)
    control: Mapping[str, Any] = field(default_factory=dict)
    send: tuple[str, ...] | None = None
    returns: tuple[str, ...] | None = None
    keep: tuple[str, ...] | None = None
    local_epochs: float | None = None
    learning_rate: float | None = None


__all__ = ["Extension", "Lab", "Phase", "Step", "View"]
