"""The contract of all codecs: what arrives, how long packets are, and that nothing else than a whole packet is read."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from codec_packets import (
    HEAD_BYTES,
    KINDS,
    drawn,
    forged,
    head,
    heard,
    layout_of,
    of_kind,
    specs,
    through,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from xxhash import xxh3_64

from osmotic.codecs import CODECS, BadPacket, Codec, ErrorFeedback, make, of
from osmotic.codecs import base as codec_base
from osmotic.codecs.base import Entry, contents
from osmotic.config.schema import CodecConfig
from osmotic.flat import Flat, FlatLayout
from osmotic.protocol.messages import Spec

kinds = pytest.mark.parametrize("kind", KINDS)
table = pytest.mark.parametrize("feedback", [False, True], ids=["plain", "feedback"])


@pytest.fixture(autouse=True)
def no_warnings() -> Iterator[None]:
    """A sum that overflows or a division by zero must not be told to the user as a warning of numpy."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        yield


def example(seed: int = 0) -> dict[str, np.ndarray]:
    """A kernel, a matrix, a matrix of one channel, a vector, a scalar, empty tensors, and payloads that are no floats."""
    rng = np.random.default_rng(seed)
    return {
        "model/conv.weight": rng.normal(size=(4, 3, 2, 2)).astype(np.float32),
        "model/linear.weight": (1e-3 * rng.normal(size=(5, 7))).astype(np.float32),
        "model/one.weight": rng.normal(size=(1, 3)).astype(np.float32),
        "model/bias": rng.normal(size=5).astype(np.float32),
        "model/scalar": np.array(0.75, np.float32),
        "model/empty": np.zeros((0, 3), np.float32),
        "model/hollow": np.zeros((3, 0), np.float32),
        "image/samples": rng.integers(0, 256, (2, 4, 4, 1)).astype(np.uint8),
        "control/steps": np.array([-1, 2**31], np.int64),
        "control/ids": np.array([[3, -4]], np.int32),
        "control/signs": np.array([[-128], [127]], np.int8),
        "control/half": np.array([1.5, -2.0], np.float16),
    }


SMALL = {
    "b": np.array([1.0, -2.0, 0.5], np.float32),
    "n": np.array([7], np.int64),
    "w": np.array([[1.0, 2, 3], [0, 0.5, -3]], np.float32),
}
LAYOUT = layout_of("unet-8")


def bound(kind: str, tensor: np.ndarray, row_peak: float) -> np.ndarray:
    """Largest error that a codec may make of each number of a tensor [...], from its definition.

    Args:
        row_peak: largest number of all float32 tensors of the packet, which must be one chunk for `sparse`.
    """
    x = np.abs(tensor.astype(np.float64))
    name = kind.split()[0]
    if name == "fp32" or not tensor.size:
        return np.zeros(tensor.shape)
    if name == "fp16":  # 11 significant bits, steps of 2^-24 near zero
        return np.maximum(x * 2.0**-11, 2.0**-25)
    if name == "sparse":
        # What is not sent is off by itself. What is sent has its sign, and no more than a mean of numbers of its chunk, the scale
        # rounded up by a step of 2^(1/16), each of base and magnitude by 2^-7.
        return np.full(tensor.shape, row_peak * 2 ** (1 / 16) * (1 + 2.0**-7) ** 2)
    matrix = tensor.ndim >= 2
    levels = {"int8": 127, "int4": 7, "int2": 1.5}[name] if matrix else 127
    peak = x.reshape(len(tensor), -1).max(1) if matrix else x.max(keepdims=True).reshape(-1)
    # The scale of a channel is at most a step of 2^(1/16) too large, after a base at most 2^-7 too large; but none is below 254
    # steps under its tensor's base. A tensor that needs less than 2^-100 is zero: off by its peak, below `levels` times that.
    step = np.maximum(peak * 2 ** (1 / 16), peak.max() * 2 ** (-254 / 16)) * (1 + 2.0**-7) / levels
    half = step * (1 if "stochastic" in kind else 0.5)
    if matrix and name != "int8" and kind.split()[-1] not in ("max", "stochastic"):
        # A scale by least squared error may be as small as 2^-1.5 of what the peak needs: the peak is clipped to that.
        half = np.maximum(half, peak * (1 - 2**-1.5))
    most = np.maximum(half * (1 + 2.0**-20), np.where(peak.max() < levels * 2.0**-99, peak, 0))
    return np.broadcast_to(
        most.reshape(-1, *[1] * (tensor.ndim - 1)) if matrix else most, tensor.shape or (1,)
    )


