"""The way down: weights as they are, or as one stream of changes against a replica that all clients share.

    replica_r = replica_{r-1} + decode(encode(global_r - replica_{r-1}))

What a packet loses stays in the difference to the replica and goes out with the next one, so no residual is needed.
First contact is the full replica in fp32. A client that missed rounds gets the packets it missed or the full replica,
whichever is smaller. There is one stream per part of the network, so that clients may be sent different parts.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from osmotic import seeds
from osmotic.codecs import EXACT, BadPacket, Codec
from osmotic.codecs.base import unpack
from osmotic.federation.memory import ClientState
from osmotic.flat import Flat, FlatLayout
from osmotic.storage.store import StateLost
from osmotic.tensors import Tensors, group


@dataclass
class Stream:
    """One part's stream: the replica, name -> float32 [...], its round, and what the codec remembers.

    `chain` holds the packets kept: (base round, round, packet).
    """

    round: int | None = None
    replica: Tensors = field(default_factory=dict)
    memory: Tensors = field(default_factory=dict)
    chain: list[tuple[int, int, bytes]] = field(default_factory=list)

    def missed(self, base: int | None) -> list[bytes] | None:
        """Packets that lead from the replica of round `base` to the newest; None where they are not kept."""
        for i, (start, _, _) in enumerate(self.chain):
            if start == base:
                return [data for _, _, data in self.chain[i:]]
        return None


class DownLink:
    """Server end. What a phase changes is kept apart until `commit`, so that a failed or killed phase leaves no trace.

    Args:
        codec: of the changes; one with `absolute` sends the weights themselves and keeps no replica.
        names: part -> sorted parameter names.
        changed_only: clients keep what they were sent, and are not sent again what has not moved since.
        seed: the run's, for codecs that round at random.
    """

    def __init__(
        self, codec: Codec, names: Mapping[str, list[str]], changed_only: bool = False, seed: int = 0
    ) -> None:
        self.codec, self.names, self.seed = codec, names, seed
        self.changed_only = changed_only
        self.streams = {part: Stream() for part in names}
        self.heard: dict[str, dict[str, int]] = {}  # client -> part -> round of the replica it holds
        self._forget()

    def abandon(self) -> None:
        """Forgets the phase under way."""
        if self._before is not None:  # the codec was renewed for this phase, and no client keeps that
            self.codec.restore(self._before)
        self._forget()

    def _forget(self) -> None:
        self._before: Tensors | None = None
        self._next: dict[str, Stream] = {}
        self._fresh = False
        self._full: dict[str, bytes] = {}

    def adopt(self, trained: Mapping[str, np.ndarray], fresh: bool) -> None:
        """Weights [...] of a codec that is itself trained.

        If they are `fresh`, older packets can no longer be decoded.
        """
        if self.codec.trained:
            self._before = self.codec.state()
            self.codec.adopt(trained)
            self._fresh = fresh

    def unmoved(self, client: str, parts: Iterable[str], changed: Mapping[str, int]) -> dict[str, int]:
        """Those of `parts` that `client` need not be sent, with the round in which it was: they have not moved since.

        Args:
            changed: part -> round at whose end its global weights last moved.
        """
        heard = self.heard.get(client, {}) if self.changed_only else {}
        # Heard in round r means sent at its beginning: a change at the end of r itself is not in it.
        return {p: heard[p] for p in parts if p in heard and changed.get(p, heard[p] - 1) < heard[p]}

    def message(
        self, client: str, parts: Iterable[str], server_round: int, weights: Mapping[str, np.ndarray]
    ) -> tuple[list[dict[str, Any]], list[bytes]]:
        """Header entries and blobs that bring `client` to this round's weights of `parts`.

        Args:
            weights: name -> float32 [...]; the same in every call of a phase, as each part is coded once.
        """
        entries: list[dict[str, Any]] = []
        blobs: list[bytes] = []
        for part in parts:
            if not self.names[part]:
                continue  # a network of one's own may have a single part
            base = self.heard.get(client, {}).get(part)
            missed = None
            if self.codec.absolute:
                full = self._fp32_blob(part, weights)
            else:
                stream = self._advanced(part, server_round, weights)
                missed, full = stream.missed(base), self._fp32_blob(part, stream.replica)
            # Full weights are fp32: after a few missed rounds they are the smaller packet.
            changes = missed is not None and sum(map(len, missed)) <= len(full)
            payload = missed if changes and missed is not None else [full]
            entries.append(
                {
                    "part": part,
                    "base": base if changes else None,
                    "round": server_round,
                    "blobs": len(payload),
                }
            )
            blobs += payload
        return entries, blobs

    def release(self) -> None:
        """Nobody will ask for this phase's packets any more; what `commit` needs stays."""
        self._full = {}

    def commit(self, counted: Mapping[str, Iterable[str]], server_round: int) -> None:
        """The phase counts: `counted` names the clients whose reply was summed and the parts each was sent."""
        self.streams.update(self._next)
        if self.changed_only or not self.codec.absolute:
            # Only who is known to have got it: a client whose reply was lost may have heard nothing.
            for client, parts in counted.items():
                self.heard.setdefault(client, {}).update(dict.fromkeys(parts, server_round))
        self._forget()

    def _fp32_blob(self, part: str, weights: Mapping[str, np.ndarray]) -> bytes:
        if part not in self._full:
            own = {n: weights[n] for n in self.names[part]}
            self._full[part] = EXACT.encode(weights.part(part) if isinstance(weights, Flat) else own, {})
        return self._full[part]

    def _advanced(self, part: str, server_round: int, weights: Mapping[str, np.ndarray]) -> Stream:
        """The part's stream moved to this round; coded once per phase, however many clients hear it."""
        if part in self._next:
            return self._next[part]
        old, names = self.streams[part], self.names[part]
        if old.round is None:
            # The first replica is exact, so that newcomers and the server start from one.
            moved = Stream(server_round, {n: weights[n].copy() for n in names})
        else:
            memory = dict(old.memory)
            rng = seeds.rng(self.seed, seeds.CODEC, server_round, f"down/{part}")
            data = self.codec.encode({n: weights[n] - old.replica[n] for n in names}, memory, rng)
            # Decoded as clients will: the server moves its replica by what they hear, not by what it meant.
            change = dict(self.codec.decode(data, {}))
            chain = [*([] if self._fresh else old.chain), (old.round, server_round, data)]
            self.trim(chain, self.fp32_bytes(names, weights))
            moved = Stream(server_round, {n: old.replica[n] + change[n] for n in names}, memory, chain)
        self._next[part] = moved
        return moved

    def fp32_bytes(self, names: list[str], weights: Mapping[str, np.ndarray]) -> int:
        """Bytes of the full replica's packet, given weights of its shapes, name -> [...]."""
        return EXACT.packet_bytes({n: ("float32", weights[n].shape) for n in names})

    @staticmethod
    def trim(chain: list[tuple[int, int, bytes]], full: int) -> None:
        """Drops the oldest packets of a chain: what together outweighs the full replica would never be sent."""
        while sum(len(data) for _, _, data in chain) > full:
            chain.pop(0)

    def state(self) -> tuple[Tensors, dict[str, Any]]:
        """Tensors [...] and JSON of the committed state, for the checkpoint; packets are uint8 [bytes]."""
        tensors: Tensors = {}
        notes: dict[str, Any] = {"heard": self.heard, "streams": {}}
        for part, stream in self.streams.items():
            tensors |= {f"{part}/replica/{n}": t for n, t in stream.replica.items()}
            tensors |= {f"{part}/memory/{n}": t for n, t in stream.memory.items()}
            tensors |= {f"{part}/chain/{r:+09d}": np.frombuffer(d, np.uint8) for _, r, d in stream.chain}
            notes["streams"][part] = {"round": stream.round, "chain": [[b, r] for b, r, _ in stream.chain]}
        return tensors, json.loads(json.dumps(notes))

    def _readable(self, chain: list[tuple[int, int, bytes]]) -> list[tuple[int, int, bytes]]:
        """A chain, or none where an earlier version wrote it in a form that is read no more: the full replica goes instead."""
        try:
            for _, _, data in chain:
                unpack(data, self.codec)
        except BadPacket:
            return []
        return chain

    def restore(self, tensors: Mapping[str, np.ndarray], notes: Mapping[str, Any]) -> None:
        """The inverse of `state`: its tensors [...] and JSON."""
        self.heard = {c: dict(parts) for c, parts in notes["heard"].items()}
        for part, saved in notes["streams"].items():
            kept = group(tensors, part)
            self.streams[part] = Stream(
                saved["round"],
                group(kept, "replica"),
                group(kept, "memory"),
                self._readable([(b, r, kept[f"chain/{r:+09d}"].tobytes()) for b, r in saved["chain"]]),
            )
        self._forget()


