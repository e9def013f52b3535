"""sparse: rows worked out by hand, that the largest numbers are sent, and packets that nobody could have written."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from codec_packets import body, drawn, forged, heard, layout_of, one
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from osmotic.codecs import BadPacket, entropy
from osmotic.codecs.sparse import Sparse, _form, _gaps, _symbols
from osmotic.flat import Flat


@pytest.fixture(autouse=True)
def no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        yield


def row(size: int, **at: float) -> np.ndarray:
    """Zeros but for numbers at places: row(9, _3=1.5)."""
    made = np.zeros(size, np.float32)
    for place, number in at.items():
        made[int(place[1:])] = number
    return made


HALF = Sparse(density=0.5)  # 4 of 8
TINY = row(8, _1=5, _3=-1, _6=1, _7=1)
# base 2 | low 0.5, high 2.5 | k | signs | which are high | how compressed, gaps
TINY_BYTES = "0040003f20400040800001010200"


# --- by hand ---


def test_a_tiny_row_by_hand() -> None:
    # 4 of 8 are kept, at 1, 3, 6, 7: 5, -1, 1, 1. Their mean 2 is the base, 0x4000 in 16 bits, and the scale of the only chunk, k = 0.
    # Above it is 5 alone: high magnitude 5 / 2 = 2.5 = 0x4020, low 1 / 2 = 0x3f00. Signs 0100 (highest bit first) = 0x40, high 1000.
    # Gaps 1, 1, 2, 0, with no low bits; 4 symbols are not compressed: a zero byte before them.
    assert body(HALF, TINY) == bytes.fromhex(TINY_BYTES)
    assert one(HALF, TINY).tolist() == TINY.tolist()


def test_signs_alone_by_hand() -> None:
    # As above, without magnitudes: all that are kept have their mean for a size.
    signs = Sparse(density=0.5, bits=1)
    assert body(signs, TINY) == bytes.fromhex("004000400001010200")
    assert one(signs, TINY).tolist() == [0, 2, 0, -2, 0, 0, 2, 2]


def test_low_bits_of_a_gap_by_hand() -> None:
    # One of 1024: half of the gaps are below 0.69 * 1024 = 706, of whose 9 bits 4 are kept as they are. 700 = 43 * 16 + 12: 0x2b, and
    # 12 lowest bit first 0011, at the high end of a byte 0x30. Base 8 = 0x4100, k = 0, sign 1.
    codec = Sparse(density=1 / 1024, chunk=1024, bits=1)
    sent = row(1024, _700=-8, _5=1)
    assert body(codec, sent) == bytes.fromhex("0041008030002b")
    assert one(codec, sent).tolist() == row(1024, _700=-8).tolist()


def test_each_chunk_begins_anew_and_has_a_scale_by_hand() -> None:
    # 100 numbers in chunks of 64 and 36, 0.02 of each: 1.28 and 0.72, one each, at 5 and at 64 + 7. Base 4 = 0x4080 for the mean of the
    # first; 1 is 4 * 2^(-32 / 16), k = 0x20. Signs 01. Gaps 5 and 7.
    codec = Sparse(density=0.02, chunk=64, bits=1)
    sent = row(100, _5=4, _20=3, _71=-1, _90=0.5)
    assert body(codec, sent) == bytes.fromhex("8040002040000507")
    assert one(codec, sent).tolist() == row(100, _5=4, _71=-1).tolist()


def test_gaps_of_255_and_more_by_hand() -> None:
    # A symbol of 255 says that the gap goes on: 254 is one symbol, 255 is 255 and 0, 510 is 255, 255 and 0.
    numbers = [0, 254, 255, 0, 256, 509, 510, 1]
    symbols = [0, 254, 255, 0, 0, 255, 1, 255, 254, 255, 255, 0, 1]
    assert _symbols(np.array(numbers)).tolist() == symbols
    assert _gaps(np.array(symbols, np.uint8), len(numbers)).tolist() == numbers
    # 0.011 of 1000 are 11, whose gaps have no low bits: ten at the front, and one after a gap of 690 = 2 * 255 + 180.
    codec = Sparse(density=0.011, bits=1)
    for place, end in ((700, "ffffb4"), (10 + 254, "fe"), (10 + 255, "ff00"), (10, "00")):
        sent = row(1000, **{f"_{k}": 1 for k in (*range(10), place)})
        assert body(codec, sent) == bytes.fromhex("803f00000000" + "00" * 10 + end)
        assert one(codec, sent).tolist() == sent.tolist()


@pytest.mark.parametrize("size", [8, 64, 100, 200])
def test_of_equal_numbers_the_first_are_sent(size: int) -> None:
    """In whole chunks, and in the last one, which is shorter."""
    codec = Sparse(density=0.25, chunk=64, bits=1)
    for values in (
        np.ones(size),
        np.where(np.arange(size) % 2, 1.0, -1.0),
        np.ones(size) + (np.arange(size) % 64 == 7),
    ):
        got = one(codec, values)
        for start in range(0, size, 64):
            chunk = np.abs(values[start : start + 64])
            k = round(0.25 * len(chunk))
            assert np.flatnonzero(got[start : start + 64]).tolist() == sorted(
                np.argsort(-chunk, kind="stable")[:k]
            )


# --- what is sent ---


@settings(deadline=None, max_examples=80)
@given(
    values=st.integers(1, 300).flatmap(
        lambda n: arrays.arrays(
            np.float32,
            n,
            elements=st.one_of(st.floats(-100, 100, width=32), st.sampled_from([0.0, 1.0, -1.0])),
        )
    ),
    density=st.sampled_from([1e-5, 0.01, 0.1, 0.5]),
    bits=st.sampled_from([1, 2]),
    chunk=st.sampled_from([64, 128, 4096]),
)
def test_the_largest_of_each_chunk_are_sent_with_their_signs(
    values: np.ndarray, density: float, bits: Any, chunk: int
) -> None:
    got = one(Sparse(density=density, bits=bits, chunk=chunk), values)
    for start in range(0, len(values), chunk):
        sent, there = values[start : start + chunk], got[start : start + chunk]
        k = min(len(sent), max(1, round(density * len(sent))))
        chosen = np.sort(np.argsort(-np.abs(sent), kind="stable")[:k])
        assert set(np.flatnonzero(there)) <= set(chosen.tolist())
        if np.abs(sent[chosen]).min() > 1e-6 and bits == 1:
            assert np.flatnonzero(there).tolist() == chosen.tolist()
        assert np.all(np.sign(there[chosen]) * np.sign(sent[chosen]) >= 0)
        if bits == 1:  # the mean of what is sent, rounded up to a scale
            mean = np.abs(sent[chosen].astype(np.float64)).mean()
            size = np.abs(there[chosen]).astype(np.float64)
            least = np.abs(values).max() * 2 ** (-254 / 16) * (1 + 2.0**-7)
            # A mean of almost nothing, that needs less than 2^-100, is zero.
            assert np.all(size >= mean * (1 - 2.0**-20)) or mean < 2.0**-99
            assert np.all(size <= max(mean * 2 ** (1 / 16), least) * (1 + 2.0**-7) * (1 + 2.0**-20))


def test_two_magnitudes_are_the_means_of_what_they_stand_for() -> None:
    # One chunk: low and high are the means of what is below and above the mean, each share rounded up to 8 bits.
    values = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    got = np.abs(one(Sparse(density=0.1), values).astype(np.float64))
    kept = np.sort(np.abs(values.astype(np.float64)))[-100:]
    for part in (kept[kept <= kept.mean()], kept[kept > kept.mean()]):
        found = [
            v
            for v in set(got)
            if v and part.mean() * (1 - 1e-6) <= v <= part.mean() * (1 + 2.0**-7) * (1 + 1e-6)
        ]
        assert len(found) == 1 and (got == found[0]).sum() == len(part)


def test_two_magnitudes_err_less_than_signs_alone() -> None:
    values = np.random.default_rng(0).normal(size=40_960).astype(np.float32)
    off = [((one(Sparse(density=0.05, bits=b), values) - values) ** 2).sum() for b in (1, 2)]
    assert off[1] < off[0]


@pytest.mark.parametrize("zeros", [1, 20])
def test_chunks_of_zeros_change_no_magnitude_of_others(zeros: int) -> None:
    """Parts of a network that do not move must not make the others' changes smaller."""
    codec = Sparse(density=0.5, chunk=64)
    values = np.random.default_rng(0).normal(size=64).astype(np.float32)
    alone = one(codec, values)
    padded = one(codec, np.concatenate([values, np.zeros(64 * zeros, np.float32)]))
    assert padded[:64].tolist() == alone.tolist() and not padded[64:].any()


