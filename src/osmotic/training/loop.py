"""The one training loop: of clients, of the server, and of the centralised baseline.

Next on the reader's path: `diffusion/loss.py`, the loss of a batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch

from osmotic.config.schema import TrainingConfig
from osmotic.diffusion.process import Process
from osmotic.tensors import Tensors
from osmotic.training.images import Images
from osmotic.training.network import FlatNetwork
from osmotic.training.optimizers import load_moments, make_optimizer, moments_of, steps_of

FLIPS = 1  # purpose of a stream beside that of the noise


class Cancelled(RuntimeError):
    """The run is being stopped; the step is dropped and will be repeated."""


class Rule(Protocol):
    """What bends the loop: frozen parts and pieces of the learning rule (`pieces/chain.py`)."""

    def trainable(self) -> set[str] | None:
        """Names of the parameters to train; None for all."""

    @property
    def bends_loss(self) -> bool:
        """Whether `objective` may give anything else than the loss itself."""

    def objective(self, loss: torch.Tensor, model: torch.nn.Module) -> torch.Tensor:
        """The loss to minimise, given the denoising loss of the batch: scalars [], with their graph."""

    def after_backward(self) -> None:
        """Between backward pass and clipping; may change gradients [...] in place."""

    def stepped(self) -> None:
        """One optimiser step was taken."""


def fit(
    network: FlatNetwork,
    images: Images,
    process: Process,
    training: TrainingConfig,
    *,
    steps: int,
    learning_rate: float,
    rng: np.random.Generator,
    rule: Rule | None = None,
    moments: Tensors | None = None,
    stop: Callable[[], bool] = lambda: False,
    stepped: Callable[[], object] = lambda: None,
) -> tuple[float, int]:
    """Takes `steps` optimiser steps on the network's denoising loss.

    Args:
        network: changed in place.
        steps: optimiser steps to take, >= 1; the images are walked in a new random order each pass.
        rng: order of the images, and seed of the noise.
        rule: what bends the loop; None for plain training.
        moments: optimiser state to start from, "NAME|SLOT" -> float32 [...]; the state at the end comes over
            it in place. None: start fresh, keep nothing.
        stop: asked before every step.
        stepped: called after every step.
    Returns: (mean loss over steps, images seen, repeats counted).
    Raises: Cancelled if `stop` says so.
    """
    device, size = images.pixels.device, training.batch_size
    # One generator on the CPU for all noise: the same draws on every device and memory layout.
    seed = int(rng.integers(2**62))
    generator = torch.Generator().manual_seed(seed)
    # A stream of its own: mirroring moves neither the order of the images nor their noise.
    coins = np.random.default_rng([seed, FLIPS]) if images.flip else None
    network.train(rule.trainable() if rule else None)
    runs = network.trained(steps_of(moments or {}))
    parameters = [run for _, run in runs.values()]
    optimizer = make_optimizer(parameters, training.optimizer, learning_rate)
    if moments:
        load_moments(optimizer, network, runs, moments)
    network.seed_dropout(generator)
    loss_sum, seen = torch.zeros((), dtype=torch.float64, device=device), 0
    order = torch.empty(0, dtype=torch.long)
    for _ in range(steps):
        if stop():
            raise Cancelled
        if len(order) == 0:
            order = torch.from_numpy(rng.permutation(len(images)))
        index, order = order[:size].to(device), order[size:]
        x, y = images.batch(index, coins)  # [B, C, H, W], [B]
        loss = process.loss(network.model, x, y, generator)
        network.gradient.zero_()
        (rule.objective(loss, network.model) if rule else loss).backward()
        if rule:
            rule.after_backward()
            network.gather()
        if training.grad_clip:
            torch.nn.utils.clip_grad_norm_(parameters, training.grad_clip)
        optimizer.step()
        if rule:
            rule.stepped()
        loss_sum += loss.detach()  # read once at the end: a read per step would wait for the GPU
        seen += len(index)
        stepped()
    if moments is not None:  # those of parts that were frozen this time stay
        moments.update(moments_of(optimizer, network, runs))
    return float(loss_sum) / steps, seen
