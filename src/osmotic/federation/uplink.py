"""The way up, server end: one codec for all clients, what it remembers of each, and its own weights where it is trained.

The client's end is in `federation/client.py`. What a phase brings is kept apart until `commit`, as in `downlink.py`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from osmotic import seeds
from osmotic.codecs import BadPacket, Codec, described
from osmotic.protocol.gate import Expectation
from osmotic.protocol.messages import Packet
from osmotic.tensors import Tensors, group, grouped


class UpLink:
    """Decodes what clients send into name -> array [...]; a phase that fails or is killed leaves no trace.

    Args:
        codec: as the clients have it.
        seed: the run's, for codecs that train on the server.
    """

    def __init__(self, codec: Codec, seed: int = 0) -> None:
        self.codec, self.seed = codec, seed
        self.memory: dict[str, Tensors] = {}  # client -> the decoder's memory of it
        self.weights: Tensors = {}  # of the codec itself, as last broadcast
        self.version: int | None = None  # the round in which these were new
        self.heard: dict[str, int] = {}  # client -> version that it has
        self._forget()

    def _forget(self) -> None:
        self._next: tuple[Tensors, int | None] = (self.weights, self.version)
        self._before: Tensors | None = None
        self._memory: dict[str, Tensors] = {}
        self._observed: dict[str, Tensors] = {}

    def begin(self, server_round: int, refresh: bool) -> tuple[Tensors, int]:
        """Opens a phase: the codec's weights to be used in it, name -> array [...], and the round in which they were new, 0 for none.

        Args:
            refresh: whether the codec may renew itself; clients that only sample are told no new one.
        """
        self._forget()
        # A refresh moves the codec itself, before it is known whether the phase will count.
        self._before = self.codec.state()
        rng = seeds.rng(self.seed, seeds.CODEC, server_round)
        new = self.codec.refresh(server_round, rng) if refresh else None
        if new is not None:
            self._next = (new, server_round)
        return self._next[0], self._next[1] or 0

    def extras(self, client: str) -> Tensors:
        """The codec's weights that this client does not have yet, "codec/NAME" -> array [...]."""
        weights, version = self._next
        return grouped("codec", weights) if version is not None and self.heard.get(client) != version else {}

    def decode(
        self, client: str, packet: Packet, expected: Expectation, server_round: int = 0
    ) -> Mapping[str, np.ndarray]:
        """The tensors [...] of a reply: the coded blob, where anything coded is expected, then the exact one.

        Args:
            server_round: in which it was asked for: a codec may be another one in the first rounds.
        Raises: BadPacket for torn, altered or missing blobs, or other tensors than each must hold.
        """
        blobs = list(packet.blobs)
        number = bool(expected.coded) + bool(expected.exact)
        if len(blobs) != number:
            raise BadPacket(f"holds {len(blobs)} blobs, not {number}")
        # A copy: if the phase does not count, the decoder must not have moved on.
        memory = {n: t.copy() for n, t in self.memory.get(client, {}).items()}
        tensors: Mapping[str, np.ndarray] = {}
        if expected.coded:
            codec = self.codec.in_round(server_round)
            tensors = codec.read(blobs.pop(0), memory, expected.wanted_coded, expected.layout)
        if expected.exact:
            # Two lists without a common name: nothing of the first blob can be overwritten.
            tensors = {**tensors, **described.decode(blobs.pop(0), expected.wanted_exact)}
        self._memory[client] = memory
        return tensors

    def observe(self, client: str, tensors: Mapping[str, np.ndarray]) -> None:
        """A reply, name -> array [...], passed the gate: the codec picks out what it will learn from."""
        self._observed[client] = self.codec.observe(tensors, client)

    def commit(self, counted: Iterable[str]) -> None:
        """The phase counts, with the replies of these clients."""
        # By name and not by arrival: learning may depend on the order.
        names = sorted(counted)
        self.codec.learn({name: self._observed[name] for name in names if name in self._observed})
        self.weights, self.version = self._next
        for name in names:
            if self.version is not None:
                self.heard[name] = self.version
            if self._memory.get(name):
                self.memory[name] = self._memory[name]
        self._forget()

    def abandon(self) -> None:
        """The phase does not count."""
        if self._before is not None:
            self.codec.restore(self._before)
        self._forget()

    def state(self) -> tuple[Tensors, dict[str, Any]]:
        """Tensors [...] and JSON of the committed state, for the checkpoint."""
        tensors = grouped("codec", self.codec.state()) | grouped("codec_weights", self.weights)
        for client, memory in self.memory.items():
            tensors |= grouped(f"codec_memory/{client}", memory)
        return tensors, {"codec_round": self.version, "codec_heard": json.loads(json.dumps(self.heard))}

    def restore(self, tensors: Mapping[str, np.ndarray], notes: Mapping[str, Any]) -> None:
        """The inverse of `state`: its tensors [...] and JSON."""
        self.codec.restore(group(tensors, "codec"))
        self.weights, self.version = group(tensors, "codec_weights"), notes["codec_round"]
        self.heard, self.memory = dict(notes["codec_heard"]), {}
        for key, tensor in group(tensors, "codec_memory").items():
            client, _, name = key.partition("/")
            self.memory.setdefault(client, {})[name] = tensor
        self._forget()
