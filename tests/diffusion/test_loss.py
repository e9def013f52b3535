"""The loss: hand-worked distances and weights, and what a process draws."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from conversions import to_noise
from torch import Tensor

from osmotic.config.schema import ModelConfig, RecipeConfig
from osmotic.diffusion import loss as losses
from osmotic.diffusion import schedule as schedules
from osmotic.diffusion import target as targets
from osmotic.diffusion.process import Process
from osmotic.diffusion.target import TARGETS


class Recorder:
    """A network that outputs a constant and remembers what it was given."""

    def __init__(self, value: float = 0.0) -> None:
        self.value = value
        self.calls: list[tuple[Tensor, Tensor, Tensor | None]] = []

    def __call__(
        self, x: Tensor, t: Tensor, class_labels: Any = None, return_dict: bool = True
    ) -> tuple[Tensor]:
        assert not return_dict
        self.calls.append((x, t, class_labels))
        return (torch.full_like(x, self.value),)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(count: int = 6) -> Tensor:
    return torch.rand(count, 1, 4, 4, generator=seeded(9)) * 2 - 1


def test_distances_by_hand() -> None:
    # Differences 0.5 and 3. mse: (0.25 + 9) / 2 = 4.625. huber: 0.125 and 2.5, mean 1.3125.
    prediction, goal = torch.tensor([[[[0.5, 3.0]]]]), torch.zeros(1, 1, 1, 2)
    assert losses.distance(prediction, goal, "mse").tolist() == pytest.approx([4.625])
    assert losses.distance(prediction, goal, "huber").tolist() == pytest.approx([1.3125])


def test_min_snr_weights_by_hand() -> None:
    # gamma 5. SNR 2: 2/2 = 1, 2/3, 2. SNR 20: 5/20 = 0.25, 5/21, 5.
    snr = torch.tensor([2.0, 20.0])
    assert TARGETS["epsilon"].weight(snr, 5).tolist() == pytest.approx([1.0, 0.25])
    assert TARGETS["v"].weight(snr, 5).tolist() == pytest.approx([2 / 3, 5 / 21])
    assert TARGETS["sample"].weight(snr, 5).tolist() == pytest.approx([2.0, 5.0])


@pytest.mark.parametrize("target", ["epsilon", "v", "sample"])
def test_gamma_zero_weighs_every_timestep_alike(target: str) -> None:
    assert TARGETS[target].weight(torch.tensor([1e-9, 1.0, 1e9]), 0).tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("target", ["epsilon", "v"])
def test_noise_free_images_weigh_nothing(target: str) -> None:
    assert TARGETS[target].weight(torch.tensor([math.inf]), 5).item() == 0.0


def test_one_error_costs_the_same_whatever_the_target() -> None:
    # An error e in x0 is sqrt(SNR) * e in epsilon and sqrt(SNR + 1) * e in v: the weights make up for exactly that.
    alpha_bar = torch.tensor([0.05, 0.5, 0.9, 0.999], dtype=torch.float64)
    x0 = torch.rand(4, 1, 3, 3, generator=seeded(), dtype=torch.float64)
    noise = torch.randn(4, 1, 3, 3, generator=seeded(1), dtype=torch.float64)
    noisy = targets.add_noise(x0, noise, alpha_bar)
    wrong = x0 + 0.1 * torch.randn(4, 1, 3, 3, generator=seeded(2), dtype=torch.float64)
    wrong_noise = to_noise("sample", wrong, noisy, alpha_bar)
    costs = []
    for target in ("epsilon", "v", "sample"):
        prediction = TARGETS[target].goal(wrong, wrong_noise, alpha_bar)
        goal = TARGETS[target].goal(x0, noise, alpha_bar)
        weight = TARGETS[target].weight(schedules.snr(alpha_bar), 5.0)
        costs.append(weight * (prediction - goal).square().mean(dim=(1, 2, 3)))
    torch.testing.assert_close(costs[0], costs[2])
    torch.testing.assert_close(costs[1], costs[2])


def test_the_papers_edm_weight_leaves_the_raw_network_unweighted() -> None:
    # Table 1: lambda = (sigma^2 + sigma_data^2) / (sigma * sigma_data)^2; D - x0 is c_out times F - goal.
    sigma = torch.tensor([0.01, 0.5, 30.0])
    papers = (sigma.square() + 0.25) / (0.5 * sigma).square()
    torch.testing.assert_close(papers * targets.edm_scaling(sigma).c_out.square(), torch.ones(3))
    edm, x0 = TARGETS["edm"], images()
    assert edm.example(x0, torch.ones(0), 5.0, edm.draw(x0.shape, 0, seeded())).weight is None


@pytest.mark.parametrize(("kind", "expected"), [("mse", 0.25), ("huber", 0.125)])
def test_loss_of_a_constant_error_is_the_distance_of_it(kind: str, expected: float) -> None:
    # x0 is 0.5 everywhere and the network says 0: distance 0.25 (mse) or 0.125 (huber), whatever the timestep.
    process = Process(target="sample", distance=kind, min_snr=0.0)
    loss = process.loss(Recorder(), torch.full((3, 1, 2, 2), 0.5), None, seeded())
    assert loss.shape == () and loss.item() == pytest.approx(expected)


def test_loss_is_the_weighted_mean_over_images() -> None:
    process = Process(target="sample", min_snr=5.0)
    model = Recorder()
    loss = process.loss(model, torch.full((8, 1, 2, 2), 0.5), None, seeded())
    snr = schedules.snr(process.alpha_bar[model.calls[0][1]])
    assert loss.item() == pytest.approx((0.25 * snr.clamp(max=5.0)).mean().item())


@pytest.mark.parametrize("target", list(TARGETS))
def test_a_perfect_network_has_no_loss(target: str) -> None:
    process, x0 = Process(target=target), images()

    def perfect(x: Tensor, t: Tensor, class_labels: Any = None, return_dict: bool = True) -> tuple[Tensor]:
        if target == "edm":
            scaling = targets.edm_scaling((4 * t).exp())
            return (targets.edm_target(x0, x / targets.per_image(scaling.c_in, x), scaling),)
        alpha_bar = process.alpha_bar[t]
        noise = to_noise("sample", x0, x, alpha_bar)
        return (TARGETS[target].goal(x0, noise, alpha_bar),)

    # float32 noise found back by subtraction is off by up to 1e-7 / sqrt(4e-5) = 2e-5 where there is hardly any.
    assert process.loss(perfect, x0, None, seeded()).item() < 1e-6


@pytest.mark.parametrize("target", list(TARGETS))
def test_same_generator_same_loss_and_the_next_draw_differs(target: str) -> None:
    process, generator = Process(target=target, num_classes=3), seeded()
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    first = process.loss(Recorder(), images(), labels, generator)
    second = process.loss(Recorder(), images(), labels, generator)
    again = process.loss(Recorder(), images(), labels, seeded())
    assert torch.equal(first, again) and not torch.equal(first, second)


def test_memory_layout_does_not_change_what_is_drawn() -> None:
    x0 = torch.rand(4, 3, 5, 6, generator=seeded())
    process, plain, last = Process(target="v"), Recorder(), Recorder()
    process.loss(plain, x0, None, seeded(1))
    process.loss(last, x0.contiguous(memory_format=torch.channels_last), None, seeded(1))
    assert torch.equal(plain.calls[0][0], last.calls[0][0])


def test_timesteps_are_uniform_over_the_whole_schedule_and_per_image() -> None:
    model = Recorder()
    Process(target="v", timesteps=4).loss(model, torch.zeros(8000, 1, 1, 1), None, seeded())
    counts = torch.bincount(model.calls[0][1], minlength=4)
    # Binomial(8000, 1/4): 2000 with standard deviation sqrt(1500) = 38.7; four of them.
    assert len(counts) == 4 and (counts - 2000).abs().max() < 155


def test_labels_are_dropped_at_their_rate_and_never_changed_otherwise() -> None:
    model, labels = Recorder(), torch.arange(8000) % 10
    process = Process(target="v", num_classes=10, label_dropout=0.1)
    process.loss(model, torch.zeros(8000, 1, 1, 1), labels, seeded())
    given = model.calls[0][2]
    assert given is not None
    dropped = given == process.null_class
    # Binomial(8000, 0.1): 800 with standard deviation 26.8; four of them.
    assert abs(int(dropped.sum()) - 800) < 108
    assert torch.equal(given[~dropped], labels[~dropped])


@pytest.mark.parametrize(("share", "expected"), [(0.0, [0, 1, 2]), (1.0, [3, 3, 3])])
def test_label_dropout_limits(share: float, expected: list[int]) -> None:
    model = Recorder()
    process = Process(target="epsilon", num_classes=3, label_dropout=share)
    process.loss(model, torch.zeros(3, 1, 1, 1), torch.tensor([0, 1, 2]), seeded())
    given = model.calls[0][2]
    assert given is not None and given.tolist() == expected


def test_label_dropout_is_drawn_last_so_it_leaves_noise_and_timesteps_alone() -> None:
    without, conditional = Recorder(), Recorder()
    Process(target="v").loss(without, images(), None, seeded())
    Process(target="v", num_classes=2).loss(
        conditional, images(), torch.zeros(6, dtype=torch.int64), seeded()
    )
    assert torch.equal(without.calls[0][0], conditional.calls[0][0])
    assert torch.equal(without.calls[0][1], conditional.calls[0][1])


def test_labels_for_an_unconditional_process_are_refused() -> None:
    with pytest.raises(ValueError, match="unconditional"):
        Process(target="v").loss(Recorder(), images(), torch.zeros(6, dtype=torch.int64), seeded())


@pytest.mark.parametrize("target", list(TARGETS))
def test_loss_trains_diffusers_unet_under_bfloat16_autocast_and_channels_last(target: str) -> None:
    from diffusers import UNet2DModel

    model = UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(8, 8),
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        num_class_embeds=3,
    ).to(memory_format=torch.channels_last)
    x0 = (torch.rand(2, 1, 8, 8, generator=seeded()) * 2 - 1).contiguous(memory_format=torch.channels_last)
    process = Process(target=target, num_classes=2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = process.loss(model, x0, torch.tensor([0, 1]), seeded())
    loss.backward()
    assert loss.dtype == torch.float32 and math.isfinite(loss.item())
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in model.parameters())
    assert any(p.grad is not None and bool((p.grad != 0).any()) for p in model.parameters())


def test_bf16_rounds_the_network_and_neither_weights_nor_loss() -> None:
    torch.manual_seed(0)
    model = torch.nn.Conv2d(1, 1, 3, padding=1)
    seen = []

    def network(
        x: torch.Tensor, t: torch.Tensor, class_labels: object, return_dict: bool
    ) -> tuple[torch.Tensor]:
        seen.append(model(x))
        return (seen[-1],)

    found = {}
    for precision in ("fp32", "bf16"):
        model.zero_grad()
        loss = Process(target="epsilon", precision=precision).loss(network, images(), None, seeded())
        loss.backward()
        assert loss.dtype == torch.float32 and model.weight.dtype == torch.float32
        assert model.weight.grad is not None and model.weight.grad.dtype == torch.float32
        found[precision] = loss.item(), model.weight.grad.clone()
    assert [answer.dtype for answer in seen] == [torch.float32, torch.bfloat16]
    # bfloat16 has 8 bits: one part in 2**8 per number, and the mean over pixels is of float32 squares.
    assert 0 < abs(found["bf16"][0] - found["fp32"][0]) < 2**-7 * found["fp32"][0]
    assert not torch.equal(found["bf16"][1], found["fp32"][1])
    with torch.autocast("cpu", torch.bfloat16):
        outside = Process(target="epsilon").loss(network, images(), None, seeded())
    assert outside.item() == found["bf16"][0]


def test_process_takes_its_keys_from_the_configuration() -> None:
    process = Process.from_config(
        ModelConfig(target="epsilon", schedule="linear", timesteps=50),
        RecipeConfig(loss="huber", min_snr=3.0, label_dropout=0.25),
        num_classes=7,
    )
    found = (process.target, process.schedule, process.timesteps, process.distance, process.min_snr)
    assert found == ("epsilon", "linear", 50, "huber", 3.0)
    assert (process.label_dropout, process.null_class, len(process.alpha_bar)) == (0.25, 7, 50)


def test_contract_is_json_and_null_where_unused() -> None:
    keys = {"target", "schedule", "timesteps", "sigma_data", "sigma_min", "sigma_max"}
    v, edm = Process(target="v").contract(), Process(target="edm").contract()
    assert set(json.loads(json.dumps(v))) == set(edm) == keys
    assert (v["schedule"], v["timesteps"], v["sigma_data"]) == ("cosine", 1000, None)
    assert (edm["schedule"], edm["timesteps"], edm["sigma_data"], edm["sigma_max"]) == (None, None, 0.5, 80.0)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match="target must be one of"):
        Process(target="x0")
    with pytest.raises(ValueError, match="schedule must be one of"):
        Process(target="v", schedule="sigmoid")
    with pytest.raises(ValueError, match="loss must be"):
        losses.distance(torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1, 1), "l1")
    with pytest.raises(ValueError, match="gamma must be"):
        TARGETS["v"].weight(torch.ones(1), -1.0)
