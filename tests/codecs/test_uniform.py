"""int8, int4 and int2: bytes worked out by hand, how far numbers may be off, and packets that nobody could have written."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from codec_packets import body, drawn, forged, heard, layout_of, one, specs, through
from hypothesis import given, settings
from hypothesis import strategies as st

from osmotic.codecs import BadPacket, buffer, make, scales, uniform
from osmotic.codecs.buffer import Row
from osmotic.codecs.uniform import Int2, Int4, Int8, Uniform
from osmotic.flat import Flat, FlatLayout

INT8, INT4, INT2 = Int8(), Int4(clip="max"), Int2(clip="max")
LEVELS = {"int8": 127.0, "int4": 7.0, "int2": 1.5}
THREE = pytest.mark.parametrize("codec", [INT8, INT4, INT2], ids=["int8", "int4", "int2"])
# A scale is at most a step of 2^(1/16) larger than need be, its base at most 2^-7.
WIDEST = 2 ** (1 / 16) * (1 + 2.0**-7)
SLACK = 1 + 2.0**-20  # a few roundings of float32


@pytest.fixture(autouse=True)
def no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        yield


def float32(values: Any) -> np.ndarray:
    return np.array(values, np.float32)


# --- by hand ---


def test_int8_by_hand() -> None:
    # Peaks are such that peak / 127 is just below a power of two, 126.75 / 127 = 0.998, and bases are rounded up to 8 bits.
    # Row 2: peak 253.5, base and scale 2 = 0x4000 in 16 bits, k = 0; codes x / 2 = -126.75 to -127, 0.5 to even 0, 1.5 to even 2, 50.
    # Row 1: peak 126.75 / 64, scale 1 / 64 = 2 * 2^(-112 / 16), k = 112 = 0x70; codes x * 64 = 126.75 to 127, -64, 1, 0.4 to 0.
    w = float32([[126.75 / 64, -1.0, 1 / 64, 0.4 / 64], [-253.5, 1.0, 3.0, 100.0]])
    assert body(INT8, w) == bytes.fromhex("004070007fc0010081000232")
    assert one(INT8, w).tolist() == [[127 / 64, -1.0, 1 / 64, 0.0], [-254.0, 0.0, 4.0, 100.0]]


def test_int8_of_vectors_scalars_and_matrices_of_one_channel_by_hand() -> None:
    # Each has a base alone: of b 1/8 = 0x3e00, of s 1/127 or more, which is 0x3c02 (1.015625 * 2^-7 > 1.0079 * 2^-7), of w 1 = 0x3f80.
    # Then the codes in the order of names: b -> 127, -5, 0; s -> -1 / 0.0079345 = -126.03 to -126; w -> -127, 3.
    sent = {"b": float32([126.75 / 8, -5 / 8, 0]), "s": float32(-1.0), "w": float32([[-126.75, 3]])}
    data = INT8.encode(sent, {})
    assert data[19:] == bytes.fromhex("003e023c803f7ffb00828103")
    got = heard(INT8, data, sent)
    assert got["b"].tolist() == [127 / 8, -5 / 8, 0] and got["w"].tolist() == [[-127, 3]]
    assert got["s"] == float32(-126 * 1.015625 / 128) and got["s"].shape == ()


def test_int4_by_hand() -> None:
    # 6.984375 / 7 = 0.998: scale 1 = 0x3f80. Row 1: k = 0, codes 7, -3, 1.5 to even 2. Row 2: scale 1/2, k = 16 = 0x10, codes
    # -6.98 to -7, 1, 0.5 to even 0. Plus 8: 15, 5 | 10, 1 | 9, 8, the first of each pair in the low half: 0x5f 0x1a 0x89.
    w = float32([[6.984375, -3, 1.5], [-6.984375 / 2, 0.5, 0.25]])
    assert body(INT4, w) == bytes.fromhex("803f00105f1a89")
    assert one(INT4, w).tolist() == [[7, -3, 2], [-3.5, 0.5, 0]]
    # An odd number of codes: 7 and -3 as above, 2 + 8 = 10, and a half of zeros.
    assert body(INT4, w[:1]) == bytes.fromhex("803f5f0a")
    assert one(INT4, w[:1]).tolist() == [[7, -3, 2]]


def test_int2_by_hand() -> None:
    # 1.49609375 / 1.5 = 0.997: scale 1. Codes are round(x + 1.5): 2.996 to 3, 0 + 1.5 to even 2, -1 + 1.5 to even 0; so 1.5, 0.5, -1.5.
    # Row 2: scale 1/4, k = 32 = 0x20, codes of -1.496, 0.25, 1: 0, 1.75 to 2, 2.5 to even 2; so -1.5 / 4, 0.5 / 4, 0.5 / 4.
    # Four codes a byte, the first lowest: 3 + 2 * 4 + 0 + 0 = 0x0b, 2 + 2 * 4 = 0x0a.
    w = float32([[1.49609375, 0, -1], [-1.49609375 / 4, 0.25 / 4, 0.25]])
    assert body(INT2, w) == bytes.fromhex("803f00200b0a")
    assert one(INT2, w).tolist() == [[1.5, 0.5, -1.5], [-0.375, 0.125, 0.125]]
    w = float32(
        [[-1.49609375, -0.5, 0.5, 1.49609375]]
    )  # the four levels in their order: 0 + 1 * 4 + 2 * 16 + 3 * 64
    assert body(INT2, w) == bytes.fromhex("803fe4")
    assert one(INT2, w).tolist() == [[-1.5, -0.5, 0.5, 1.5]]


@pytest.mark.parametrize(("codec", "packed"), [(INT4, "f1"), (INT2, "0c")], ids=["int4", "int2"])
def test_vectors_have_8_bits_in_all_and_come_first(codec: Uniform, packed: str) -> None:
    # a: 2 channels of 1, both peaks 1 step, k = 0; b: base 1, codes 127, -2. Codes of b, then those of a: +level, -level.
    peak = LEVELS[codec.name] * (1 - 2.0**-9)
    sent = {"a": float32([[-peak], [peak]]), "b": float32([126.75, -2])}
    data = codec.encode(sent, {})
    assert data[19:] == bytes.fromhex("803f803f00007ffe" + packed)
    assert heard(codec, data, sent)["b"].tolist() == [127, -2]
    assert heard(codec, data, sent)["a"].tolist() == [[-LEVELS[codec.name]], [LEVELS[codec.name]]]


@pytest.mark.parametrize(("codec", "codes"), [(INT8, 9), (INT4, 5), (INT2, 3)], ids=["int8", "int4", "int2"])
def test_lengths_by_hand(codec: Uniform, codes: int) -> None:
    # w: 2 for its base, 3 scales, 9 codes in 9, 5 or 3 bytes; b: 2 and 5; an empty tensor has none. Then an int64 as it is.
    shapes = {
        "w": ("float32", (3, 3)),
        "b": ("float32", (5,)),
        "e": ("float32", (0, 9)),
        "i": ("int64", (1,)),
    }
    assert codec.packet_bytes(shapes) == 19 + (2 + 3 + codes) + (2 + 5) + 8


def test_channels_of_kernels_are_those_of_the_first_axis_and_lie_channels_last() -> None:
    # [O, I, H, W] = [2, 2, 1, 2], 0 1 | 2 3 in channel 1, as [H, W, I]: 0 2 1 3. Peak 126.75 in each, k = 0, but for the second: half.
    kernel = float32([[[[0, 1]], [[2, 126.75]]], [[[0, 0.5]], [[1, -126.75 / 2]]]])
    assert body(INT8, kernel) == bytes.fromhex("803f00100002017f00020181")


# --- how far off ---


def steps(codec: Uniform, w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scale of each channel of a matrix as it stands in the packet, and the largest code."""
    data = body(codec, w)
    base = scales.widened(np.frombuffer(data[:2], "<u2"))
    if len(w) == 1:
        return base, np.frombuffer(data[2:], np.int8)
    return base * scales.STEPS[np.frombuffer(data[2 : 2 + len(w)], np.uint8)], np.frombuffer(
        data[2 + len(w) :], np.int8
    )


