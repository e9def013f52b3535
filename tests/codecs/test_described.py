"""Packets that describe themselves: their header is a stranger's text."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator

import numpy as np
import pytest
from codec_packets import specs
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from xxhash import xxh3_64

from osmotic.codecs import BadPacket, described
from osmotic.codecs.base import DTYPES
from osmotic.codecs.described import HEAD, MAGIC


@pytest.fixture(autouse=True)
def no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        yield


def example() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "scaffold/conv": rng.normal(size=(4, 3, 2, 2)).astype(np.float32),
        "score/images": rng.integers(0, 256, (2, 4, 4, 1)).astype(np.uint8),
        "score/empty": np.zeros((0, 3), np.float32),
        "codec/scalar": np.array(0.75, np.float32),
        "x/größe": np.array([-1, 2**31], np.int64),
        "x/half": np.array([1.5, -2.0], np.float16),
        "x/ids": np.array([[3, -4]], np.int32),
        "x/signs": np.array([[-128], [127]], np.int8),
    }


def forged(header: object, body: bytes = b"") -> bytes:
    """A packet whose checksum is right: what a hostile sender could make."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return HEAD.pack(MAGIC, xxh3_64(text + body).intdigest(), len(text)) + text + body


def forged_tensor(dtype: object, shape: object, body: bytes = b"") -> bytes:
    return forged([["w", dtype, shape]], body)


# --- what arrives ---


def test_a_packet_is_head_header_and_the_numbers_themselves() -> None:
    # Head 4 + 8 + 4 = 16; header of 21 bytes and 27 blanks, as 64 = 16 + 48; 1.0 is 0x3f800000, -2.0 is 0xc0000000.
    header = b'[["w","float32",[2]]]' + b" " * 27
    rest = header + bytes.fromhex("0000803f000000c0")
    check = xxh3_64(rest).intdigest().to_bytes(8, "little")
    expected = b"OSD1" + check + len(header).to_bytes(4, "little") + rest
    assert described.encode({"w": np.array([1.0, -2.0], np.float32)}) == expected
    assert described.packet_bytes({"w": ("float32", (2,))}) == len(expected) == 64 + 8


@pytest.mark.parametrize("asked", [False, True])
def test_everything_comes_back_bit_for_bit_in_sorted_order(asked: bool) -> None:
    sent = example()
    data = described.encode(dict(reversed(sent.items())))
    got = described.decode(data, specs(sent) if asked else None)
    assert list(got) == sorted(sent) and specs(got) == specs({n: sent[n] for n in sorted(sent)})
    assert all(got[n].tobytes() == t.tobytes() for n, t in sent.items())
    assert data == described.encode(sent) and len(data) == described.packet_bytes(specs(sent))
    assert described.decode(memoryview(data)).keys() == got.keys()
    with pytest.raises(ValueError):
        got["score/images"][...] = 0  # a view of the packet


def test_nothing_is_a_packet_too() -> None:
    data = described.encode({})
    assert described.decode(data) == described.decode(data, {}) == {}
    assert len(data) == described.packet_bytes({})


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_tensors_come_back_bit_for_bit(data: st.DataObject) -> None:
    shapes = arrays.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=4)
    one = st.sampled_from(DTYPES).flatmap(lambda dtype: arrays.arrays(dtype, shapes))
    sent = data.draw(st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=9), one, max_size=4))
    packet = described.encode(sent)
    for wanted in (None, specs(sent)):
        got = described.decode(packet, wanted)
        assert specs(got) == specs(sent)
        assert all(got[n].tobytes() == t.tobytes() for n, t in sent.items())
    assert len(packet) == described.packet_bytes(specs(sent))


def test_a_strided_or_big_endian_array_is_sent_as_its_values() -> None:
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    expected = described.encode({"w": values})
    assert described.encode({"w": np.asfortranarray(values)}) == expected
    assert described.encode({"w": values.astype(">f4")}) == expected


def test_sums_travel_in_float64() -> None:
    sums = {"features/sum": np.array([1e300, -1 / 3])}
    found = described.decode(described.encode(sums), {"features/sum": ("float64", (2,))})
    assert found["features/sum"].dtype == np.float64 and np.array_equal(
        found["features/sum"], sums["features/sum"]
    )


def test_a_dtype_that_cannot_be_sent_is_refused_by_name() -> None:
    for dtype in ("uint64", "object", "complex64", "<U3"):
        with pytest.raises(ValueError, match=r"w: dtype .* cannot be sent"):
            described.encode({"w": np.zeros(2).astype(dtype)})


# --- torn, altered, and hostile ---


def test_a_torn_packet_is_refused_at_every_length() -> None:
    data = described.encode({"w": np.ones((2, 3), np.float32), "n": np.array([7], np.int64)})
    for length in range(len(data)):
        with pytest.raises(BadPacket):
            described.decode(data[:length])
    with pytest.raises(BadPacket):
        described.decode(data + b"\0")


