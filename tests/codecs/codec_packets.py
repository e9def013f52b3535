"""Packets for the tests of codecs: all codecs, sending and reading, and what a hostile sender could write under a true head."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
from xxhash import xxh3_64

from osmotic import models
from osmotic.codecs import Codec, make
from osmotic.codecs.base import contents
from osmotic.flat import FlatLayout

# Every codec, with every option that changes its bytes.
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "fp32": ("fp32", {}),
    "fp16": ("fp16", {}),
    "int8": ("int8", {}),
    "int8 entropy": ("int8", {"entropy": True}),
    "int8 stochastic": ("int8", {"stochastic": True}),
    "int4": ("int4", {}),
    "int4 max": ("int4", {"clip": "max"}),
    "int4 entropy": ("int4", {"entropy": True}),
    "int4 stochastic": ("int4", {"stochastic": True, "clip": "max"}),
    "int2": ("int2", {}),
    "int2 max": ("int2", {"clip": "max"}),
    "int2 entropy": ("int2", {"entropy": True}),
    "int2 stochastic": ("int2", {"stochastic": True, "clip": "max"}),
    "sparse": ("sparse", {}),
    "sparse signs": ("sparse", {"bits": 1}),
    "sparse dense": ("sparse", {"density": 0.5, "chunk": 128}),
}
HEAD_BYTES = (
    19  # 4 of the format, 2 of the codec's name, 1 of its version, 4 of what is held, 8 of the checksum
)


def of_kind(kind: str, feedback: bool = False, decay: float = 1.0) -> Codec:
    name, options = KINDS[kind]
    return make(name, feedback, {name: options}, decay)


def specs(tensors: Mapping[str, np.ndarray]) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {n: (t.dtype.name, t.shape) for n, t in tensors.items()}


def heard(codec: Codec, data: bytes, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What a receiver reads that expects tensors like these."""
    return dict(codec.decode(data, {}, specs(tensors)))


def through(codec: Codec, tensors: Mapping[str, np.ndarray], rng: Any = None) -> dict[str, np.ndarray]:
    return heard(codec, codec.encode(tensors, {}, rng), tensors)


def one(codec: Codec, tensor: Any, rng: Any = None) -> np.ndarray:
    """One float32 tensor [...] as it arrives."""
    return through(codec, {"w": np.asarray(tensor, np.float32)}, rng)["w"]


def body(codec: Codec, tensor: Any, rng: Any = None) -> bytes:
    """What follows the head in the packet of one float32 tensor [...]."""
    return codec.encode({"w": np.asarray(tensor, np.float32)}, {}, rng)[HEAD_BYTES:]


def head(name: str, version: int, what: int, rest: bytes, magic: bytes = b"OSM3") -> bytes:
    """A head written field by field, with a checksum that fits, whatever the rest is."""
    front = magic + struct.pack("<HBI", xxh3_64(name.encode()).intdigest() & 0xFFFF, version, what)
    return front + struct.pack("<Q", xxh3_64(front + rest).intdigest())


def forged(codec: Codec, tensors: Mapping[str, np.ndarray], rest: bytes, **changed: Any) -> bytes:
    """Any bytes under a true head of tensors like these: what a sender could make who has read our code."""
    what = contents([(n, t.dtype.name, t.shape) for n, t in sorted(tensors.items())])
    fields = {"name": codec.name, "version": codec.version, "what": what} | changed
    return head(rest=rest, **fields) + rest


def layout_of(network: str, size: int = 8, channels: int = 1) -> FlatLayout:
    spec = models.resolve(network, size, channels, 0, 0.0)
    return FlatLayout(models.layout(spec), spec.part_names())


def drawn(layout: FlatLayout, seed: int = 0) -> np.ndarray:
    return (1e-3 * np.random.default_rng(seed).normal(size=layout.size)).astype(np.float32)
