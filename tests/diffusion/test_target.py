"""Targets: hand-worked numbers, limits, and the ways between epsilon, v and x0."""

from __future__ import annotations

import math

import pytest
import torch
from conversions import edm_denoised, to_noise, to_x0
from torch import Tensor

from osmotic.diffusion import target as targets
from osmotic.diffusion.target import TARGETS

KINDS = ("epsilon", "v", "sample")


def draws(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x0 = torch.rand(4, 3, 5, 5, generator=generator, dtype=torch.float64) * 2 - 1
    return x0, torch.randn(4, 3, 5, 5, generator=generator, dtype=torch.float64)


def pixel(value: float) -> Tensor:
    return torch.full((1, 1, 1, 1), value)


@pytest.mark.parametrize("kind", [*KINDS, "edm"])
def test_the_cleanest_levels_are_left_out(kind: str) -> None:
    target = targets.Edm(0.5) if kind == "edm" else TARGETS[kind]

    def levels(cleanest: float) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        return target.draw((100_000, 1, 1, 1), 1000, generator, cleanest).level.double()

    every, some = levels(0.0), levels(0.75)
    floor = every.quantile(0.75)
    assert some.min() >= floor * 0.99, "none below the quantile"
    # Of 100,000 draws the two medians of a log-normal differ by 0.7 % (one standard error).
    assert some.median().item() == pytest.approx(every.quantile(0.875).item(), rel=0.03), (
        "and evenly above it"
    )


def test_noisy_image_and_v_by_hand() -> None:
    # alpha_bar = 0.64: square roots 0.8 and 0.6. Noisy 0.8 * 0.5 + 0.6 * 2 = 1.6; v = 0.8 * 2 - 0.6 * 0.5 = 1.3.
    alpha_bar = torch.tensor([0.64])
    noisy = targets.add_noise(pixel(0.5), pixel(2.0), alpha_bar)
    v = TARGETS["v"].goal(pixel(0.5), pixel(2.0), alpha_bar)
    assert noisy.item() == pytest.approx(1.6) and v.item() == pytest.approx(1.3)


def test_full_signal_adds_no_noise_and_no_signal_is_noise() -> None:
    x0, noise = draws()
    assert torch.equal(targets.add_noise(x0, noise, torch.ones(4)), x0)
    assert torch.equal(targets.add_noise(x0, noise, torch.zeros(4)), noise)


def test_v_is_noise_at_full_signal_and_minus_x0_without() -> None:
    x0, noise = draws()
    assert torch.equal(TARGETS["v"].goal(x0, noise, torch.ones(4)), noise)
    assert torch.equal(TARGETS["v"].goal(x0, noise, torch.zeros(4)), -x0)


@pytest.mark.parametrize("kind", KINDS)
def test_every_prediction_converts_back_to_image_and_noise(kind: str) -> None:
    x0, noise = draws()
    alpha_bar = torch.tensor([0.01, 0.3, 0.7, 0.99], dtype=torch.float64)
    noisy = targets.add_noise(x0, noise, alpha_bar)
    prediction = TARGETS[kind].goal(x0, noise, alpha_bar)
    torch.testing.assert_close(to_x0(kind, prediction, noisy, alpha_bar), x0)
    torch.testing.assert_close(to_noise(kind, prediction, noisy, alpha_bar), noise)


def test_each_image_has_its_own_noise_level() -> None:
    x0, noise = draws()
    noisy = targets.add_noise(x0, noise, torch.tensor([1.0, 0.0, 1.0, 0.0], dtype=torch.float64))
    assert torch.equal(noisy[::2], x0[::2]) and torch.equal(noisy[1::2], noise[1::2])


def test_edm_factors_by_hand() -> None:
    # sigma = sigma_data = 0.5: sum of squares 0.5. c_skip 0.25 / 0.5 = 0.5; c_out 0.25 / sqrt(0.5) = 0.353553;
    # c_in 1 / sqrt(0.5) = 1.414214; c_noise ln(0.5) / 4 = -0.173287.
    scaling = targets.edm_scaling(torch.tensor([0.5]))
    found = [scaling.c_skip.item(), scaling.c_out.item(), scaling.c_in.item(), scaling.c_noise.item()]
    assert found == pytest.approx([0.5, 0.353553, 1.414214, -0.173287], rel=1e-5)


def test_edm_target_is_the_output_that_denoises() -> None:
    x0, noise = draws()
    sigma = torch.tensor([0.002, 0.3, 5.0, 80.0], dtype=torch.float64)
    noisy = x0 + targets.per_image(sigma, x0) * noise
    scaling = targets.edm_scaling(sigma)
    output = targets.edm_target(x0, noisy, scaling)
    torch.testing.assert_close(edm_denoised(output, noisy, scaling), x0)


def test_edm_input_has_unit_variance_and_target_too() -> None:
    # c_in and c_out are made for that (arXiv:2206.00364, app. B.6), for pixels of standard deviation 0.5.
    generator = torch.Generator().manual_seed(1)
    x0 = torch.randn(1, 1, 300, 300, generator=generator) * 0.5
    noise = torch.randn(1, 1, 300, 300, generator=generator)
    for level in (0.01, 0.5, 20.0):
        sigma = torch.tensor([level])
        scaling, noisy = targets.edm_scaling(sigma), x0 + level * noise
        # 90,000 draws: the standard error of a standard deviation is 1 / sqrt(180,000) = 0.0024; four of them.
        assert (scaling.c_in * noisy).std().item() == pytest.approx(1.0, abs=0.0095)
        assert targets.edm_target(x0, noisy, scaling).std().item() == pytest.approx(1.0, abs=0.0095)


def test_training_sigma_is_log_normal() -> None:
    logs = targets.draw_sigma(40_000, torch.Generator().manual_seed(0)).log()
    # Standard errors 1.2 / 200 = 0.006 and 1.2 / sqrt(80,000) = 0.0042; four of them.
    assert logs.mean().item() == pytest.approx(-1.2, abs=0.024)
    assert logs.std().item() == pytest.approx(1.2, abs=0.017)


@pytest.mark.parametrize("kind", KINDS)
def test_unequal_shapes_are_refused(kind: str) -> None:
    with pytest.raises(ValueError, match="one shape"):
        targets.add_noise(pixel(0), torch.zeros(1, 1, 2, 2), torch.ones(1))
    with pytest.raises(ValueError, match="one shape"):
        TARGETS[kind].goal(pixel(0), torch.zeros(1, 1, 2, 2), torch.ones(1))


def test_c_noise_is_a_quarter_of_the_log() -> None:
    assert targets.edm_scaling(torch.tensor([math.e**4])).c_noise.item() == pytest.approx(1.0)
