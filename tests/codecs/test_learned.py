"""The codec that learns in which directions changes lie: its network, its packets, and what no honest sender would send."""

from __future__ import annotations

import struct
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from osmotic import models
from osmotic.codecs import BadPacket, make, subspaces
from osmotic.codecs.base import HEAD, contents_of, seal
from osmotic.codecs.learned import Learned
from osmotic.codecs.uniform import Int2, Int8
from osmotic.flat import Flat, FlatLayout

SHAPES = {"a.weight": (48, 32), "b.weight": (32, 16, 3, 3), "c.bias": (48,), "d.scale": (), "e.none": (0, 4)}
LAYOUT = FlatLayout(
    SHAPES,
    {"encoder": ["a.weight", "c.bias", "e.none"], "bottleneck": [], "decoder": ["b.weight", "d.scale"]},
)


def low_rank(seed: int, directions: int = 3, noise: float = 0.05) -> Flat:
    """A change whose two matrices lie mostly in a few directions, the same ones for every seed."""
    rng, fixed = np.random.default_rng(seed), np.random.default_rng(7)
    made = Flat(LAYOUT, (noise * rng.standard_normal(LAYOUT.size)).astype(np.float32))
    left, right = fixed.standard_normal((48, directions)), fixed.standard_normal((32, directions))
    made["a.weight"] += (left @ rng.standard_normal((directions, directions)) @ right.T).astype(np.float32)
    out, into = fixed.standard_normal((32, directions)), fixed.standard_normal((16, directions))
    taps = rng.standard_normal((directions, directions, 3, 3))
    made["b.weight"] += np.einsum("oa,abhw,ib->oihw", out, taps, into).astype(np.float32)
    return made


def server(**options: object) -> Learned:
    codec = make("learned", options={"learned": {"warmup": 1, "every": 2, **options}})
    assert isinstance(codec, Learned)
    codec.prepare(LAYOUT)
    return codec


def taught(**options: object) -> Learned:
    """A server's codec that has learned from four clients."""
    codec = server(**options)
    codec.learn({f"client-{k}": codec.observe(low_rank(k).named("model/")) for k in range(4)})
    assert codec.refresh(2) is not None
    return codec


def error(codec: Learned, change: Flat) -> float:
    got = codec.read(codec.encode(change, {}), {}, None, change.layout)
    assert isinstance(got, Flat)
    off = got.buffer.astype(np.float64) - change.buffer
    return float(off @ off / np.square(change.buffer, dtype=np.float64).sum())


def test_directions_are_completed_to_an_orthogonal_matrix_whose_first_columns_span_them():
    directions = np.random.default_rng(0).standard_normal((12, 5))
    q = subspaces.completed(directions)
    np.testing.assert_allclose(q.T @ q, np.eye(12), atol=1e-12)
    # What lies in the span of the five has nothing along the seven others.
    np.testing.assert_allclose(q[:, 5:].T @ directions, 0, atol=1e-12)
    assert np.array_equal(subspaces.completed(np.zeros((4, 0))), np.eye(4))


def test_turning_back_gives_the_change_again_and_keeps_its_length():
    net = subspaces.subspaces(LAYOUT, taught()._data)
    change = low_rank(9)
    turned = net.turned(change.buffer, LAYOUT)
    np.testing.assert_allclose(np.linalg.norm(turned), np.linalg.norm(change.buffer), rtol=1e-5)
    np.testing.assert_allclose(net.turned(turned, LAYOUT, back=True), change.buffer, atol=1e-4)
    assert not np.allclose(turned, change.buffer)


def test_moments_are_those_of_the_change_scaled_to_mean_square_one():
    # Two tensors of one column: [3, 4] and [0, 5]; mean square (9 + 16 + 0 + 25) / 4 = 12.5. Too small for directions: sums of squares alone.
    layout = FlatLayout.whole({"p": (2,), "q": (2,)})
    found = subspaces.moments({"p": np.array([3, 4], np.float32), "q": np.array([0, 5], np.float32)}, layout)
    assert {n: m.tolist() for n, m in found.items()} == {"p/2": [[2.0]], "q/2": [[2.0]]}
    big = subspaces.moments(dict(low_rank(0)), LAYOUT)
    assert (
        big["b.weight/0"].shape == (32, 32)
        and big["b.weight/1"].shape == (9, 9)
        and big["b.weight/2"].shape == (16, 16)
    )
    change = low_rank(0)
    power = np.mean(np.square(change.buffer, dtype=np.float64))
    np.testing.assert_allclose(
        big["a.weight/0"], change["a.weight"] @ change["a.weight"].T / power, rtol=1e-4, atol=1e-4
    )
    flat = change["b.weight"].transpose(2, 3, 0, 1).reshape(9, -1)  # a tap's number is its place, row by row
    np.testing.assert_allclose(big["b.weight/1"], flat @ flat.T / power, rtol=1e-4, atol=1e-4)
    assert subspaces.moments({"p": np.zeros(2, np.float32)}, layout) == {}