def within(kind: str, sent: dict[str, np.ndarray], got: dict[str, np.ndarray]) -> None:
    floats = [t for t in sent.values() if t.dtype == np.float32 and t.size]
    row_peak = max((float(np.abs(t).max()) for t in floats), default=0.0)
    for name, tensor in sent.items():
        if tensor.dtype == np.float32:
            off = np.abs(got[name].astype(np.float64) - tensor)
            assert np.all(off <= bound(kind, tensor, row_peak).reshape(tensor.shape)), name
        else:
            assert np.array_equal(got[name], tensor), name


# --- what arrives ---


@kinds
@table
def test_names_shapes_and_dtypes_come_back_in_sorted_order(kind: str, feedback: bool) -> None:
    sent = example()
    turned = dict(reversed(specs(sent).items()))
    codec = of_kind(kind, feedback)
    got = dict(codec.decode(codec.encode(sent, {}, np.random.default_rng(0)), {}, turned))
    assert list(got) == sorted(sent)
    assert specs(got) == specs({n: sent[n] for n in sorted(sent)})
    assert all(isinstance(t, np.ndarray) for t in got.values())
    assert {n: t.tobytes() for n, t in codec.read(codec.encode(sent, {}), {}, turned).items()} == {
        n: t.tobytes() for n, t in codec.decode(codec.encode(sent, {}), {}, turned)
    }
    within(kind, sent, got)


# Ends of ranges, and what lies beside them: zero, the least number of float32 and a denormal, the least scale, and large ones.
EDGES = [0.0, -0.0, 2.0**-149, -(2.0**-140), 2.0**-126, 2.0**-101, -(2.0**-100), 2.0**-93, 1.0, -3.0]
MODERATE = st.one_of(st.sampled_from([*EDGES, 65504.0, -65504.0]), st.floats(-65504, 65504, width=32))
HUGE = st.one_of(
    MODERATE, st.sampled_from([2.0**119, -(2.0**120), 2.0**64]), st.floats(-(2.0**119), 2.0**119, width=32)
)
SHAPES = st.lists(
    st.one_of(st.just(()), arrays.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=4)),
    max_size=3,
)


@kinds
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_shapes_and_values_come_back_within_the_bound(kind: str, data: st.DataObject) -> None:
    numbers = MODERATE if kind == "fp16" else HUGE
    shapes = data.draw(SHAPES)
    if kind.startswith("sparse"):  # all of it must be one chunk for the bound to hold
        shapes = [s for s in shapes if np.prod(s, dtype=int) <= 40]
    sent = {f"t{k}": data.draw(arrays.arrays(np.float32, s, elements=numbers)) for k, s in enumerate(shapes)}
    codec = of_kind(kind)
    packet = codec.encode(sent, {}, np.random.default_rng(0))
    got = heard(codec, packet, sent)
    assert specs(got) == specs(sent)
    within(kind, sent, got)
    length = codec.packet_bytes(specs(sent))
    assert len(packet) <= length if codec.bounded else len(packet) == length
    assert packet == codec.encode(sent, {}, np.random.default_rng(0))


@kinds
def test_tensors_of_zeros_stay_zeros_to_the_last_one(kind: str) -> None:
    sent = {
        "frozen": np.zeros((3, 2, 2, 2), np.float32),
        "mixed": np.array([[0.0, 0, 0], [1, 2, 3]], np.float32),
        "norm": np.zeros(4, np.float32),
        "scalar": np.array(0, np.float32),
    }
    got = through(of_kind(kind), sent, np.random.default_rng(0))
    assert all(not got[n].any() for n in ("frozen", "norm", "scalar")) and not got["mixed"][0].any()
    assert kind in ("sparse", "sparse signs") or got["mixed"][1].any()


@kinds
@table
def test_the_same_tensors_give_the_same_bytes_in_any_order_of_names(kind: str, feedback: bool) -> None:
    sent = example()
    turned = {n: sent[n] for n in reversed(list(sent))}
    assert of_kind(kind, feedback).encode(sent, {}) == of_kind(kind, feedback).encode(turned, {})


