"""Error feedback: what a codec lost is kept by the sender and added to what it sends next.

Source: arXiv 1809.07599 (memory in sparsified SGD). Wraps any codec; the residual lives in the sender's memory. Two brakes on
residuals that have grown old, as they do where few clients take part in a round: a decay (SparseLoCo, arXiv 2508.15706, keeps 95 %), and
a flush, rounds in which everything that is owed goes out in int8.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from osmotic.codecs.base import Codec
from osmotic.codecs.uniform import Int8
from osmotic.codecs.wrapper import Wrapper
from osmotic.flat import Flat
from osmotic.tensors import Tensors


class ErrorFeedback(Wrapper):
    """`inner` with a residual e: sends encode(x + e) and keeps e' = decay * ((x + e) - decode(sent)), float32 [...].

    The residual is in `memory` as "residual/NAME". What is not float32 is coded without loss and has none.

    Args:
        decay: share of the residual that is kept, in (0, 1].
    """

    def __init__(self, inner: Codec, decay: float = 1.0) -> None:
        super().__init__(inner)
        self.decay, self.remembers = np.float32(decay), True

    def in_round(self, server_round: int) -> Codec:
        """The same feedback around what `inner` is in this round."""
        return ErrorFeedback(self.inner.in_round(server_round), float(self.decay))

    def encode(
        self, tensors: Mapping[str, np.ndarray], memory: Tensors, rng: np.random.Generator | None = None
    ) -> bytes:
        """The packet of x + e; e' comes over e in `memory`, name -> float32 [...].

        Raises: ValueError as `inner`.
        """
        owed = {n: memory[f"residual/{n}"] for n in tensors if f"residual/{n}" in memory}
        meant: Mapping[str, np.ndarray]
        if isinstance(tensors, Flat):
            meant = tensors.copy()
            for name, rest in owed.items():
                meant[name] += rest
        else:
            meant = {n: t + owed[n] if n in owed and t.dtype == np.float32 else t for n, t in tensors.items()}
        data = self.inner.encode(meant, memory, rng)
        # Decoded from the very bytes that leave: the loss to make good is the one that the receiver sees.
        if isinstance(meant, Flat):
            heard = Flat.over(meant.layout, self.inner.read(data, {}, None, meant.layout))
            left = Flat(meant.layout, self.decay * (meant.buffer - heard.buffer))
            memory.update({f"residual/{name}": left[name] for name in left})
            return data
        wanted = {n: (t.dtype.name, t.shape) for n, t in meant.items()}
        for name, got in self.inner.read(data, {}, wanted).items():
            if got.dtype == np.float32:
                # asarray: numpy makes a number of a scalar [] less another.
                memory[f"residual/{name}"] = np.asarray(self.decay * (meant[name] - got))
        return data


class Flushed(Wrapper):
    """`inner`, but int8 in every round whose number divides by `every`: what is owed then goes out almost whole."""

    def __init__(self, inner: Codec, every: int) -> None:
        super().__init__(inner)
        self.every = every

    def in_round(self, server_round: int) -> Codec:
        """int8 in rounds of flushing, else what `inner` is."""
        flushing = server_round > 0 and server_round % self.every == 0
        return Int8() if flushing else self.inner.in_round(server_round)