def receive(
    entries: Iterable[Mapping[str, Any]],
    blobs: list[bytes],
    codec: Codec,
    state: ClientState,
    layout: FlatLayout,
    keep: bool = False,
) -> dict[str, Mapping[str, np.ndarray]]:
    """Client end: this round's weights of every part sent, part -> name -> float32 [...]; they may be views of `blobs`.

    Args:
        layout: of the whole network; a part must come with all of its parameters and no others.

    `state` keeps `replica` and `heard` for codecs that send changes, and with `keep`; it is changed in place.
    Raises: BadPacket for parts, names or shapes the network does not have; StateLost if the replica to build on is not here.
    """
    weights: dict[str, Mapping[str, np.ndarray]] = {}
    waiting = list(blobs)
    for entry in entries:
        part, base = str(entry["part"]), entry["base"]
        if part not in layout.part_names:
            raise BadPacket(f"{part} is no part of the network")
        own = layout.of_parts([part])
        payload, waiting = waiting[: entry["blobs"]], waiting[entry["blobs"] :]
        got: Mapping[str, np.ndarray]
        if base is None:
            got = EXACT.read(payload[0], {}, own.wanted, own)
        else:
            if state.heard.get(part) != base:
                raise StateLost(
                    f"the replica of round {base} that the change of {part} builds on is not here"
                )
            got = state.replica
            for data in payload:
                # The packet holds this part's names and shapes alone, or it is refused before the sum.
                got = {name: got[name] + change for name, change in codec.decode(data, {}, own.wanted)}
        if keep or not codec.absolute:
            # Copied: views would keep all of the packet in memory, and it is not ours.
            got = {name: tensor.copy() for name, tensor in got.items()} if base is None else got
            state.replica |= got
            state.heard[part] = int(entry["round"])
        weights[part] = got
    return weights


def held(
    rounds: Mapping[str, int], names: Mapping[str, list[str]], state: ClientState
) -> dict[str, Mapping[str, np.ndarray]]:
    """Client end: the parts that were not sent because they have not moved since this client heard them.

    Args:
        rounds: part -> round in which it was sent.
        names: part -> parameter names.
    Returns: part -> name -> float32 [...], the replica's own arrays.
    Raises: StateLost if it is not here as of that round.
    """
    for part, number in rounds.items():
        if state.heard.get(part) != number:
            raise StateLost(f"the {part} as of round {number}, which was not sent again, is not here")
    return {part: {n: state.replica[n] for n in names[part]} for part in rounds}
