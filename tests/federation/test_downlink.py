"""The way down: full weights or one stream of changes, and a replica that is the same bits on both ends."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest

from osmotic.codecs import BadPacket, make
from osmotic.federation.downlink import DownLink, receive
from osmotic.federation.memory import ClientState
from osmotic.flat import Flat, FlatLayout
from osmotic.storage.store import StateLost

SHAPES = {"conv.weight": (16, 40), "conv.bias": (16,), "out.weight": (8, 30)}
NAMES = {"encoder": ["conv.bias", "conv.weight"], "decoder": ["out.weight"]}
LAYOUT = FlatLayout(SHAPES, NAMES)
PARTS = ("encoder", "decoder")
Weights = dict[str, np.ndarray]


def weights(server_round: int) -> Weights:
    """The global weights of a round, walking on from round to round."""
    total = {n: np.zeros(s, np.float32) for n, s in SHAPES.items()}
    for r in range(server_round + 1):
        rng = np.random.default_rng(r)
        total = {n: t + rng.normal(size=t.shape).astype(np.float32) for n, t in total.items()}
    return total


def flat(server_round: int) -> Flat:
    return Flat.of(LAYOUT, weights(server_round))


OPTIONS = {"int4": {"clip": "max"}, "int2": {"clip": "max"}}


class Listener:
    """A client's end."""

    def __init__(self, name: str, codec: str, **options: object) -> None:
        self.name, self.codec, self.state = name, make(codec, options={codec: options}), ClientState()

    def hear(self, link: DownLink, server_round: int, parts: tuple[str, ...] = PARTS) -> Weights:
        entries, blobs = link.message(self.name, parts, server_round, flat(server_round))
        got = receive(json.loads(json.dumps(entries)), blobs, self.codec, self.state, LAYOUT)
        return {name: tensor for part in got.values() for name, tensor in part.items()}


def same(one: Weights, other: Weights) -> bool:
    return one.keys() == other.keys() and all(one[n].tobytes() == other[n].tobytes() for n in one)


def replica(link: DownLink, parts: tuple[str, ...] = PARTS) -> Weights:
    return {n: t for part in parts for n, t in link.streams[part].replica.items()}


def test_fp32_sends_the_weights_themselves_and_keeps_nothing():
    link, client = DownLink(make("fp32"), LAYOUT), Listener("a", "fp32")
    for r in (1, 2, 3):
        assert same(client.hear(link, r), weights(r))
        link.commit({"a": PARTS}, r)
    assert client.state.tensors() == {}
    assert link.heard == {}
    assert link.state()[0] == {}


def test_fp32_sends_only_the_parts_asked_for():
    link, client = DownLink(make("fp32"), LAYOUT), Listener("a", "fp32")
    assert sorted(client.hear(link, 1, ("decoder",))) == ["out.weight"]


@pytest.mark.parametrize("codec", ["fp16", "int8", "int4", "int2", "sparse"])
def test_the_replica_is_the_same_bits_on_both_ends_whatever_was_missed(codec: str):
    link = DownLink(make(codec), LAYOUT)
    clients = {name: Listener(name, codec) for name in "abc"}
    # a hears every round, b misses 2 and 3, c comes in round 3 for the first time and misses 4.
    present = {1: "ab", 2: "a", 3: "ac", 4: "ab", 5: "abc"}
    for r, names in present.items():
        heard = [clients[n].hear(link, r) for n in names]
        link.commit({n: PARTS for n in names}, r)
        assert all(same(h, replica(link)) for h in heard)


@pytest.mark.parametrize(
    ("codec", "share"),
    # Of a channel's peak. A scale is up to 4.4 % larger than need be, its tensor's base up to 0.8 %.
    [("fp16", 2.0**-11), ("int8", 0.5 / 127 * 1.053), ("int4", 0.5 / 7 * 1.053), ("int2", 0.5 / 1.5 * 1.053)],
)
def test_what_a_packet_loses_goes_out_with_the_next_one(codec: str, share: float):
    # The error is that of the newest change alone, and of the error before it: it does not grow with the rounds.
    options = OPTIONS.get(codec, {})
    link, client = DownLink(make(codec, options={codec: options}), LAYOUT), Listener("a", codec, **options)
    for r in range(1, 9):
        client.hear(link, r)
        link.commit({"a": PARTS}, r)
        if r > 1:
            step = max(np.abs(weights(r)[n] - weights(r - 1)[n]).max() for n in SHAPES) * 1.1
            off = max(np.abs(replica(link)[n] - weights(r)[n]).max() for n in SHAPES)
            assert 0 < off <= step * share / (1 - share)


