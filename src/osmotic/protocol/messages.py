"""What server and clients say to each other: phases, tasks, packets, answers; and the model contract.

A Task is what a method, bent by the pieces of the learning rule, asks of one client. federation/server.py turns it into
a Packet, the only thing that an engine carries.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from osmotic.errors import shown
from osmotic.flat import Flat
from osmotic.tensors import group

TRAIN = "train"  # a federated round: the only phase whose changes the exchange averages
MERGE = "merge"  # the phase that merges the last average into personal models, to score them
SCORING = ("score", MERGE)  # phases in which clients sample, and nothing changes that the server counts
Kind = Literal["raised", "lost", "late", "refused", "range", "bad"]
# Kinds of failure. raised, refused: the client says so; lost, late: the transport; range, bad: the gate.
KINDS: tuple[Kind, ...] = ("raised", "lost", "late", "refused", "range", "bad")
# What every packet says of where it belongs, and its answer says again, by names of the header.
ADDRESS = ("contract", "run", "phase", "server_round", "client")

MAX_CLIENT_NAME = 100  # characters; a name of a folder may hold 255 bytes


@dataclass(frozen=True)
class Client:
    """One owner of images. Everything is sorted by `name`, never by a transport's own ids.

    Raises: ValueError for a name that is no name of a folder: it stands in logs, on pages and in paths.
    """

    client_id: int
    name: str  # "client-000"
    num_examples: int  # announced training images, the largest weight the gate accepts

    def __post_init__(self) -> None:
        name = self.name
        fits = isinstance(name, str) and name.isprintable() and 0 < len(name) <= MAX_CLIENT_NAME
        if not fits or name.startswith(".") or set(name) & set("/\\:"):
            rule = f"must be 1 to {MAX_CLIENT_NAME} printable characters, without / \\ : and no dot at its beginning"
            raise ValueError(f"client name {shown(name)}: {rule}")


@dataclass(frozen=True)
class Phase:
    """One numbered piece of a run: tasks, answers, then the server's own work.

    Args:
        name: "train" for a federated round; others are a piece's own ("local", "personalise"), "score" or "merge".
        server_round: unique and ascending over a run: negative before the rounds, 1..R for rounds, above R after.
        totals: its traffic counts in the summary's four totals.
        everybody: all clients take part, whatever `training.fraction_train` says.
        asks: whether clients are asked at all.
        published: clients are sent the model as it is published, the average over rounds, and not the last weights.
    """

    name: str
    server_round: int
    totals: bool = True
    everybody: bool = False
    asks: bool = True
    published: bool = False


@dataclass(frozen=True)
class Spec:
    """What a returned tensor [...] must be.

    Args:
        shape: length of each axis, in elements; None leaves an axis open.
        dtype: numpy's name of it.
        wire: "codec" sends floats through `codec.up`; "exact" sends the values as they are.
        max_abs: largest |value| of a float; None is the gate's own bound, `training.max_abs_update`.
        counts: each value counts as one weight conveyed (control variates do, images do not).
    """

    shape: tuple[int | None, ...]
    dtype: str = "float32"
    wire: Literal["codec", "exact"] = "exact"
    max_abs: float | None = None
    counts: bool = False

    def __post_init__(self) -> None:
        if self.wire == "codec" and None in self.shape:
            raise ValueError(f"shape {self.shape} has an open axis, so it must travel exact")

    @property
    def size(self) -> int:
        """Number of values; an open axis counts as 0, because nobody knows its length beforehand."""
        return math.prod(n or 0 for n in self.shape)


@dataclass(frozen=True)
class Task:
    """What one client is asked to do in one phase.

    Args:
        client: who.
        action: "train", "sample", "model", or at sites alone "keep-model".
        send: parts of the global model to send ("encoder", "bottleneck", "decoder").
        returns: parts whose change is wanted back.
        keep: parts that stay on the client after this step; None is what the exchange always keeps.
        local_epochs: passes over the client's images; None is `training.local_epochs`.
        learning_rate: None is that of the round.
        extras: further tensors [...] to send, exact, named "GROUP/NAME"; GROUP is a piece's name or "codec".
        expects: further tensors wanted back, by the same kind of name, with what the gate must see.
        control: small JSON values for the client half, by the same groups.
    """

    client: Client
    action: str
    send: tuple[str, ...] = ()
    returns: tuple[str, ...] = ()
    keep: tuple[str, ...] | None = None
    local_epochs: float | None = None
    learning_rate: float | None = None
    extras: Mapping[str, np.ndarray] = field(default_factory=dict)
    expects: Mapping[str, Spec] = field(default_factory=dict)
    control: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Packet:
    """What travels: a small JSON header and byte strings. The ledger counts the byte strings.

    A blob is one packet of a codec (`codecs/base.py`); that of the exact extras comes last. It is a byte string, or a
    memoryview of bytes that may change once nobody holds the view.
    """

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
    """A task on its way: what an engine is given. Transport and the deadline are the engine's.

    `most_bytes` is more than any honest answer holds, for a transport that can stop reading; None sets no bound.
    """

    task: Task
    packet: Packet
    most_bytes: int | None = None


@dataclass(frozen=True)
class Answer:
    """What an engine gives back for each Sent: a packet, or a failure of the transport ("lost", "late").

    A client that could not do its task says so in its packet, under "failure"; the server reads that, not the engine.
    """

    sent: Sent
    packet: Packet | None = None
    failure: Failure | None = None


@dataclass(frozen=True)
class Reply:
    """A decoded answer that passed the gate, as `fold` and `gather` see it.

    `tensors` holds "model/NAME" changes (client minus received), float32 [...], and extras [...]; they may be
    views of the packet, so who keeps one copies it. `weight` is the number of examples. A piece is shown its own extras
    alone as `tensors`, and the client's change, NAME -> float32 [...], as `change`.
    """

    task: Task
    tensors: Mapping[str, np.ndarray]
    weight: int
    metrics: Mapping[str, float]
    change: Mapping[str, np.ndarray] = field(default_factory=dict)

    @property
    def changes(self) -> Mapping[str, np.ndarray]:
        """The "model/NAME" tensors by NAME, float32 [...]: views."""
        return changes(self.tensors)


def changes(tensors: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
    """The "model/NAME" tensors of a reply by NAME, float32 [...]: still one buffer where they came as one."""
    if isinstance(tensors, Flat) and tensors.layout.prefix == "model/":
        return tensors.named("")
    return group(tensors, "model")


def contract_hash(contract: Mapping[str, Any]) -> str:
    """SHA-256 of everything that server and clients must agree on: names, shapes, norm groups, process, image shape."""
    return hashlib.sha256(json.dumps(contract, sort_keys=True).encode()).hexdigest()