@kinds
@table
def test_a_strided_or_big_endian_array_is_sent_as_its_values(kind: str, feedback: bool) -> None:
    codec, values = of_kind(kind, feedback), np.arange(12, dtype=np.float32).reshape(3, 4)
    numbers = np.arange(4, dtype=np.int32).reshape(2, 2)
    expected = codec.encode({"w": values, "n": numbers}, {})
    for w, n in (
        (np.asfortranarray(values), numbers.T.copy().T),
        (np.repeat(values, 2, axis=1)[:, ::2], numbers),
        (values.astype(">f4"), numbers.astype(">i4")),
    ):
        assert codec.encode({"w": w, "n": n}, {}) == expected


@kinds
@table
def test_encoding_leaves_the_tensors_as_they_were(kind: str, feedback: bool) -> None:
    codec, sent, before, memory = of_kind(kind, feedback), example(), example(), {}
    flat = Flat(LAYOUT, drawn(LAYOUT))
    for _ in range(2):  # the second time with a residual
        codec.encode(sent, memory, np.random.default_rng(0))
        codec.encode(flat, memory, np.random.default_rng(0))
    assert all(np.array_equal(sent[n], before[n]) for n in before)
    assert np.array_equal(flat.buffer, drawn(LAYOUT))


@kinds
@table
def test_a_dtype_that_cannot_be_sent_is_refused_by_name(kind: str, feedback: bool) -> None:
    codec = of_kind(kind, feedback)
    with pytest.raises(ValueError, match="w: dtype float64 cannot be sent"):
        codec.encode({"w": np.zeros(2)}, {})
    with pytest.raises(ValueError, match="w: dtype object cannot be sent"):
        codec.packet_bytes({"w": ("object", (1,))})


LIMITS = {"fp16": 65504.0, "int8": 127 * 2.0**120, "int4": 7 * 2.0**120, "int2": 1.5 * 2.0**120}


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "fp32"])
@pytest.mark.parametrize("where", ["a", "b", "w"])
def test_what_is_too_large_or_no_number_is_refused_with_the_name_of_its_tensor(kind: str, where: str) -> None:
    limit = LIMITS.get(kind.split()[0], 2.0**120)
    if where != "w" and kind.split()[0] in ("int4", "int2"):
        limit = LIMITS["int8"]  # vectors have 8 bits in all
    calm = {"a": np.ones(3, np.float32), "b": np.ones((), np.float32), "w": np.ones((4, 2), np.float32)}
    largest = {**calm, where: np.full(calm[where].shape, limit * (1 - 2.0**-20), np.float32)}
    assert all(np.isfinite(t).all() for t in through(of_kind(kind), largest).values())
    # The largest of float32 leaves the range of int8 too: 2^128 / 127 is more than 2^120.
    for bad in (np.nan, np.inf, -np.inf, limit * (1 + 2.0**-10), -3.4e38):
        tensor = calm[where].copy()
        tensor[(-1,) * tensor.ndim] = bad
        with pytest.raises(ValueError, match=rf"^{where}: a value is "):
            of_kind(kind).encode({**calm, where: tensor}, {})


# --- how long packets are ---


@kinds
@table
def test_the_length_is_known_before_the_data(kind: str, feedback: bool) -> None:
    for sent in (
        example(),
        {"w": np.ones((2, 2), np.float32)},
        {"s": np.array(2, np.float32)},
        {"größe": np.array(1, np.int64)},
        {"e": np.ones((0, 4), np.float32)},
        {"e": np.ones((0, 4), np.float32), "u": np.ones((2, 0), np.uint8)},
        {},
    ):
        codec = of_kind(kind, feedback)
        length, packet = codec.packet_bytes(specs(sent)), codec.encode(sent, {})
        assert len(packet) <= length if codec.bounded else len(packet) == length
        within(kind, sent, heard(codec, packet, sent))
    assert codec.bounded == ("entropy" in kind or "sparse" in kind)


@kinds
@table
def test_the_length_of_a_network_is_known_before_its_weights(kind: str, feedback: bool) -> None:
    codec = of_kind(kind, feedback)
    for layout in (LAYOUT, LAYOUT.named("model/"), LAYOUT.of_parts(["decoder"]), LAYOUT.of_parts([])):
        length = codec.packet_bytes(layout.wanted)
        packet = codec.encode(Flat(layout, drawn(layout)), {})
        assert len(packet) <= length if codec.bounded else len(packet) == length
    # Above what a body can need: the bound must not make a plan say twice of what is sent.
    whole = codec.encode(Flat(LAYOUT, drawn(LAYOUT)), {})
    assert codec.packet_bytes(LAYOUT.wanted) < 2.2 * len(whole)