def test_what_sparse_leaves_out_of_a_packet_goes_out_with_later_ones():
    link = DownLink(make("sparse", options={"sparse": {"density": 0.25}}), LAYOUT)
    client, off = Listener("a", "sparse", density=0.25), []
    for r in range(1, 14):
        now = weights(min(r, 2))  # moves once, and then stands still
        entries, blobs = link.message("a", PARTS, r, Flat.of(LAYOUT, now))
        receive(json.loads(json.dumps(entries)), blobs, client.codec, client.state, LAYOUT)
        link.commit({"a": PARTS}, r)
        off.append(max(float(np.abs(client.state.replica[n] - now[n]).max()) for n in SHAPES))
    assert off[0] == 0 and off[1] > 1 and off[-1] < off[1] / 10


@pytest.mark.parametrize("codec", ["fp32", "fp16", "int4"])
def test_the_server_knows_what_a_client_has_got_in_the_phase_under_way(codec: str):
    link, client = DownLink(make(codec), LAYOUT), Listener("a", codec)
    for r in (1, 2, 3):
        got = client.hear(link, r)
        assert same(dict(link.received(PARTS, flat(r))), got)
        assert same(dict(link.received(("decoder",), flat(r))), {"out.weight": got["out.weight"]})
        link.commit({"a": PARTS}, r)
        assert same(dict(link.received(PARTS, flat(r))), got), "and after it counted"


def test_first_contact_is_the_full_replica_in_fp32():
    link, first, late = DownLink(make("int8"), LAYOUT), Listener("a", "int8"), Listener("b", "int8")
    assert same(first.hear(link, 1), weights(1))
    link.commit({"a": PARTS}, 1)
    first.hear(link, 2)
    entries, blobs = link.message("b", PARTS, 2, flat(2))
    assert [e["base"] for e in entries] == [None, None]
    full = make("fp32")
    assert [len(b) for b in blobs] == [
        full.packet_bytes({n: ("float32", SHAPES[n]) for n in NAMES[p]}) for p in PARTS
    ]
    got = late.hear(link, 2)
    link.commit({"a": PARTS, "b": PARTS}, 2)
    assert same(got, replica(link))
    assert not same(got, weights(2))


def test_missed_packets_are_sent_as_long_as_they_are_the_smaller_choice():
    link, a, b = DownLink(make("int8"), LAYOUT), Listener("a", "int8"), Listener("b", "int8")
    for client in (a, b):
        client.hear(link, 1)
    link.commit({"a": PARTS, "b": PARTS}, 1)
    # Decoder: 8 x 30. A change is 250 bytes and a head of 19, the full replica 960 and one of 64.
    sizes = {p: make("int8").packet_bytes({n: ("float32", SHAPES[n]) for n in NAMES[p]}) for p in PARTS}
    full = make("fp32").packet_bytes({"out.weight": ("float32", (8, 30))})
    for r in range(2, 8):
        a.hear(link, r)
        entries, blobs = link.message("b", ("decoder",), r, weights(r))
        missed = (r - 1) * sizes["decoder"]
        assert entries[0]["base"] == (1 if missed <= full else None)
        assert sum(map(len, blobs)) == min(missed, full)
        assert entries[0]["blobs"] == len(blobs) == (r - 1 if missed <= full else 1)
        link.commit({"a": PARTS}, r)
    assert same(b.hear(link, 8), a.hear(link, 8))


def test_a_chain_that_outweighs_the_full_replica_is_cut_from_its_old_end():
    link, a = DownLink(make("int8"), LAYOUT), Listener("a", "int8")
    for r in range(1, 30):
        a.hear(link, r)
        link.commit({"a": PARTS}, r)
    for part in PARTS:
        chain = link.streams[part].chain
        full = make("fp32").packet_bytes({n: ("float32", SHAPES[n]) for n in NAMES[part]})
        total = sum(len(data) for _, _, data, _ in chain)
        assert total <= full < total + 2 * len(chain[0][2])
        assert chain[-1][:2] == (28, 29)
        assert all(end == start for (_, end, *_), (start, *_) in itertools.pairwise(chain))


