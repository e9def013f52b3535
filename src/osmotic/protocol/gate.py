"""The gate: what must come back for a task is written down when the task is posted, and every reply is held against it.

One `Expectation` serves the gate, the ledger (weights conveyed) and `osmotic plan` (bytes), so that they cannot disagree.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from osmotic.codecs import Wanted
from osmotic.config.schema import TrainingConfig
from osmotic.errors import plain, shown
from osmotic.flat import Flat, FlatLayout
from osmotic.protocol.messages import Kind, Spec, Task
from osmotic.protocol.participation import batch_plan

# Most figures beside a reply, and characters of a name: what a client says of its work is a line, not a load.
MAX_METRICS, MAX_NAME = 64, 100
# Of an answer beside its tensors: headers, tables and what a transport wraps round them.
MAX_BESIDE = 2**24
# A loss is a float32, so no honest figure is larger; means of figures within it stay finite in float64.
MAX_FIGURE = float(np.finfo(np.float32).max)


class Refused(ValueError):
    """A reply that the gate does not let through, with the kind of its Failure; its text is one short printable line."""

    def __init__(self, kind: Kind, reason: str) -> None:
        super().__init__(plain(reason))
        self.kind: Kind = kind


@dataclass(frozen=True)
class Expectation:
    """What must come back for one task.

    Args:
        changes: "model/NAME" -> shape and range of a change, float32 [...]; they travel through the codec.
        extras: what pieces and scores want besides.
        announced: the client's announced images; no reply weighs more.
        max_abs: largest |value| of a float whose Spec names no range of its own.
        most_steps, most_images: the work a reply may claim.
        layout: where all that is coded lies, if it is nothing but parts of the network.
        max_norm: largest Euclidean norm of all changes together; 0 sets none.
    """

    changes: Mapping[str, Spec]
    extras: Mapping[str, Spec]
    announced: int
    max_abs: float
    most_steps: int
    most_images: int
    layout: FlatLayout | None = None
    max_norm: float = 0.0

    @cached_property
    def tensors(self) -> Mapping[str, Spec]:
        """All tensors [...] that must come back, by name."""
        return {**self.changes, **self.extras} if self.extras else self.changes

    @cached_property
    def coded(self) -> Mapping[str, Spec]:
        """Those tensors [...] that travel through the codec of the way up: the first blob."""
        more = {n: s for n, s in self.extras.items() if s.wire == "codec"}
        return {**self.changes, **more} if more else self.changes

    @cached_property
    def exact(self) -> Mapping[str, Spec]:
        """Those tensors [...] that travel as they are: the blob after it."""
        return {n: s for n, s in self.extras.items() if s.wire == "exact"}

    @cached_property
    def wanted_coded(self) -> Wanted:
        """`coded` as a codec takes it."""
        return wanted(self.coded)

    @cached_property
    def wanted_exact(self) -> Wanted:
        """`exact` as a codec takes it."""
        return wanted(self.exact)

    @property
    def most_bytes(self) -> int | None:
        """More bytes than any honest answer holds, whatever the codec; None where an axis is open."""
        if any(None in spec.shape for spec in self.tensors.values()):
            return None
        plainly = sum(s.size * np.dtype(s.dtype).itemsize for s in self.tensors.values())
        return 2 * plainly + MAX_BESIDE

    @property
    def weights(self) -> int:
        """Weights conveyed, one per value whatever the codec."""
        return sum(s.size for s in self.tensors.values() if s.counts)

    def check(self, tensors: Mapping[str, np.ndarray], num_examples: object) -> int:
        """The weight of a decoded reply that may touch a sum.

        Args:
            tensors: decoded reply, name -> array [...].
            num_examples: the weight the reply claims.
        Raises: Refused with kind "bad" (keys, dtype, shape, weight, not finite) or "range".
        """
        weight = self._check(tensors, num_examples)
        if self.max_norm and self.changes:
            squares = (_squares(tensors[name]) for name in self.changes)
            if (norm := math.sqrt(sum(squares))) > self.max_norm:
                raise Refused("range", f"the change has norm {norm:.4g}, above {self.max_norm:g}")
        return weight

    def _check(self, tensors: Mapping[str, np.ndarray], num_examples: object) -> int:
        """All but the norm."""
        if (
            isinstance(num_examples, bool)
            or not isinstance(num_examples, int)
            or not 0 < num_examples <= self.announced
        ):
            raise Refused(
                "bad", f"weight {shown(num_examples, 40)} is not a whole number in 1..{self.announced}"
            )
        buffer = tensors.buffer if isinstance(tensors, Flat) and tensors.layout == self.layout else None
        if buffer is not None and not self.exact and _within(buffer, self.max_abs):
            return num_examples
        # What is wrong is told by name. Names first: a reply of another network is not told by its first odd shape.
        if missing := sorted(set(self.tensors) - set(tensors)):
            raise Refused("bad", f"{missing[0]} is missing ({len(missing)} in all)")
        if unasked := sorted(set(tensors) - set(self.tensors)):
            raise Refused("bad", f"{plain(unasked[0], 100)} was not asked for ({len(unasked)} in all)")
        for name, spec in self.tensors.items():
            _check_tensor(name, tensors[name], spec, self.max_abs)
        return num_examples

    def check_metrics(self, metrics: object) -> dict[str, Any]:
        """The figures beside a reply: at most MAX_METRICS finite numbers within +-MAX_FIGURE by short printable names,
        work within its bound, and the hash of the client's state.

        Raises: Refused with kind "bad" for anything else.
        """
        if not isinstance(metrics, Mapping):
            raise Refused("bad", "metrics are not a table")
        if len(metrics) > MAX_METRICS:
            raise Refused("bad", f"{len(metrics)} metrics are more than {MAX_METRICS}")
        for name, value in metrics.items():
            if not isinstance(name, str) or not name.isprintable() or not 0 < len(name) <= MAX_NAME:
                raise Refused("bad", f"metric {shown(name, 40)} is not a name of up to {MAX_NAME} characters")
            # The one figure that is no number; the server keeps it, so it must not be any other text.
            if name == "state_sha256":
                fits = isinstance(value, str) and len(value) == 64 and set(value) <= set("0123456789abcdef")
            else:
                number = isinstance(value, int | float) and not isinstance(value, bool)
                fits = number and -MAX_FIGURE <= value <= MAX_FIGURE  # also false for NaN
            if not fits:
                raise Refused("bad", f"metric {name} is not a finite number within the float32 range")
        for name, most in (("steps", self.most_steps), ("images", self.most_images)):
            value = metrics.get(name, 0)
            if not isinstance(value, int) or not 0 <= value <= most:
                raise Refused("bad", f"metric {name} is {value!r}, not a whole number in 0..{most}")
        return dict(metrics)


def wanted(specs: Mapping[str, Spec]) -> Wanted:
    """What must come back, as a codec takes it: name -> (dtype, shape)."""
    return {name: (spec.dtype, spec.shape) for name, spec in specs.items()}


def _squares(values: np.ndarray) -> float:
    """Sum of squares, in float64."""
    flat = values.reshape(-1)
    return float(np.einsum("i,i->", flat, flat, dtype=np.float64))


def _within(buffer: np.ndarray, most: float) -> bool:
    """Whether all values are finite and within +-most."""
    # A NaN anywhere makes both ends NaN, which no comparison lets through.
    return buffer.size == 0 or bool(-most <= buffer.min() and buffer.max() <= most)


def _check_tensor(name: str, tensor: np.ndarray, spec: Spec, max_abs: float) -> None:
    fits = len(tensor.shape) == len(spec.shape) and all(
        want is None or want == got for want, got in zip(spec.shape, tensor.shape, strict=True)
    )
    if tensor.dtype != np.dtype(spec.dtype) or not fits:
        raise Refused(
            "bad",
            f"{name} is {tensor.dtype.name} {list(tensor.shape)}, not {spec.dtype} {list(spec.shape)}",
        )
    if tensor.dtype.kind != "f" or tensor.size == 0:
        return
    most = max_abs if spec.max_abs is None else spec.max_abs
    # Two passes tell all three faults: a NaN anywhere makes both ends NaN.
    low, high = float(tensor.min()), float(tensor.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise Refused("bad", f"{name} holds a value that is not finite")
    if max(-low, high) > most:
        raise Refused("range", f"{name} holds {low if -low > high else high:g}, outside +-{most:g}")


class Gate:
    """Writes down, for every task that is posted, what must come back.

    Args:
        layout: parameter name -> shape.
        part_names: part of the network -> its parameter names.
        training: bounds of values and of work.
    """

    def __init__(
        self,
        layout: Mapping[str, tuple[int, ...]],
        part_names: Mapping[str, list[str]],
        training: TrainingConfig,
    ) -> None:
        self.training, self.flat = training, FlatLayout(layout, part_names)
        self._changes: dict[tuple[str, ...], dict[str, Spec]] = {}  # few kinds of tasks, many clients

    def expect(self, task: Task) -> Expectation:
        """The changes of the parts asked for, and the extras that the task expects."""
        layout = self.flat.of_parts(task.returns).named("model/")
        if task.returns not in self._changes:
            self._changes[task.returns] = {
                name: Spec(shape, wire="codec", counts=True) for name, shape in layout.items()
            }
        coded_too = any(spec.wire == "codec" for spec in task.expects.values())
        training = self.training
        epochs = training.local_epochs if task.local_epochs is None else task.local_epochs
        steps = batch_plan(task.client.num_examples, training.batch_size, epochs)
        # A client may have fewer images than it announced, never more: all bounds follow from the announced.
        return Expectation(
            self._changes[task.returns],
            task.expects,
            task.client.num_examples,
            training.max_abs_update,
            steps,
            steps * training.batch_size,
            None if coded_too else layout,
            training.max_update_norm,
        )
