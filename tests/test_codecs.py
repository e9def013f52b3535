"""Codecs: one contract table for all, then each one's own numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from xxhash import xxh3_64

from osmotic.codecs import CODECS, BadPacket, Codec, make
from osmotic.codecs.base import HEAD, MAGIC

ALL = [(name, feedback) for name in CODECS for feedback in (False, True)]
table = pytest.mark.parametrize(("name", "feedback"), ALL)


def example(seed: int = 0) -> dict[str, np.ndarray]:
    """A kernel, a matrix, a vector, a scalar, empty tensors, and payloads that are no floats."""
    rng = np.random.default_rng(seed)
    return {
        "model/conv.weight": rng.normal(size=(4, 3, 2, 2)).astype(np.float32),
        "model/linear.weight": (1e-3 * rng.normal(size=(5, 7))).astype(np.float32),
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


def bound(name: str, tensor: np.ndarray) -> np.ndarray:
    """Largest error a codec may make, from its definition."""
    if name == "fp16":  # 11 significant bits, steps of 2**-24 near zero
        return np.maximum(np.abs(tensor) * 2.0**-11, 2.0**-25)
    if name == "int8" and tensor.ndim >= 2 and tensor.size:
        # Half a step, of at most peak / 127 rounded up to 8 bits, or the least number.
        peak = np.abs(tensor).reshape(len(tensor), -1).max(1, initial=0.0)
        step = np.maximum(peak / 127 * (1 + 2.0**-7), 2.0**-133)
        return np.broadcast_to(0.5 * (1 + 1e-6) * step.reshape(-1, *[1] * (tensor.ndim - 1)), tensor.shape)
    return np.zeros(tensor.shape)


def decoded(codec: Codec, data: bytes) -> dict[str, np.ndarray]:
    return dict(codec.decode(data, {}))


def specs(tensors: Mapping[str, np.ndarray]) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {n: (t.dtype.name, t.shape) for n, t in tensors.items()}


@table
def test_names_shapes_and_dtypes_come_back_in_sorted_order(name: str, feedback: bool):
    sent = example()
    got = decoded(make(name, feedback), make(name, feedback).encode(sent, {}))
    assert list(got) == sorted(sent)
    assert specs(got) == specs({n: sent[n] for n in sorted(sent)})


@table
def test_the_error_stays_within_the_bound(name: str, feedback: bool):
    sent = example()
    got = decoded(make(name, feedback), make(name, feedback).encode(sent, {}))
    for key, tensor in sent.items():
        if tensor.dtype == np.float32:
            assert np.all(np.abs(got[key] - tensor) <= bound(name, tensor)), key


@table
def test_what_is_no_float32_comes_back_untouched(name: str, feedback: bool):
    sent = {n: t for n, t in example().items() if t.dtype != np.float32}
    got = decoded(make(name, feedback), make(name, feedback).encode(sent, {}))
    assert all(np.array_equal(got[n], t) for n, t in sent.items())


@table
def test_the_length_is_known_before_the_data(name: str, feedback: bool):
    for tensors in (example(), {"w": np.ones((2, 2), np.float32)}, {"größe": np.array(1, np.int64)}, {}):
        codec = make(name, feedback)
        assert not codec.bounded
        assert codec.packet_bytes(specs(tensors)) == len(codec.encode(tensors, {}))


@table
def test_the_same_tensors_give_the_same_bytes_in_any_order_of_names(name: str, feedback: bool):
    sent = example()
    turned = {n: sent[n] for n in reversed(list(sent))}
    assert make(name, feedback).encode(sent, {}) == make(name, feedback).encode(turned, {})


@table
def test_a_strided_or_big_endian_array_is_sent_as_its_values(name: str, feedback: bool):
    plain = np.arange(6, dtype=np.float32).reshape(2, 3)
    codec = make(name, feedback)
    assert codec.encode({"w": np.asfortranarray(plain)}, {}) == codec.encode({"w": plain}, {})
    assert codec.encode({"w": plain.astype(">f4")}, {}) == make(name, feedback).encode({"w": plain}, {})


@table
def test_encoding_leaves_the_tensors_as_they_were(name: str, feedback: bool):
    sent, before = example(), example()
    make(name, feedback).encode(sent, {})
    assert all(np.array_equal(sent[n], before[n]) for n in before)


@table
def test_a_dtype_that_cannot_be_sent_is_refused_by_name(name: str, feedback: bool):
    with pytest.raises(ValueError, match="w: dtype float64 cannot be sent"):
        make(name, feedback).encode({"w": np.zeros(2)}, {})


@table
def test_a_torn_packet_is_refused_at_every_length(name: str, feedback: bool):
    codec = make(name, feedback)
    data = codec.encode({"w": np.ones((2, 3), np.float32), "n": np.array([7], np.int64)}, {})
    for length in range(len(data)):
        with pytest.raises(BadPacket):
            decoded(codec, data[:length])
    with pytest.raises(BadPacket):
        decoded(codec, data + b"\0")


@table
def test_a_packet_of_another_codec_is_refused(name: str, feedback: bool):
    for other in CODECS:
        if other != name:
            with pytest.raises(BadPacket, match="coded with"):
                decoded(make(name, feedback), make(other).encode({"w": np.ones((2, 2), np.float32)}, {}))


@pytest.mark.parametrize("name", CODECS)
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_altered_byte_is_noticed(name: str, data: st.DataObject):
    packet = bytearray(
        make(name).encode({"w": np.ones((2, 3), np.float32), "b": np.zeros(2, np.float32)}, {})
    )
    place = data.draw(st.integers(0, len(packet) - 1))
    packet[place] ^= data.draw(st.integers(1, 255))
    with pytest.raises(BadPacket):
        decoded(make(name), bytes(packet))


@pytest.mark.parametrize("name", CODECS)
@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=200))
def test_random_bytes_are_no_packet(name: str, data: bytes):
    with pytest.raises(BadPacket):
        decoded(make(name), data)
    with pytest.raises(BadPacket):
        decoded(make(name), MAGIC + data)


def forged(header: object, body: bytes = b"") -> bytes:
    """A packet whose checksum is right: what a hostile sender could make."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return HEAD.pack(MAGIC, xxh3_64(text + body).intdigest(), len(text)) + text + body


