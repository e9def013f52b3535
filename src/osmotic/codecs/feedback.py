"""Error feedback: what a codec lost is kept by the sender and added to what it sends next.

Source: arXiv 1809.07599 (memory in sparsified SGD). Wraps any codec; the residual lives in the sender's memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from osmotic.codecs.base import Codec, Entry, Wanted
from osmotic.flat import FlatLayout
from osmotic.tensors import Tensors


class ErrorFeedback(Codec):
    """`inner` with a residual e: sends encode(x + e) and keeps e' = (x + e) - decode(sent), float32 [...].

    The residual is in `memory` as "residual/NAME". What is not float32 is coded without loss and has none.
    """

    def __init__(self, inner: Codec) -> None:
        self.inner, self.name = inner, inner.name
        self.absolute, self.bounded, self.trained = inner.absolute, inner.bounded, inner.trained
        self.remembers = True

    def encode(
        self, tensors: Mapping[str, np.ndarray], memory: Tensors, rng: np.random.Generator | None = None
    ) -> bytes:
        """The packet of x + e; e' comes over e in `memory`, name -> float32 [...].

        Raises: ValueError as `inner`.
        """
        meant = {
            name: t + memory[f"residual/{name}"]
            if t.dtype == np.float32 and f"residual/{name}" in memory
            else t
            for name, t in tensors.items()
        }
        data = self.inner.encode(meant, memory, rng)
        # Decoded from the very bytes that leave: the loss to make good is the one that the receiver sees.
        for name, got in self.inner.decode(data, {}):
            if got.dtype == np.float32:
                memory[f"residual/{name}"] = meant[name] - got
        return data

    def decode(
        self, data: bytes, memory: Tensors, wanted: Wanted | None = None
    ) -> Iterator[tuple[str, np.ndarray]]:
        """(name, tensor [...]) pairs as `inner`: the residual is the sender's alone. Raises: BadPacket."""
        return self.inner.decode(data, memory, wanted)

    def read(
        self, data: bytes, memory: Tensors, wanted: Wanted | None = None, layout: FlatLayout | None = None
    ) -> Mapping[str, np.ndarray]:
        """Name -> tensor [...] as `inner`. Raises: BadPacket."""
        return self.inner.read(data, memory, wanted, layout)

    # --- all else is as `inner` does it ---
    def form(self, name: str, dtype: str, shape: tuple[int, ...]) -> str:
        return self.inner.form(name, dtype, shape)

    def section_bytes(self, entry: Entry) -> int:
        return self.inner.section_bytes(entry)

    def encode_tensor(
        self, entry: Entry, tensor: np.ndarray, rng: np.random.Generator | None = None
    ) -> bytes:
        return self.inner.encode_tensor(entry, tensor, rng)

    def decode_tensor(self, entry: Entry, data: memoryview) -> np.ndarray:
        return self.inner.decode_tensor(entry, data)

    def observe(self, tensors: Mapping[str, np.ndarray], client: str = "") -> Tensors:
        return self.inner.observe(tensors, client)

    def learn(self, observed: Mapping[str, Tensors]) -> None:
        self.inner.learn(observed)

    def refresh(self, server_round: int, rng: np.random.Generator | None = None) -> Tensors | None:
        return self.inner.refresh(server_round, rng)

    def adopt(self, tensors: Mapping[str, np.ndarray]) -> None:
        self.inner.adopt(tensors)

    def state(self) -> Tensors:
        return self.inner.state()

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        self.inner.restore(state)