def test_places_cost_hardly_more_than_their_number_of_choices() -> None:
    # log2 of binomial(4096, 41) for each of 150 chunks, of normal numbers; what is said of places is all but
    # base and magnitudes 6, scales 150, signs and highs of 150 * 41 bits each.
    layout = layout_of("unet-8")
    size = 150 * 4096
    codec, values = Sparse(), drawn(layout)[:size]
    places = len(body(codec, values)) - 6 - 150 - 2 * math.ceil(150 * 41 / 8)
    least = 150 * math.log2(math.comb(4096, 41)) / 8
    assert least < places < 1.03 * least


def test_a_network_is_one_row_in_the_order_of_its_buffer() -> None:
    layout = layout_of("unet-8")
    flat, codec = Flat(layout, drawn(layout)), Sparse()
    got = codec.read(codec.encode(flat, {}), {}, None, layout)
    assert got.buffer.tobytes() == one(codec, flat.buffer).tobytes()  # type: ignore[attr-defined]
    assert np.count_nonzero(got.buffer) == _form(layout.size, 4096, 0.01).count  # type: ignore[attr-defined]


def test_the_bound_on_a_packet_is_met_where_gaps_are_longest() -> None:
    # All that is kept lies at the end of each chunk, so that every chunk has a gap of 4096 - 45 = 15 * 255 + 226.
    codec = Sparse(density=0.011, bits=1)
    values = np.zeros(8 * 4096, np.float32)
    values.reshape(8, 4096)[:, -45:] = 1
    form = _form(values.size, 4096, 0.011)
    assert form.low_bits == 0 and form.kept.tolist() == [45] * 8
    symbols = 8 * (45 + 15)
    assert symbols <= form.symbols <= symbols + 8
    assert len(body(codec, values)) <= codec.packet_bytes({"w": ("float32", values.shape)}) - 19
    assert one(codec, values).tolist() == values.tolist()


