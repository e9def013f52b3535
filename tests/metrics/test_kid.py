"""Kernel distance: a value by hand, determinism, and a global generator left alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchmetrics.image.kid import KernelInceptionDistance

from osmotic.metrics.kid import kernel_distance


def test_two_constant_sets_by_hand():
    # D = 1, kernel (x y + 1)^3. All real are 1, all generated 0: k_rr = 8, k_gg = 1, k_rg = 1, so 8 + 1 - 2 = 7.
    assert kernel_distance(np.ones((5, 1)), np.zeros((4, 1))) == pytest.approx(7.0)


def test_two_images_a_side_leave_the_diagonal_out():
    # Real {0, 2}: off-diagonal k = 1, twice, over 2 = 1. Generated {0, 1}: 1. Cross: k(2, 1) = 27, three others 1,
    # mean 30/4 = 7.5. 1 + 1 - 15 = -13: the unbiased estimate may be negative.
    assert kernel_distance(np.array([[0.0], [2.0]]), np.array([[0.0], [1.0]])) == pytest.approx(-13.0)


def test_the_same_seed_gives_the_same_value_and_another_seed_other_subsets():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(300, 4)), rng.normal(size=(250, 4))
    assert kernel_distance(a, b, seed=1) == kernel_distance(a, b, seed=1)
    assert kernel_distance(a, b, seed=1) != kernel_distance(a, b, seed=2)


def test_the_global_generator_is_left_as_it_was():
    before = torch.random.get_rng_state()
    kernel_distance(np.ones((5, 1)), np.zeros((4, 1)))
    assert torch.equal(before, torch.random.get_rng_state())


def test_one_image_is_too_few():
    with pytest.raises(ValueError, match="at least 2 images"):
        kernel_distance(np.ones((1, 2)), np.ones((5, 2)))


@pytest.mark.filterwarnings("ignore:Metric `Kernel")
@pytest.mark.parametrize(("real", "made"), [(300, 250), (100, 100), (60, 400), (2, 3)])
def test_it_is_the_figure_of_torchmetrics_to_the_last_bit(real: int, made: int) -> None:
    rng = np.random.default_rng(real)
    a, b = rng.normal(size=(real, 8)).astype(np.float32), rng.normal(0.3, 1, (made, 8)).astype(np.float32)
    metric = KernelInceptionDistance(torch.nn.Identity(), subsets=100, subset_size=min(real, made, 100))
    metric.set_dtype(torch.float64)
    metric.update(torch.from_numpy(a.astype(np.float64)), real=True)
    metric.update(torch.from_numpy(b.astype(np.float64)), real=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        assert kernel_distance(a, b, seed=5) == float(metric.compute()[0])
