"""The way up, server end: what a phase brings counts as a whole or leaves no trace, and a checkpoint holds all of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from seam_methods import TrainedCodec

from osmotic.codecs import EXACT, BadPacket, Codec, described, make
from osmotic.federation.uplink import UpLink
from osmotic.protocol.gate import Expectation
from osmotic.protocol.messages import Packet, Spec
from osmotic.tensors import Tensors

CHANGES = {"model/w": Spec((2, 3), wire="codec"), "model/b": Spec((3,), wire="codec")}
EXTRAS = {"piece/exact": Spec((2, 2)), "piece/coded": Spec((2, 2), wire="codec")}


def expecting(changes: Mapping[str, Spec] = CHANGES, extras: Mapping[str, Spec] = {}) -> Expectation:
    return Expectation(changes, extras, 10, 8.0, 1, 10)


def tensors(seed: int, specs: Mapping[str, Spec] = CHANGES) -> Tensors:
    rng = np.random.default_rng(seed)
    return {n: rng.normal(size=s.shape).astype(np.float32) for n, s in specs.items()}  # type: ignore[arg-type]


class Sender:
    """A client's end: it adopts the codec's weights that it is sent, and keeps its memory only of steps that count."""

    def __init__(self, name: str, codec: Codec) -> None:
        self.name, self.codec, self.memory = name, codec, Tensors()

    def answer(self, link: UpLink, change: Tensors) -> tuple[Packet, Tensors]:
        """The packet, and the memory that is kept if it counts."""
        extras = link.extras(self.name)
        if extras:
            self.codec.adopt({n.removeprefix("codec/"): t for n, t in extras.items()})
        memory = {n: t.copy() for n, t in self.memory.items()}
        return Packet({}, (self.codec.encode(change, memory),)), memory


def one_round(link: UpLink, number: int, senders: list[Sender], counts: bool = True, order: int = 1) -> None:
    """A phase of these senders; whoever is in it counts, or nobody does."""
    link.begin(number, refresh=True)
    kept = {}
    for sender in senders[::order]:
        change = tensors(100 * number + int(sender.name[-1]))
        packet, kept[sender.name] = sender.answer(link, change)
        got = link.decode(sender.name, packet, expecting())
        # Adding and taking away half of the last packet rounds at its size, below 64; so does the scale's product.
        assert all(np.allclose(got[n], t, rtol=0, atol=64 * 2.0**-22) for n, t in change.items())
        link.observe(sender.name, got)
    if not counts:
        link.abandon()
        return
    link.commit(sender.name for sender in senders[::order])
    for sender in senders:
        sender.memory = kept[sender.name]


def saved(link: UpLink) -> tuple[dict[str, bytes], str]:
    held, notes = link.state()
    return {n: t.tobytes() for n, t in held.items()}, json.dumps(notes, sort_keys=True)


def senders(count: int = 3) -> list[Sender]:
    return [Sender(f"client-00{i}", TrainedCodec()) for i in range(count)]


# --- reading a reply ---


@pytest.mark.parametrize("codec", ["fp32", "fp16", "int8", "int4", "int2", "sparse"])
def test_what_is_coded_comes_first_and_what_is_exact_after_it(codec: str) -> None:
    expected = expecting(extras=EXTRAS)
    coded, exact = tensors(0, expected.coded), tensors(1, expected.exact)
    packet = Packet({}, (make(codec).encode(coded, {}), described.encode(exact)))
    got = UpLink(make(codec)).decode("a", packet, expected)
    assert set(got) == {*CHANGES, *EXTRAS}
    assert got["piece/exact"].tobytes() == exact["piece/exact"].tobytes()
    assert np.array_equal(got["piece/coded"], coded["piece/coded"]) == (codec == "fp32")


@pytest.mark.parametrize(
    ("changes", "extras", "blobs"),
    [(CHANGES, {}, 1), ({}, {"x": EXTRAS["piece/exact"]}, 1), (CHANGES, EXTRAS, 2), ({}, {}, 0)],
)
def test_there_are_as_many_blobs_as_kinds_of_tensors_asked_for(
    changes: dict[str, Spec], extras: dict[str, Spec], blobs: int
) -> None:
    expected = expecting(changes, extras)
    parts = [EXACT.encode(tensors(0, expected.coded), {})] if expected.coded else []
    parts += [described.encode(tensors(0, expected.exact))] if expected.exact else []
    assert len(parts) == blobs
    assert set(UpLink(make("fp32")).decode("a", Packet({}, tuple(parts)), expected)) == {*changes, *extras}
    for wrong in (parts[:-1], [*parts, parts[0] if parts else b""]):
        if len(wrong) != blobs:
            with pytest.raises(BadPacket, match=f"holds {len(wrong)} blobs, not {blobs}"):
                UpLink(make("fp32")).decode("a", Packet({}, tuple(wrong)), expected)


@pytest.mark.parametrize("size", [0, 1, 12])
@pytest.mark.parametrize("beside", [True, False])
def test_a_second_blob_cannot_overwrite_a_tensor_of_the_first(size: int, beside: bool) -> None:
    exact = {"model/w": np.full(size, 7, np.float32)}
    if beside:
        exact |= tensors(1, {"x": EXTRAS["piece/exact"]})
    packet = Packet({}, (EXACT.encode(tensors(0), {}), described.encode(exact)))
    for extras in ({"x": EXTRAS["piece/exact"]}, {"x": Spec((None, None))}):
        with pytest.raises(BadPacket, match=r"more than the|missing|was not asked for|does not fit"):
            UpLink(make("fp32")).decode("a", packet, expecting(extras=extras))


def test_a_blob_of_one_form_is_refused_in_the_place_of_the_other() -> None:
    expected = expecting(extras={"x": EXTRAS["piece/exact"]})
    coded, exact = tensors(0), tensors(1, {"x": EXTRAS["piece/exact"]})
    right = EXACT.encode(coded, {}), described.encode(exact)
    assert set(UpLink(make("fp32")).decode("a", Packet({}, right), expected)) == {*CHANGES, "x"}
    for wrong in ((described.encode(coded), right[1]), (right[0], EXACT.encode(exact, {})), right[::-1]):
        with pytest.raises(BadPacket, match=r"more than the|not start like a packet"):
            UpLink(make("fp32")).decode("a", Packet({}, wrong), expected)


def test_what_is_coded_has_no_open_axis() -> None:
    with pytest.raises(ValueError, match="has an open axis, so it must travel exact"):
        Spec((3, None), wire="codec")
    assert Spec((3, None)).shape == (3, None)


def test_in_a_round_of_flushing_the_packet_must_be_the_int8_of_it() -> None:
    link, client = UpLink(make("int4", flush=3)), make("int4", True, flush=3)
    change, packets = tensors(0), {}
    for number in (1, 2, 3, 4, 6):
        packet = Packet({}, (client.in_round(number).encode(change, {}),))
        packets[number] = packet
        got = link.decode("a", packet, expecting(), number)
        own = make("int8" if number % 3 == 0 else "int4")
        again = dict(own.decode(own.encode(change, {}), {}, expecting().wanted_coded))
        assert all(got[n].tobytes() == again[n].tobytes() for n in again)
    for number, other in ((3, 2), (2, 3)):
        with pytest.raises(BadPacket, match=r"is coded with|more than the"):
            link.decode("a", packets[other], expecting(), number)


def test_a_torn_blob_is_refused_and_remembered_of_nobody() -> None:
    link, sender = UpLink(TrainedCodec()), senders(1)[0]
    link.begin(1, refresh=True)
    packet, _ = sender.answer(link, tensors(0))
    with pytest.raises(BadPacket):
        link.decode("client-000", Packet({}, (packet.blobs[0][:-1],)), expecting())
    link.commit([])
    assert link.memory == {} and link.heard == {}


# --- a codec that remembers, and is itself trained ---


def test_its_weights_are_sent_to_those_who_do_not_have_them() -> None:
    link, (a, b, c) = UpLink(TrainedCodec()), senders()
    one_round(link, 1, [a, b])
    assert link.version is None and link.extras("client-000") == {}, "of round 1 on there are none"
    link.begin(2, refresh=True)
    assert set(link.extras("client-000")) == {"codec/scale"}
    link.abandon()
    one_round(link, 2, [a, b])
    assert (link.version, link.heard) == (2, {"client-000": 2, "client-001": 2})
    link.begin(3, refresh=False)  # a phase in which clients only sample
    assert link.extras("client-000") == {} and set(link.extras("client-002")) == {"codec/scale"}
    link.abandon()
    one_round(link, 4, [b, c])
    assert link.heard == {"client-000": 2, "client-001": 4, "client-002": 4}
    link.begin(5, refresh=False)
    assert [bool(link.extras(s.name)) for s in (a, b, c)] == [True, False, False]


def test_weights_come_with_the_round_in_which_they_were_new() -> None:
    link, some = UpLink(TrainedCodec()), senders()
    assert link.begin(1, refresh=True) == ({}, 0)
    link.commit([])
    weights, version = link.begin(2, refresh=True)
    assert set(weights) == {"scale"} and version == 2
    link.commit([s.name for s in some])
    again, version = link.begin(3, refresh=False)
    assert again is weights and version == 2


def test_a_codec_that_is_not_to_be_renewed_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(TrainedCodec, "refresh", lambda self, number, rng: asked.append(number))
    link = UpLink(TrainedCodec())
    link.begin(2, refresh=False)
    link.begin(3, refresh=True)
    assert asked == [3]


def test_it_trains_on_a_stream_of_its_own_that_a_repeated_phase_draws_again() -> None:
    drawn: list[float] = []

    class Drawing(TrainedCodec):
        def refresh(self, server_round: int, rng: Any = None) -> None:
            drawn.append(float(rng.random()))

    for seed, number in ((0, 3), (0, 3), (0, 4), (1, 3), (0, -3)):
        UpLink(Drawing(), seed).begin(number, refresh=True)
    assert drawn[0] == drawn[1] and len(set(drawn)) == 4


def test_it_learns_from_what_counts_once_and_sorted_by_name() -> None:
    link, some = UpLink(TrainedCodec()), senders()
    turned, others = UpLink(TrainedCodec()), senders()
    learnt: list[list[str]] = []
    for codec in (link.codec, turned.codec):
        learn = codec.learn
        codec.learn = lambda observed, learn=learn: (learnt.append(list(observed)), learn(observed))  # type: ignore[method-assign,assignment,misc]
    one_round(link, 1, some)
    one_round(turned, 1, others, order=-1)
    assert learnt == [["client-000", "client-001", "client-002"]] * 2
    assert link.codec.seen == 3 and saved(link) == saved(turned)  # type: ignore[attr-defined]


def test_what_was_seen_of_clients_that_do_not_count_is_dropped() -> None:
    link, some = UpLink(TrainedCodec()), senders()
    link.begin(2, refresh=True)
    for sender in some:
        packet, _ = sender.answer(link, tensors(0))
        link.observe(sender.name, link.decode(sender.name, packet, expecting()))
    link.commit(["client-001"])
    assert link.codec.seen == 1 and set(link.memory) == set(link.heard) == {"client-001"}  # type: ignore[attr-defined]
    # And nothing of it is left for the next phase to count.
    link.begin(3, refresh=True)
    link.commit(["client-000", "client-002"])
    assert link.codec.seen == 1 and set(link.memory) == {"client-001"}  # type: ignore[attr-defined]


def test_an_abandoned_phase_leaves_no_trace_and_is_repeated_bit_for_bit() -> None:
    link, some = UpLink(TrainedCodec()), senders()
    for number in (1, 2):
        one_round(link, number, some)
    before = saved(link)
    twice = senders()
    for sender, other in zip(some, twice, strict=True):
        other.codec.restore(sender.codec.state())
        other.memory = dict(sender.memory)
    one_round(link, 3, some, counts=False)
    assert saved(link) == before
    one_round(link, 3, some)
    unbroken = UpLink(TrainedCodec())
    fresh = senders()
    for number in (1, 2, 3):
        one_round(unbroken, number, fresh)
    assert saved(link) == saved(unbroken) != before


def test_a_decoded_reply_does_not_move_the_memory_until_it_counts() -> None:
    link, some = UpLink(TrainedCodec()), senders(1)
    one_round(link, 1, some)
    held = {n: t.copy() for n, t in link.memory["client-000"].items()}
    link.begin(2, refresh=False)
    packet, _ = some[0].answer(link, tensors(5))
    first = link.decode("client-000", packet, expecting())
    again = link.decode("client-000", packet, expecting())
    assert all(np.array_equal(first[n], again[n]) for n in first)
    assert all(np.array_equal(link.memory["client-000"][n], t) for n, t in held.items())


# --- the checkpoint ---


def test_the_names_in_the_checkpoint_are_a_contract() -> None:
    link, some = UpLink(TrainedCodec()), senders(2)
    for number in (1, 2):
        one_round(link, number, some)
    held, notes = link.state()
    memory = {f"codec_memory/{s.name}/model/{n}" for s in some for n in "wb"}
    state = {f"codec/{n}" for n in ("scale", "seen", "renewed", "peak")}
    assert set(held) == {"codec_weights/scale", *state, *memory}
    assert notes == {"codec_round": 2, "codec_heard": {"client-000": 2, "client-001": 2}}


def test_a_restored_link_goes_on_as_the_one_that_was_saved() -> None:
    link, some = UpLink(TrainedCodec(), seed=3), senders()
    for number in (1, 2):
        one_round(link, number, some[:2])
    held, notes = link.state()
    other, twins = UpLink(TrainedCodec(), seed=3), senders()
    other.begin(9, refresh=True)  # a phase under way is forgotten
    other.restore(held, json.loads(json.dumps(notes)))
    assert saved(other) == saved(link)
    assert other.extras("client-000") == {} and set(other.extras("client-002")) == {"codec/scale"}
    for sender, twin in zip(some, twins, strict=True):
        twin.codec.restore(sender.codec.state())
        twin.memory = dict(sender.memory)
    for number in (3, 4):
        one_round(link, number, some)
        one_round(other, number, twins)
    assert saved(other) == saved(link)


def test_a_codec_without_memory_leaves_nothing_in_the_checkpoint() -> None:
    link = UpLink(make("int8"))
    link.begin(1, refresh=True)
    change = tensors(0)
    link.observe("a", link.decode("a", Packet({}, (make("int8").encode(change, {}),)), expecting()))
    link.commit(["a"])
    assert link.state() == ({}, {"codec_round": None, "codec_heard": {}})