# Shares of the 4 bytes that a weight of `unet-32` has: 8, 4 or 2 bits of 32, and scales and vectors beside them.
SHARES = {"int8": 0.251, "int4": 0.127, "int2": 0.065, "fp16": 0.50001, "fp32": 1.00001}


@pytest.mark.parametrize("name", SHARES)
def test_packets_of_a_large_network_are_hardly_more_than_their_codes(name: str) -> None:
    layout = layout_of("unet-32", 32, 3)
    share = make(name).packet_bytes(layout.wanted) / (4 * layout.size)
    assert {"int8": 8, "int4": 4, "int2": 2, "fp16": 16, "fp32": 32}[name] / 32 < share <= SHARES[name]


# --- one buffer ---


@kinds
def test_a_network_arrives_as_one_buffer_within_the_bound(kind: str) -> None:
    flat = Flat(LAYOUT, drawn(LAYOUT))
    codec = of_kind(kind)
    got = codec.read(codec.encode(flat, {}, np.random.default_rng(0)), {}, None, LAYOUT)
    assert list(got) == list(LAYOUT)
    assert kind == "fp16" or isinstance(got, Flat)
    if not kind.startswith("sparse"):
        within(kind, dict(flat), dict(got))


@pytest.mark.parametrize("kind", [k for k in KINDS if "sparse" not in k and "stochastic" not in k])
def test_one_buffer_and_single_arrays_arrive_as_the_same_numbers(kind: str) -> None:
    layout = LAYOUT.of_parts(["decoder"])
    flat, codec = Flat(layout, drawn(layout)), of_kind(kind)
    whole = codec.read(codec.encode(flat, {}), {}, None, layout)
    single = through(codec, dict(flat))
    assert all(whole[name].tobytes() == single[name].tobytes() for name in layout)


@kinds
def test_parts_of_a_network_are_not_taken_for_others(kind: str) -> None:
    layout = FlatLayout({"a": (4, 2), "b": (2, 4), "c": (4, 2)}, {"x": ["a"], "y": ["b"], "z": ["c"]})
    codec, values = of_kind(kind), np.arange(8, dtype=np.float32)
    packet = codec.encode(Flat(layout.of_parts(["x"]), values), {})
    assert codec.read(packet, {}, None, layout.of_parts(["x"]))["a"].shape == (4, 2)
    others = [layout.of_parts(["y"]), layout.of_parts(["z"]), layout, layout.of_parts(["x"]).named("model/")]
    for other in others:
        with pytest.raises(BadPacket):
            codec.read(packet, {}, None, other)


@kinds
def test_the_order_of_a_buffer_is_part_of_what_a_packet_holds(kind: str) -> None:
    shapes = {"a": (4, 2), "b": (4, 2)}
    one, other = FlatLayout(shapes, {"x": ["a"], "y": ["b"]}), FlatLayout(shapes, {"y": ["b"], "x": ["a"]})
    codec = of_kind(kind)
    packet = codec.encode(Flat(one, np.arange(16, dtype=np.float32)), {})
    assert codec.read(packet, {}, None, one)["a"].shape == (4, 2)
    with pytest.raises(BadPacket, match="holds other tensors"):
        codec.read(packet, {}, None, other)


# --- the head ---


def test_the_head_by_hand() -> None:
    # "OSM3", 16 bits of XXH3("int8"), version 2, 32 bits of XXH3 of what is held as JSON, and XXH3 of these and the body:
    # base 1.0, which is 0x3f80 in 16 bits, and codes 127 and -1.
    what = xxh3_64(b'[["b", "float32", [2]]]').intdigest() & 0xFFFFFFFF
    tag = xxh3_64(b"int8").intdigest() & 0xFFFF
    front = b"OSM3" + tag.to_bytes(2, "little") + b"\x02" + what.to_bytes(4, "little")
    rest = bytes.fromhex("803f7fff")
    check = xxh3_64(front + rest).intdigest().to_bytes(8, "little")
    assert make("int8").encode({"b": np.array([126.75, -1], np.float32)}, {}) == front + check + rest
    assert len(front + check) == HEAD_BYTES == 19


