"""Error feedback: what was lost is kept, decays, and is flushed."""

from __future__ import annotations

import numpy as np
import pytest
from codec_packets import KINDS, drawn, heard, layout_of, of_kind, one

from osmotic.codecs import ErrorFeedback, make
from osmotic.codecs.feedback import Flushed
from osmotic.codecs.uniform import Int8
from osmotic.flat import Flat, FlatLayout
from osmotic.tensors import Tensors

LOSSY = [k for k in KINDS if k != "fp32"]
LAYOUT = layout_of("unet-8").of_parts(["bottleneck"])


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_sent_and_what_is_left_make_up_what_was_meant(kind: str) -> None:
    rng = np.random.default_rng(3)
    codec, memory = of_kind(kind, feedback=True), dict[str, np.ndarray]()
    meant, sent, rounds = np.zeros((4, 6)), np.zeros((4, 6)), 20
    for _ in range(rounds):
        update = rng.normal(size=(4, 6)).astype(np.float32)
        meant += update
        sent += heard(codec, codec.encode({"w": update}, memory, rng), {"w": update})["w"]
        # Two roundings of float32 in each round, of numbers below 64: at most 2^-19 each.
        assert np.abs(sent).max() < 64 and np.abs(memory["residual/w"]).max() < 64
        np.testing.assert_allclose(sent + memory["residual/w"], meant, rtol=0, atol=2 * rounds * 2.0**-19)
    assert kind == "fp32" or memory["residual/w"].any()


@pytest.mark.parametrize("kind", LOSSY)
def test_the_buffer_of_a_network_and_single_arrays_keep_the_same(kind: str) -> None:
    """Of a network of one tensor, so that both lie in the same order for `sparse` too."""
    layout = FlatLayout.whole({"w": (8, 5, 3, 3)})
    codec, whole, single = of_kind(kind, True, 0.75), dict[str, np.ndarray](), dict[str, np.ndarray]()
    for seed in range(4):
        flat = Flat(layout, drawn(layout, seed))
        one_packet = codec.encode(flat, whole, np.random.default_rng(seed))
        other_packet = codec.encode({"w": flat["w"].copy()}, single, np.random.default_rng(seed))
        assert one_packet == other_packet
        assert whole.keys() == single.keys() == {"residual/w"}
        assert np.array_equal(whole["residual/w"], single["residual/w"])
    assert whole["residual/w"].any()


@pytest.mark.parametrize("kind", LOSSY)
@pytest.mark.parametrize("decay", [1.0, 0.5])
def test_a_network_keeps_what_its_packet_lost(kind: str, decay: float) -> None:
    codec, memory = of_kind(kind, True, decay), dict[str, np.ndarray]()
    owed = np.zeros(LAYOUT.size, np.float32)
    for seed in range(3):
        flat = Flat(LAYOUT, drawn(LAYOUT, seed))
        data = codec.encode(flat, memory, np.random.default_rng(seed))
        got = Flat.over(LAYOUT, codec.read(data, {}, None, LAYOUT))
        owed = np.float32(decay) * ((flat.buffer + owed) - got.buffer)
        kept = Flat.of(LAYOUT, {name: memory[f"residual/{name}"] for name in LAYOUT})
        assert np.array_equal(kept.buffer, owed)


def test_feedback_brings_through_what_a_plain_codec_loses_for_ever_by_hand() -> None:
    # Scale 1, as 126.9375 / 127 is between 1 - 2^-8 and 1. What is meant of the second number: 0.25, 0.5 (to even: 0), 0.75 (to 1,
    # so -0.25 is owed), 0. The first is sent as 127 each time, and -1/16 more is owed each time.
    update = {"w": np.array([[126.9375, 0.25]], np.float32)}
    plain, codec, memory = make("int8"), make("int8", error_feedback=True), dict[str, np.ndarray]()
    lost = [one(plain, update["w"]).tolist() for _ in range(4)]
    kept, owed = [], []
    for _ in range(4):
        kept.append(heard(codec, codec.encode(update, memory), update)["w"][0].tolist())
        owed.append(memory["residual/w"][0].tolist())
    assert lost == [[[127, 0]]] * 4
    assert kept == [[127, 0], [127, 0], [127, 1], [127, 0]]
    assert owed == [[-1 / 16, 0.25], [-2 / 16, 0.5], [-3 / 16, -0.25], [-4 / 16, 0]]


def test_what_is_owed_decays_by_hand() -> None:
    # As above, but half of what is owed is forgotten: e' = (0.25 + e) / 2 = 1/8, 3/16, 7/32 and never 1/4.
    # The first: e' = (-1/16 + e) / 2 = -1/32, -3/64, -7/128.
    update = {"w": np.array([[126.9375, 0.25]], np.float32)}
    codec, memory = make("int8", error_feedback=True, decay=0.5), dict[str, np.ndarray]()
    owed = []
    for _ in range(3):
        assert heard(codec, codec.encode(update, memory), update)["w"].tolist() == [[127, 0]]
        owed.append(memory["residual/w"][0].tolist())
    assert owed == [[-1 / 32, 1 / 8], [-3 / 64, 3 / 16], [-7 / 128, 7 / 32]]
    assert memory["residual/w"].dtype == np.float32


def test_the_decay_goes_on_in_every_round_and_around_every_flush() -> None:
    codec = make("int2", True, decay=0.5, flush=3)
    assert [codec.in_round(k).decay for k in (1, 3)] == [0.5, 0.5]  # type: ignore[attr-defined]


