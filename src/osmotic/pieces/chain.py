"""The learning rule of a run: its pieces, called one after the other in the order of the configuration.

Only here are names of pieces put before what is theirs: extras "scaffold/NAME", state "scaffold/NAME", metrics
"scaffold/variate_norm", control {"scaffold": {...}}. A piece sees its own names alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from osmotic.methods.base import Method
from osmotic.pieces.base import Metrics, Piece, PieceError
from osmotic.protocol.messages import Phase, Reply, Task
from osmotic.protocol.view import Lab, Step, View
from osmotic.tensors import Tensors, group, grouped

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class Chain:
    """Named pieces in order, as one; state is one table, "PIECE/NAME" -> array [...]."""

    pieces: Mapping[str, Piece]

    @property
    def stateful(self) -> bool:
        """Whether clients keep anything of a piece from round to round."""
        keeps = (type(p).client_end is not Piece.client_end and not p.stateless for p in self.pieces.values())
        return self.personal or any(keeps)

    @property
    def personal(self) -> bool:
        """Whether a piece leaves every client a model of its own."""
        return any(p.personal for p in self.pieces.values())

    @property
    def watches(self) -> bool:
        """Whether a piece watches held-out images while it trains."""
        return any(p.watches for p in self.pieces.values())

    @property
    def works_after(self) -> bool:
        """Whether a piece trains or draws on the server."""
        return any(type(p).after is not Piece.after for p in self.pieces.values())

    def foreseen(self, view: View, phase: Phase) -> tuple[int, int]:
        """(optimiser steps of the server, images drawn for it) in this phase, by all pieces."""
        found = [piece.foreseen(view, phase) for piece in self.pieces.values()]
        return sum(steps for steps, _ in found), sum(drawn for _, drawn in found)

    def looks(self, phase: Phase) -> int:
        """How often a client looks at what it watches in this phase, for all pieces."""
        return sum(piece.looks(phase) for piece in self.pieces.values())

    def shelved(self, state: Tensors) -> list[str]:
        """Hashes of the tables on the server's shelf that the pieces will ask for, given their state."""
        return [sha256 for name, piece in self.pieces.items() for sha256 in piece.shelved(group(state, name))]

    # --- server half ---
    def phases(self, method: Method, rounds: int) -> list[Phase]:
        """The exchange's phases with those of the pieces before and after, numbered so that rounds stay 1 to R."""
        own = list(method.phases(rounds))
        added = [phase for piece in self.pieces.values() for phase in piece.phases(rounds)]
        # A piece numbers its phases without knowing the others': only their order is taken from it.
        before = [p for p in added if p.server_round < 1]
        after = [p for p in added if p.server_round > rounds]
        last = own[-1].server_round
        return [
            *(replace(p, server_round=i - len(before)) for i, p in enumerate(before)),
            *own,
            *(replace(p, server_round=last + 1 + i) for i, p in enumerate(after)),
        ]

    def server_start(self, view: View) -> Tensors:
        """State of all pieces before the first phase, "PIECE/NAME" -> array [...]."""
        state: Tensors = {}
        for name, piece in self.pieces.items():
            state |= grouped(name, _checked(name, "server_start", piece.server_start(view)))
        return state

    def extend(self, view: View, state: Tensors, phase: Phase, task: Task) -> Task:
        """The exchange's task with what every piece adds; its tensors [...], both ways, are "PIECE/NAME"."""
        for name, piece in self.pieces.items():
            more = piece.extend(view, group(state, name), phase, task)
            instead = {
                field: value
                for field in ("send", "returns", "keep", "local_epochs", "learning_rate")
                if (value := getattr(more, field)) is not None
            }
            task = replace(
                task,
                extras={**task.extras, **{f"{name}/{n}": t for n, t in more.extras.items()}},
                expects={**task.expects, **{f"{name}/{n}": s for n, s in more.expects.items()}},
                control={**task.control, **({name: dict(more.control)} if more.control else {})},
                **instead,
            )
        return task

    def object_to(self, view: View, phase: Phase, reply: Reply) -> str | None:
        """Why a piece does not let a reply count that passed the gate; None if all do."""
        for name, piece in self.pieces.items():
            if type(piece).object_to is not Piece.object_to:
                reason = piece.object_to(view, phase, _own(name, reply, reply.changes))
                if reason is not None:
                    return f"{name}: {reason}"
        return None

    def gather(self, view: View, gathered: dict[str, Any], reply: Reply) -> None:
        """Shows every piece its share of a reply; `gathered` holds what each made of those before, by piece."""
        change = reply.changes
        for name, piece in self.pieces.items():
            gathered[name] = piece.gather(view, gathered.get(name), _own(name, reply, change))

    def change(
        self, view: View, state: Tensors, gathered: Mapping[str, Any], phase: Phase, mean: Tensors
    ) -> tuple[Tensors, Tensors, Metrics]:
        """The change to apply, name -> float32 [...], the new state, and metrics "PIECE/NAME".

        Raises: ConfigError if a piece gives a change that is not finite.
        """
        metrics: Metrics = {}
        state = dict(state)
        for name, piece in self.pieces.items():
            answer = piece.change(view, group(state, name), gathered.get(name), phase, mean)
            mean, own, found = _parts(name, "change", answer, "(change, state, metrics)")
            _checked(name, "change", mean)
            _refuse_not_finite(name, phase, mean)
            state = _with(state, name, _checked(name, "state", own))
            metrics |= {f"{name}/{k}": v for k, v in found.items()}
        return mean, state, metrics

    def after(self, lab: Lab, state: Tensors, phase: Phase) -> tuple[Tensors, Metrics]:
        """The pieces' own work on the server: new state, name -> array [...], and metrics "PIECE/NAME"."""
        metrics: Metrics = {}
        state = dict(state)
        for name, piece in self.pieces.items():
            answer = piece.after(lab, group(state, name), phase)
            own, found = _parts(name, "after", answer, "(state, metrics)")
            state = _with(state, name, _checked(name, "state", own))
            metrics |= {f"{name}/{k}": v for k, v in found.items()}
        return state, metrics

    def auxiliary(self, state: Tensors) -> dict[str, Any] | None:
        """What the first piece that made synthetic images says of them; None without any."""
        told = (piece.auxiliary(group(state, name)) for name, piece in self.pieces.items())
        return next((found for found in told if found is not None), None)

    # --- client half ---
    def open(self, method: Method, step: Step, state: Tensors) -> LocalRule:
        """The rule of one client's step, before its first batch.

        Args:
            state: what the client kept of the pieces, "PIECE/NAME" -> array [...].
        """
        return LocalRule(method, self, step, state)