@kinds
@table
def test_a_packet_written_by_hand_under_a_true_head_is_read(kind: str, feedback: bool) -> None:
    codec = of_kind(kind, feedback)
    packet = codec.encode(SMALL, {})
    assert forged(codec, SMALL, packet[HEAD_BYTES:]) == packet


@kinds
@table
def test_a_torn_packet_is_refused_at_every_length(kind: str, feedback: bool) -> None:
    codec = of_kind(kind, feedback)
    packet = codec.encode(SMALL, {})
    for length in range(len(packet)):
        with pytest.raises(BadPacket):
            heard(codec, packet[:length], SMALL)
    with pytest.raises(BadPacket):
        heard(codec, packet + b"\0", SMALL)


# So many equal numbers that what is compressed is really so, and a torn frame is one.
MANY = {"v": np.full(90, 3.0, np.float32), "w": np.full((8, 90), -2.0, np.float32)}


@kinds
@pytest.mark.parametrize("sent", [SMALL, MANY], ids=["small", "many"])
def test_a_torn_body_is_refused_at_every_length_also_with_a_checksum_that_fits(
    kind: str, sent: dict[str, np.ndarray]
) -> None:
    codec = of_kind(kind)
    rest = codec.encode(sent, {})[HEAD_BYTES:]
    lengths = (
        range(len(rest)) if len(rest) < 400 else [*range(200), *range(200, len(rest), 97), len(rest) - 1]
    )
    for length in lengths:
        with pytest.raises(BadPacket):
            heard(codec, forged(codec, sent, rest[:length]), sent)
    for more in (b"\0", b"\xff" * 7, rest):
        with pytest.raises(BadPacket):
            heard(codec, forged(codec, sent, rest + more), sent)


@kinds
def test_any_altered_byte_is_noticed(kind: str) -> None:
    codec = of_kind(kind)
    packet = codec.encode(SMALL, {})
    for place in range(len(packet)):
        for change in (1, 0x80, 0xFF):
            altered = packet[:place] + bytes([packet[place] ^ change]) + packet[place + 1 :]
            with pytest.raises(BadPacket):
                heard(codec, altered, SMALL)


@kinds
@settings(max_examples=30, deadline=None)
@given(data=st.binary(max_size=200))
def test_random_bytes_are_no_packet(kind: str, data: bytes) -> None:
    codec = of_kind(kind)
    for packet in (data, b"OSM3" + data):
        with pytest.raises(BadPacket):
            heard(codec, packet, SMALL)


@kinds
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_body_under_a_true_head_is_bad_or_read_as_what_was_asked_for(
    kind: str, data: st.DataObject
) -> None:
    codec = of_kind(kind)
    rest = bytearray(codec.encode(SMALL, {})[HEAD_BYTES:])
    for _ in range(data.draw(st.integers(1, 4))):
        rest[data.draw(st.integers(0, len(rest) - 1))] = data.draw(st.integers(0, 255))
    try:
        got = heard(codec, forged(codec, SMALL, bytes(rest)), SMALL)
    except BadPacket as bad:
        assert str(bad).isprintable() and len(str(bad)) <= 200
    else:
        assert specs(got) == specs(SMALL)


@kinds
@table
def test_a_packet_of_another_codec_or_another_version_is_refused(kind: str, feedback: bool) -> None:
    codec = of_kind(kind, feedback)
    rest = codec.encode(SMALL, {})[HEAD_BYTES:]
    for other in CODECS:
        if other != codec.name:
            with pytest.raises(BadPacket, match=f"is coded with '{other}', expected '{codec.name}'"):
                heard(codec, forged(codec, SMALL, rest, name=other), SMALL)
            with pytest.raises(BadPacket):
                heard(codec, make(other).encode(SMALL, {}), SMALL)
    with pytest.raises(BadPacket, match="a codec that is not known here"):
        heard(codec, forged(codec, SMALL, rest, name="zip"), SMALL)
    for version in (codec.version - 1, codec.version + 1, 255):
        with pytest.raises(BadPacket, match=f"is of version {version} of codec {codec.name}, expected"):
            heard(codec, forged(codec, SMALL, rest, version=version), SMALL)
    for magic in (b"OSM2", b"OSD1", b"\0\0\0\0"):
        with pytest.raises(BadPacket, match="does not start like a packet"):
            heard(codec, forged(codec, SMALL, rest, magic=magic), SMALL)