def forged_tensor(codec: str, dtype: object, shape: object, form: object, body: bytes = b"") -> bytes:
    return forged({"codec": codec, "tensors": [["w", dtype, shape, form]]}, body)


def test_a_forged_packet_with_a_true_header_is_read():
    got = decoded(make("fp32"), forged_tensor("fp32", "float32", [1], "raw", b"\0\0\x80?"))
    assert got["w"].tolist() == [1.0]


HOSTILE = {
    "larger than the packet": forged_tensor("fp32", "float32", [10**12], "raw"),
    "larger than any memory": forged_tensor("fp32", "float32", [2**40, 2**20], "raw"),
    "product wraps to zero": forged_tensor("fp32", "float32", [2**32, 2**32], "raw"),
    "axis beyond 64 bits in an empty tensor": forged_tensor("fp32", "float32", [2**63 + 1, 3, 0], "raw"),
    "huge axes in an empty tensor": forged_tensor("fp32", "float32", [2**31 - 1] * 3 + [0], "raw"),
    "axis beyond 64 bits": forged_tensor("fp32", "float32", [2**70], "raw"),
    "axis infinite": forged(b'{"codec":"fp32","tensors":[["w","float32",[Infinity],"raw"]]}'),
    "axis not a number": forged(b'{"codec":"fp32","tensors":[["w","float32",[NaN],"raw"]]}'),
    "axis negative": forged_tensor("fp32", "float32", [-1], "raw"),
    "two negative axes": forged_tensor("fp32", "float32", [-1, -1], "raw", b"abcd"),
    "more axes than arrays have": forged_tensor("fp32", "float32", [1] * 70, "raw", b"abcd"),
    "dtype unknown": forged_tensor("fp32", "float99", [1], "raw", b"abcd"),
    "dtype object": forged_tensor("fp32", "object", [1], "raw", b"abcdefgh"),
    "form of another codec": forged_tensor("fp32", "float32", [2, 1], "i8", b"abcdefgh"),
    "name twice": forged({"codec": "fp32", "tensors": [["w", "int8", [1], "raw"]] * 2}, b"ab"),
    "no tensors key": forged({"codec": "fp32"}),
    "header a list": forged([1, 2]),
    "header not JSON": forged(b"{"),
    "header not text": forged(b"\xff\xfe"),
    "header nested without end": forged(b"[" * 100_000),
    "header null": forged(None),
    "tensors null": forged({"codec": "fp32", "tensors": None}),
    "a row too short": forged({"codec": "fp32", "tensors": [["w", "int8", [1]]]}, b"a"),
    "name not a text": forged({"codec": "fp32", "tensors": [[7, "int8", [1], "raw"]]}, b"a"),
    "axis a truth value": forged_tensor("fp32", "int8", [True], "raw", b"a"),
    "axis a fraction": forged_tensor("fp32", "int8", [1.0], "raw", b"a"),
    "axis a text": forged_tensor("fp32", "int8", "1", "raw", b"a"),
    "shape nested without end": forged(b'{"codec":"fp32","tensors":' + b"[" * 100_000),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_packet_is_refused_as_bad(case: str):
    with pytest.raises(BadPacket) as caught:
        decoded(make("fp32"), HOSTILE[case])
    assert len(str(caught.value).splitlines()) == 1


@table
@pytest.mark.parametrize("form", ["raw", "i8", "q8", "f2"])
@pytest.mark.parametrize(
    "shape", [[], [0], [3, 0], [0, 3], [2**31 - 1] * 3 + [0], [0, 2**31 - 1], [2**31 - 1, 0], [1] * 33]
)
def test_odd_shapes_are_read_or_bad_in_every_codec(name: str, feedback: bool, form: str, shape: list[int]):
    read = 0
    for body in (b"", b"\0" * 4, b"\0" * 6):
        try:
            got = decoded(make(name, feedback), forged_tensor(name, "float32", shape, form, body))
        except BadPacket:
            continue
        read += 1
        assert list(got["w"].shape) == shape and got["w"].size in (0, 1)
    assert read <= 1, "one length at most is right"


WANTED = {"b": ("float32", (3,)), "w": ("float32", (2, 3))}


@table
def test_what_was_asked_for_is_decoded_and_no_byte_more_is_read(name: str, feedback: bool):
    codec, sent = make(name, feedback), {"b": np.ones(3, np.float32), "w": np.ones((2, 3), np.float32)}
    data = codec.encode(sent, {})
    assert list(dict(codec.decode(data, {}, WANTED))) == ["b", "w"]
    for bad, reason in (
        ({"b": sent["b"]}, "w is missing"),
        ({"b": sent["b"], "x": sent["w"]}, "w is missing"),
        ({**sent, "c": np.ones(0, np.float32)}, "more than the|c was not asked for"),
        ({"b": sent["b"], "w": sent["w"][:1]}, r"w is float32 \[1, 3\], not float32 \[2, 3\]"),
        ({"b": sent["b"], "w": sent["w"].T}, r"w is float32 \[3, 2\]|more than the"),
        ({"b": sent["b"].astype(np.int32), "w": sent["w"]}, "b is int32|more than"),
    ):
        with pytest.raises(BadPacket, match=reason):
            dict(codec.decode(codec.encode(bad, {}), {}, WANTED))
    assert dict(codec.decode(codec.encode({}, {}), {}, {})) == {}


@table
def test_an_open_axis_takes_any_length_and_its_header_stays_bounded(name: str, feedback: bool):
    codec, wanted = make(name, feedback), {"x": ("float32", (None, 2))}
    for rows in (0, 1, 5000):
        sent = {"x": np.ones((rows, 2), np.float32)}
        assert dict(codec.decode(codec.encode(sent, {}), {}, wanted))["x"].shape == (rows, 2)
    many = {"x": np.ones((1, 2), np.float32), **{f"y{i}": np.ones(0, np.float32) for i in range(9)}}
    with pytest.raises(BadPacket, match="header of"):
        dict(codec.decode(codec.encode(many, {}), {}, wanted))


def test_a_header_longer_than_what_was_asked_for_is_not_parsed(monkeypatch: pytest.MonkeyPatch):
    codec = make("fp32")
    many = codec.encode({f"e{i:06d}": np.zeros(0, np.float32) for i in range(50_000)}, {})
    monkeypatch.setattr("osmotic.codecs.base.json.loads", lambda text: pytest.fail("parsed"))
    monkeypatch.setattr("osmotic.codecs.base.xxh3_64", lambda *data: pytest.fail("summed"))
    with pytest.raises(BadPacket, match="more than the"):
        dict(codec.decode(many, {}, {"w": ("float32", (2, 3))}))


def test_the_text_of_a_bad_packet_is_one_short_printable_line():
    bad = forged({"codec": "fp32", "tensors": [["\ud800\x1b[31m\n" + "x" * 10_000, "int8", [1], "i8"]]}, b"a")
    with pytest.raises(BadPacket) as caught:
        decoded(make("fp32"), bad)
    assert str(caught.value).isprintable() and len(str(caught.value)) <= 200


def test_a_header_length_beyond_the_packet_is_refused():
    with pytest.raises(BadPacket, match="does not fit"):
        decoded(make("fp32"), HEAD.pack(MAGIC, 0, 2**32 - 1) + b"{}")


def test_an_fp32_packet_is_head_header_and_the_numbers_themselves():
    # Head 4 + 8 + 4 = 16; header as below, 54 bytes, and 58 blanks, as 128 = 16 + 112; 2 * 4 bytes of floats. 1.0 is 0x3f800000, -2.0 is 0xc0000000.
    data = make("fp32").encode({"w": np.array([1.0, -2.0], np.float32)}, {})
    header = b'{"codec":"fp32","tensors":[["w","float32",[2],"raw"]]}' + b" " * 58
    body = header + bytes.fromhex("0000803f000000c0")
    assert (
        data
        == b"OSM2"
        + xxh3_64(body).intdigest().to_bytes(8, "little")
        + len(header).to_bytes(4, "little")
        + body
    )


def test_fp32_keeps_every_bit_also_of_odd_values():
    odd = np.array([np.nan, np.inf, -0.0, 1e-45, 3.4e38], np.float32)
    assert decoded(make("fp32"), make("fp32").encode({"w": odd}, {}))["w"].tobytes() == odd.tobytes()


def test_fp16_rounds_to_the_nearest_even_neighbour():
    # Between 1 and 2 the step is 2**-10: 1 + 2**-11 is a tie and goes to 1, 1 + 3 * 2**-11 to 1 + 2**-9.
    sent = np.array([1 + 2**-11, 1 + 3 * 2**-11, 2.0**-24, 2.0**-26], np.float32)
    got = decoded(make("fp16"), make("fp16").encode({"w": sent}, {}))["w"]
    assert got.tolist() == [1.0, 1 + 2**-9, 2.0**-24, 0.0]


@pytest.mark.parametrize("bad", [65505.0, -1e30, np.inf, np.nan])
def test_fp16_refuses_what_does_not_fit(bad: float):
    assert len(make("fp16").encode({"w": np.array([65504.0], np.float32)}, {})) > 0
    with pytest.raises(ValueError, match="w: a value is outside the fp16 range"):
        make("fp16").encode({"w": np.array([1.0, bad], np.float32)}, {})


def int8_parts(tensor: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scales and codes as they stand in the packet."""
    data = make("int8").encode({"w": tensor}, {})
    codes = np.frombuffer(data[-tensor.size :], np.int8).reshape(tensor.shape)
    upper = np.frombuffer(data[-tensor.size - 2 * len(tensor) : -tensor.size], "<u2")
    return (upper.astype(np.uint32) << 16).view(np.float32), codes


def test_int8_by_hand():
    # Row 1: peak 127 / 64, scale 1 / 64, codes x * 64 = 127, -64, 1, 0 (0.4 rounds down).
    # Row 2: peak 254, scale 2, codes x / 2 = -127, 0 (0.5 to even), 2 (1.5 to even), 50.
    w = np.array([[127 / 64, -1.0, 1 / 64, 0.4 / 64], [-254.0, 1.0, 3.0, 100.0]], np.float32)
    scales, codes = int8_parts(w)
    assert scales.tolist() == [1 / 64, 2.0]
    assert codes.tolist() == [[127, -64, 1, 0], [-127, 0, 2, 50]]
    got = decoded(make("int8"), make("int8").encode({"w": w}, {}))["w"]
    assert got.tolist() == [[127 / 64, -1.0, 1 / 64, 0.0], [-254.0, 0.0, 4.0, 100.0]]


def test_int8_length_by_hand():
    # 3 channels of 2 x 2: 3 scales of 2 bytes + 12 codes = 18; bias 3 * 4 = 12. Head 16 and header fill 128 bytes.
    header = b'{"codec":"int8","tensors":[["b","float32",[3],"raw"],["w","float32",[3,2,2],"q8"]]}'
    sent = {"w": np.ones((3, 2, 2), np.float32), "b": np.ones(3, np.float32)}
    assert len(make("int8").encode(sent, {})) == 128 + 18 + 12 and 64 < 16 + len(header) <= 128


def test_int8_sends_vectors_and_scalars_exactly():
    sent = {"b": np.array([1e-9, 12345.678], np.float32), "s": np.array(1e-30, np.float32)}
    got = decoded(make("int8"), make("int8").encode(sent, {}))
    assert all(got[n].tobytes() == t.tobytes() for n, t in sent.items())


CHANNELS = st.lists(st.lists(st.floats(-1e6, 1e6, width=32), min_size=3, max_size=3), min_size=1, max_size=4)


@settings(deadline=None)
@given(CHANNELS)
def test_int8_is_off_by_at_most_half_a_scale_in_every_channel(rows: list[list[float]]):
    w = np.array(rows, np.float32)
    scales, codes = int8_parts(w)
    got = decoded(make("int8"), make("int8").encode({"w": w}, {}))["w"].astype(np.float64)
    half = scales.astype(np.float64)[:, None] / 2
    assert np.all(np.abs(got - w) <= half * (1 + 1e-5))
    assert np.all(np.abs(codes.astype(int)) <= 127)
    # Not wider than needed: the next smaller scale of 16 bits could not reach the peak.
    peak = np.abs(w).max(1).astype(np.float64)
    upper = scales.view(np.uint32) >> 16
    smaller = (np.where(upper > 0, upper - 1, 0).astype(np.uint32) << 16).view(np.float32)
    assert np.all(smaller.astype(np.float64) * 127 <= peak * (1 + 2.0**-23))


def test_int8_of_a_zero_channel_is_zero_and_does_not_touch_its_neighbour():
    w = np.array([[0.0, -0.0], [1.0, 0.5]], np.float32)
    scales, codes = int8_parts(w)
    assert scales[0] == 0 and codes[0].tolist() == [0, 0]
    got = decoded(make("int8"), make("int8").encode({"w": w}, {}))["w"]
    assert got[0].tolist() == [0.0, 0.0]
    assert abs(got[1, 0] - 1) <= 0.5 / 127 * (1 + 2.0**-7)


def test_int8_pays_for_an_outlier_in_its_own_channel_only():
    # Channel 1: scale 12700 / 127 = 100, so 1.0 is lost. Channel 2 keeps scale 1 / 127, rounded up to 8 bits.
    w = np.array([[12700.0, 1.0], [1.0, 0.5]], np.float32)
    got = decoded(make("int8"), make("int8").encode({"w": w}, {}))["w"]
    assert got[0].tolist() == [12700.0, 0.0]
    assert abs(got[1, 1] - 0.5) <= 0.5 / 127 * (1 + 2.0**-7)


@pytest.mark.parametrize("peak", [1e4, 1.0, 1e-3, 1e-5, 1e-6, 1e-7, 1e-10, 1e-20, 1e-30])
def test_int8_is_as_exact_at_every_size_of_the_peak(peak: float):
    # At most half a step of peak / 127 * (1 + 2**-7): 0.397 % of the peak.
    w = (peak * np.linspace(-1, 1, 999)[None]).astype(np.float32)
    got = decoded(make("int8"), make("int8").encode({"w": w}, {}))["w"].astype(np.float64)
    assert np.abs(got - w).max() <= peak / 254 * (1 + 2.0**-7) * (1 + 1e-6)


def test_int8_of_denormals_is_within_half_the_least_scale():
    # The least number of 16 bits is 2**-133; 1e-40 / 127 is below it.
    w = np.array([[1e-40, -1e-45], [0.0, 1e-45]], np.float32)
    scales, _ = int8_parts(w)
    got = decoded(make("int8"), make("int8").encode({"w": w}, {}))["w"]
    assert scales.tolist() == [2.0**-133, 2.0**-133]
    assert np.all(np.abs(got - w) <= 2.0**-134)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 2.0**127.5])
def test_int8_refuses_what_no_scale_can_hold(bad: float):
    largest = np.array([[127 * 2.0**120]], np.float32)
    assert int8_parts(largest)[0].tolist() == [2.0**120]
    assert np.isfinite(decoded(make("int8"), make("int8").encode({"w": largest}, {}))["w"]).all()
    with pytest.raises(ValueError, match="w: a value is not finite or too large"):
        make("int8").encode({"w": np.array([[0.0, bad]], np.float32)}, {})


@pytest.mark.parametrize("scale", [0x7F80, 0x7FC0, 0xFF80, 0xFFFF, 0x8000 | 0x3F80, 0x7F7F, 0x7B81])
@pytest.mark.parametrize("feedback", [False, True])
def test_a_packet_with_a_scale_that_nobody_could_have_written_is_bad(scale: int, feedback: bool):
    # Infinity, NaN, both negative, -1, the largest float32, and the one above 2**120 = 0x7B80.
    body = scale.to_bytes(2, "little") + b"\x80\x7f"
    with pytest.raises(BadPacket, match="w: a scale is not in"):
        decoded(make("int8", feedback), forged_tensor("int8", "float32", [1, 2], "q8", body))
    good = forged_tensor("int8", "float32", [1, 2], "q8", b"\x80\x7b\x80\x7f")
    assert np.isfinite(decoded(make("int8", feedback), good)["w"]).all()


def test_a_packet_of_the_older_form_with_scales_in_fp16_is_not_misread():
    older = forged_tensor("int8", "float32", [1, 2], "i8", b"\x00\x3c\x01\x02")
    with pytest.raises(BadPacket, match="form 'i8'"):
        decoded(make("int8"), older)


@pytest.mark.parametrize("name", CODECS)
def test_with_feedback_what_was_sent_and_what_is_left_make_up_what_was_meant(name: str):
    rng = np.random.default_rng(3)
    codec, memory = make(name, error_feedback=True), {}
    meant, sent = np.zeros((4, 6)), np.zeros((4, 6))
    for _ in range(20):
        update = rng.normal(size=(4, 6)).astype(np.float32)
        got = decoded(codec, codec.encode({"w": update}, memory))["w"]
        meant += update
        sent += got
        # Twenty float32 additions of numbers below 8 err by at most 2**-22 each.
        np.testing.assert_allclose(sent + memory["residual/w"], meant, rtol=0, atol=20 * 2.0**-22)
    assert np.all(np.abs(memory["residual/w"]) <= bound(name, np.full((4, 6), 8.0, np.float32)))


def test_feedback_brings_through_what_a_plain_codec_loses_for_ever():
    # Scale 1: 0.25 rounds to 0 every time. With feedback 0.25, 0.5 (to even: 0), 0.75 (to 1): 1 - 0.75 = 0.25 is owed.
    update = np.array([[127.0, 0.25]], np.float32)
    plain, codec, memory = make("int8"), make("int8", error_feedback=True), {}
    lost = [decoded(plain, plain.encode({"w": update}, {}))["w"][0, 1] for _ in range(4)]
    kept = [decoded(codec, codec.encode({"w": update}, memory))["w"][0, 1] for _ in range(4)]
    assert lost == [0, 0, 0, 0]
    assert kept == [0, 0, 1, 0]
    assert memory["residual/w"].tolist() == [[0.0, 0.0]]


def test_feedback_keeps_its_residual_when_a_packet_is_refused():
    codec, memory = make("int8", error_feedback=True), {}
    codec.encode({"w": np.array([[127.0, 0.25]], np.float32)}, memory)
    before = memory["residual/w"].copy()
    with pytest.raises(ValueError):
        codec.encode({"w": np.array([[np.nan, 0.0]], np.float32)}, memory)
    assert np.array_equal(memory["residual/w"], before)


def test_feedback_leaves_payloads_that_are_no_floats_alone():
    memory: dict[str, np.ndarray] = {}
    make("int8", error_feedback=True).encode({"i": np.array([3], np.uint8)}, memory)
    assert memory == {}


# --- int8 with rounding at random ---

RANDOM = {"int8": {"stochastic": True}}


def test_rounding_at_random_is_right_on_average_and_off_by_less_than_a_step():
    # Scale 1: every value lies between two codes, 0.3 of the way up.
    update = np.array([[127.0, *[10.3] * 4000]], np.float32)
    codec, rng = make("int8", options=RANDOM), np.random.default_rng(0)
    got = decoded(codec, codec.encode({"w": update}, {}, rng))["w"][0, 1:]
    assert set(got.tolist()) == {10.0, 11.0}
    # 4,000 coins of 0.3 leave their mean +- five standard deviations once in two million cases.
    assert abs(got.mean() - 10.3) < 5 * (0.3 * 0.7 / 4000) ** 0.5


class Highest:
    """A stream that draws the largest number below 1: added to the code 127 in float32 it makes 128."""

    def random(self, shape: tuple[int, ...], dtype: type) -> np.ndarray:
        return np.full(shape, np.nextafter(np.float32(1), np.float32(0)), dtype)


def test_rounding_at_random_stays_within_the_codes():
    codec = make("int8", options=RANDOM)
    got = decoded(codec, codec.encode({"w": np.array([[127.0, -127.0, 0.5]], np.float32)}, {}, Highest()))[
        "w"
    ]  # type: ignore[arg-type]
    assert got.tolist() == [[127.0, -126.0, 1.0]], "and not -128"


def test_the_same_stream_rounds_alike_another_one_does_not_and_without_one_to_the_nearest():
    update = {"w": np.random.default_rng(1).normal(size=(8, 40)).astype(np.float32)}
    codec = make("int8", options=RANDOM)
    one, again, other = (codec.encode(update, {}, np.random.default_rng(s)) for s in (0, 0, 1))
    assert one == again != other
    assert codec.encode(update, {}) == make("int8").encode(update, {}) != one
    assert make("int8").encode(update, {}, np.random.default_rng(0)) == make("int8").encode(update, {})


def test_feedback_keeps_what_rounding_at_random_lost():
    update = {"w": np.random.default_rng(1).normal(size=(8, 40)).astype(np.float32)}
    codec, memory = make("int8", error_feedback=True, options=RANDOM), {}
    data = codec.encode(update, memory, np.random.default_rng(0))
    assert data == make("int8", options=RANDOM).encode(update, {}, np.random.default_rng(0))
    got = decoded(codec, data)["w"]
    assert np.array_equal(memory["residual/w"], update["w"] - got)
