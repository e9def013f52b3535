"""Many clients trained as one: what `loop.fit` does to each, within float rounding, in one computation per step.

Every client keeps its own order of images, noise, flips and dropout, all from the seeds that `loop.fit` draws them from,
its own mean loss, gradient norm and optimiser state. Nothing of one client enters another's weights, a loss that is not
finite included.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from osmotic.config.schema import TrainingConfig
from osmotic.diffusion.process import Process, Question, StepDraw
from osmotic.tensors import Tensors
from osmotic.training.images import Images
from osmotic.training.loop import FLIPS, Cancelled, Rule
from osmotic.training.network import FlatNetwork
from osmotic.training.optimizers import load_moments, make_optimizer, moments_of, steps_of
from osmotic.training.stack import Stack

T = TypeVar("T")


@dataclass
class Job:
    """One client's training; the fields are arguments of `loop.fit`."""

    images: Images
    steps: int
    rng: np.random.Generator
    rule: Rule | None = None
    moments: Tensors | None = None


def fit_many(
    stack: Stack,
    jobs: Sequence[Job],
    process: Process,
    training: TrainingConfig,
    *,
    learning_rate: float,
    stop: Callable[[], bool] = lambda: False,
    stepped: Callable[[], object] = lambda: None,
) -> list[tuple[float, int] | Exception]:
    """Trains the first networks of the stack, one for each job.

    Args:
        jobs: by falling number of steps, so that those still under way are the first rows of the stack; at most as many as
            it has networks.
        learning_rate, stop, stepped: as `loop.fit`; `stepped` is called for every client's step.
    Returns: by job (mean loss over steps, images seen, repeats counted), or what the client's own rule raised.
    Raises: Cancelled if `stop` says so; ValueError for too many jobs, none, or another order.
    """
    if not 0 < len(jobs) <= len(stack.networks):
        raise ValueError(f"jobs must be 1 to {len(stack.networks)}, got {len(jobs)}")
    if any(before.steps < after.steps for before, after in pairwise(jobs)):
        raise ValueError("jobs must stand by falling number of steps")
    rows = zip(jobs, stack.networks, strict=False)
    clients = [_Client(job, network, process, training.batch_size) for job, network in rows]
    stack.trained = set().union(*(client.trained for client in clients))
    runs = [run for client in clients for run in client.parameters]
    optimizer = make_optimizer(runs, training.optimizer, learning_rate)
    for client in clients:
        client.load(optimizer)
    sums = torch.zeros(len(jobs), dtype=torch.float64, device=stack.weights.device)
    for step in range(jobs[0].steps):
        if stop():
            raise Cancelled
        there = [client for client in clients if client.job.steps > step]
        losses = _gradients(stack, process, there)
        for client in there:
            client.after_backward()
        if training.grad_clip:
            _clip(stack.gradient[: len(there)], training.grad_clip)
        optimizer.param_groups[0]["params"] = [run for client in there for run in client.parameters]
        optimizer.step()
        sums[: len(there)] += losses  # read once at the end: a read per step would wait for the GPU
        for client in there:
            client.stepped()
            stepped()
    for client in clients:
        client.keep(optimizer)
    means = [
        (loss / client.job.steps, client.seen) for loss, client in zip(sums.tolist(), clients, strict=True)
    ]
    return [client.failure or mean for client, mean in zip(clients, means, strict=True)]


def _gradients(stack: Stack, process: Process, clients: Sequence[_Client]) -> Tensor:
    """Each client's loss, [n], and in its row of `stack.gradient` the gradient of what its rule makes of it."""
    shares = [client.draw() for client in clients]
    images = [len(share.pixels) for share in shares]
    replays = None if any(client.interferes for client in clients) else stack.replays
    # Elsewhere a batch is no larger than its largest share; what is recorded is of one size.
    size = max(images if replays is None else [client.largest for client in clients])
    question = _side_by_side(shares, size, process)
    counts = torch.tensor(images, device=question.seen.device)
    crowd = stack.crowd
    crowd.clients, crowd.images, crowd.generators = len(clients), images, [c.generator for c in clients]

    def compute(counts: Tensor, *asked: Any) -> Tensor:
        stack.gradient[: len(clients)].zero_()
        losses = _means(process.losses_of(stack, Question(*asked)), counts)
        # The gradient of the sum is, for each client's weights, that of its own loss.
        torch.stack(
            [c.objective(loss) for c, loss in zip(clients, losses.unbind(), strict=True)]
        ).sum().backward()
        return losses.detach()

    tensors = (counts, question.seen, question.level, question.goal, question.weight, question.labels)
    return compute(*tensors) if replays is None else replays(compute, tensors, frozenset(stack.trained))