def test_versions_and_names_fit_into_their_fields() -> None:
    made = [make(name) for name in CODECS]
    assert all(
        0 <= codec.version <= 255 and codec.name == name for codec, name in zip(made, CODECS, strict=True)
    )
    assert len({xxh3_64(name.encode()).intdigest() & 0xFFFF for name in CODECS}) == len(CODECS)
    # Version 1 of int8 had vectors in fp32.
    assert make("int8").version == 2


@kinds
@table
def test_other_tensors_than_were_asked_for_are_refused(kind: str, feedback: bool) -> None:
    codec = of_kind(kind, feedback)
    ones = np.ones((2, 3), np.float32)
    sent = {"b": np.ones(6, np.float32), "w": ones}
    packet = codec.encode(sent, {})
    assert list(heard(codec, packet, sent)) == ["b", "w"]
    for other in (
        {"b": sent["b"], "x": ones},  # another name
        {"B": sent["b"], "w": ones},
        {"b": sent["b"], "w": ones.T},  # as many bytes in another shape
        {"b": sent["b"], "w": ones.reshape(1, 6)},
        {"b": ones, "w": sent["b"]},  # the shapes of each other
        {"b": sent["b"]},
        {**sent, "c": np.ones(0, np.float32)},  # an empty one more
        {"b": sent["b"].astype(np.float16), "w": ones},
        {"b": sent["b"].view(np.int32), "w": ones},
        {},
    ):
        with pytest.raises(BadPacket):
            heard(codec, packet, other)
        with pytest.raises(BadPacket):
            heard(codec, codec.encode(other, {}), sent)
    # As long, so that the head alone tells them apart; also where the whole packet is one of what is wanted but for that.
    with pytest.raises(BadPacket, match="holds other tensors than were asked for, or in other shapes"):
        heard(codec, packet, {"b": sent["b"], "x": ones})
    assert heard(codec, codec.encode({}, {}), {}) == {}
    assert dict(codec.decode(codec.encode({}, {}), {})) == {}
    with pytest.raises(BadPacket):
        dict(codec.decode(packet, {}))


