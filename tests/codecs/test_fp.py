"""fp32 and fp16: floats as they are, or half of them."""

from __future__ import annotations

import numpy as np
import pytest
from codec_packets import HEAD_BYTES, forged, heard, layout_of, one, specs
from hypothesis import given, settings
from hypothesis import strategies as st

from osmotic.codecs import EXACT, BadPacket, make
from osmotic.flat import Flat, FlatLayout

FP32, FP16 = make("fp32"), make("fp16")
LAYOUT = FlatLayout(
    {"conv": (2, 3, 1, 2), "mid": (16,), "bias": (1,)}, {"encoder": ["conv", "bias"], "decoder": ["mid"]}
)


# --- fp32 ---


def test_an_fp32_packet_is_a_head_filled_to_a_cache_line_and_the_numbers_themselves() -> None:
    # Head 19 bytes and 45 zeros; 1.0 is 0x3f800000, -2.0 is 0xc0000000.
    data = FP32.encode({"w": np.array([1.0, -2.0], np.float32)}, {})
    assert data[HEAD_BYTES:] == bytes(45) + bytes.fromhex("0000803f000000c0")


@settings(deadline=None)
@given(st.lists(st.integers(0, 2**32 - 1), max_size=9))
def test_fp32_keeps_every_bit_also_of_what_is_no_number(bits: list[int]) -> None:
    odd = np.array([0x7FC00001, 0xFF800000, 0x80000000, 1, *bits], np.uint32).view(np.float32)
    for shape in ((-1,), (1, -1), (1, -1, 1, 1)):
        assert one(FP32, odd.reshape(shape)).tobytes() == odd.tobytes()


def test_four_axes_lie_channels_last() -> None:
    # [O, I, H, W] = [1, 2, 1, 2] holds 0 1 | 2 3; as [O, H, W, I] that is 0 2 1 3.
    kernel = np.arange(4, dtype=np.float32).reshape(1, 2, 1, 2)
    data = FP32.encode({"w": kernel}, {})
    assert np.frombuffer(data[64:], "<f4").tolist() == [0, 2, 1, 3]
    assert one(FP32, kernel).tolist() == kernel.tolist()


def test_what_is_read_is_a_view_of_the_packet_that_nobody_can_write_to() -> None:
    sent = {"w": np.ones((2, 2), np.float32)}
    data = FP32.encode(sent, {})
    got = heard(FP32, data, sent)["w"]
    assert np.shares_memory(got, np.frombuffer(data, np.uint8)) and not got.flags.writeable
    whole = FP32.read(FP32.encode(Flat(LAYOUT, np.ones(29, np.float32)), {}), {}, None, LAYOUT)
    assert isinstance(whole, Flat) and not whole.buffer.flags.writeable


def test_a_packet_of_a_network_is_its_buffer() -> None:
    flat = Flat(LAYOUT, np.arange(29, dtype=np.float32))
    data = FP32.encode(flat, {})
    assert data[64:] == flat.buffer.tobytes() and data == EXACT.encode(flat.copy(), {})
    assert FP32.read(data, {}, None, LAYOUT).buffer.tolist() == flat.buffer.tolist()  # type: ignore[attr-defined]
    part = flat.part("decoder")
    assert FP32.encode(part, {})[64:] == part.buffer.tobytes()
    for spoilt in (data[:-4], data + b"\0\0\0\0", data[:-1] + bytes([data[-1] ^ 1]), b"", data[:20]):
        with pytest.raises(BadPacket):
            FP32.read(spoilt, {}, None, LAYOUT)


def test_a_packet_of_one_buffer_is_refused_where_names_stand_in_another_order() -> None:
    # By name: a, b. In a buffer what is no multiple of 16 numbers comes last.
    layout = FlatLayout({"a": (1,), "b": (16,)}, {"": ["a", "b"]})
    assert list(layout) == ["b", "a"]
    flat = Flat(layout, np.arange(17, dtype=np.float32))
    with pytest.raises(BadPacket, match="holds other tensors"):
        heard(FP32, FP32.encode(flat, {}), dict(flat))
    with pytest.raises(BadPacket, match="holds other tensors"):
        FP32.read(FP32.encode(dict(flat), {}), {}, None, layout)


def test_averages_in_float64_are_no_packet_of_a_network() -> None:
    with pytest.raises(ValueError, match="dtype float64 cannot be sent"):
        FP32.encode(Flat(LAYOUT, np.zeros(29)), {})


# --- fp16 ---


def test_an_fp16_packet_by_hand() -> None:
    # 1.0 is 0x3c00, -2.0 is 0xc000; no filling behind the head.
    data = FP16.encode({"w": np.array([1.0, -2.0], np.float32), "i": np.array([7], np.uint8)}, {})
    assert data[HEAD_BYTES:] == bytes.fromhex("07003c00c0")


def test_fp16_rounds_to_the_nearest_even_neighbour() -> None:
    # Between 1 and 2 the step is 2^-10: 1 + 2^-11 is a tie and goes to 1, 1 + 3 * 2^-11 to 1 + 2^-9.
    # Near zero the step is 2^-24: half of it goes to zero, three halves to two.
    sent = [1 + 2**-11, 1 + 3 * 2**-11, 2.0**-24, 2.0**-25, 3 * 2.0**-25, 2.0**-26, -(2.0**-149)]
    assert one(FP16, sent).tolist() == [1.0, 1 + 2**-9, 2.0**-24, 0.0, 2.0**-23, 0.0, 0.0]


@settings(deadline=None)
@given(st.lists(st.floats(width=16, allow_nan=False, allow_infinity=False), min_size=1))
def test_what_is_a_half_already_loses_nothing(values: list[float]) -> None:
    assert one(FP16, values).tobytes() == np.array(values, np.float32).tobytes()


@pytest.mark.parametrize("bad", [65504.004, 65520.0, -1e30, np.inf, -np.inf, np.nan])
def test_fp16_refuses_what_does_not_fit(bad: float) -> None:
    assert one(FP16, [65504.0, -65504.0]).tolist() == [65504.0, -65504.0]
    with pytest.raises(ValueError, match=r"^w: a value is outside the fp16 range"):
        FP16.encode({"a": np.ones(1, np.float32), "w": np.array([1.0, bad], np.float32)}, {})


def test_a_hostile_half_may_be_infinite_which_the_gate_refuses() -> None:
    # 0x7c00 is infinity, 0xfe00 no number: the codec does not look at them, `protocol/gate.py` does.
    got = heard(
        FP16,
        forged(FP16, {"w": np.ones(2, np.float32)}, bytes.fromhex("007c00fe")),
        {"w": np.ones(2, np.float32)},
    )
    assert np.isposinf(got["w"][0]) and np.isnan(got["w"][1])


def test_a_network_in_halves_has_its_own_order_too() -> None:
    layout = layout_of("unet-8")
    flat = Flat(layout, np.linspace(-1, 1, layout.size, dtype=np.float32))
    got = FP16.read(FP16.encode(flat, {}), {}, None, layout)
    assert list(got) == list(layout) and specs(got) == layout.wanted
    assert np.abs(Flat.over(layout, got).buffer - flat.buffer).max() <= 2.0**-12