NUMBERS = st.one_of(
    st.floats(-1e6, 1e6, width=32),
    st.floats(-(2.0**-60), 2.0**-60, width=32),
    st.sampled_from([0.0, 2.0**-149, 2.0**-126, 2.0**-99, 2.0**119, -(2.0**119)]),
)
CHANNELS = st.lists(st.lists(NUMBERS, min_size=3, max_size=3), min_size=1, max_size=4)


@THREE
@settings(deadline=None, max_examples=150)
@given(CHANNELS)
def test_off_by_at_most_half_a_scale_which_is_hardly_larger_than_need_be(
    codec: Uniform, rows: list[list[float]]
) -> None:
    w, levels = float32(rows), LEVELS[codec.name]
    scale, _ = steps(codec, w)
    scale = scale.astype(np.float64)
    peak = np.abs(w).max(1).astype(np.float64)
    none = scale == 0
    # Zero is what has no number, or none of which a share is one of float32, or what is in a tensor that needs less than 2^-100.
    assert np.all((peak[none] <= levels * 2.0**-149) | (peak.max() < levels * 2.0**-100 * SLACK))
    assert np.all(levels * scale[~none] >= peak[~none]), "no code leaves its range"
    # No scale is below 254 steps under the base.
    least = peak.max() / levels * 2 ** (-254 / 16)
    assert np.all(scale <= np.maximum(peak / levels, least) * WIDEST * SLACK)
    off = np.abs(one(codec, w).astype(np.float64) - w)
    assert np.all(off[~none] <= scale[~none, None] / 2 * SLACK)
    assert not one(codec, w)[none].any()


