"""engine.precision: what a run trained in bfloat16 keeps, and that it is no key to change on the way."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from osmotic.config.schema import refuse_changes, to_dict
from osmotic.errors import ConfigError
from osmotic.federation.blueprint import Blueprint
from osmotic.runs import resolve
from osmotic.training.images import Images
from osmotic.training.loop import fit
from osmotic.training.network import FlatNetwork

CPU = torch.device("cpu")


def trained(precision: str) -> tuple[np.ndarray, float]:
    """All weights after two steps, and the mean loss."""
    blueprint = Blueprint.of(resolve.load(sets=[f"engine.precision={precision}"]), 8, 1, 0)
    network = FlatNetwork(blueprint.model(CPU))
    network.load(blueprint.initial())
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 1), dtype=np.uint8)
    loss, _ = fit(
        network,
        Images.of(pixels, None, CPU),
        blueprint.process,
        blueprint.config.training,
        steps=2,
        learning_rate=1e-3,
        rng=np.random.default_rng(0),
    )
    return network.weights.numpy().copy(), loss


def test_bf16_trains_near_fp32_with_the_same_bits_every_time() -> None:
    (full, loss), (low, low_loss), (again, _) = trained("fp32"), trained("bf16"), trained("bf16")
    assert low.dtype == np.float32 and np.array_equal(low, again)
    assert not np.array_equal(low, full)
    # Each number keeps 8 bits; AdamW moves no weight by more than about a learning rate a step, whatever the gradient.
    assert low_loss == pytest.approx(loss, rel=2**-6)
    assert np.abs(low - full).max() < 2 * 2 * 1.1e-3


def test_a_run_goes_on_in_the_precision_it_began_with() -> None:
    before = to_dict(resolve.load())
    with pytest.raises(ConfigError, match=r"engine\.precision"):
        refuse_changes(before, to_dict(resolve.load(sets=["engine.precision=bf16"])))
    with pytest.raises(ConfigError, match=r"engine\.precision.*fp32, bf16"):
        resolve.load(sets=["engine.precision=fp16"])