def test_a_part_is_coded_once_per_round_however_many_clients_hear_it():
    calls = []

    class Counting(type(make("int8"))):  # type: ignore[misc]
        def encode(self, tensors, memory, rng=None):  # type: ignore[no-untyped-def]
            calls.append(sorted(tensors))
            return super().encode(tensors, memory, rng)

    link = DownLink(Counting(), LAYOUT)
    clients = [Listener(n, "int8") for n in "abcd"]
    for r in (1, 2):
        for client in clients:
            client.hear(link, r)
        link.commit({c.name: PARTS for c in clients}, r)
    assert calls == [NAMES["encoder"], NAMES["decoder"]]


def saved(link: DownLink) -> tuple[dict[str, bytes], str]:
    tensors, notes = link.state()
    return {n: t.tobytes() for n, t in tensors.items()}, json.dumps(notes, sort_keys=True)


def test_an_abandoned_round_leaves_no_trace_and_is_repeated_bit_for_bit():
    link, a = DownLink(make("int8"), LAYOUT), Listener("a", "int8")
    for r in (1, 2):
        a.hear(link, r)
        link.commit({"a": PARTS}, r)
    before = saved(link)
    first = link.message("a", PARTS, 3, flat(3))
    link.abandon()
    assert saved(link) == before
    assert link.message("a", PARTS, 3, flat(3)) == first
    link.abandon()
    # Another round's weights must not meet what the abandoned one had coded.
    assert link.message("a", PARTS, 4, flat(4)) != first


def test_a_client_that_was_not_counted_is_brought_on_from_where_it_was():
    link, a, b = DownLink(make("int8"), LAYOUT), Listener("a", "int8"), Listener("b", "int8")
    for client in (a, b):
        client.hear(link, 1)
    link.commit({"a": PARTS, "b": PARTS}, 1)
    kept = b.state.tensors()
    a.hear(link, 2)
    b.hear(link, 2)
    link.commit({"a": PARTS}, 2)
    b.state = ClientState.of(kept)  # its reply was refused, so it starts from its state of round 1
    assert same(a.hear(link, 3), b.hear(link, 3))


def test_parts_have_streams_of_their_own():
    link, a, b = DownLink(make("int8"), LAYOUT), Listener("a", "int8"), Listener("b", "int8")
    a.hear(link, 1)
    b.hear(link, 1, ("encoder",))
    link.commit({"a": PARTS, "b": ("encoder",)}, 1)
    b.hear(link, 2, ("encoder",))
    link.commit({"b": ("encoder",)}, 2)
    assert link.heard == {"a": {"encoder": 1, "decoder": 1}, "b": {"encoder": 2}}
    assert (link.streams["encoder"].round, link.streams["decoder"].round) == (2, 1)
    got = [c.hear(link, 3) for c in (a, b)]
    link.commit({"a": PARTS, "b": PARTS}, 3)
    assert all(same(g, replica(link)) for g in got)


def test_a_restored_link_goes_on_as_the_one_that_was_saved():
    link, a = DownLink(make("int8"), LAYOUT), Listener("a", "int8")
    for r in (-1, 1, 2):
        a.hear(link, r)
        link.commit({"a": PARTS}, r)
    tensors, notes = link.state()
    other = DownLink(make("int8"), LAYOUT)
    other.restore(tensors, json.loads(json.dumps(notes)))
    assert saved(other) == saved(link)
    for client in ("a", "new"):
        assert link.message(client, PARTS, 3, flat(3)) == other.message(client, PARTS, 3, flat(3))


def test_restoring_forgets_the_round_under_way():
    link, a = DownLink(make("int8"), LAYOUT), Listener("a", "int8")
    a.hear(link, 1)
    link.commit({"a": PARTS}, 1)
    tensors, notes = link.state()
    first = link.message("a", PARTS, 2, flat(2))
    link.restore(tensors, notes)
    assert link.message("a", PARTS, 3, flat(3)) != first