@pytest.mark.parametrize("peak", [1e30, 1e4, 1.0, 1e-3, 1e-6, 1e-10, 1e-20, 1e-27])
@THREE
def test_as_exact_at_every_size_of_the_peak(codec: Uniform, peak: float) -> None:
    w = (peak * np.linspace(-1, 1, 999)[None]).astype(np.float32)
    off = np.abs(one(codec, w).astype(np.float64) - w).max()
    assert off <= peak / (2 * LEVELS[codec.name]) * (1 + 2.0**-7) * SLACK
    # The bound is near to what is there: half a step, that is.
    assert off >= peak / (2 * LEVELS[codec.name]) * 0.9


@THREE
def test_what_is_below_the_least_scale_is_zero_and_what_is_just_above_is_not(codec: Uniform) -> None:
    levels = LEVELS[codec.name]
    for shape in ((1, 3), (3, 1)):
        w = np.full(shape, levels * 2.0**-100, np.float32)
        assert not one(codec, w * np.float32(0.999)).any() and np.all(one(codec, w * np.float32(1.001)) > 0)
        for tiny in (2.0**-149, 2.0**-126, -(2.0**-110)):
            assert not one(codec, np.full(shape, tiny, np.float32)).any()
    # Beside a channel of 1 it takes the least scale there is, 2^(-254 / 16) of the base, and rounds to no more than half of it.
    got = one(codec, [[1.0, -1.0], [2.0**-149, -(2.0**-120)]])
    assert np.abs(got[1]).max() <= 2.0**-16 and np.all(got[0] != 0)


@THREE
def test_an_outlier_costs_its_own_channel_alone(codec: Uniform) -> None:
    calm = np.linspace(-1, 1, 9, dtype=np.float32)
    wild = calm.copy()
    wild[4] = 1e4
    off = np.abs(one(codec, np.stack([calm, wild])) - np.stack([calm, wild])).max(1)
    assert off[0] <= WIDEST / (2 * LEVELS[codec.name]) * SLACK and off[1] > 0.2


def test_a_channel_of_zeros_stays_zeros_beside_others() -> None:
    w = float32([[0.0, -0.0], [126.75, 0.5]])
    assert body(INT8, w) == bytes.fromhex("803fff0000007f00"), "k = 255 is no scale"
    for codec in (INT8, INT4, INT2, Int4(), Int2()):
        assert one(codec, w)[0].tolist() == [0, 0] and one(codec, w)[1, 0] > 100