@pytest.mark.parametrize("shape", [(), (3,), (0,), (0, 4), (1, 1), (2, 3, 1, 1)])
@pytest.mark.parametrize("kind", LOSSY)
def test_what_is_kept_is_an_array_of_float32_of_the_same_shape(shape: tuple[int, ...], kind: str) -> None:
    """Also of a scalar, which numpy is fond of making a mere number: no store could write that."""
    codec, memory = of_kind(kind, True), dict[str, np.ndarray]()
    for _ in range(2):
        codec.encode({"w": np.full(shape, 0.3, np.float32)}, memory, np.random.default_rng(0))
        kept = memory["residual/w"]
        assert type(kept) is np.ndarray and (kept.shape, kept.dtype) == (shape, np.float32)


def test_feedback_keeps_its_residual_when_a_packet_is_refused() -> None:
    codec, memory = make("int8", error_feedback=True), dict[str, np.ndarray]()
    layout = FlatLayout.whole({"w": (1, 2)})
    codec.encode({"w": np.array([[126.75, 0.25]], np.float32)}, memory)
    before = memory["residual/w"].copy()
    assert before.tolist() == [[-0.25, 0.25]]
    bad = np.array([np.nan, 0.0], np.float32)
    for tensors in ({"w": bad.reshape(1, 2)}, Flat(layout, bad)):
        with pytest.raises(ValueError, match="w: a value is not finite"):
            codec.encode(tensors, memory)
        assert np.array_equal(memory["residual/w"], before)


def test_a_tensor_that_is_not_sent_keeps_what_is_owed() -> None:
    codec, memory = make("int8", error_feedback=True), dict[str, np.ndarray]()
    row = np.array([[126.75, 0.25]], np.float32)
    codec.encode({"w": row, "v": row}, memory)
    before = {n: t.copy() for n, t in memory.items()}
    codec.encode({"v": row}, memory)
    assert np.array_equal(memory["residual/w"], before["residual/w"])
    assert not np.array_equal(memory["residual/v"], before["residual/v"])


def test_feedback_leaves_payloads_that_are_no_floats_alone() -> None:
    memory: Tensors = {}
    codec = make("int8", error_feedback=True)
    for values in (np.array([3], np.uint8), np.array([-3], np.int64), np.array([0.3], np.float16)):
        codec.encode({"i": values}, memory)
    assert memory == {}
    # Also where something is owed under that name from another time.
    memory = {"residual/i": np.ones(1, np.float32)}
    sent = {"i": np.array([3], np.uint8)}
    assert heard(codec, codec.encode(sent, memory), sent)["i"].tolist() == [3]


def test_the_residual_of_one_client_is_not_another_ones() -> None:
    codec, mine, other = make("int8", error_feedback=True), dict[str, np.ndarray](), dict[str, np.ndarray]()
    update = {"w": np.array([[126.75, 0.25]], np.float32)}
    first = codec.encode(update, mine)
    codec.encode(update, mine)
    assert codec.encode(update, other) == first == make("int8").encode(update, {})


def test_feedback_keeps_what_rounding_at_random_lost() -> None:
    update = {"w": np.random.default_rng(1).normal(size=(8, 40)).astype(np.float32)}
    options = {"int8": {"stochastic": True}}
    codec, memory = make("int8", error_feedback=True, options=options), dict[str, np.ndarray]()
    data = codec.encode(update, memory, np.random.default_rng(0))
    assert data == make("int8", options=options).encode(update, {}, np.random.default_rng(0))
    assert np.array_equal(memory["residual/w"], update["w"] - heard(codec, data, update)["w"])


# --- flush ---


def test_flushing_is_int8_in_rounds_that_divide_and_in_no_other() -> None:
    inner = make("int2")
    codec = Flushed(inner, 4)
    names = {k: codec.in_round(k).name for k in range(-8, 10)}
    assert {k for k, name in names.items() if name == "int8"} == {4, 8}
    assert codec.in_round(3) is inner and codec.name == "int2"
    assert isinstance(codec.in_round(4), Int8) and codec.in_round(4) == Int8(), "with no options"
    every = Flushed(make("sparse"), 1)
    assert [every.in_round(k).name for k in (-1, 0, 1, 2)] == ["sparse", "sparse", "int8", "int8"]
    assert all(make("int2").in_round(k).name == "int2" for k in range(9)), "0 is never"


def test_flushing_goes_on_under_feedback_with_the_same_memory() -> None:
    codec = make("sparse", error_feedback=True, flush=2)
    assert isinstance(codec.in_round(2), ErrorFeedback) and codec.in_round(2).remembers
    assert [codec.in_round(k).name for k in (0, 1, 2, 3, 4)] == ["sparse", "sparse", "int8", "sparse", "int8"]


@pytest.mark.parametrize("name", ["int2", "int4", "sparse"])
@pytest.mark.parametrize("flat", [False, True], ids=["single", "buffer"])
def test_little_is_owed_after_a_flush(name: str, flat: bool) -> None:
    layout = FlatLayout.whole({"w": (4, 100)})
    codec, memory = make(name, error_feedback=True, flush=5), dict[str, np.ndarray]()
    rng, owed = np.random.default_rng(0), np.zeros((4, 100), np.float32)
    for server_round in range(1, 6):
        update = rng.normal(size=(4, 100)).astype(np.float32)
        now, before = codec.in_round(server_round), owed
        tensors = Flat(layout, update.reshape(-1)) if flat else {"w": update}
        now.encode(tensors, memory)
        owed = memory["residual/w"]
    # Half a step of int8, in each channel: at most (1 + 2^-7) 2^(1/16) of its peak / 127.
    meant = update + before
    half = np.abs(meant).max(1, keepdims=True) / 254 * (1 + 2.0**-7) * 2 ** (1 / 16) * (1 + 2.0**-20)
    assert np.all(np.abs(owed) <= half)
    assert np.abs(owed).max() < np.abs(before).max() / 10
