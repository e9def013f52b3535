"""The average of weights: hand-worked numbers, Adam's debiasing, limits and restoring."""

from __future__ import annotations

import json

import numpy as np
import pytest

from osmotic.diffusion.ema import Ema, round_gain


def rounds(count: int, seed: int = 0) -> list[tuple[dict[str, np.ndarray], int]]:
    rng = np.random.default_rng(seed)
    return [
        (
            {"w": rng.normal(size=(3, 4)).astype(np.float32), "b": rng.normal(size=4).astype(np.float32)},
            int(rng.integers(1, 5000)),
        )
        for _ in range(count)
    ]


def test_two_rounds_by_hand() -> None:
    # Half-life 100, 100 images a round: decay 1/2. m = 0.5 * 2 = 1, then 0.5 * 1 + 0.5 * 8 = 4.5.
    # Debias: 1 - 0.25 = 0.75, so 4.5 / 0.75 = 6.
    ema = Ema([100.0])
    ema.update({"w": np.array([2.0], dtype=np.float32)}, 100)
    ema.update({"w": np.array([8.0], dtype=np.float32)}, 100)
    assert ema.average(100.0)["w"].tolist() == pytest.approx([6.0])


def test_a_round_of_one_half_life_renews_one_half() -> None:
    # 1 - 0.5 ** 1 = 0.5; three half-lives: 1 - 1/8.
    assert round_gain(100, 100.0) == pytest.approx(0.5) and round_gain(300, 100.0) == pytest.approx(0.875)


def test_average_is_adams_debiased_mean() -> None:
    half_lives = [300.0, 7000.0]
    ema = Ema(half_lives)
    moments, left = {h: np.zeros((3, 4)) for h in half_lives}, dict.fromkeys(half_lives, 1.0)
    for weights, images in rounds(20):
        ema.update(weights, images)
        for h in half_lives:
            decay = 0.5 ** (images / h)
            moments[h] = decay * moments[h] + (1 - decay) * weights["w"]
            left[h] *= decay
            expected = (moments[h] / (1 - left[h])).astype(np.float32)
            np.testing.assert_allclose(ema.average(h)["w"], expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("half_life", [1e-3, 5000.0, 1e12, 1e25])
def test_after_the_first_round_the_average_is_that_rounds_weights_to_the_bit(half_life: float) -> None:
    (weights, images), ema = rounds(1)[0], Ema([half_life])
    ema.update(weights, images)
    average = ema.average(half_life)
    assert all(average[k].dtype == np.float32 and np.array_equal(average[k], weights[k]) for k in weights)


@pytest.mark.parametrize("half_life", [0.0, 1e-300, 1e-3])
def test_a_vanishing_half_life_gives_the_raw_weights(half_life: float) -> None:
    ema = Ema([half_life])
    for weights, images in rounds(5):
        ema.update(weights, images)
        assert np.array_equal(ema.average(half_life)["w"], weights["w"])


def test_an_endless_half_life_gives_the_mean_weighted_by_images() -> None:
    # decay -> 1: each round's share 1 - decay is proportional to its images.
    ema, history = Ema([1e15]), rounds(6)
    for weights, images in history:
        ema.update(weights, images)
    stacked = np.stack([weights["w"] for weights, _ in history]).astype(np.float64)
    expected = np.average(stacked, axis=0, weights=[images for _, images in history])
    np.testing.assert_allclose(ema.average(1e15)["w"], expected, rtol=1e-6, atol=1e-7)


def test_small_rounds_against_a_long_half_life_still_move_the_average() -> None:
    # Float32 would stand still: a share of 7e-9 of a gap of 1 is below half its spacing near 1 (6e-8).
    ema = Ema([1e8])
    for value in [1.0] * 3 + [2.0] * 3:
        ema.update({"w": np.array([value], dtype=np.float32)}, 1)
    # The decay is practically 1, so this is the plain mean.
    assert ema.average(1e8)["w"].item() == pytest.approx(1.5, rel=1e-6)


def test_a_round_without_images_changes_nothing() -> None:
    ema = Ema([0.0, 50.0])
    (first, images), (second, _) = rounds(2)
    ema.update(first, images)
    ema.update(second, 0)
    assert all(np.array_equal(ema.average(h)["w"], first["w"]) for h in (0.0, 50.0))


def test_averages_are_copies_and_keep_no_hold_on_the_weights() -> None:
    ema, weights = Ema([10.0]), {"w": np.ones(3, dtype=np.float32)}
    ema.update(weights, 5)
    weights["w"][:] = 7
    ema.average(10.0)["w"][:] = 9
    assert ema.average(10.0)["w"].tolist() == [1.0, 1.0, 1.0]


def test_restored_goes_on_like_unbroken() -> None:
    history = rounds(8)
    unbroken, before, after = Ema([100.0, 9000.0]), Ema([100.0, 9000.0]), Ema([100.0, 9000.0])
    for weights, images in history[:4]:
        unbroken.update(weights, images)
        before.update(weights, images)
    tensors, state = before.state()
    after.restore({k: v.copy() for k, v in tensors.items()}, json.loads(json.dumps(state)))
    for weights, images in history[4:]:
        unbroken.update(weights, images)
        after.update(weights, images)
    for h in (100.0, 9000.0):
        assert all(np.array_equal(after.average(h)[k], unbroken.average(h)[k]) for k in ("w", "b"))


def test_impossible_input_is_refused() -> None:
    with pytest.raises(ValueError, match="half_lives must be"):
        Ema([10.0, 10.0])
    with pytest.raises(ValueError, match="half_lives must be"):
        Ema([-1.0])
    ema = Ema([10.0])
    with pytest.raises(ValueError, match="before the first update"):
        ema.average(10.0)
    with pytest.raises(ValueError, match="half_life must be one of"):
        ema.average(11.0)
    ema.update({"w": np.ones(2, dtype=np.float32)}, 1)
    with pytest.raises(ValueError, match="names and shapes"):
        ema.update({"w": np.ones(3, dtype=np.float32)}, 1)
    with pytest.raises(ValueError, match="images must be"):
        ema.update({"w": np.ones(2, dtype=np.float32)}, -1)
    with pytest.raises(ValueError, match="state is of half_lives"):
        Ema([20.0]).restore(*ema.state())
