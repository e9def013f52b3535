"""Exponential moving averages of weights over rounds, several half-lives at once; the server's, or a personal model's.

Sources: half-lives counted in images, arXiv:2312.02696, sec. 3; start at zero with bias correction, arXiv:1412.6980, sec. 3.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from osmotic.flat import Flat, chunks


def round_gain(images: int, half_life: float) -> float:
    """Share of the average that a round renews, in [0, 1]: 1 - 0.5 ** (images / half_life); all of it at half-life 0.

    Args:
        images: images seen in the round, >= 0.
        half_life: in images, >= 0.
    """
    if half_life == 0:
        return 1.0 if images else 0.0
    # By expm1, so that the share is not lost to rounding where half_life is huge.
    return -math.expm1(-math.log(2) * (images / half_life))


class Ema:
    """Debiased averages of the weights after each round, name -> float64 [...]; nobody trains from them.

    With decay d of a round, Adam's form is m <- d * m + (1 - d) * w from m = 0 and the average m / (1 - prod d). Here the
    average itself is kept, which is the same numbers: with mass M <- d * M + (1 - d), the average moves by
    (1 - d) / M of the way to w. In the first round that is exactly 1, so the average is the weights to the last bit.
    Sums are float64: a round short against the half-life moves float32 by less than its rounding, and the average
    would stand still. Memory: 8 bytes per weight and half-life.

    Args:
        half_lives: in images, >= 0, distinct; 0 follows the raw weights. May be empty.
    Raises: ValueError for a negative or repeated half-life.
    """

    def __init__(self, half_lives: Sequence[float]) -> None:
        if any(h < 0 for h in half_lives) or len(set(half_lives)) != len(half_lives):
            raise ValueError(f"half_lives must be distinct and >= 0, got {list(half_lives)}")
        self.half_lives = tuple(float(h) for h in half_lives)
        self._mass = [0.0] * len(self.half_lives)
        self._averages: list[Mapping[str, np.ndarray]] = [{} for _ in self.half_lives]

    @property
    def empty(self) -> bool:
        """Whether nothing was taken in yet, so that there is no average."""
        return not any(self._mass)

    def update(self, weights: Mapping[str, np.ndarray], images: int) -> None:
        """Takes in the weights after a round.

        Args:
            weights: name -> float32 array [...]; the same names and shapes every time.
            images: images seen in this round by all clients together, >= 0; 0 changes nothing.
        Raises: ValueError if images < 0 or names or shapes changed.
        """
        if images < 0:
            raise ValueError(f"images must be >= 0, got {images}")
        for averages in self._averages:
            if averages and _shapes(averages) != _shapes(weights):
                raise ValueError("weights must keep their names and shapes from round to round")
        if images == 0:
            return
        for index, half_life in enumerate(self.half_lives):
            gain = round_gain(images, half_life)
            # M <- d * M + (1 - d), written with 1 - d: d itself is rounded to 1 where the half-life is long.
            self._mass[index] += gain * (1.0 - self._mass[index])
            share = gain / self._mass[index]
            averages = self._averages[index]
            # At share 1 the formula below would give old + (value - old), which is not value to the last bit.
            if not averages or share == 1.0:
                self._averages[index] = _as_float64(weights)
            elif isinstance(weights, Flat):
                if not isinstance(averages, Flat):  # as it was restored
                    averages = self._averages[index] = Flat.of(weights.layout, averages, np.float64)
                for piece in chunks(
                    weights.buffer.size
                ):  # the temporaries of the whole would be four models large
                    old = averages.buffer[piece]
                    old += share * (weights.buffer[piece] - old)
            else:
                for name, value in weights.items():
                    old = averages[name]
                    old += share * (value - old)

    def average(self, half_life: float) -> Mapping[str, np.ndarray]:
        """The average of one half-life, name -> float32 array [...] shaped as the weights, copies.

        Raises: ValueError if this half-life is not kept or nothing was taken in yet.
        """
        if half_life not in self.half_lives:
            raise ValueError(f"half_life must be one of {list(self.half_lives)}, got {half_life}")
        index = self.half_lives.index(half_life)
        if not self._mass[index]:
            raise ValueError("no average before the first update")
        averages = self._averages[index]
        if isinstance(averages, Flat):
            return Flat(averages.layout, averages.buffer.astype(np.float32))
        return {name: value.astype(np.float32) for name, value in averages.items()}

    def state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """(tensors, json) for the checkpoint: float64 arrays [...] named "INDEX/NAME", and half-lives with their masses.

        The arrays are the live ones, not copies: write them before the next update.
        """
        tensors = {
            f"{index}/{name}": value
            for index, averages in enumerate(self._averages)
            for name, value in averages.items()
        }
        return tensors, {"half_lives": list(self.half_lives), "mass": list(self._mass)}

    def restore(self, tensors: Mapping[str, np.ndarray], state: Mapping[str, Any]) -> None:
        """Goes back to what `state` gave: its arrays [...], copied, and its half-lives and masses.

        Raises: ValueError if it was of other half-lives.
        """
        if tuple(state["half_lives"]) != self.half_lives:
            raise ValueError(f"state is of half_lives {state['half_lives']}, not {list(self.half_lives)}")
        self._mass = [float(mass) for mass in state["mass"]]
        restored: list[dict[str, np.ndarray]] = [{} for _ in self.half_lives]
        for key, value in tensors.items():
            # Copied, since `update` writes in place and a checkpoint's arrays may be views of its file.
            index, _, name = key.partition("/")
            restored[int(index)][name] = np.array(value, dtype=np.float64)
        self._averages = list(restored)


def _shapes(weights: Mapping[str, np.ndarray]) -> Mapping[str, tuple[int, ...]]:
    return weights.layout if isinstance(weights, Flat) else {k: v.shape for k, v in weights.items()}


def _as_float64(weights: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
    """Copies of weights, name -> [...], in float64; in one buffer where they lie in one."""
    if isinstance(weights, Flat):
        return Flat(weights.layout, weights.buffer.astype(np.float64))
    return {name: value.astype(np.float64) for name, value in weights.items()}