# --- packets that nobody could have written ---

EIGHT = {"w": np.ones(8, np.float32)}


def read(rest: str, codec: Sparse = HALF, size: int = 8) -> np.ndarray:
    tensors = {"w": np.ones(size, np.float32)}
    return heard(codec, forged(codec, tensors, bytes.fromhex(rest)), tensors)["w"]


def with_gaps(gaps: bytes) -> str:
    return TINY_BYTES[:-10] + gaps.hex()


def test_the_row_of_the_tests_below_is_good() -> None:
    assert read(TINY_BYTES).tolist() == TINY.tolist()
    # As a frame they are more bytes, but no more than gaps may be.
    compressed = entropy.zstandard.ZstdCompressor(write_content_size=False).compress(bytes([1, 1, 2, 0]))
    assert read(with_gaps(b"\1" + compressed)).tolist() == TINY.tolist()


@pytest.mark.parametrize("scale", ["807f", "c07f", "80ff", "80bf", "0080", "817b"])
@pytest.mark.parametrize("where", [0, 4, 8], ids=["base", "low", "high"])
def test_a_scale_out_of_range_is_bad(scale: str, where: int) -> None:
    """Infinity, NaN, -infinity, -1, -0, and the one above 2^120."""
    with pytest.raises(BadPacket, match="a scale is not in"):
        read(TINY_BYTES[:where] + scale + TINY_BYTES[where + 4 :])