def _own(name: str, reply: Reply, change: Mapping[str, np.ndarray]) -> Reply:
    """A reply as the piece of this name sees it: its own extras, and of the task what it asked for itself."""
    task = replace(reply.task, control=reply.task.control.get(name, {}))
    return replace(reply, task=task, tensors=group(reply.tensors, name), change=change)


def _with(state: Tensors, name: str, own: Tensors) -> Tensors:
    """A piece's state put in the place of its old one."""
    return {k: t for k, t in state.items() if not k.startswith(f"{name}/")} | grouped(name, own)


def _parts(piece: str, hook: str, answer: Any, form: str) -> tuple[Any, ...]:
    """What a hook gave back, taken apart. Raises: PieceError if it is not of the form that the hook must give."""
    if not isinstance(answer, tuple) or len(answer) != form.count(",") + 1:
        raise PieceError(piece, f"{hook} must return {form}, not {type(answer).__name__}")
    return answer


def _checked(piece: str, what: str, tensors: Any) -> Tensors:
    """A table of arrays [...] that will be kept, sent or applied. Raises: PieceError for anything else, such as torch tensors."""
    if not isinstance(tensors, Mapping):
        raise PieceError(piece, f"{what} must be a dict of arrays by name, not {type(tensors).__name__}")
    for name, tensor in tensors.items():
        if not isinstance(tensor, np.ndarray):
            rule = f"{name!r} must be a numpy array, not {type(tensor).__module__}.{type(tensor).__name__}"
            raise PieceError(piece, f"{what}: {rule}")
    return dict(tensors)