def test_a_change_without_its_replica_is_told():
    link, a = DownLink(make("int8"), LAYOUT), Listener("a", "int8")
    a.hear(link, 1)
    link.commit({"a": PARTS}, 1)
    a.state = ClientState()
    with pytest.raises(StateLost, match="replica of round 1"):
        a.hear(link, 2)


@pytest.mark.parametrize("base", [None, 1])
@pytest.mark.parametrize("sent", [{"out.weight": (8, 30), "e": (0,)}, {"e": (0,)}, {"conv.bias": (16,)}, {}])
def test_a_part_comes_with_all_of_its_tensors_and_no_others(
    base: int | None, sent: dict[str, tuple[int, ...]]
):
    state = ClientState(replica={n: np.zeros(s, np.float32) for n, s in SHAPES.items()}, heard={"decoder": 1})
    codec = make("int8")
    data = (make("fp32") if base is None else codec).encode(
        {n: np.zeros(s, np.float32) for n, s in sent.items()}, {}
    )
    with pytest.raises(
        BadPacket, match=r"are more than the \d+ of what|holds other tensors than were asked for"
    ):
        receive([entry(base)], [data], codec, state, LAYOUT)
    with pytest.raises(BadPacket, match="is no part of the network"):
        receive([{**entry(base), "part": "tail"}], [data], codec, state, LAYOUT)


def test_packets_of_a_form_that_is_read_no_more_are_replaced_by_the_full_replica():
    link, a, b = DownLink(make("int8"), LAYOUT), Listener("a", "int8"), Listener("b", "int8")
    for r in (1, 2, 3):
        a.hear(link, r)
        if r == 1:
            b.hear(link, r)
        link.commit({"a": PARTS} | ({"b": PARTS} if r == 1 else {}), r)
    tensors, notes = link.state()
    chains = [name for name in tensors if "/chain/" in name]
    assert len(chains) == 4 and all(tensors[name].tobytes().startswith(b"OSM3") for name in chains)
    older = dict(tensors)
    for name in chains:
        older[name] = np.frombuffer(b"OSM2" + tensors[name].tobytes()[4:], np.uint8)
    del notes["draws_otherwise"]  # a word that an earlier version did not write, as the next one
    for stream in notes["streams"].values():
        del stream["origin"]
    for found, kept in ((tensors, True), (older, False)):
        again, listener = DownLink(make("int8"), LAYOUT), Listener("b", "int8")
        listener.state = ClientState.of(b.state.tensors())
        again.restore(found, notes)
        assert bool(again.streams["decoder"].chain) is kept
        got = listener.hear(again, 4)
        assert same(got, replica_of_next(again)), (
            "what it hears is the server's replica, whichever way it came"
        )


def replica_of_next(link: DownLink) -> Weights:
    return {n: t for stream in link._next.values() for n, t in stream.replica.items()}


def entry(base: int | None) -> dict[str, object]:
    return {"part": "decoder", "base": base, "round": 2, "rounds": [2], "blobs": 1}


@pytest.mark.parametrize("bad", [{"other": (8, 30)}, {"out.weight": (30, 8)}, {"out.weight": (1, 30)}])
def test_full_weights_that_the_network_does_not_have_are_refused(bad: dict[str, tuple[int, ...]]):
    data = make("fp32").encode({n: np.zeros(s, np.float32) for n, s in bad.items()}, {})
    with pytest.raises(
        BadPacket, match=r"are more than the \d+ of what|holds other tensors than were asked for"
    ):
        receive([entry(None)], [data], make("int8"), ClientState(), LAYOUT)


@pytest.mark.parametrize("bad", [{"other": (8, 30)}, {"out.weight": (1, 30)}, {"out.weight": (30,)}])
def test_a_change_that_the_network_does_not_have_is_refused(bad: dict[str, tuple[int, ...]]):
    state = ClientState(replica={"out.weight": np.zeros((8, 30), np.float32)}, heard={"decoder": 1})
    data = make("int8").encode({n: np.zeros(s, np.float32) for n, s in bad.items()}, {})
    with pytest.raises(
        BadPacket, match=r"are more than the \d+ of what|holds other tensors than were asked for"
    ):
        receive([entry(1)], [data], make("int8"), state, LAYOUT)