@kinds
@table
def test_a_load_of_bytes_is_refused_before_one_of_them_is_summed(
    kind: str, feedback: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    codec, most = of_kind(kind, feedback), [16_384]  # names and shapes of the network are fewer bytes

    class Summed:
        def __init__(self, data: Any = b"") -> None:
            self.check = xxh3_64()
            self.update(data)

        def update(self, data: Any) -> None:
            assert len(data) <= most[0], "summed"
            self.check.update(data)

        def intdigest(self) -> int:
            return self.check.intdigest()

    packet = codec.encode(SMALL, {})
    load = forged(codec, SMALL, packet[HEAD_BYTES:] + bytes(2**20))
    whole = codec.encode(Flat(LAYOUT, drawn(LAYOUT)), {})
    monkeypatch.setattr(codec_base, "xxh3_64", Summed)
    for view in (load, memoryview(load)):
        with pytest.raises(BadPacket, match="bytes are more than the"):
            heard(codec, view, SMALL)
    with pytest.raises(BadPacket, match="bytes are more than the"):
        codec.read(whole + bytes(4 * LAYOUT.size), {}, None, LAYOUT)
    # The guard itself is seen to work: a packet that is not too long is summed.
    most[0] = 0
    with pytest.raises(AssertionError, match="summed"):
        codec.read(whole, {}, None, LAYOUT)


@kinds
@table
def test_an_open_axis_is_for_packets_that_describe_themselves(kind: str, feedback: bool) -> None:
    codec = of_kind(kind, feedback)
    packet = codec.encode({"x": np.ones((2, 2), np.float32)}, {})
    with pytest.raises(BadPacket, match="x has no fixed shape"):
        dict(codec.decode(packet, {}, {"x": ("float32", (None, 2))}))


def test_a_reply_with_an_open_axis_cannot_be_asked_for_through_a_codec() -> None:
    with pytest.raises(ValueError, match="open axis, so it must travel exact"):
        Spec((None, 2), wire="codec")
    assert Spec((None, 2)).wire == "exact" and Spec((3, 2), wire="codec").size == 6


def test_the_text_of_a_bad_packet_is_one_short_printable_line() -> None:
    text = str(BadPacket("\ud800\x1b[31m\n" + "x" * 10_000))
    assert text.isprintable() and len(text) <= 200


# --- codecs that go tensor by tensor ---


class Trimmed(Codec):
    """Bytes of a tensor without the zeros behind them: a codec of lengths that depend on the data, as a plugin may bring one."""

    name, bounded = "trimmed", True

    def form(self, name: str, dtype: str, shape: tuple[int, ...]) -> str:
        return "t"

    def section_bytes(self, entry: Entry) -> int:
        return entry.size * np.dtype(entry.dtype).itemsize

    def encode_tensor(self, entry: Entry, tensor: np.ndarray, rng: Any = None) -> bytes:
        return tensor.tobytes().rstrip(b"\0")

    def decode_tensor(self, entry: Entry, data: memoryview) -> np.ndarray:
        filled = bytes(data).ljust(self.section_bytes(entry), b"\0")
        return np.frombuffer(filled, entry.dtype).reshape(entry.shape)


def test_sections_of_unknown_length_are_told_before_them() -> None:
    # Lengths as u32: 4 bytes of -2.0 = 0xc0000000 end in one that is not zero; of the second tensor nothing is left.
    codec = Trimmed()
    sent = {"a": np.array([-2.0, 0], np.float32), "b": np.zeros(3, np.float32)}
    packet = codec.encode(sent, {})
    assert packet[HEAD_BYTES:] == bytes.fromhex("0400000000000000000000c0")
    assert codec.packet_bytes(specs(sent)) == 19 + 8 + 8 + 12
    got = heard(codec, packet, sent)
    assert all(np.array_equal(got[n], t) for n, t in sent.items())
    for rest in (
        "09000000 00000000 000000c0 0000000000",  # longer than its tensor can be
        "ffffffff 00000000 000000c0",
        "05000000 00000000 000000c0",  # longer than what follows
        "03000000 00000000 000000c0",  # shorter
        "04000000 000000",
        "04000000",
        "",
    ):
        with pytest.raises(BadPacket):
            heard(codec, forged(codec, sent, bytes.fromhex(rest)), sent)


@pytest.mark.parametrize("kind", [k for k in KINDS if "stochastic" not in k])
@table
def test_a_tensor_by_itself_is_a_section_of_the_length_that_was_told(kind: str, feedback: bool) -> None:
    codec = of_kind(kind, feedback)
    for name, tensor in example().items():
        entry = codec.entry(name, tensor.dtype.name, tensor.shape)
        section = codec.encode_tensor(entry, tensor)
        length = codec.section_bytes(entry)
        assert len(section) <= length if codec.bounded else len(section) == length
        got = codec.decode_tensor(entry, memoryview(section))
        assert (got.dtype, got.shape) == (tensor.dtype, tensor.shape)
        assert np.array_equal(got, through(of_kind(kind), {name: tensor})[name])


# --- codecs by name ---


def test_codecs_are_made_as_the_configuration_says() -> None:
    options = {"int4": {"clip": "max"}}
    config = CodecConfig(up="int4", down="int8", feedback_decay=0.5, feedback_flush=3, options=options)
    up, down = of(config, "up", error_feedback=True), of(config, "down")
    assert isinstance(up, ErrorFeedback) and up.decay == 0.5 and up.name == "int4" and up.remembers
    assert up.in_round(1).inner.clip == "max"  # type: ignore[attr-defined]
    assert up.in_round(3).name == "int8" and down.in_round(3) is down, "nothing is flushed on the way down"
    assert of(config, "up").in_round(3).name == "int8", "as the receiver knows"
    with pytest.raises(KeyError):
        make("zip")


def test_what_is_held_is_told_by_names_types_shapes_and_order() -> None:
    rows = [("a", "float32", (2, 3)), ("b", "int8", ())]
    others = [
        rows[::-1],
        rows[:1],
        [("a", "float32", (3, 2)), rows[1]],
        [("a", "float16", (2, 3)), rows[1]],
        [("a'", "float32", (2, 3)), rows[1]],
        [],
    ]
    assert len({contents(rows), *map(contents, others)}) == 7
    assert head("int8", 2, contents(rows), b"")[7:11] == contents(rows).to_bytes(4, "little")