@pytest.mark.parametrize("where", [4, 8], ids=["low", "high"])
def test_a_magnitude_that_no_mean_could_have_is_bad(where: int) -> None:
    # 4096 = 0x4580 is the length of a chunk: no number is more than so many times the mean of what is kept.
    assert read(TINY_BYTES[:where] + "8045" + TINY_BYTES[where + 4 :]).shape == (8,)
    for absurd in ("8145", "807b"):
        with pytest.raises(BadPacket, match="magnitude"):
            read(TINY_BYTES[:where] + absurd + TINY_BYTES[where + 4 :])


def test_the_largest_base_and_magnitude_give_no_warning() -> None:
    # 2^120 * 4096 leaves float32: infinity, which the gate refuses.
    got = read("807b80458045" + TINY_BYTES[12:])
    assert np.isinf(got[[1, 3, 6, 7]]).all()


@pytest.mark.parametrize("gaps", ["0001010201", "0008000000", "00050000 01", "0000000005", "00fe000000"])
def test_a_place_outside_its_chunk_is_bad(gaps: str) -> None:
    # 8 numbers have places 0 to 7: 1, 3, 6, 8 are not.
    with pytest.raises(BadPacket, match="a place is outside its chunk"):
        read(TINY_BYTES[:-10] + gaps)


def test_a_place_outside_one_chunk_and_inside_the_next_is_bad_too() -> None:
    codec = Sparse(density=0.02, chunk=64, bits=1)
    good = "804000204000"
    assert np.flatnonzero(read(good + "3f23", codec, 100)).tolist() == [63, 99]
    for gaps in ("4007", "0524", "0540"):
        with pytest.raises(BadPacket, match="a place is outside its chunk"):
            read(good + gaps, codec, 100)


@pytest.mark.parametrize(
    "gaps", ["0001010200 00", "0001010200 ff", "00010102", "00", "00ff010102", "00010102ff", "00ffffffff"]
)
def test_other_gaps_than_so_many_are_bad(gaps: str) -> None:
    with pytest.raises(BadPacket, match=r"as many places as it must|more than was asked|bytes are more than"):
        read(TINY_BYTES[:-10] + gaps)
    # In a longer chunk, where there is room for symbols of 255, the number of gaps alone tells.
    codec = Sparse(density=0.011, bits=1)
    form = _form(1000, 4096, 0.011)
    assert (form.count, form.symbols) == (11, 11 + 16)
    head = "803f00000000"
    assert np.count_nonzero(read(head + "00" * 11, codec, 1000)) == 11
    for symbols in ("00" * 12, "00" * 10, "00" * 10 + "ff", "00" * 11 + "ff", "ff" * 11, "ff" * 27, ""):
        with pytest.raises(BadPacket, match="as many places as it must"):
            read(head + symbols, codec, 1000)


@settings(deadline=None, max_examples=150)
@given(st.binary(min_size=7, max_size=12), st.sampled_from([1, 2]))
def test_any_bytes_are_bad_or_a_row_with_so_many_places(rest: bytes, bits: Any) -> None:
    codec = Sparse(density=0.5, bits=bits)
    start = bytes.fromhex("0040003f2040" if bits == 2 else "0040")
    try:
        got = heard(codec, forged(codec, EIGHT, start + rest), EIGHT)["w"]
    except BadPacket:
        return
    assert got.shape == (8,) and np.isfinite(got).all() and np.count_nonzero(got) in (0, 4)


@settings(deadline=None)
@given(st.lists(st.integers(0, 5000), max_size=20))
def test_any_gaps_come_back_as_symbols(numbers: list[int]) -> None:
    symbols = _symbols(np.array(numbers, np.int64))
    assert len(symbols) == sum(n // 255 + 1 for n in numbers)
    assert _gaps(symbols, len(numbers)).tolist() == numbers
    for wrong in (len(numbers) - 1, len(numbers) + 1):
        with pytest.raises(BadPacket):
            _gaps(symbols, wrong)
