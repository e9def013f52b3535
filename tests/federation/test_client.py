"""The one training loop: how many steps, in which order, from which moments."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from osmotic.config.schema import TrainingConfig
from osmotic.diffusion.space import Pixels
from osmotic.protocol.participation import batch_plan, images_planned
from osmotic.training.images import Images
from osmotic.training.loop import Cancelled, fit
from osmotic.training.network import FlatNetwork


class Line(torch.nn.Module):
    """One weight; its loss below is (w - mean of batch)^2 / 2, so plain SGD can be done by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.w = torch.nn.Parameter(torch.zeros(1))


class Squares:
    """A process whose loss needs no noise."""

    def __init__(self) -> None:
        self.batches: list[torch.Tensor] = []

    def loss(
        self, model: Line, x: torch.Tensor, y: torch.Tensor | None, generator: torch.Generator
    ) -> torch.Tensor:
        self.batches.append(x.flatten())
        return ((model.w - x.mean()) ** 2 / 2).sum()


def images(*values: int) -> Images:
    return Images.of(np.array(values, np.uint8).reshape(-1, 1, 1, 1), None, torch.device("cpu"))


SGD = TrainingConfig(optimizer="sgd", batch_size=2, grad_clip=0.0)


@pytest.mark.parametrize(
    "num_images, batch_size, epochs, steps, seen",
    [
        (90, 16, 1, 6, 90),  # 5 full batches and one of 10
        (90, 16, 2, 12, 180),
        (90, 16, 0.5, 3, 48),
        (90, 16, 1.5, 9, 138),  # a whole pass and 3 full batches
        (13, 128, 5, 5, 65),  # the batch is the client
        (16, 16, 1, 1, 16),
        (1, 16, 0.1, 1, 1),  # at least one step
    ],
)
def test_steps_of_some_epochs_and_the_images_they_see(
    num_images: int, batch_size: int, epochs: float, steps: int, seen: int
) -> None:
    assert batch_plan(num_images, batch_size, epochs) == steps
    assert images_planned(num_images, batch_size, epochs) == seen
    own, training = images(*[0] * num_images), TrainingConfig(batch_size=batch_size)
    rng = np.random.default_rng(0)
    assert (
        fit(FlatNetwork(Line()), own, Squares(), training, steps=steps, learning_rate=0.1, rng=rng)[1] == seen
    )  # type: ignore[arg-type]


def test_sgd_by_hand() -> None:
    # Both pixels are 255, that is x = 1. w1 = 0 - 0.5 * (0 - 1) = 0.5, w2 = 0.5 + 0.5 * 0.5 = 0.75;
    # losses 1/2 and 1/8, mean 5/16.
    model = Line()
    loss, seen = fit(
        FlatNetwork(model),
        images(255, 255),
        Squares(),
        SGD,
        steps=2,
        learning_rate=0.5,
        rng=np.random.default_rng(0),
    )  # type: ignore[arg-type]
    assert model.w.item() == pytest.approx(0.75)
    assert (loss, seen) == (pytest.approx(5 / 16), 4)


def test_every_image_is_seen_once_per_pass_and_the_last_batch_is_kept() -> None:
    process = Squares()
    _, seen = fit(
        FlatNetwork(Line()),
        images(0, 51, 102, 153, 204),
        process,
        SGD,
        steps=6,
        learning_rate=0.1,
        rng=np.random.default_rng(0),
    )  # type: ignore[arg-type]
    assert [len(b) for b in process.batches] == [2, 2, 1, 2, 2, 1] and seen == 10
    # 51 / 127.5 - 1 = -0.6 and so on.
    for batches in (process.batches[:3], process.batches[3:]):
        assert sorted(torch.cat(batches).tolist()) == pytest.approx([-1.0, -0.6, -0.2, 0.2, 0.6])
    assert not torch.equal(torch.cat(process.batches[:3]), torch.cat(process.batches[3:])), (
        "a new order each pass"
    )


def test_gradient_norm_is_clipped() -> None:
    # The gradient is -1 and its norm is cut to 0.25, so one step of 0.5 moves by 0.125.
    model = Line()
    training = TrainingConfig(optimizer="sgd", grad_clip=0.25)
    fit(
        FlatNetwork(model),
        images(255),
        Squares(),
        training,
        steps=1,
        learning_rate=0.5,
        rng=np.random.default_rng(0),
    )  # type: ignore[arg-type]
    assert model.w.item() == pytest.approx(0.125, rel=1e-4)  # torch adds 1e-6 to the norm


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_kept_moments_go_on_where_they_were(optimizer: str) -> None:
    training = TrainingConfig(optimizer=optimizer, batch_size=1)  # type: ignore[arg-type]

    def train(model: Line, steps: int, moments: dict[str, np.ndarray]) -> None:
        fit(
            FlatNetwork(model),
            images(255),
            Squares(),
            training,
            steps=steps,
            learning_rate=0.1,
            rng=np.random.default_rng(0),
            moments=moments,
        )  # type: ignore[arg-type]

    at_once, in_two, forgetful = Line(), Line(), Line()
    train(at_once, 4, {})
    moments: dict[str, np.ndarray] = {}
    train(in_two, 2, moments)
    assert {k.split("|")[1] for k in moments} == {"step", "exp_avg", "exp_avg_sq"}
    train(in_two, 2, moments)
    train(forgetful, 2, {})
    train(forgetful, 2, {})
    assert in_two.w.item() == at_once.w.item() != forgetful.w.item()


def test_a_stopped_run_ends_before_its_next_step() -> None:
    model = Line()
    with pytest.raises(Cancelled):
        fit(
            FlatNetwork(model),
            images(255),
            Squares(),
            SGD,
            steps=1,
            learning_rate=0.5,
            rng=np.random.default_rng(0),
            stop=lambda: True,
        )  # type: ignore[arg-type]
    assert model.w.item() == 0


def test_pixels_survive_the_way_to_the_network_and_back() -> None:
    values = np.arange(256, dtype=np.uint8).reshape(-1, 1, 1, 1)
    batch, _ = Images.of(values, None, torch.device("cpu")).batch(torch.arange(256))
    assert batch.min() == -1 and batch.max() == 1
    assert np.array_equal(Pixels((1, 1, 1)).decode(batch), values)


def test_sixteen_bit_images_keep_their_depth() -> None:
    values = np.array([0, 1, 65535], np.float32).reshape(-1, 1, 1, 1) / 65535
    batch, _ = Images.of(values, None, torch.device("cpu")).batch(torch.arange(3))
    assert batch.flatten().tolist() == pytest.approx([-1, 2 / 65535 - 1, 1], abs=1e-7)
