"""The exact accumulator: fixed-point sums whose bits do not depend on the order of arrival."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from osmotic.protocol import aggregate
from osmotic.protocol.aggregate import CHUNK, Accumulator, OutOfRange


def f32(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def test_the_scale_is_the_largest_power_of_two_that_cannot_wrap():
    # 3 * 8 = 24 <= 32 = 2**5, so 62 - 5 = 57 bits: 24 * 2**57 < 2**62 <= 24 * 2**58.
    assert Accumulator(3, 8.0).scale_bits == 57
    # 0.5 * 1 = 2**-1 leaves 63 bits; the largest sum is 2**62, half of what int64 holds.
    assert Accumulator(1, 0.5).scale_bits == 63
    # 1437 * 8 = 11496 <= 16384 = 2**14.
    assert Accumulator(1437, 8.0).scale_bits == 48


@given(st.integers(1, 2**40), st.floats(1e-6, 1e6))
def test_no_sum_of_accepted_replies_can_wrap_and_no_bit_is_wasted(total: int, most: float):
    bits = Accumulator(total, most).scale_bits
    largest = float(total) * most * 2.0**bits
    assert 2.0**61 * (1 - 1e-12) < largest <= 2.0**62 * (1 + 1e-12)


def test_a_value_is_held_as_rounded_fixed_point():
    # total 1, max 2**60: 62 - 60 = 2 bits, steps of a quarter; 0.45 * 4 = 1.8 -> 2, 0.625 * 4 = 2.5 -> 2 (to even).
    acc = Accumulator(1, 2.0**60)
    acc.add({"w": f32(0.45, 0.625, -0.45)}, 1)
    assert acc.scale_bits == 2
    assert acc.sums["w"].tolist() == [2, 2, -2]
    assert acc.mean()["w"].tolist() == [0.5, 0.5, -0.5]


def test_the_mean_weighs_every_client_by_its_images():
    # (1 * 1.0 + 3 * 2.0) / 4 = 1.75 and (1 * -1.0 + 3 * 0.5) / 4 = 0.125, both exact in binary.
    acc = Accumulator(4, 8.0)
    acc.add({"w": f32(1.0, -1.0)}, 1)
    acc.add({"w": f32(2.0, 0.5)}, 3)
    mean = acc.mean()["w"]
    assert mean.tolist() == [1.75, 0.125]
    assert mean.dtype == np.float32


def test_one_reply_comes_back_to_float32_rounding():
    rng = np.random.default_rng(0)
    update = rng.normal(size=(3, 5)).astype(np.float32)
    acc = Accumulator(90, 8.0)
    acc.add({"w": update}, 90)
    np.testing.assert_allclose(acc.mean()["w"], update, rtol=0, atol=2.0**-50)


def test_partial_updates_are_averaged_over_those_who_sent_them():
    # a from both: (2 * 1 + 6 * 5) / 8 = 4; b from the second alone: 5, though the first has weight too.
    acc = Accumulator(8, 8.0)
    acc.add({"a": f32(1.0)}, 2)
    acc.add({"a": f32(5.0), "b": f32(5.0)}, 6)
    assert {n: t.tolist() for n, t in acc.mean().items()} == {"a": [4.0], "b": [5.0]}
    assert acc.weights == {"a": 8, "b": 6}


def test_nothing_added_means_nothing_to_average():
    assert Accumulator(5, 8.0).mean() == {}


def test_scalars_and_empty_tensors_keep_their_shapes():
    acc = Accumulator(2, 8.0)
    acc.add({"s": np.array(1.5, np.float32), "e": np.zeros((0, 3), np.float32)}, 2)
    mean = acc.mean()
    assert mean["s"].shape == () and float(mean["s"]) == 1.5
    assert mean["e"].shape == (0, 3)


def test_a_transposed_array_is_added_where_it_belongs():
    update = np.arange(6, dtype=np.float32).reshape(2, 3)
    acc = Accumulator(1, 8.0)
    acc.add({"w": update.T}, 1)
    assert acc.mean()["w"].tolist() == update.T.tolist()


REPLIES = st.lists(
    st.tuples(st.integers(1, 50), st.lists(st.floats(-8, 8, width=32), min_size=4, max_size=4)),
    min_size=2,
    max_size=6,
)


@settings(deadline=None)
@given(REPLIES, st.randoms(use_true_random=False))
def test_the_order_of_arrival_changes_no_bit(replies: list[tuple[int, list[float]]], random: object):
    total = sum(weight for weight, _ in replies)
    shuffled = list(replies)
    random.shuffle(shuffled)  # type: ignore[attr-defined]

    def folded(order: list[tuple[int, list[float]]]) -> tuple[bytes, bytes]:
        acc = Accumulator(total, 8.0)
        for weight, values in order:
            acc.check({"w": f32(*values)}, weight)
            acc.add({"w": f32(*values)}, weight)
        return acc.sums["w"].tobytes(), acc.mean()["w"].tobytes()

    assert folded(replies) == folded(shuffled)


def test_float_sums_in_the_same_place_would_depend_on_the_order():
    # What the integers are for: 2**24 + 1 is 2**24 in float32, so adding 1 first or last differs.
    big, one = np.float32(2**24), np.float32(1)
    assert (big + one) + one != big + (one + one)
    acc = [Accumulator(3, 2.0**24) for _ in range(2)]
    for value in (big, one, one):
        acc[0].add({"w": f32(value)}, 1)
    for value in (one, one, big):
        acc[1].add({"w": f32(value)}, 1)
    assert acc[0].sums["w"].tolist() == acc[1].sums["w"].tolist()
    # (2**24 + 2) / 3
    assert acc[0].mean()["w"][0] == np.float32((2**24 + 2) / 3)


@settings(deadline=None)
@given(st.lists(st.floats(-8, 8, width=32), min_size=1, max_size=8), st.integers(1, 1000))
def test_the_sum_is_the_exact_one_where_no_rounding_is_needed(values: list[float], weight: int):
    # 62 - ceil(log2(1000 * 8)) = 49 bits; a multiple of 2**-20 is held exactly.
    rounded = [round(v * 2**20) / 2**20 for v in values]
    acc = Accumulator(1000, 8.0)
    acc.add({"w": np.array(rounded, np.float64)}, weight)
    assert acc.sums["w"].tolist() == [int(v * 2**20) * weight * 2**29 for v in rounded]


def copied(acc: Accumulator) -> tuple[dict[str, list[int]], dict[str, int]]:
    return {n: t.tolist() for n, t in acc.sums.items()}, dict(acc.weights)


@pytest.mark.parametrize("bad", [8.1, -8.1, np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 1])
def test_a_value_out_of_range_is_refused_before_anything_changes(bad: float, place: int):
    acc = Accumulator(10, 8.0)
    acc.add({"a": f32(1, 1), "b": f32(1, 1)}, 4)
    before = copied(acc)
    values = [2.0, 2.0]
    values[place] = bad
    with pytest.raises(OutOfRange, match="b: value"):
        acc.check({"a": f32(2, 2), "b": f32(*values)}, 1)
    assert copied(acc) == before


def test_the_range_itself_is_accepted_and_sums_at_its_edge_do_not_wrap():
    acc = Accumulator(8, 8.0)
    for _ in range(8):
        acc.check({"w": f32(8.0, -8.0)}, 1)
        acc.add({"w": f32(8.0, -8.0)}, 1)
    assert acc.mean()["w"].tolist() == [8.0, -8.0]


def test_weights_above_the_announced_total_are_refused():
    acc = Accumulator(10, 8.0)
    acc.add({"w": f32(1)}, 7)
    before = copied(acc)
    with pytest.raises(OutOfRange, match="above the announced 10"):
        acc.check({"w": f32(1)}, 4)
    assert copied(acc) == before
    acc.check({"w": f32(1)}, 3)
    acc.check({"other": f32(1)}, 10)


def test_a_total_below_one_is_refused():
    with pytest.raises(ValueError, match="total_weight must be >= 1, got 0"):
        Accumulator(0, 8.0)


@pytest.mark.parametrize("most", [1e-6, 1e6])
def test_every_range_that_a_configuration_may_set_can_be_summed(most: float):
    acc = Accumulator(10, most)
    acc.add({"w": f32(0.0)}, 10)
    assert acc.mean()["w"].tolist() == [0.0]


@pytest.mark.parametrize("size", [1, CHUNK - 1, CHUNK, CHUNK + 1, 8 * CHUNK + 1])
def test_no_element_is_lost_or_added_twice_at_the_edge_of_a_chunk(size: int):
    update = (np.arange(size, dtype=np.float32) % 7) - 3
    acc = Accumulator(4, 8.0)
    acc.add({"w": update}, 1)
    acc.add({"w": update}, 3)
    assert np.array_equal(acc.mean()["w"], update)


def test_threads_give_the_bits_of_the_plain_path(monkeypatch: pytest.MonkeyPatch):
    rng = np.random.default_rng(1)
    updates = {
        "a": rng.normal(size=17 * CHUNK + 5).astype(np.float32),
        "b": rng.normal(size=(3, 7)).astype(np.float32),
    }

    def threaded() -> Accumulator:
        acc = Accumulator(100, 8.0)
        acc.add(updates, 37)
        acc.add(updates, 5)
        return acc

    fast = threaded()
    assert fast._pool is not None
    plain = Accumulator(100, 8.0)
    for weight in (5, 37):
        for name, update in updates.items():
            total = np.rint(update.astype(np.float64) * weight * 2.0**plain.scale_bits).astype(np.int64)
            plain.sums[name] = plain.sums.get(name, 0) + total
            plain.weights[name] = plain.weights.get(name, 0) + weight
    for name in updates:
        assert np.array_equal(fast.sums[name], plain.sums[name])
        assert np.array_equal(fast.mean()[name], plain.mean()[name])
    monkeypatch.setattr(aggregate, "CHUNK", 1000)
    assert np.array_equal(threaded().sums["a"], plain.sums["a"])
