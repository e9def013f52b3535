"""A network whose parameters and gradients are views of two flat buffers, so that what concerns all of them is one call."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from functools import cached_property

import numpy as np
import torch
from torch import nn

from osmotic.flat import Flat, FlatLayout
from osmotic.models import dropout

# First name of a run -> the parameters that lie side by side in it, and the run as one parameter [n].
Runs = dict[str, tuple[list[str], nn.Parameter]]


class FlatNetwork:
    """A module, changed in place: its parameters become views of `weights`, their gradients views of `gradient`.

    Args:
        model: a network with float32 parameters, in training mode.
        layout: its parameters by part; None takes it as one part.
        buffers: for the weights and their gradient, [P] each on the network's device; None makes them.
    Raises: KeyError for a layout of another network.
    """

    def __init__(
        self,
        model: nn.Module,
        layout: FlatLayout | None = None,
        buffers: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> None:
        self.model = model
        self.parameters = dict(model.named_parameters())  # walking the modules takes a millisecond
        shapes = {name: tuple(p.shape) for name, p in self.parameters.items()}
        self.layout = FlatLayout.whole(shapes) if layout is None else layout
        self.device = next(iter(self.parameters.values())).device
        if buffers is None:
            buffers = tuple(torch.zeros(2, self.layout.size, device=self.device))
        self.weights, self.gradient = buffers
        self._dropouts = dropout.seeded(model)
        self._gradients = {name: self.layout.view(self.gradient, name) for name in self.parameters}
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                view = self.layout.view(self.weights, name)
                view.copy_(parameter)
                parameter.data = view
        self._frozen: set[str] | None = None
        self.train(None)

    @cached_property
    def start(self) -> Flat:
        """What a client's step starts from, name -> float32 [...] on the CPU: to be filled before `begin`."""
        return Flat(self.layout, np.zeros(self.layout.size, np.float32))

    @cached_property
    def _received(self) -> torch.Tensor:
        """`start` on the device; on the CPU the same memory."""
        filled = torch.from_numpy(self.start.buffer)
        return torch.empty_like(self.weights) if self.device.type != "cpu" else filled

    @cached_property
    def received(self) -> dict[str, torch.Tensor]:
        """`start` by name, float32 [...] on the device: views of what the next client's step overwrites."""
        return {name: self.layout.view(self._received, name) for name in self.parameters}

    def begin(self) -> None:
        """The network takes the weights of `start`."""
        if self.device.type != "cpu":
            self._received.copy_(torch.from_numpy(self.start.buffer))
        self.weights.copy_(self._received)

    def change(self, parts: Iterable[str]) -> Flat:
        """What some parts have moved since `begin`, name -> float32 [...] on the CPU."""
        now = Flat(self.layout, self.weights.cpu().numpy()).parts(parts)
        return Flat(now.layout, now.buffer - self.start.parts(parts).buffer)

    def load(self, weights: Mapping[str, np.ndarray]) -> None:
        """Copies weights, name -> float32 [...], over the network's. Raises: KeyError for one that is missing."""
        self.start.put(weights)
        self.begin()

    def copy(self, parts: Iterable[str] | None = None) -> Flat:
        """The weights as they are now, name -> float32 [...]: a copy on the CPU, of all parts or of some."""
        whole = Flat(self.layout, self.weights.cpu().numpy())
        chosen = whole if parts is None else whole.parts(parts)
        return chosen.copy()

    def train(self, chosen: Collection[str] | None) -> None:
        """Training mode with these parameters trained, all others frozen; None trains all."""
        if not self.model.training:
            self.model.train()
        frozen = set() if chosen is None else set(self.parameters) - set(chosen)
        if frozen != self._frozen:
            for name, parameter in self.parameters.items():
                parameter.requires_grad_(name not in frozen)
            self._frozen = frozen
        for name, parameter in self.parameters.items():
            mine = None if name in frozen else self._gradients[name]
            if parameter.grad is not mine:  # somebody may have let it go: a piece, or a pass outside the loop
                parameter.grad = mine

    def trained(self, apart: Mapping[str, object] | None = None) -> Runs:
        """What the optimiser sees: every run of trained parameters that lie side by side, as one parameter [n].

        Args:
            apart: name -> anything; parameters that differ in it do not share a run.
        Returns: the runs; the `grad` of each is its slice of `gradient`.
        """
        runs: list[list[str]] = []
        last = None
        for name in self.layout:
            kind = (name not in (self._frozen or ()), None if apart is None else apart.get(name))
            if kind[0]:
                if kind == last:
                    runs[-1].append(name)
                else:
                    runs.append([name])
            last = kind
        found: Runs = {}
        for names in runs:
            span = slice(self.layout.slices[names[0]].start, self.layout.slices[names[-1]].stop)
            run = nn.Parameter(self.weights[span])
            run.grad = self.gradient[span]
            found[names[0]] = (names, run)
        return found

    def view(self, values: torch.Tensor, names: list[str], name: str) -> torch.Tensor:
        """One parameter's share [...] of values [n] that stand beside a run of `names`: a view."""
        shifted = self.layout.slices[names[0]].start
        found: torch.Tensor = self.layout.view(values, name, shifted)
        return found

    def gather(self) -> None:
        """Brings gradients that somebody has put in the place of the network's own back into `gradient`."""
        for name, parameter in self.parameters.items():
            mine = self._gradients[name]
            if parameter.requires_grad and parameter.grad is not mine:
                mine.zero_() if parameter.grad is None else mine.copy_(parameter.grad)
                parameter.grad = mine

    @property
    def drops(self) -> bool:
        """Whether activations are dropped in training."""
        return any(module.p > 0 for module in self._dropouts)

    def seed_dropout(self, generator: torch.Generator) -> None:
        """Gives all dropout this generator, in their order of use."""
        for module in self._dropouts:
            module.generator = generator
