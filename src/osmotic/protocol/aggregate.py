"""The exact accumulator: weighted sums as 64-bit fixed-point integers, so that order never matters.

Integer addition is associative, floating-point addition is not: the sum here is the same bits for any order of
arrival, any number of workers and any restart in between.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from osmotic.flat import Flat, FlatLayout, channels_last

# Elements: 512 KiB of float64 stays in the second-level cache (unchunked took 2.5 times as long,
# benchmarks/README.md).
CHUNK = 64 * 1024


class OutOfRange(ValueError):
    """A value that the fixed-point range cannot hold; the reply is refused as `range`."""


class Accumulator:
    """Sum of `weight * update` over replies, name -> int64 [...], with one weight sum per tensor.

    A value x is held as round(weight * x * 2**scale_bits). `scale_bits` is the largest exponent with
    total_weight * max_abs * 2**scale_bits <= 2**62, so that no sum of accepted replies can wrap.

    Args:
        total_weight: sum of the weights of all replies that may come, >= 1.
        max_abs: largest |value| accepted, > 0.
    Raises: ValueError for a total weight below 1.
    """

    def __init__(self, total_weight: int, max_abs: float) -> None:
        if total_weight < 1:
            raise ValueError(f"total_weight must be >= 1, got {total_weight}")
        self.total_weight, self.max_abs = int(total_weight), float(max_abs)
        # 62 bits and not 63: the sum also holds up to half a step of rounding from every reply.
        self.scale_bits = 62 - math.ceil(math.log2(self.total_weight * self.max_abs))
        self.sums: dict[str, np.ndarray] = {}  # int64 [...]
        self._flat: dict[
            FlatLayout, Flat
        ] = {}  # the sums of whole parts of a network: `sums` are views of these
        self.weights: dict[str, int] = {}
        self._pool: ThreadPoolExecutor | None = None

    def check(self, tensors: Mapping[str, np.ndarray], weight: int) -> None:
        """Refuses tensors that could not be added; nothing is changed. Call before `add`.

        Args:
            tensors: name -> float32 [...].
            weight: number of examples.
        Raises: OutOfRange for a value beyond max_abs or NaN, or a weight sum above the announced.
        """
        self.check_weight(tensors, weight)
        for name, tensor in tensors.items():
            low, high = _extent(tensor)
            if not (-self.max_abs <= low and high <= self.max_abs):  # also false for NaN
                worst = low if abs(low) > abs(high) else high
                raise OutOfRange(f"{name}: value {worst:g} is outside +-{self.max_abs:g}")

    def check_weight(self, names: Iterable[str], weight: int) -> None:
        """The part of `check` that the gate has not done: the weight sums.

        Raises: OutOfRange if that of any tensor would go above the announced.
        """
        for name in names:
            if self.weights.get(name, 0) + weight > self.total_weight:
                raise OutOfRange(f"{name}: weights would sum above the announced {self.total_weight}")

    def add(self, tensors: Mapping[str, np.ndarray], weight: int) -> None:
        """Adds one checked reply.

        Args:
            tensors: name -> float32 [...]; the same shape every time.
            weight: number of examples, an integer in 1 .. total_weight.
        """
        jobs = []
        for values, total in self._pairs(tensors):
            # Eight chunks a job: a thread is not worth waking for less.
            jobs += [
                (values[i : i + 8 * CHUNK], total[i : i + 8 * CHUNK])
                for i in range(0, values.size, 8 * CHUNK)
            ]
        for name in tensors:
            self.weights[name] = self.weights.get(name, 0) + weight
        factor = weight * 2.0**self.scale_bits
        if sum(len(values) for values, _ in jobs) < 16 * CHUNK:  # threads cost more than they save
            for values, total in jobs:
                _add_scaled(values, total, factor)
            return
        if self._pool is None:
            self._pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1))
        list(self._pool.map(lambda job: _add_scaled(job[0], job[1], factor), jobs))

    def _pairs(self, tensors: Mapping[str, np.ndarray]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """What is to be added and the sum that it goes to, each [n]: part by part of a network in one buffer, else by name."""
        rest = iter(tensors)
        if isinstance(tensors, Flat):
            rest = iter(())
            for part in tensors.layout.part_names:
                one = tensors.part(part)
                if self._flat_sums(one.layout):
                    yield one.buffer, self._flat[one.layout].buffer
                else:  # the sums of some were begun by name
                    yield from self._pairs(dict(one))
        for name in rest:
            tensor = tensors[name]
            if name not in self.sums:
                self.sums[name] = np.zeros(tensor.shape, np.int64)
            total = self.sums[name]
            if (
                not total.flags.c_contiguous
            ):  # in a buffer, channels-last: reshaped as it is, it would be a copy
                tensor, total = channels_last(tensor), channels_last(total)
            yield np.ascontiguousarray(tensor).reshape(-1), total.reshape(-1)

    def _flat_sums(self, layout: FlatLayout) -> bool:
        """Whether the sums of a part lie in one buffer; makes it where none of them was begun."""
        if layout not in self._flat:
            if any(name in self.sums for name in layout):
                return False
            self._flat[layout] = Flat(layout, np.zeros(layout.size, np.int64))
            self.sums.update(self._flat[layout])
        return True

    def mean(self) -> dict[str, np.ndarray]:
        """Weighted mean of every tensor that somebody sent, name -> float32 [...], computed in float64."""
        return {name: self._mean(name) for name in sorted(self.sums)}

    def drain(self) -> Iterator[tuple[str, np.ndarray]]:
        """`mean` tensor by tensor, float32 [...]; each sum is given up as its mean is taken, those of a part with its last.

        That halves the memory at the peak.
        """
        self._flat.clear()
        for name in sorted(self.sums):
            mean = self._mean(name)
            del self.sums[name]
            yield name, mean

    def _mean(self, name: str) -> np.ndarray:
        divisor = 2.0**self.scale_bits * self.weights[name]
        mean: np.ndarray = (self.sums[name] / divisor).astype(np.float32)
        return mean


_scratch = threading.local()  # a thread's two buffers: allocating them per tensor costs as much as the sum


def _add_scaled(values: np.ndarray, total: np.ndarray, factor: float) -> None:
    if not hasattr(_scratch, "buffer"):
        _scratch.buffer, _scratch.integers = np.empty(CHUNK, np.float64), np.empty(CHUNK, np.int64)
    buffer, integers = _scratch.buffer, _scratch.integers
    for i in range(0, values.size, CHUNK):
        part = values[i : i + CHUNK]
        scaled, whole = buffer[: part.size], integers[: part.size]
        # In float64: a float32 product would lose the bits that the integers are there to keep.
        np.multiply(part, factor, out=scaled, dtype=np.float64)
        # To nearest: cutting off would pull every sum towards zero.
        np.rint(scaled, out=scaled)
        np.copyto(whole, scaled, casting="unsafe")
        np.add(total[i : i + CHUNK], whole, out=total[i : i + CHUNK])


def _extent(tensor: np.ndarray) -> tuple[float, float]:
    if tensor.size == 0:
        return 0.0, 0.0
    return float(tensor.min()), float(tensor.max())