def _refuse_not_finite(piece: str, phase: Phase, change: Tensors) -> None:
    """The gate has seen every reply, and nobody sees what a piece makes of their mean: a NaN here would end up in the model."""
    for name, moved in change.items():
        if not np.isfinite(moved).all():
            rule = f"would move {name} by a value that is not finite in {phase.name} {phase.server_round}"
            raise PieceError(piece, rule + "; the run stays as it was before, and can be resumed")


class LocalRule:
    """What bends one client's step: the exchange's frozen parts and every piece, as the training loop calls them."""

    def __init__(self, method: Method, chain: Chain, step: Step, state: Tensors) -> None:
        self.method, self.step, self.pieces = method, step, chain.pieces
        self.state = {name: group(state, name) for name in chain.pieces}
        self.steps = {
            name: replace(step, control=step.control.get(name, {}), extras=group(step.extras, name))
            for name in chain.pieces
        }
        self.work = {n: p.client_begin(self.steps[n], self.state[n]) for n, p in chain.pieces.items()}

    def trainable(self) -> set[str] | None:
        """Names of the parameters to train: those that neither the exchange nor a piece freezes; None for all."""
        asked = [self.method.trainable(self.step)]
        asked += [piece.trainable(self.steps[name]) for name, piece in self.pieces.items()]
        limits = [names for names in asked if names is not None]
        return set.intersection(*limits) if limits else None

    @property
    def bends_loss(self) -> bool:
        """Whether a piece has a share in the loss."""
        return any(type(piece).local_loss is not Piece.local_loss for piece in self.pieces.values())

    def objective(self, loss: Tensor, model: nn.Module) -> Tensor:
        """The loss to minimise, given the diffusion loss of the batch; scalars [] both."""
        for name, piece in self.pieces.items():
            loss = piece.local_loss(self.steps[name], self.work[name], loss, model)
        return loss

    def after_backward(self) -> None:
        """Between backward pass and clipping: every piece may change the gradients [...], in order."""
        for name, piece in self.pieces.items():
            piece.after_backward(self.steps[name], self.work[name])

    def stepped(self) -> None:
        """One optimiser step was taken."""
        for step in (self.step, *self.steps.values()):
            step.taken += 1
        for name, piece in self.pieces.items():
            piece.stepped(self.steps[name], self.work[name])

    def close(
        self, made: Callable[[], Mapping[str, np.ndarray]]
    ) -> tuple[Mapping[str, np.ndarray], Tensors, Tensors]:
        """(the change that leaves, extras "PIECE/NAME", private state "PIECE/NAME"), name -> array [...] all.

        Args:
            made: gives the change of the network against what was received, once no piece moves it any more.
        """
        extras: Tensors = {}
        state: Tensors = {}
        own_states: dict[str, Tensors] = {}
        for name, piece in self.pieces.items():
            answer = piece.client_end(self.steps[name], self.work[name], self.state[name])
            sent, own = _parts(name, "client_end", answer, "(extras, state)")
            sent, own = _checked(name, "extras", sent), _checked(name, "state", own)
            extras |= grouped(name, sent)
            state |= grouped(name, own)
            own_states[name] = own
        change = made()
        for name, piece in self.pieces.items():
            if type(piece).filter is not Piece.filter:  # else it stays one buffer
                change = _checked(
                    name, "filter", piece.filter(self.steps[name], own_states[name], dict(change))
                )
        return change, extras, state