def test_a_torn_body_is_refused_also_with_a_checksum_that_fits() -> None:
    header = [["n", "int64", [1]], ["w", "float32", [2, 3]]]
    assert described.decode(forged(header, bytes(32)))["w"].shape == (2, 3)
    for length in (*range(32), 33, 64):
        with pytest.raises(BadPacket, match="do not fill"):
            described.decode(forged(header, bytes(length)))


def test_any_altered_byte_is_noticed() -> None:
    data = described.encode({"w": np.ones((2, 3), np.float32), "b": np.zeros(2, np.float32)})
    for place in range(len(data)):
        for change in (1, 0x80, 0xFF):
            with pytest.raises(BadPacket):
                described.decode(data[:place] + bytes([data[place] ^ change]) + data[place + 1 :])


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=200))
def test_random_bytes_are_no_packet(data: bytes) -> None:
    for packet in (data, MAGIC + data):
        with pytest.raises(BadPacket):
            described.decode(packet)


JSON = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.sampled_from([*DTYPES, "w"])
    ),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None)
@given(JSON | st.lists(st.tuples(st.text(max_size=3), st.sampled_from(DTYPES), JSON), max_size=3))
def test_any_header_is_read_or_bad(header: object) -> None:
    for wanted in (None, {"w": ("int8", (None,))}):
        try:
            got = described.decode(forged(header), wanted)
        except BadPacket as bad:
            assert str(bad).isprintable() and len(str(bad)) <= 200
        else:
            assert all(t.size == 0 for t in got.values()), "nothing follows the header"


def test_a_forged_packet_with_a_true_header_is_read() -> None:
    assert described.decode(forged_tensor("float32", [1], b"\0\0\x80?"))["w"].tolist() == [1.0]


HOSTILE = {
    "larger than the packet": forged_tensor("float32", [10**12]),
    "larger than any memory": forged_tensor("float32", [2**40, 2**20]),
    "product wraps to zero": forged_tensor("float32", [2**32, 2**32]),
    "axis beyond 64 bits in an empty tensor": forged_tensor("float32", [2**63 + 1, 3, 0]),
    "huge axes in an empty tensor": forged_tensor("float32", [2**31 - 1] * 3 + [0]),
    "axis beyond 64 bits": forged_tensor("float32", [2**70]),
    "axis infinite": forged(b'[["w","float32",[Infinity]]]'),
    "axis not a number": forged(b'[["w","float32",[NaN]]]'),
    "axis of more digits than python reads": forged(b'[["w","int8",[' + b"9" * 5000 + b"]]]"),
    "axis negative": forged_tensor("float32", [-1]),
    "two negative axes": forged_tensor("float32", [-1, -1], b"abcd"),
    "more axes than arrays have": forged_tensor("float32", [1] * 70, b"abcd"),
    "dtype unknown": forged_tensor("float99", [1], b"abcd"),
    "dtype object": forged_tensor("object", [1], b"abcdefgh"),
    "dtype no text": forged_tensor(7, [1], b"abcd"),
    "name twice": forged([["w", "int8", [1]]] * 2, b"ab"),
    "header an object": forged({"tensors": []}),
    "header numbers": forged([1, 2]),
    "header text": forged("abc"),
    "header not JSON": forged(b"{"),
    "header empty": forged(b""),
    "header not text": forged(b"\xff\xfe"),
    "header nested without end": forged(b"[" * 100_000),
    "header null": forged(None),
    "row null": forged([None]),
    "a row too short": forged([["w", "int8"]], b"a"),
    "a row too long": forged([["w", "int8", [1], "raw"]], b"a"),
    "a row of text": forged(["abc"]),
    "name not a text": forged([[7, "int8", [1]]], b"a"),
    "axis a truth value": forged_tensor("int8", [True], b"a"),
    "axis a fraction": forged_tensor("int8", [1.0], b"a"),
    "shape a text": forged_tensor("int8", "1", b"a"),
    "shape nested without end": forged(b'[["w","int8",' + b"[" * 100_000),
    "the head of the other form": b"OSM3" + forged([])[4:],
}


@pytest.mark.parametrize("case", HOSTILE)
@pytest.mark.parametrize("wanted", [None, {"w": ("float32", (None,))}], ids=["any", "asked"])
def test_a_hostile_packet_is_refused_as_bad(case: str, wanted: dict | None) -> None:
    with pytest.raises(BadPacket) as caught:
        described.decode(HOSTILE[case], wanted)
    assert len(str(caught.value).splitlines()) == 1