def _side_by_side(shares: Sequence[_Share], size: int, process: Process) -> Question:
    """What the network is asked about all shares, [n * size]: smaller ones are filled up with their first image."""

    def filled(tensor: Tensor) -> Tensor:
        missing = size - len(tensor)
        return torch.cat([tensor, tensor[:1].expand(missing, *tensor.shape[1:])]) if missing else tensor

    def beside(tensors: Sequence[Tensor | None]) -> Tensor | None:
        there = [filled(tensor) for tensor in tensors if tensor is not None]
        return torch.cat(there) if there else None

    x0 = shares[0].images.seen(torch.cat([filled(share.pixels) for share in shares]))
    draw = StepDraw(
        torch.cat([filled(share.draw.level) for share in shares]),
        torch.cat([filled(share.draw.noise) for share in shares]),
        beside([share.draw.dropped for share in shares]),
    )
    return process.ask(x0, beside([share.labels for share in shares]), draw)


def _means(losses: Tensor, counts: Tensor) -> Tensor:
    """The mean loss of each client's own images, [n], given those of all, [n * B], and how many are its own, [n]."""
    shared = losses.view(len(counts), -1)
    own = torch.arange(shared.shape[1], device=losses.device) < counts[:, None]
    return torch.where(own, shared, 0).sum(1) / counts


def _clip(gradient: Tensor, largest: float) -> None:
    """As `torch.nn.utils.clip_grad_norm_`, row by row of [n, P], in place."""
    norms = torch.linalg.vector_norm(gradient, dim=1)
    gradient.mul_((largest / (norms + 1e-6)).clamp(max=1.0)[:, None])


@dataclass
class _Share:
    """One client's part of a batch: images [b, C, H, W] as stored, labels [b] or None, and what chance decided of them."""

    images: Images
    pixels: Tensor
    labels: Tensor | None
    draw: StepDraw


class _Client:
    """A client under way: its streams of chance, its rule, and what the optimiser holds of it."""

    def __init__(self, job: Job, network: FlatNetwork, process: Process, size: int) -> None:
        self.job, self.network, self._process, self._size = job, network, process, size
        # As `loop.fit`: the same draws from the same seeds, in the same order.
        seed = int(job.rng.integers(2**62))
        self.generator = torch.Generator().manual_seed(seed)
        self._coins = np.random.default_rng([seed, FLIPS]) if job.images.flip else None
        self._order = torch.empty(0, dtype=torch.long)
        network.train(job.rule.trainable() if job.rule else None)
        network.seed_dropout(self.generator)
        self._runs = network.trained(steps_of(job.moments or {}))
        self.parameters = [run for _, run in self._runs.values()]
        self.trained = {name for names, _ in self._runs.values() for name in names}
        layout = network.layout
        self._frozen = [layout.slices[name] for name in layout if name not in self.trained]
        self.largest, self.seen = min(size, len(job.images)), 0
        self.failure: Exception | None = None

    @property
    def interferes(self) -> bool:
        """Whether chance is asked, or a rule, between the client's images and its gradient."""
        return self.network.drops or (self.job.rule is not None and self.job.rule.bends_loss)

    def load(self, optimizer: torch.optim.Optimizer) -> None:
        """Puts the moments that the client kept into the optimiser of all."""
        if self.job.moments:
            load_moments(optimizer, self.network, self._runs, self.job.moments)

    def draw(self) -> _Share:
        """The next batch, in the client's own order of its images."""
        images = self.job.images
        if len(self._order) == 0:
            self._order = torch.from_numpy(self.job.rng.permutation(len(images)))
        index, self._order = self._order[: self._size], self._order[self._size :]
        self.seen += len(index)
        index = index.to(images.pixels.device)
        pixels = images.take(index, self._coins)
        labels = None if images.labels is None else images.labels[index]
        drawn = self._process.draw(pixels.shape, labels is not None, self.generator)
        return _Share(images, pixels, labels, drawn)

    def objective(self, loss: Tensor) -> Tensor:
        """What the client minimises, [], given the mean loss of its batch, []."""
        rule = self.job.rule
        return self._asked(lambda: rule.objective(loss, self.network.model), loss) if rule else loss

    def after_backward(self) -> None:
        """Frozen weights get no gradient, and the rule may change that of the others."""
        for place in self._frozen:
            self.network.gradient[place].zero_()
        if rule := self.job.rule:
            self._asked(rule.after_backward, None)
            self.network.gather()

    def stepped(self) -> None:
        """One optimiser step was taken."""
        if rule := self.job.rule:
            self._asked(rule.stepped, None)

    def keep(self, optimizer: torch.optim.Optimizer) -> None:
        """The optimiser's state comes over what the client kept of it; that of frozen weights stays."""
        if self.job.moments is not None:
            self.job.moments.update(moments_of(optimizer, self.network, self._runs))

    def _asked(self, hook: Callable[[], T], instead: T) -> T:
        """What the client's rule says; once it has failed it is not asked again, and the others go on."""
        if self.failure is None:
            try:
                return hook()
            except Exception as error:
                self.failure = error
        return instead
