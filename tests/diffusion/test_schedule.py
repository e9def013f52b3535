"""Noise schedules: hand-worked values, and equality with diffusers' tables."""

from __future__ import annotations

import math

import pytest
import torch

from osmotic.diffusion import schedule


@pytest.mark.parametrize("name", list(schedule.SCHEDULES))
@pytest.mark.parametrize("timesteps", [21, 100, 1000, 10_000])
def test_alpha_bar_is_diffusers_to_the_last_bit(name: str, timesteps: int) -> None:
    from diffusers import DDPMScheduler

    theirs = DDPMScheduler(
        num_train_timesteps=timesteps,
        beta_schedule=schedule.SCHEDULES[name].diffusers_name,
        beta_start=schedule.linear_ends(timesteps)[0],
        beta_end=schedule.linear_ends(timesteps)[1],
    )
    assert torch.equal(schedule.alpha_bar(name, timesteps), theirs.alphas_cumprod)


def test_linear_schedule_by_hand() -> None:
    # As in the paper with its 1000 timesteps: betas from 0.0001 by 0.0199 / 999 to 0.02.
    betas = schedule.betas("linear", 1000).tolist()
    assert (betas[0], betas[1], betas[-1]) == pytest.approx((1e-4, 1e-4 + 0.0199 / 999, 0.02), rel=1e-6)
    # With 25 all are 40 times as large: 0.004 to 0.8. Half of them are below the middle, 0.402.
    betas = schedule.betas("linear", 25).tolist()
    assert (betas[0], betas[12], betas[24]) == pytest.approx((0.004, 0.402, 0.8), rel=1e-6)


@pytest.mark.parametrize("name", list(schedule.SCHEDULES))
def test_every_schedule_ends_in_noise_whatever_its_length(name: str) -> None:
    for timesteps in (*range(max(2, schedule.SCHEDULES[name].fewest), 60), 100, 250, 1000, 9_000, 10_000):
        table = schedule.alpha_bar(name, timesteps)
        # Sampling starts from noise alone, which holds none of the thousandth of signal that training left.
        assert 0 < table[-1] < 1e-3, timesteps
        assert (table.diff() < 0).all() and table[0] < 1, timesteps


def test_cosine_schedule_follows_its_formula_until_the_cap() -> None:
    # The betas telescope: alpha_bar_t = f(t + 1) / f(0) with f(t) = cos^2(((t / T) + 0.008) / 1.008 * pi / 2).
    def f(t: int) -> float:
        return math.cos((t / 10 + 0.008) / 1.008 * math.pi / 2) ** 2

    expected = [f(t + 1) / f(0) for t in range(9)]
    table = schedule.alpha_bar("cosine", 10).tolist()
    assert table[:9] == pytest.approx(expected, rel=1e-4)
    # f(T) = 0 would need beta = 1; the cap 0.999 leaves a thousandth of the step before.
    assert table[9] == pytest.approx(expected[8] * 0.001, rel=1e-3)


@pytest.mark.parametrize("name", list(schedule.SCHEDULES))
def test_signal_only_falls(name: str) -> None:
    table = schedule.alpha_bar(name, 1000)
    assert (table.diff() < 0).all() and table[0] < 1 and table[-1] > 0


def test_snr_by_hand() -> None:
    # 0.8 / 0.2 = 4; half signal power is SNR 1; no noise is infinite.
    assert schedule.snr(torch.tensor([0.8, 0.5, 1.0, 0.0])).tolist() == pytest.approx(
        [4.0, 1.0, math.inf, 0.0]
    )


@pytest.mark.parametrize(("name", "timesteps"), [("sigmoid", 10), ("cosine", 0), ("linear", 20)])
def test_unknown_schedule_and_too_few_timesteps_are_refused(name: str, timesteps: int) -> None:
    with pytest.raises(ValueError, match="must be"):
        schedule.alpha_bar(name, timesteps)
