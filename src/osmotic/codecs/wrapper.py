"""A codec around another one: everything is as the inner one does it, but for what the wrapper overrides."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from osmotic.codecs.base import Codec, Entry, Wanted
from osmotic.flat import FlatLayout
from osmotic.tensors import Tensors


class Wrapper(Codec):
    """`inner` under its own name, of name -> tensor [...]."""

    def __init__(self, inner: Codec) -> None:
        self.inner, self.name, self.version = inner, inner.name, inner.version
        self.absolute, self.bounded, self.trained = inner.absolute, inner.bounded, inner.trained
        self.remembers, self.alignment = inner.remembers, inner.alignment

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

    def encode(
        self, tensors: Mapping[str, np.ndarray], memory: Tensors, rng: np.random.Generator | None = None
    ) -> bytes:
        return self.inner.encode(tensors, memory, rng)

    def decode(
        self, data: bytes, memory: Tensors, wanted: Wanted | None = None
    ) -> Iterator[tuple[str, np.ndarray]]:
        return self.inner.decode(data, memory, wanted)

    def read(
        self, data: bytes, memory: Tensors, wanted: Wanted | None = None, layout: FlatLayout | None = None
    ) -> Mapping[str, np.ndarray]:
        return self.inner.read(data, memory, wanted, layout)

    def packet_bytes(self, shapes: Mapping[str, tuple[str, tuple[int, ...]]]) -> int:
        return self.inner.packet_bytes(shapes)

    def body_bytes(self, entries: Sequence[Entry]) -> int:
        return self.inner.body_bytes(entries)

    def prepare(self, layout: FlatLayout, direction: str = "up") -> None:
        self.inner.prepare(layout, direction)

    def new_weights(self, server_round: int) -> Mapping[str, tuple[str, tuple[int, ...]]] | None:
        return self.inner.new_weights(server_round)

    def in_round(self, server_round: int) -> Codec:
        return self.inner.in_round(server_round)

    def observe(self, tensors: Mapping[str, np.ndarray], client: str = "") -> Tensors:
        return self.inner.observe(tensors, client)

    def learn(self, observed: Mapping[str, Tensors]) -> None:
        self.inner.learn(observed)

    def refresh(self, server_round: int, rng: np.random.Generator | None = None) -> Tensors | None:
        return self.inner.refresh(server_round, rng)

    def kept(self, old: Tensors, new: Tensors) -> Tensors:
        return self.inner.kept(old, new)

    def adopt(self, tensors: Mapping[str, np.ndarray]) -> None:
        self.inner.adopt(tensors)

    def state(self) -> Tensors:
        return self.inner.state()

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        self.inner.restore(state)