def test_what_lies_in_known_directions_is_coded_with_a_fraction_of_the_error():
    known, ignorant = taught(bits=0.5), server(bits=0.5)
    fresh = low_rank(100)  # of a seed that nothing was learned from
    assert error(known, fresh) < 0.25 * error(ignorant, fresh)


@pytest.mark.parametrize("bits", [0.1, 0.5, 2.0])
def test_a_packet_takes_about_the_bits_asked_for_and_never_more_than_its_bound(bits: float):
    codec = taught(bits=bits)
    layout_of_unet = models.resolve("unet-8", 8, 1, 0, 0.0)
    big = FlatLayout(models.layout(layout_of_unet), layout_of_unet.part_names())
    change = Flat(big, np.random.default_rng(0).standard_normal(big.size, np.float32))
    data = codec.encode(change, {})  # of a network that it was not told of: without directions
    assert 0.8 * bits <= 8 * len(data) / big.size <= 1.15 * bits
    assert len(data) <= codec.packet_bytes(big.wanted)


def test_all_that_is_meant_arrives_in_the_end_with_feedback():
    # No direction is out of reach, so the residual stays level, and the mean of n packets of one change is off by |residual| / n: from 30
    # to 60 packets it halves, and no more than a fifth is lost to a residual that still grows. A blind codec stays where it is.
    options = {"learned": {"bits": 0.25, "warmup": 1}}
    codec = make("learned", error_feedback=True, options=options)
    codec.prepare(LAYOUT)
    codec.adopt({"net": taught()._data})
    change, memory = Flat(LAYOUT, np.random.default_rng(3).standard_normal(LAYOUT.size, np.float32)), {}
    sent, off = np.zeros(LAYOUT.size), []
    for count in range(1, 61):
        got = codec.read(codec.encode(change, memory), {}, None, LAYOUT)
        sent += got.buffer  # type: ignore[attr-defined]
        off.append(np.linalg.norm(sent / count - change.buffer) / np.linalg.norm(change.buffer))
    assert off[59] <= 0.6 * off[29] < off[0]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.sampled_from(["a.weight", "b.weight", "c.bias", "d.scale"]), min_size=1, unique=True),
    st.sampled_from([0.0, 1e-38, 1e-6, 1.0, 1e30]),
    st.integers(0, 5),
)
def test_any_tensors_of_any_size_come_back_in_shape_and_finite(names: list[str], scale: float, seed: int):
    rng = np.random.default_rng(seed)
    sent = {n: (scale * rng.standard_normal(SHAPES[n])).astype(np.float32) for n in names}
    codec = taught()
    wanted = {n: ("float32", t.shape) for n, t in sent.items()}
    data = codec.encode(sent, {})
    got = codec.read(data, {}, wanted)
    assert list(got) == sorted(names) and all(got[n].shape == t.shape for n, t in sent.items())
    assert all(np.isfinite(t).all() for t in got.values()) and len(data) <= codec.packet_bytes(wanted)
    if scale == 0:
        assert not any(t.any() for t in got.values())


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 2.0**121])
def test_what_no_scale_can_hold_is_refused_by_name(bad: float):
    change = low_rank(0)
    change["b.weight"][0, 0, 0, 0] = bad
    with pytest.raises(ValueError, match=r"b\.weight: a value is not finite or too large"):
        taught().encode(change, {})


# --- warm-up, versions, what is kept ---


def test_the_first_rounds_travel_as_the_codec_of_the_warm_up():
    codec = server(warmup=3, warmup_codec="int2")
    assert [type(codec.in_round(r)) for r in (-1, 1, 3, 4)] == [Int2, Int2, Int2, Learned]
    assert codec.in_round(1).entropy and isinstance(server().in_round(1), Int8)  # type: ignore[attr-defined]


def test_the_network_is_the_same_in_any_order_of_replies_and_is_no_larger_than_allowed():
    replies = {f"client-{k}": low_rank(k).named("model/") for k in range(4)}
    nets = []
    for order in (sorted(replies), sorted(replies, reverse=True)):
        codec = server()
        codec.learn({name: codec.observe(replies[name]) for name in order})
        nets.append(codec.refresh(2)["net"])  # type: ignore[index]
    assert nets[0].tobytes() == nets[1].tobytes()
    most = subspaces.most_bytes(LAYOUT, 0.1)
    assert len(nets[0]) <= most and server().new_weights(2) == {"net": ("uint8", (most,))}
    # At most a tenth as many numbers as the network has weights: 48*32 + 32*16*9 + 48 + 1 = 6193.
    assert most == 1 + 3 * 4 + (48 + 1 + 32) + (32 + 9 + 16) + (1 + 1 + 48) + 3 + 619


def test_a_network_is_learned_anew_when_its_rounds_are_over_and_follows_changes_that_have_turned_away():
    codec = taught(bits=0.5)  # learned in round 2, every 2 rounds
    assert codec.refresh(3) is None and codec.new_weights(3) == {} and codec.new_weights(4)
    rng = np.random.default_rng(1)
    u, v = np.linalg.qr(rng.standard_normal((48, 48)))[0], np.linalg.qr(rng.standard_normal((32, 32)))[0]

    def turned(seed: int) -> Flat:
        made = low_rank(seed)
        made["a.weight"] = (u @ made["a.weight"] @ v).astype(np.float32)
        made["b.weight"][...] = 0
        return made

    before = error(codec, turned(200))
    for seed in range(60, 80):
        codec.learn({"client-0": codec.observe(turned(seed).named("model/"))})
    assert codec.refresh(4) is not None
    assert error(codec, turned(200)) < 0.5 * before