# Shapes at the edge of what is allowed, and at how many of three lengths of the body each is read.
ODD = [
    ([], 1),
    ([0], 1),
    ([3, 0], 1),
    ([0, 3], 1),
    ([0, 2**31 - 1], 1),
    ([2**31 - 1, 0], 1),
    ([2**31, 0], 0),
    ([2**31 - 1] * 3 + [0], 0),
    ([1] * 32, 1),
    ([1] * 33, 0),
]


@pytest.mark.parametrize(("shape", "times"), ODD)
def test_odd_shapes_are_read_or_bad(shape: list[int], times: int) -> None:
    read = 0
    for content in (b"", b"\0" * 4, b"\0" * 6):
        try:
            got = described.decode(forged_tensor("float32", shape, content))
        except BadPacket:
            continue
        read += 1
        assert list(got["w"].shape) == shape and got["w"].size in (0, 1)
    assert read == times


def test_a_header_length_beyond_the_packet_is_refused() -> None:
    with pytest.raises(BadPacket, match="does not fit"):
        described.decode(HEAD.pack(MAGIC, 0, 2**32 - 1) + b"{}")
    with pytest.raises(BadPacket, match="does not fit"):
        described.decode(forged(b"[" + b" " * described.MAX_HEADER + b"]"))


# --- what was asked for ---

WANTED = {"b": ("float32", (3,)), "w": ("float32", (2, 3))}


def test_what_was_asked_for_is_decoded_and_nothing_else() -> None:
    sent = {"b": np.ones(3, np.float32), "w": np.ones((2, 3), np.float32)}
    assert list(described.decode(described.encode(sent), WANTED)) == ["b", "w"]
    for bad, reason in (
        ({"b": sent["b"]}, "w is missing"),
        ({"b": sent["b"], "x": sent["w"]}, "w is missing"),
        ({}, r"b is missing \(2 in all\)"),
        ({**sent, "c": np.ones(0, np.float32)}, r"more than the|c was not asked for|header of"),
        ({"b": sent["b"], "w": sent["w"][:1]}, r"w is float32 \[1, 3\], not float32 \[2, 3\]"),
        ({"b": sent["b"], "w": sent["w"].T}, r"w is float32 \[3, 2\]"),
        ({"b": sent["b"], "w": sent["w"].reshape(6)}, r"w is float32 \[6\]"),
        ({"b": sent["b"].astype(np.int32), "w": sent["w"]}, "b is int32"),
    ):
        with pytest.raises(BadPacket, match=reason):
            described.decode(described.encode(bad), WANTED)
    with pytest.raises(BadPacket):
        described.decode(described.encode(sent), {})


def test_an_open_axis_takes_any_length_and_its_header_stays_bounded() -> None:
    wanted = {"x": ("float32", (None, 2))}
    for rows in (0, 1, 5000):
        sent = {"x": np.ones((rows, 2), np.float32)}
        assert described.decode(described.encode(sent), wanted)["x"].shape == (rows, 2)
    for other in (np.ones((4, 3), np.float32), np.ones(4, np.float32), np.ones((4, 2), np.uint8)):
        with pytest.raises(BadPacket, match=r"^x is "):
            described.decode(described.encode({"x": other}), wanted)
    many = {"x": np.ones((1, 2), np.float32), **{f"y{i}": np.ones(0, np.float32) for i in range(9)}}
    with pytest.raises(BadPacket, match="header of"):
        described.decode(described.encode(many), wanted)


def test_what_is_longer_than_what_was_asked_for_is_neither_summed_nor_parsed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    many = described.encode({f"e{i:06d}": np.zeros(0, np.float32) for i in range(10_000)})
    large = described.encode({"w": np.zeros(10_000, np.float32)})
    monkeypatch.setattr(described.json, "loads", lambda text: pytest.fail("parsed"))
    monkeypatch.setattr(described, "xxh3_64", lambda *data: pytest.fail("summed"))
    for packet in (many, large):
        with pytest.raises(BadPacket, match="more than the"):
            described.decode(packet, {"w": ("float32", (2, 3))})
    with pytest.raises(BadPacket, match=r"header of .* does not fit"):
        described.decode(many, {"w": ("float32", (None, 3))})


def test_the_name_of_an_unasked_tensor_is_told_on_one_short_printable_line() -> None:
    name = "\ud800\x1b[31m\n" + "x" * 10_000
    with pytest.raises(BadPacket) as caught:
        described.decode(forged([[name, "int8", [1]]], b"a"), {})
    assert str(caught.value).isprintable() and len(str(caught.value)) <= 200
    # Ten open axes leave room in the header for another row.
    rows = [["w", "int8", [0] * 10], ["\x1b[31m\n", "int8", [0]]]
    with pytest.raises(BadPacket, match="was not asked for") as caught:
        described.decode(forged(rows), {"w": ("int8", (None,) * 10)})
    assert str(caught.value).isprintable()
