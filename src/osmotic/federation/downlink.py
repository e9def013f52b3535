"""The way down: weights as they are, or as one stream of changes against a replica that all clients share.

    replica_r = replica_{r-1} + decode(encode(global_r - replica_{r-1}))

What a packet loses stays in the difference to the replica and goes out with the next one, so no residual is needed.
First contact is the full replica in fp32; or, with `codec.first_contact = "seed"`, nothing: the client draws the initial weights
itself, and a hash tells whether they are the server's. A client that missed rounds gets the packets it missed or the full
replica, whichever is smaller. There is one stream per part of the network, so that clients may be sent different parts.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from osmotic import seeds
from osmotic.codecs import EXACT, BadPacket, Codec
from osmotic.codecs.base import MAGIC
from osmotic.federation.memory import ClientState
from osmotic.flat import Flat, FlatLayout
from osmotic.storage.store import StateLost
from osmotic.tensors import Tensors, group


class OtherDraw(RuntimeError):
    """A client draws other initial weights than the server: another version of a library, say. It has to be sent them."""


def drawn_hash(weights: Flat) -> str:
    """SHA-256 of the weights of a part, by which client and server know that they have drawn the same."""
    return hashlib.sha256(weights.buffer.astype("<f4", copy=False).tobytes()).hexdigest()


Link = tuple[int, int, bytes, int]


@dataclass
class Stream:
    """One part's stream: the replica, its round, and what the codec remembers.

    `chain` holds the packets kept: (base round, round, packet, round of the codec's own weights that it takes to read it, 0 for none).
    `origin` is the round in which the replica was still the
    initial weights, None where it never was.
    """

    round: int | None = None
    replica: Flat | None = None
    memory: Tensors = field(default_factory=dict)
    chain: list[Link] = field(default_factory=list)
    origin: int | None = None

    def missed(self, base: int | None, readable: Container[int]) -> list[tuple[int, bytes]] | None:
        """(round, packet) of all that lead from the replica of round `base` to the newest; None where they are not kept.

        Args:
            readable: rounds of the codec's own weights that the client has, or is sent now; None too where a packet takes others.
        """
        if base is not None and base == self.round:
            return []
        for i, (start, *_) in enumerate(self.chain):
            if start == base:
                fits = all(version in readable for *_, version in self.chain[i:])
                return [(number, data) for _, number, data, _ in self.chain[i:]] if fits else None
        return None


class DownLink:
    """Server end. What a phase changes is kept apart until `commit`, so that a failed or killed phase leaves no trace.

    Args:
        codec: of the changes; one with `absolute` sends the weights themselves and keeps no replica.
        layout: of the network; one stream for each of its parts.
        changed_only: clients keep what they were sent, and are not sent again what has not moved since.
        seed: the run's, for codecs that round at random.
        drawn: part -> hash of the initial weights, where clients draw these themselves; None sends them.
    """

    def __init__(
        self,
        codec: Codec,
        layout: FlatLayout,
        changed_only: bool = False,
        seed: int = 0,
        drawn: Mapping[str, str] | None = None,
    ) -> None:
        self.codec, self.layout, self.changed_only, self.seed = codec, layout, changed_only, seed
        self.names, self.drawn = layout.part_names, drawn
        self.streams = {part: Stream() for part in self.names}
        self.heard: dict[str, dict[str, int]] = {}  # client -> part -> round of the replica that it has
        self.draws_otherwise: set[str] = set()  # clients whose own draw is not the server's
        self.version = 0  # round in which the codec's own weights were new
        self._forget()

    def abandon(self) -> None:
        """The phase does not count."""
        if self._before is not None:
            state, self.version = self._before
            self.codec.restore(state)
        self._forget()

    def _forget(self) -> None:
        self._before: tuple[Tensors, int] | None = None
        self._next: dict[str, Stream] = {}
        self._full: dict[str, bytes] = {}

    def adopt(self, trained: Mapping[str, np.ndarray], version: int) -> None:
        """Weights [...] of a codec that is itself trained, and the round in which they were new.

        Older packets can be read by those alone who had the weights of then.
        """
        if self.codec.trained:
            self._before = self.codec.state(), self.version
            self.codec.adopt(trained)
            self.version = version

    def unmoved(self, client: str, parts: Iterable[str], changed: Mapping[str, int]) -> dict[str, int]:
        """Those of `parts` that `client` need not be sent, with the round in which it was: they have not moved since.

        Args:
            changed: part -> round at whose end its global weights last moved.
        """
        heard = self.heard.get(client, {}) if self.changed_only else {}
        # Heard in round r means sent at its beginning: a change at the end of r itself is not in it.
        return {p: heard[p] for p in parts if p in heard and changed.get(p, heard[p] - 1) < heard[p]}

    def message(
        self,
        client: str,
        parts: Iterable[str],
        server_round: int,
        weights: Flat,
        changed: Mapping[str, int] | None = None,
        readable: Container[int] = (0,),
    ) -> tuple[list[dict[str, Any]], list[bytes]]:
        """Header entries and blobs that bring `client` to this round's weights of `parts`.

        Args:
            weights: the same in every call of a phase, as each part is coded once.
            changed: part -> round at whose end its global weights last moved; None for other weights than these, which
                nobody can draw.
            readable: rounds of the codec's own weights that the client has, or is sent with it; 0 stands for none.
        """
        entries: list[dict[str, Any]] = []
        blobs: list[bytes] = []
        for part in parts:
            if not self.names[part]:
                continue  # a network of one's own may have a single part
            base = self.heard.get(client, {}).get(part)
            draws = base is None and changed is not None and self.drawn is not None
            draws = draws and client not in self.draws_otherwise
            missed: list[tuple[int, bytes]] | None = None
            if self.codec.absolute:
                full = self._fp32_blob(part, weights)
                if draws and part not in (changed or {}):
                    base, missed = server_round, []
            else:
                stream = self._advanced(part, server_round, weights, changed)
                base = stream.origin if draws else base
                missed, full = stream.missed(base, readable), self._replica_blob(part, stream)
            # Full weights are fp32: after a few missed rounds they are the smaller packet.
            changes = missed is not None and sum(len(data) for _, data in missed) <= len(full)
            payload = missed if changes and missed is not None else [(server_round, full)]
            entry = {
                "part": part,
                "base": base if changes else None,
                "round": server_round,
                "rounds": [number for number, _ in payload],
                "blobs": len(payload),
            }
            if changes and draws and self.drawn is not None:
                entry["drawn"] = self.drawn.get(part)
            entries.append(entry)
            blobs += [data for _, data in payload]
        return entries, blobs

    def received(self, parts: Iterable[str], weights: Flat) -> Flat:
        """What a client that was sent these parts in this phase has got: the replica, or the weights themselves."""
        if self.codec.absolute:
            return weights.parts(parts)
        chosen = self.layout.of_parts(parts)
        found = Flat(chosen, np.empty(chosen.size, np.float32))
        for part in chosen.part_names:
            replica = self._next.get(part, self.streams[part]).replica
            found.put(weights.part(part) if replica is None else replica, part)
        return found

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

    def _fp32_blob(self, part: str, weights: Flat) -> bytes:
        if part not in self._full:
            self._full[part] = EXACT.encode(weights.part(part), {})
        return self._full[part]

    def _replica_blob(self, part: str, stream: Stream) -> bytes:
        if part not in self._full:
            assert stream.replica is not None
            self._full[part] = EXACT.encode(stream.replica, {})
        return self._full[part]

    def _advanced(
        self, part: str, server_round: int, weights: Flat, changed: Mapping[str, int] | None
    ) -> Stream:
        """The part's stream moved to this round; coded once per phase, however many clients hear it."""
        if part in self._next:
            return self._next[part]
        old, own = self.streams[part], self.layout.of_parts([part])
        now = weights.part(part)
        if old.round is None or old.replica is None:
            # The first replica is exact, so that newcomers and the server start from one.
            origin = server_round if changed is not None and part not in changed else None
            moved = Stream(server_round, now.copy(), origin=origin)
        else:
            memory, codec = dict(old.memory), self.codec.in_round(server_round)
            rng = seeds.rng(self.seed, seeds.CODEC, server_round, f"down/{part}")
            data = codec.encode(Flat(own, now.buffer - old.replica.buffer), memory, rng)
            # Decoded as clients will: the server moves its replica by what they hear, not by what it meant.
            heard = Flat.over(own, codec.read(data, {}, own.wanted, own))
            version = self.version if codec.trained else 0
            chain = [*old.chain, (old.round, server_round, data, version)]
            self.trim(chain, self.fp32_bytes(part))
            moved = Stream(
                server_round, Flat(own, old.replica.buffer + heard.buffer), memory, chain, old.origin
            )
        self._next[part] = moved
        return moved

    def fp32_bytes(self, part: str) -> int:
        """Bytes of the full replica's packet."""
        return EXACT.packet_bytes(self.layout.of_parts([part]).wanted)

    @staticmethod
    def trim(chain: list[Link], full: int) -> None:
        """Drops the oldest packets of a chain: what together outweighs the full replica would never be sent."""
        while sum(len(data) for _, _, data, _ in chain) > full:
            chain.pop(0)

    def state(self) -> tuple[Tensors, dict[str, Any]]:
        """Tensors [...] and JSON of the committed state, for the checkpoint; packets are uint8 [bytes]."""
        tensors: Tensors = {}
        notes: dict[str, Any] = {"heard": self.heard, "streams": {}}
        for part, stream in self.streams.items():
            tensors |= {f"{part}/replica/{n}": t for n, t in (stream.replica or {}).items()}
            tensors |= {f"{part}/memory/{n}": t for n, t in stream.memory.items()}
            tensors |= {f"{part}/chain/{r:+09d}": np.frombuffer(d, np.uint8) for _, r, d, _ in stream.chain}
            notes["streams"][part] = {
                "round": stream.round,
                "chain": [[b, r, v] for b, r, _, v in stream.chain],
                "origin": stream.origin,
            }
        notes["draws_otherwise"] = sorted(self.draws_otherwise)
        return tensors, json.loads(json.dumps(notes))

    def restore(self, tensors: Mapping[str, np.ndarray], notes: Mapping[str, Any]) -> None:
        """The inverse of `state`: its tensors [...] and JSON."""
        self.heard = {c: dict(parts) for c, parts in notes["heard"].items()}
        self.draws_otherwise = set(notes.get("draws_otherwise", ()))  # of earlier versions: none
        for part, saved in notes["streams"].items():
            kept = group(tensors, part)
            replica, own = group(kept, "replica"), self.layout.of_parts([part])
            # Of earlier versions: no round of a codec's own weights.
            chain = [(b, r, kept[f"chain/{r:+09d}"].tobytes(), *(v or [0])) for b, r, *v in saved["chain"]]
            self.streams[part] = Stream(
                saved["round"],
                Flat.of(own, replica) if replica else None,
                group(kept, "memory"),
                # What an earlier version wrote in a form that is read no more is dropped: the full replica goes instead.
                chain if all(data.startswith(MAGIC) for _, _, data, _ in chain) else [],
                saved.get("origin"),
            )
        self._forget()


def receive(
    entries: Iterable[Mapping[str, Any]],
    blobs: list[bytes],
    codec: Codec,
    state: ClientState,
    layout: FlatLayout,
    keep: bool = False,
    initial: Flat | None = None,
) -> dict[str, Mapping[str, np.ndarray]]:
    """Client end: this round's weights of every part sent, part -> name -> float32 [...]; they may be views of `blobs`.

    Args:
        layout: of the whole network; a part must come with all of its parameters and no others.
        initial: the weights of round 0 as this client draws them.

    `state` keeps `replica` and `heard` for codecs that send changes, and with `keep`; it is changed in place.
    Raises: BadPacket for parts, names or shapes the network does not have; StateLost if the replica to build on is not here;
        OtherDraw if the client's initial weights are not the server's.
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
            got = EXACT.read(payload[0], {}, None, own)
        else:
            now = _base(entry, state, own, initial)
            for number, data in zip(entry["rounds"], payload, strict=True):
                # The packet holds this part's names and shapes alone, or it is refused before the sum.
                now.buffer += Flat.over(own, codec.in_round(number).read(data, {}, own.wanted, own)).buffer
            got = now
        if keep or not codec.absolute:
            # Copied: views would keep all of the packet in memory, and it is not ours.
            got = {name: tensor.copy() for name, tensor in got.items()} if base is None else got
            state.replica |= got
            state.heard[part] = int(entry["round"])
        weights[part] = got
    return weights


def _base(entry: Mapping[str, Any], state: ClientState, own: FlatLayout, initial: Flat | None) -> Flat:
    """A copy of the replica that the changes of a part build on: the one kept, or the initial weights as drawn here."""
    part = str(entry["part"])
    if told := entry.get("drawn"):
        mine = None if initial is None else initial.part(part)
        if mine is None or drawn_hash(mine) != told:
            raise OtherDraw(
                f"draws other initial weights of the {part} than the server: it has to be sent them"
            )
        return mine.copy()
    if state.heard.get(part) != entry["base"]:
        raise StateLost(
            f"the replica of round {entry['base']} that the change of {part} builds on is not here"
        )
    return Flat.of(own, state.replica)


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