def test_a_packet_names_the_version_of_its_network_and_the_one_before_is_still_read():
    first, second = taught(), server()
    second.learn(
        {
            "c": second.observe(
                Flat(LAYOUT, np.random.default_rng(4).standard_normal(LAYOUT.size, np.float32)).named(
                    "model/"
                )
            )
        }
    )
    new = second.refresh(2)
    assert new is not None
    old_packet, client = first.encode(low_rank(1), {}), server()
    with pytest.raises(BadPacket, match=r"of version .* here is 00000000"):
        client.read(old_packet, {}, None, LAYOUT)
    state = client.kept({}, {"net": first._data})
    client.adopt(state)
    honest = client.read(old_packet, {}, None, LAYOUT)
    state = client.kept(state, new)
    client.adopt(state)
    assert np.array_equal(client.read(old_packet, {}, None, LAYOUT).buffer, honest.buffer)  # type: ignore[attr-defined]
    third = client.kept(state, {"net": taught(share=0.05)._data})
    client.adopt(third)
    with pytest.raises(BadPacket, match="of version"):
        client.read(old_packet, {}, None, LAYOUT)


def test_state_and_restore_give_the_same_packets_and_the_same_learning():
    codec, again = taught(), server()
    again.restore({n: t.copy() for n, t in codec.state().items()})
    change = low_rank(77)
    assert again.encode(change, {}) == codec.encode(change, {})
    for one in (codec, again):
        one.learn({"c": one.observe(low_rank(5).named("model/"))})
    assert {n: t.tobytes() for n, t in again.state().items()} == {
        n: t.tobytes() for n, t in codec.state().items()
    }


# --- packets that nobody honest sends ---


def parts(codec: Learned, change: Flat) -> bytes:
    return codec.encode(change, {})[HEAD.size :]


def test_a_cut_packet_is_bad_at_every_length():
    codec = taught()
    data = codec.encode(low_rank(3), {})
    for length in range(len(data)):
        with pytest.raises(BadPacket):
            codec.read(data[:length], {}, None, LAYOUT)
    # Sealed again: without its tables it is bad, with fewer words it may be other numbers, as of any liar.
    body = data[HEAD.size :]
    tables = len(body) - len(body) // 4 * 4 + 60
    for length in range(len(body)):
        try:
            codec.read(seal(codec, contents_of(LAYOUT), body[:length]), {}, None, LAYOUT)
        except BadPacket:
            continue
        assert length >= tables and (len(body) - length) % 4 == 0


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (struct.pack("<If", 0, float("nan")), "a scale is not in"),
        (struct.pack("<If", 0, float("inf")), "a scale is not in"),
        (struct.pack("<If", 0, -1.0), "a scale is not in"),
        (struct.pack("<If", 0, 1e38), "a scale is not in"),
        (struct.pack("<If", 0, 1.0) + b"\x80", "is above 127"),
        (struct.pack("<If", 0, 1.0) + b"\x02\x01", "too short for its tables"),
        (struct.pack("<If", 0, 1.0) + b"\x01\x01\x00\x80", "never occurs"),
        (struct.pack("<If", 0, 1.0) + b"\x00\x01", "no whole words"),
        (struct.pack("<If", 0, 1.0) + b"\x00" + b"\x01\x02\x03\x04" * 5, "more words than codes"),
        (struct.pack("<If", 0xDEADBEEF, 1.0) + b"\x00", "of version deadbeef"),
    ],
)
def test_what_nobody_could_have_written_is_refused_with_its_reason(body: bytes, reason: str):
    codec = server()  # that has learned nothing: one class, version 0
    with pytest.raises(BadPacket, match=reason):
        codec.read(seal(codec, contents_of(LAYOUT), body), {}, None, LAYOUT)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_altered_bytes_under_a_true_checksum_are_refused_or_read_as_numbers(data: st.DataObject):
    codec = taught()
    body = bytearray(parts(codec, low_rank(3)))
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            got = codec.read(seal(codec, contents_of(LAYOUT), bytes(body)), {}, None, LAYOUT)
        except BadPacket:
            return
    assert isinstance(got, Flat) and got.buffer.shape == (LAYOUT.size,)


@pytest.mark.parametrize("cut", [0, 1, 5, 40, 100])
def test_weights_of_the_network_that_are_none_are_refused(cut: int):
    data = taught()._data
    assert data is not None
    with pytest.raises(BadPacket):
        subspaces.Subspaces(LAYOUT, data[:cut])
    other = FlatLayout.whole({"a.weight": (48, 33)})
    with pytest.raises(BadPacket):
        subspaces.Subspaces(other, data)