# --- scales by least squared error ---


def clipped(codec: Uniform, w: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(scales asked for from the peak, those of least squared error, the sampled numbers [channels, SAMPLES])."""
    row = Row(FlatLayout.whole({"w": w.shape}))
    values, levels = w.reshape(-1), uniform._levels(row, LEVELS[codec.name])
    peak = type(codec)(clip="max")._needed(values, row, levels)  # type: ignore[call-arg]
    best = type(codec)(clip="mse")._needed(values, row, levels)  # type: ignore[call-arg]
    at = np.arange(uniform.SAMPLES) * w.shape[1] // uniform.SAMPLES
    return peak, best, w[:, at].astype(np.float64)


def squared(codec: Uniform, x: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Squared error of each channel with a scale [channels]: float64, as if nothing else were rounded."""
    scale = scale.astype(np.float64)[:, None]
    half = 0.5 if codec.bits == 2 else 0.0
    q = np.clip(np.rint(x / scale - half) + half, -LEVELS[codec.name], LEVELS[codec.name])
    return ((q * scale - x) ** 2).sum(1)


@pytest.mark.parametrize("codec", [Int4(), Int2()], ids=["int4", "int2"])
@settings(deadline=None, max_examples=60)
@given(length=st.integers(1, 150), seed=st.integers(0, 999), tail=st.sampled_from([1.5, 3.0, 30.0]))
def test_the_chosen_scale_errs_no_more_on_the_sampled_numbers_than_that_of_the_peak(
    codec: Uniform, length: int, seed: int, tail: float
) -> None:
    # Shorter channels than SAMPLES are sampled whole, some numbers once more than others.
    w = np.random.default_rng(seed).standard_t(tail, (4, length)).astype(np.float32)
    peak, best, sample = clipped(codec, w)
    # float32 in the search: a tie may fall to the other side.
    assert np.all(squared(codec, sample, best) <= squared(codec, sample, peak) * (1 + 1e-4) + 1e-12)
    assert np.all((best <= peak * SLACK) & (best >= peak * 2**-1.5 / SLACK))
    if length <= uniform.SAMPLES:
        assert set(sample.reshape(-1)) == set(w.astype(np.float64).reshape(-1))


@pytest.mark.parametrize(("codec", "gain"), [(Int4(), 0.9), (Int2(), 0.6)], ids=["int4", "int2"])
@pytest.mark.parametrize("length", [40, 288])
def test_on_normal_numbers_the_packet_errs_clearly_less_than_with_the_peak(
    codec: Uniform, gain: float, length: int
) -> None:
    # Normal numbers of 288 have a peak near 3 standard deviations; four levels are best 1 apart, at a scale of a third of that.
    w = np.random.default_rng(0).normal(size=(200, length)).astype(np.float32)
    mse, most = (((one(c, w) - w) ** 2).mean() for c in (codec, type(codec)(clip="max")))  # type: ignore[call-arg]
    assert mse < gain * most or (codec.bits == 4 and length == 40 and mse < most)


def test_least_squared_error_by_hand() -> None:
    # Of 47 ones and a 2: from the peak 2 / 1.5 = 1.33 all ones are sent as 0.67 or 2. With a scale of 2/3, which is 1/2 of the peak's
    # (8 steps of 1/8 octave), ones are 1.5 * 2/3 = 1 and the 2 is 1 too: one error of 1 against 48 of 1/9.
    w = np.ones((1, 48), np.float32)
    w[0, 7] = 2
    peak, best, _ = clipped(INT2, w)
    assert best / peak == pytest.approx(0.5)
    # On its way the scale becomes a base of 8 bits, at most 2^-7 more.
    got = one(Int2(), w)
    assert len(set(got[0])) == 1 and 1 <= got[0, 0] <= 1 + 2.0**-7


def test_a_peak_that_nothing_stands_beside_is_not_clipped() -> None:
    w = np.zeros((1, 48), np.float32)
    w[0, 0] = 6.984375
    assert one(Int4(), w)[0, 0] == 7 and not one(Int4(), w)[0, 1:].any()


# --- rounding at random ---


@pytest.mark.parametrize(
    ("codec", "low", "high"),
    [
        (Int8(stochastic=True), 10.0, 11.0),
        (Int4(stochastic=True, clip="max"), 3.0, 4.0),
        (Int2(stochastic=True, clip="max"), -0.5, 0.5),
    ],
    ids=["int8", "int4", "int2"],
)
def test_rounding_at_random_is_right_on_average_and_off_by_less_than_a_step(
    codec: Uniform, low: float, high: float
) -> None:
    # Scale 1 by the first number; all others lie 0.3 of the way between two codes.
    n, peak = 4000, LEVELS[codec.name] * (1 - 2.0**-9)
    got = one(codec, [[peak, *[low + 0.3] * n]], np.random.default_rng(0))[0, 1:]
    assert set(got.tolist()) == {low, high}
    # n coins of 0.3 leave their mean +- five standard deviations once in two million cases.
    assert abs((got == high).mean() - 0.3) < 5 * (0.3 * 0.7 / n) ** 0.5
    # In vectors too, which have 8 bits in all.
    got = one(codec, [126.75, *[10.3] * n], np.random.default_rng(1))[1:]
    assert set(got.tolist()) == {10.0, 11.0}
    assert abs((got == 11).mean() - 0.3) < 5 * (0.3 * 0.7 / n) ** 0.5


class Always:
    """A stream that draws one number: the largest below 1, added to the code 127 in float32, makes 128."""

    def __init__(self, number: float) -> None:
        self.number = np.float32(number)

    def random(self, shape: Any, dtype: type) -> np.ndarray:
        return np.full(shape, self.number, dtype)


@THREE
def test_rounding_at_random_stays_within_the_codes(codec: Uniform) -> None:
    levels = LEVELS[codec.name]
    options = {"stochastic": True} | ({} if codec.bits == 8 else {"clip": "max"})
    random = type(codec)(**options)
    w = float32([[levels * (1 - 2.0**-9), -levels * (1 - 2.0**-9), 0.25]])
    up, down = one(random, w, Always(np.nextafter(np.float32(1), np.float32(0)))), one(random, w, Always(0))
    half = 0.5 if codec.bits == 2 else 0.0
    assert up.tolist() == [[levels, 1 - levels, 1 - half]] and down.tolist() == [[levels - 1, -levels, -half]]


@THREE
def test_the_same_stream_rounds_alike_another_one_does_not_and_without_one_to_the_nearest(
    codec: Uniform,
) -> None:
    sent = {
        "w": np.random.default_rng(1).normal(size=(8, 40)).astype(np.float32),
        "b": np.linspace(0, 1, 9, dtype=np.float32),
    }
    options = {"stochastic": True} | ({} if codec.bits == 8 else {"clip": "max"})
    random = type(codec)(**options)
    first, again, other = (random.encode(sent, {}, np.random.default_rng(s)) for s in (0, 0, 1))
    assert first == again != other
    assert random.encode(sent, {}) == codec.encode(sent, {}) != first
    assert codec.encode(sent, {}, np.random.default_rng(0)) == codec.encode(sent, {}), "nothing is drawn"
    for name, got in heard(random, first, sent).items():
        off = np.abs(got - sent[name]).max()
        assert off <= np.abs(sent[name]).max() / (127 if name == "b" else LEVELS[codec.name]) * WIDEST * SLACK


# --- blocks and threads ---


@pytest.mark.parametrize("name", ["int8", "int4", "int2"])
def test_blocks_and_threads_change_no_bit(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def packet() -> tuple[bytes, bytes]:
        layout = layout_of("unet-8")  # a new one: a row keeps its blocks
        codec, flat = make(name, options={name: {"stochastic": True}}), Flat(layout, drawn(layout))
        data = codec.encode(flat, {}, np.random.default_rng(0))
        return data, codec.read(data, {}, None, layout).buffer.tobytes()  # type: ignore[attr-defined]

    plain = packet()
    monkeypatch.setattr(uniform, "THREADED", 1)
    assert packet() == plain
    for size in (1, 999, 10**9):
        monkeypatch.setattr(buffer, "BLOCK", size)
        assert packet() == plain


# --- packets that nobody could have written ---

TENSOR = {"w": np.ones((2, 3), np.float32)}
# One tensor of two channels: base, two scales of 8 bits, codes.
GOOD = {"int8": "803f00107f010281ff00", "int4": "803f0010f978a1", "int2": "803f00201b0e"}


def read(codec: Uniform, rest: str) -> np.ndarray:
    return heard(codec, forged(codec, TENSOR, bytes.fromhex(rest)), TENSOR)["w"]


@THREE
@pytest.mark.parametrize(
    "base",
    ["807f", "c07f", "c0ff", "80ff", "ffff", "80bf", "0080", "7f7f", "817b"],
    ids=["infinity", "NaN", "-NaN", "-infinity", "-NaN too", "-1", "-0", "largest", "above 2^120"],
)
def test_a_base_out_of_range_is_bad(codec: Uniform, base: str) -> None:
    good = GOOD[codec.name]
    assert read(codec, good).shape == (2, 3)
    with pytest.raises(BadPacket, match="a scale is not in"):
        read(codec, base + good[4:])
    largest = read(codec, "807b" + good[4:])  # 2^120
    assert np.isfinite(largest).all() and np.array_equal(largest, read(codec, good) * np.float32(2.0**120))


@pytest.mark.parametrize("zero", ["0000 0010", "803f 00ff"], ids=["base", "scale of a channel"])
def test_a_scale_of_zero_before_codes_is_bad(zero: str) -> None:
    for codec in (INT8, INT4):
        with pytest.raises(BadPacket, match="a scale is zero before codes that are not"):
            read(codec, zero + GOOD[codec.name][8:])
    # int2 has no code of zero: levels beside zero times zero are zero.
    assert not read(INT2, zero + GOOD["int2"][8:])[1].any()
    assert not read(INT8, "0000ffff000000000000").any()
    assert not read(INT4, "00000000888888").any()


@THREE
def test_a_scale_of_zero_before_codes_of_a_vector_is_bad_in_all_three(codec: Uniform) -> None:
    vector = {"b": np.ones(3, np.float32)}
    assert not heard(codec, forged(codec, vector, bytes.fromhex("0000000000")), vector)["b"].any()
    with pytest.raises(BadPacket, match="a scale is zero before codes that are not"):
        heard(codec, forged(codec, vector, bytes.fromhex("0000000100")), vector)


def test_a_code_that_none_is_is_bad() -> None:
    with pytest.raises(BadPacket, match="-128"):
        read(INT8, "803f00107f010280ff00")
    for codes in ("f970a1", "f908a1", "0978a1", "f97810"):  # 0 in one half: -8
        with pytest.raises(BadPacket, match="none of its codec"):
            read(INT4, "803f0010" + codes)
    vector = {"b": np.ones(3, np.float32)}
    for codec in (INT8, INT4, INT2):
        with pytest.raises(BadPacket, match=r"-128|none of its codec"):
            heard(codec, forged(codec, vector, bytes.fromhex("803f008001")), vector)


@pytest.mark.parametrize(("codec", "codes"), [(INT4, "f9 18"), (INT2, "1b 04"), (INT2, "1b 80")])
def test_what_fills_the_last_byte_must_be_zeros(codec: Uniform, codes: str) -> None:
    """Of 3 codes of 4 bits the last half is none, of 5 of 2 bits the last three crumbs."""
    size = 3 if codec.bits == 4 else 5
    tensor = {"w": np.ones((1, size), np.float32)}
    zeros = codes[:3] + {"18": "08", "04": "00", "80": "00"}[codes[3:]]
    assert heard(codec, forged(codec, tensor, bytes.fromhex("803f" + zeros)), tensor)["w"].shape == (1, size)
    with pytest.raises(BadPacket, match="none of its codec"):
        heard(codec, forged(codec, tensor, bytes.fromhex("803f" + codes)), tensor)


@THREE
def test_codes_of_another_width_are_refused_by_their_length(codec: Uniform) -> None:
    for other in (INT8, INT4, INT2):
        if other is not codec:
            data = other.encode(TENSOR, {})
            with pytest.raises(BadPacket, match=r"is coded with|bytes are more than"):
                heard(codec, data, TENSOR)
            # Also under the head of this one, with a checksum that fits.
            with pytest.raises(BadPacket, match=r"bytes are (more|less) than"):
                heard(codec, forged(codec, TENSOR, data[19:]), TENSOR)


def test_a_width_that_has_the_same_length_is_told_by_the_head_alone() -> None:
    # A vector has 8 bits in all three, so that the same bytes are right under each of the heads.
    vector = {"b": float32([126.75, -2])}
    data = {c.name: c.encode(vector, {}) for c in (INT8, INT4, INT2)}
    assert len({d[19:] for d in data.values()}) == 1
    with pytest.raises(BadPacket, match="is coded with 'int4', expected 'int2'"):
        heard(INT2, data["int4"], vector)


def test_the_older_form_of_int8_is_told_by_its_version() -> None:
    """Version 1 had bfloat16 scales for each channel and vectors in fp32."""
    old = bytes.fromhex("803f803f7f010281ff00")
    with pytest.raises(BadPacket, match=r"of version 1|bytes are more"):
        heard(INT8, forged(INT8, TENSOR, old, version=1), TENSOR)
    with pytest.raises(BadPacket, match="of version 1 of codec int8, expected 2"):
        heard(INT8, forged(INT8, TENSOR, bytes.fromhex(GOOD["int8"]), version=1), TENSOR)


# --- scales by themselves ---


def test_steps_are_sixteenths_of_octaves_and_the_last_is_zero() -> None:
    assert scales.STEPS.dtype == np.float32 and len(scales.STEPS) == 256 and scales.STEPS[255] == 0
    np.testing.assert_allclose(scales.STEPS[:255], 2.0 ** (-np.arange(255) / 16), rtol=2.0**-24)
    assert [scales.STEPS[16 * k] for k in range(15)] == [2.0**-k for k in range(15)]


@settings(deadline=None)
@given(st.floats(0, 2.0**120, width=32), st.floats(0, 1, width=32))
def test_bases_and_steps_are_the_least_that_are_not_below(need: float, share: float) -> None:
    needed = float32([need])
    base = scales.widened(scales.bases(needed))
    assert (base[0] == 0) if need < 2.0**-100 else need <= base[0] <= np.float32(need) * (1 + 2.0**-7)
    part = needed * np.float32(share)
    k = int(scales.steps_down(base, part)[0])
    scale = base[0] * scales.STEPS[k]
    if part[0] <= 0 or base[0] == 0:
        assert k == scales.NONE
    else:
        assert scale >= part[0] or k == 0
        assert k == 254 or scale <= part[0] * 2 ** (1 / 16) * SLACK


def test_every_base_that_can_be_written_can_be_read() -> None:
    all_of_them = np.arange(2**16).astype(np.uint16)
    good = [u for u in all_of_them if np.uint16(0) <= u <= np.uint16(0x7B80)]
    assert len(good) == 0x7B81 and (scales.checked(np.array(good, np.uint16)) >= 0).all()
    for bad in (0x7B81, 0x8000, 0xFFFF):
        with pytest.raises(BadPacket):
            scales.checked(np.array([0x3F80, bad], np.uint16))


def test_tensors_stand_in_the_row_by_name_those_of_odd_sizes_last() -> None:
    # 16 numbers of z come before 1 of a: then two bases, 16 codes and 1; a network's buffer has the same order.
    sent = {"a": float32([126.75]), "z": np.full(16, 253.5, np.float32)}
    assert INT8.encode(sent, {})[19:] == bytes.fromhex("0040803f" + "7f" * 17)
    assert specs(through(INT8, sent)) == specs(sent)
