"""What server and clients say to each other: phases, tasks, packets, answers; the model contract and the gate.

A Task is what a method asks of one client. server.py turns it into a Packet, the only thing that an engine carries.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

Tensors = dict[str, np.ndarray]
MERGE = "merge"  # the phase that merges the last average into personal models, to score them
SCORING = ("score", MERGE)  # phases in which clients sample, and nothing changes that the server counts
Kind = Literal["raised", "lost", "late", "refused", "range", "bad"]


@dataclass(frozen=True)
class Client:
    """One owner of images. Everything is sorted by `name`, never by a transport's own ids."""

    client_id: int
    name: str  # "client-000"
    num_examples: int  # announced training images, the largest weight the gate accepts


@dataclass(frozen=True)
class Phase:
    """One numbered piece of a run: tasks, answers, then the server's own work.

    Args:
        name: "train" for a federated round; others are the method's own ("local", "personalise"), "score" or "merge".
        server_round: unique and ascending over a run: negative before the rounds, 1..R for rounds, above R after.
        totals: its traffic counts in the summary's four totals.
        everybody: all clients take part, whatever `training.fraction_train` says.
    """

    name: str
    server_round: int
    totals: bool = True
    everybody: bool = False


@dataclass(frozen=True)
class Spec:
    """Shape and dtype that a returned tensor must have; None leaves one axis open."""

    shape: tuple[int | None, ...]
    dtype: str = "float32"


@dataclass(frozen=True)
class Task:
    """What one client is asked to do in one phase.

    Args:
        client: who.
        action: "train" or "sample".
        send: parts of the global model to send ("encoder", "bottleneck", "decoder").
        returns: parts whose change is wanted back.
        extras: further tensors to send, named "control/...", "image/..." or "codec/...".
        expects: further tensors wanted back, by name, with what the gate must see.
        control: small JSON values for the client half of the method.
        note: stays on the server, for `fold`.
    """

    client: Client
    action: str
    send: tuple[str, ...] = ()
    returns: tuple[str, ...] = ()
    extras: Mapping[str, np.ndarray] = field(default_factory=dict)
    expects: Mapping[str, Spec] = field(default_factory=dict)
    control: Mapping[str, Any] = field(default_factory=dict)
    note: Any = None


@dataclass(frozen=True)
class Packet:
    """What travels: a small JSON header and byte strings. The ledger counts the byte strings."""

    header: Mapping[str, Any]
    blobs: tuple[bytes, ...] = ()

    @property
    def num_bytes(self) -> int:
        """Payload bytes: all blobs."""
        return sum(len(b) for b in self.blobs)


@dataclass(frozen=True)
class Failure:
    """Why an answer does not count, in one short line that names no file and holds no traceback."""

    kind: Kind
    reason: str


@dataclass(frozen=True)
class Sent:
    """A task on its way: what an engine is given. `deadline` handling and transport are the engine's."""

    task: Task
    packet: Packet


@dataclass(frozen=True)
class Answer:
    """What an engine gives back for each Sent: a packet or a failure."""

    sent: Sent
    packet: Packet | None = None
    failure: Failure | None = None


@dataclass(frozen=True)
class Reply:
    """A decoded answer that passed the gate, as a method's `fold` sees it.

    `tensors` holds "model/NAME" changes (client minus received) and extras; `weight` is the number of examples.
    """

    task: Task
    tensors: Mapping[str, np.ndarray]
    weight: int
    metrics: Mapping[str, float]


class Refused(ValueError):
    """A reply that the gate does not let through, with the kind of its Failure."""

    def __init__(self, kind: Kind, reason: str) -> None:
        super().__init__(reason)
        self.kind: Kind = kind


def contract_hash(contract: Mapping[str, Any]) -> str:
    """SHA-256 of everything that server and clients must agree on: names, shapes, norm groups, process, image shape."""
    return hashlib.sha256(json.dumps(contract, sort_keys=True).encode()).hexdigest()


def gate(
    tensors: Mapping[str, np.ndarray],
    expected: Mapping[str, Spec],
    num_examples: object,
    announced: int,
    max_abs: float,
) -> int:
    """Checks a decoded reply before it may touch a sum; returns its weight.

    Args:
        tensors: decoded reply.
        expected: what was asked for.
        num_examples: the weight the reply claims.
        announced: the size the client announced; no weight may be above it.
        max_abs: largest |value| of a float.
    Raises: Refused with kind "bad" (keys, dtype, shape, weight, not finite) or "range".
    """
    if (
        isinstance(num_examples, bool)
        or not isinstance(num_examples, int)
        or not 0 < num_examples <= announced
    ):
        raise Refused("bad", f"weight {num_examples!r} is not a whole number in 1..{announced}")
    if missing := sorted(set(expected) - set(tensors)):
        raise Refused("bad", f"{missing[0]} is missing ({len(missing)} in all)")
    if unasked := sorted(set(tensors) - set(expected)):
        raise Refused("bad", f"{unasked[0]} was not asked for ({len(unasked)} in all)")
    for name, spec in expected.items():
        tensor = tensors[name]
        fits = len(tensor.shape) == len(spec.shape) and all(
            want is None or want == got for want, got in zip(spec.shape, tensor.shape, strict=True)
        )
        if tensor.dtype != np.dtype(spec.dtype) or not fits:
            raise Refused(
                "bad",
                f"{name} is {tensor.dtype.name} {list(tensor.shape)}, not {spec.dtype} {list(spec.shape)}",
            )
        if tensor.dtype.kind != "f" or tensor.size == 0:
            continue
        low, high = float(tensor.min()), float(tensor.max())
        if not (np.isfinite(low) and np.isfinite(high)):
            raise Refused("bad", f"{name} holds a value that is not finite")
        if max(-low, high) > max_abs:
            raise Refused("range", f"{name} holds {low if -low > high else high:g}, outside +-{max_abs:g}")
    return num_examples


def gate_metrics(metrics: object, most_steps: int, most_images: int) -> dict[str, Any]:
    """The figures beside a reply: finite numbers by name, work within its bound, and the hash of the client's state.

    Raises: Refused with kind "bad" for anything else.
    """
    if not isinstance(metrics, Mapping):
        raise Refused("bad", "metrics are not a table")
    for name, value in metrics.items():
        if name == "state_sha256":
            fits = isinstance(value, str) and len(value) == 64 and set(value) <= set("0123456789abcdef")
        else:
            fits = isinstance(value, int | float) and not isinstance(value, bool) and bool(np.isfinite(value))
        if not fits:
            raise Refused("bad", f"metric {str(name)[:40]} is not a finite number")
    for name, most in (("steps", most_steps), ("images", most_images)):
        value = metrics.get(name, 0)
        if not isinstance(value, int) or not 0 <= value <= most:
            raise Refused("bad", f"metric {name} is {value!r}, not a whole number in 0..{most}")
    return dict(metrics)
