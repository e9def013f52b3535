"""Samplers on Gaussian data, where the ideal denoiser and the exact answer are known, and images apart from batches."""

from __future__ import annotations

import itertools
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from conversions import to_noise
from torch import Tensor

from osmotic.diffusion import compatibility, sampler, solvers
from osmotic.diffusion import target as targets
from osmotic.diffusion.process import Process
from osmotic.diffusion.schedule import SCHEDULES
from osmotic.diffusion.solvers import SAMPLERS
from osmotic.diffusion.space import Pixels
from osmotic.diffusion.target import TARGETS

# Four and a half standard deviations from the mean to 1, so that no clip to [-1, 1] acts on this data.
MEAN, STD = 0.1, 0.2
SHAPE = (16, 1, 8, 8)
SEED = 7
PAIRS = [(t, s) for t in TARGETS for s in SAMPLERS if compatibility.compatible(t, s) is None]
SMOOTH = [(t, s) for t, s in PAIRS if not SAMPLERS[s].ancestral]


def ideal(process: Process, mean: Tensor | float = MEAN, shift: float = 0.0) -> Callable[..., tuple[Tensor]]:
    """The exact denoiser of pixels x0 ~ N(mean + shift * label, STD^2), as a network of the process's target.

    E[x0 | x] = mean + k * (x - a * mean), k = a * STD^2 / (a^2 * STD^2 + b^2), for x = a * x0 + b * noise.
    """

    def network(x: Tensor, t: Tensor, class_labels: Any = None, return_dict: bool = True) -> tuple[Tensor]:
        x = x.double()
        centre = torch.as_tensor(mean, dtype=torch.float64)
        if class_labels is not None:
            centre = centre + shift * targets.per_image(class_labels.double(), x)
        if process.target == "edm":
            sigma = (4 * t.double()).exp()
            scaling = targets.edm_scaling(sigma)
            noisy = x / targets.per_image(scaling.c_in, x)
            x0 = centre + targets.per_image(STD**2 / (STD**2 + sigma**2), x) * (noisy - centre)
            return (targets.edm_target(x0, noisy, scaling).float(),)
        alpha_bar = process.alpha_bar.double()[t]
        a2 = targets.per_image(alpha_bar, x)
        x0 = centre + a2.sqrt() * STD**2 / (a2 * STD**2 + 1 - a2) * (x - a2.sqrt() * centre)
        noise = to_noise("sample", x0, x, alpha_bar)
        return (TARGETS[process.target].goal(x0, noise, alpha_bar).float(),)

    return network


def exact(process: Process, name: str, steps: int) -> Tensor:
    """The exact answer: the probability-flow ODE to the sampler's last stop, then the step to zero noise.

    The ODE keeps each pixel's standard score. The last step is E[x0 | x] by construction, which from noise sigma (in
    units of the signal) shrinks the score by STD / sqrt(STD^2 + sigma^2).
    """
    scheduler = SAMPLERS[name].scheduler(process, steps)
    generators = sampler.image_generators((SEED,), range(SHAPE[0]))
    noise = torch.stack([torch.randn(SHAPE[1:], generator=g) for g in generators]).double()
    if process.target == "edm":
        score = (noise * scheduler.init_noise_sigma - MEAN) / (STD**2 + targets.SIGMA_MAX**2) ** 0.5
    else:
        a2 = process.alpha_bar.double()[int(scheduler.timesteps[0])]
        score = (noise - a2.sqrt() * MEAN) / (a2 * STD**2 + 1 - a2).sqrt()
    last = float(scheduler.sigmas[-2])
    return MEAN + STD * score * STD / (STD**2 + last**2) ** 0.5


@pytest.mark.parametrize(("target", "name"), [pair for pair in SMOOTH if pair[0] in ("v", "edm")])
def test_error_falls_with_the_order_of_the_solver(target: str, name: str) -> None:
    # The longest schedule, so that rounding stops to whole timesteps is no part of the error; and from 50 steps on,
    # where the last stop's noise is below the spread of the data: with fewer, hardly any of the path is resolved.
    process, counts = Process(target=target, timesteps=10_000), [50, 100, 200, 400]
    errors = []
    for steps in counts:
        images, _ = sampler.sample(ideal(process), process, None, SHAPE, name, steps, SEED)
        errors.append((images - exact(process, name, steps)).abs().mean().item())
    slope = -np.polyfit(np.log(counts), np.log(errors), 1)[0]
    # Nearer to its own order than to the neighbouring ones.
    assert abs(slope - SAMPLERS[name].order) < 0.5, (slope, errors)


@pytest.mark.parametrize("name", [name for name, found in SAMPLERS.items() if not found.edm])
def test_what_the_network_predicts_does_not_change_the_images(name: str) -> None:
    drawn = []
    for target in ("epsilon", "v", "sample"):
        process = Process(target=target)
        drawn.append(sampler.sample(ideal(process), process, None, SHAPE, name, 20, SEED)[0])
    # Rounding: epsilon's x0 divides float32 noise (6e-8) by sqrt(alpha_bar), down to 5e-5 at the noisiest timestep,
    # where that x0 counts for as little again.
    torch.testing.assert_close(drawn[0], drawn[1], atol=1e-4, rtol=0)
    torch.testing.assert_close(drawn[2], drawn[1], atol=1e-4, rtol=0)


def test_twenty_default_steps_come_close_to_the_data() -> None:
    # The default (v, cosine, dpm-solver++, 20 steps) has the data's mean and spread within the sampling error of
    # 4096 pixels that the test below works out.
    process = Process(target="v")
    images, _ = sampler.sample(ideal(process), process, None, (64, 1, 8, 8), "dpm-solver++", 20, SEED)
    assert images.mean().item() == pytest.approx(MEAN, abs=0.0125)
    assert images.std().item() == pytest.approx(STD, abs=0.0088)


def ancestral_spread(process: Process, steps: int) -> float:
    """Standard deviation that ddpm itself reaches: with the smaller of its two variances it is a little too narrow.

    With the ideal denoiser a step is x -> (c_x + c_0 * k) * x + sqrt(beta_tilde) * noise around the mean, k as in
    `ideal`, c_x, c_0 and beta_tilde from arXiv:2006.11239, eq. 7; it starts at variance 1.
    """
    stops = [*solvers.even_stops(process, steps), -1]
    variance = 1.0
    for here, there in itertools.pairwise(stops):
        a2 = float(process.alpha_bar[here])
        b2 = float(process.alpha_bar[there]) if there >= 0 else 1.0
        beta = 1 - a2 / b2
        k = a2**0.5 * STD**2 / (a2 * STD**2 + 1 - a2)
        shrink = ((a2 / b2) ** 0.5 * (1 - b2) + b2**0.5 * beta * k) / (1 - a2)
        variance = shrink**2 * variance + (1 - b2) / (1 - a2) * beta
    return variance**0.5


@pytest.mark.parametrize("steps", [10, 30, 250])
def test_ddpm_has_the_spread_of_its_own_recursion(steps: int) -> None:
    process = Process(target="epsilon")
    images, _ = sampler.sample(ideal(process), process, None, (64, 1, 8, 8), "ddpm", steps, SEED)
    assert images.std().item() == pytest.approx(ancestral_spread(process, steps), abs=0.0088)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize(("target", "name"), PAIRS)
def test_samples_have_the_mean_and_spread_of_the_data(target: str, name: str, schedule: str) -> None:
    process = Process(target=target, schedule=schedule, timesteps=1000)
    images, _ = sampler.sample(ideal(process), process, None, (64, 1, 8, 8), name, 250, SEED)
    # 4096 pixels: standard error of the mean 0.2 / 64 = 0.0031; four of them.
    assert images.mean().item() == pytest.approx(MEAN, abs=0.0125)
    # Four standard errors of the spread, 0.2 / sqrt(8192) = 0.0022.
    spread = ancestral_spread(process, 250) if SAMPLERS[name].ancestral else STD
    assert images.std().item() == pytest.approx(spread, abs=0.0088)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("timesteps", [100, 9_000, 10_000])
def test_a_schedule_of_any_length_gives_the_mean_and_spread_of_the_data(
    schedule: str, timesteps: int
) -> None:
    process = Process(target="v", schedule=schedule, timesteps=timesteps)
    for name in ("ddim", "dpm-solver++", "unipc"):
        images, _ = sampler.sample(ideal(process), process, None, (64, 1, 8, 8), name, 90, SEED)
        assert images.mean().item() == pytest.approx(MEAN, abs=0.0125)  # four standard errors, as above
        # As the schedule of 1000 timesteps, which the test above holds against the data with 250 steps: four standard
        # errors. Without scaled betas 100 timesteps gave twice the spread, and 9,000 no number at all.
        usual = Process(target="v", schedule=schedule)
        wanted, _ = sampler.sample(ideal(usual), usual, None, (64, 1, 8, 8), name, 90, SEED)
        assert images.std().item() == pytest.approx(wanted.std().item(), abs=0.0088)


@pytest.mark.parametrize("target", ["epsilon", "v", "sample"])
def test_ddim_is_diffusers_ddim_where_the_steps_divide_the_timesteps(target: str) -> None:
    from diffusers import DDIMScheduler

    process = Process(target=target)
    network = ideal(process)
    ours, _ = sampler.sample(network, process, None, SHAPE, "ddim", 20, SEED)
    theirs = DDIMScheduler(
        beta_schedule="squaredcos_cap_v2",
        prediction_type=TARGETS[target].prediction_type,
        timestep_spacing="trailing",
    )
    theirs.set_timesteps(20)
    generators = sampler.image_generators((SEED,), range(SHAPE[0]))
    x = torch.stack([torch.randn(SHAPE[1:], generator=g) for g in generators])
    for t in theirs.timesteps:
        output = network(x, t.expand(len(x)))[0]
        x = theirs.step(output, t, x, use_clipped_model_output=True).prev_sample
    torch.testing.assert_close(ours, x.clamp(-1, 1), atol=1e-4, rtol=0)


@pytest.mark.parametrize("rule", [solvers.even_stops, solvers.crowded_stops])
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_stops_fall_strictly_from_the_noisy_end_for_any_number_of_steps(
    rule: Callable[[Process, int], list[int]], schedule: str
) -> None:
    for timesteps in (2, 7, 10, 30, 1000):
        if timesteps < SCHEDULES[schedule].fewest:
            continue
        process = Process(target="v", schedule=schedule, timesteps=timesteps)
        for steps in {1, 2, 3, 7, 10, 30, 333, 600, 998, 1000}:
            if steps > timesteps:
                continue
            stops = rule(process, steps)
            assert len(stops) == steps and stops[-1] >= 0
            assert process.alpha_bar[stops[0]] < 1e-3 and stops[0] < timesteps
            assert all(a > b for a, b in itertools.pairwise(stops))


def test_ddpm_of_all_timesteps_visits_each_once() -> None:
    assert solvers.even_stops(Process(target="v", timesteps=50), 50) == list(range(49, -1, -1))


@pytest.mark.parametrize(("target", "name"), PAIRS)
@pytest.mark.parametrize("steps", [1, 2, 3, 9, 10])
def test_few_steps_and_coarse_schedules_stay_finite(target: str, name: str, steps: int) -> None:
    process = Process(target=target, timesteps=11)
    images, _ = sampler.sample(ideal(process), process, None, (2, 1, 4, 4), name, steps, SEED)
    assert images.isfinite().all()


@pytest.mark.parametrize(("target", "name"), PAIRS)
def test_batching_and_workers_do_not_change_an_image(target: str, name: str) -> None:
    process = Process(target=target, num_classes=3)
    network, labels = ideal(process, shift=0.05), torch.arange(10) % 3
    shape = (10, 1, 4, 4)

    def draw(batch_size: int) -> Tensor:
        return sampler.sample(network, process, labels, shape, name, 6, SEED, 2.0, batch_size)[0]

    whole = draw(250)
    assert torch.equal(draw(1), whole) and torch.equal(draw(7), whole)
    threads = torch.get_num_threads()
    for replicas in (1, 2):
        models = [network] * replicas
        images, _ = sampler.sample_chunks(models, process, labels, shape, name, 6, SEED, 2.0, chunk_size=3)
        assert torch.equal(images, whole)
    assert torch.get_num_threads() == threads


def test_more_images_leave_the_first_ones_as_they_were() -> None:
    process = Process(target="v")
    few, _ = sampler.sample(ideal(process), process, None, (3, 1, 4, 4), "ddpm", 5, SEED)
    many, _ = sampler.sample(ideal(process), process, None, (8, 1, 4, 4), "ddpm", 5, SEED)
    other, _ = sampler.sample(ideal(process), process, None, (3, 1, 4, 4), "ddpm", 5, [SEED, 1])
    assert torch.equal(many[:3], few) and not torch.equal(other, few)


def test_a_real_network_gives_the_same_bits_with_one_and_two_workers() -> None:
    from diffusers import UNet2DModel

    torch.manual_seed(0)
    networks = [
        UNet2DModel(
            sample_size=8,
            in_channels=1,
            out_channels=1,
            layers_per_block=1,
            block_out_channels=(8, 8),
            down_block_types=("DownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D"),
            norm_num_groups=4,
            dropout=0.5,
        )
        for _ in range(2)
    ]
    networks[1].load_state_dict(networks[0].state_dict())
    process = Process(target="v")
    results = [
        sampler.sample_chunks(models, process, None, (9, 1, 8, 8), "dpm-solver++", 4, SEED, chunk_size=2)[0]
        for models in (networks[:1], networks)
    ]
    assert torch.equal(results[0], results[1])
    assert all(network.training for network in networks)


@pytest.mark.parametrize(("guidance", "evaluations"), [(1.0, 5), (3.0, 10)])
def test_nfe_counts_every_evaluation_of_an_image(guidance: float, evaluations: int) -> None:
    process, seen = Process(target="v", num_classes=2), []
    network = ideal(process)

    def counting(x: Tensor, t: Tensor, **kwargs: Any) -> tuple[Tensor]:
        seen.append(len(x))
        return network(x, t, **kwargs)

    labels = torch.tensor([0, 1, 0, 1])
    for name in ("ddpm", "ddim", "dpm-solver++", "unipc"):
        seen.clear()
        _, nfe = sampler.sample(counting, process, labels, (4, 1, 2, 2), name, 5, SEED, guidance)
        assert nfe == evaluations and sum(seen) == 4 * evaluations


def test_guidance_moves_images_away_from_the_unlabelled_mean() -> None:
    # Network mean MEAN + 0.1 * label, "no label" is label 2. The output is affine in the mean, so guidance 3 for
    # label 1 acts as label 2 + 3 * (1 - 2) = -1: mean 0.1 - 0.1 = 0.
    process = Process(target="v", num_classes=2)
    labels = torch.ones(64, dtype=torch.int64)
    network = ideal(process, shift=0.1)
    images, _ = sampler.sample(network, process, labels, (64, 1, 8, 8), "dpm-solver++", 40, SEED, 3.0)
    assert images.mean().item() == pytest.approx(0.0, abs=0.0125)  # four standard errors, as above


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(("target", "name"), PAIRS)
def test_an_image_that_is_not_finite_is_told_and_not_drawn_black(
    target: str, name: str, value: float
) -> None:
    process = Process(target=target)
    network = ideal(process)

    def broken(x: Tensor, t: Tensor, **kwargs: Any) -> tuple[Tensor]:
        output = network(x, t, **kwargs)[0]
        output[1, 0, 2, 3] = value
        return (output,)

    # Where the sampler clips its estimate of x0, an infinite answer may still be an image: then it must be one.
    try:
        images, _ = sampler.sample(broken, process, None, (3, 1, 4, 4), name, 5, SEED)
    except sampler.NotFinite as error:
        assert str(error) == "1 of 3 images drawn by the model hold values that are not finite"
    else:
        assert value == float("inf") and images.isfinite().all()


def test_without_labels_a_conditional_network_is_asked_for_no_label() -> None:
    process, seen = Process(target="v", num_classes=4), []

    def network(x: Tensor, t: Tensor, class_labels: Any = None, return_dict: bool = True) -> tuple[Tensor]:
        seen.append(class_labels.tolist())
        return (torch.zeros_like(x),)

    sampler.sample(network, process, None, (2, 1, 2, 2), "ddim", 1, SEED)
    assert seen == [[4, 4]]


@pytest.mark.parametrize(("target", "name"), PAIRS)
def test_images_are_clipped(target: str, name: str) -> None:
    process = Process(target=target)
    images, _ = sampler.sample(ideal(process, mean=3.0), process, None, (2, 1, 4, 4), name, 10, SEED)
    assert images.dtype == torch.float32 and images.max() == 1.0


def test_edm_and_the_rest_exclude_each_other() -> None:
    for target in TARGETS:
        for name in SAMPLERS:
            assert (compatibility.compatible(target, name) is None) == (
                (target == "edm") == name.startswith("edm-")
            )
    assert "edm-euler" in str(compatibility.compatible("edm", "ddim"))
    assert "target must be one of" in str(compatibility.compatible("x0", "ddim"))


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"sampler": "heun"}, "sampler must be one of"),
        ({"sampler": "edm-euler"}, "cannot use target v"),
        ({"steps": 0}, "must be >= 1"),
        ({"steps": 1001}, "at most 1000 steps"),
        ({"sampler": "unipc", "steps": 1000}, "at most 999 steps"),
        ({"guidance": 2.0}, "guidance needs labels"),
        ({"labels": torch.zeros(2, dtype=torch.int64)}, "unconditional"),
        ({"shape": (0, 1, 2, 2)}, "must be >= 1"),
    ],
)
def test_what_cannot_work_is_refused(change: dict[str, Any], rule: str) -> None:
    process = Process(target="v")
    call: dict[str, Any] = {"labels": None, "shape": (2, 1, 2, 2), "sampler": "ddim", "steps": 2, "seed": 0}
    with pytest.raises(ValueError, match=rule):
        sampler.sample(ideal(process), process, **(call | change))


def test_a_sampling_draws_what_the_long_call_draws() -> None:
    process, labels = Process(target="v", num_classes=3), torch.arange(5) % 3
    network = ideal(process, shift=0.05)
    sampling = sampler.Sampling(
        process=process, space=Pixels((1, 4, 4)), sampler="unipc", steps=6, guidance=2.0
    )
    long, nfe = sampler.sample(network, process, labels, (5, 1, 4, 4), "unipc", 6, SEED, 2.0)
    assert torch.equal(sampling.draw(network, labels, 5, SEED), long) and sampling.nfe == nfe == 12
    assert torch.equal(sampling.draw_chunks([network] * 2, labels, 5, SEED, chunk_size=2), long)


@pytest.mark.parametrize("name", [name for name, found in SAMPLERS.items() if found.edm])
@pytest.mark.parametrize("sigma_data", [0.5, 0.25])
def test_edm_is_drawn_with_the_standard_deviation_it_was_trained_for(name: str, sigma_data: float) -> None:
    # F = 0 leaves D = c_skip x, the ideal denoiser of N(0, sigma_data^2). 4,096 pixels: four standard errors, and what
    # 250 steps of order 1 miss.
    process = Process(target="edm", sigma_data=sigma_data)
    assert process.contract()["sigma_data"] == sigma_data

    def silent(x: Tensor, t: Tensor, **kwargs: Any) -> tuple[Tensor]:
        return (torch.zeros_like(x),)

    sampling = sampler.Sampling(process=process, space=Unbounded((1, 8, 8)), sampler=name, steps=250)
    assert sampling.draw(silent, None, 64, SEED).std().item() == pytest.approx(sigma_data, rel=0.06)


def test_edm_asks_for_unit_variance_where_the_data_have_the_standard_deviation_it_expects() -> None:
    # arXiv:2206.00364, app. B.6: input and goal of the network have variance 1 at every noise level.
    generator = torch.Generator().manual_seed(0)
    x0 = 0.75 * torch.randn(4_000, 1, 4, 4, generator=generator)
    edm = targets.Edm(0.75)
    example = edm.example(x0, torch.empty(0), 0.0, edm.draw(x0.shape, 0, generator))
    # 64,000 values: four standard errors of a spread near 1.
    assert example.seen.std().item() == pytest.approx(1, abs=0.012)
    assert example.goal.std().item() == pytest.approx(1, abs=0.012)


class Unbounded(Pixels):
    """A space without bounds, as that of latents."""

    range = None


@pytest.mark.parametrize(("target", "name"), PAIRS)
def test_in_a_space_without_bounds_nothing_is_clipped(target: str, name: str) -> None:
    process = Process(target=target)
    sampling = sampler.Sampling(process=process, space=Unbounded((1, 4, 4)), sampler=name, steps=20)
    values = sampling.draw(ideal(process, mean=3.0), None, 8, SEED)
    # 128 values of spread 0.2 around 3, all far beyond 1; what few steps miss is well below 0.3.
    assert values.mean().item() == pytest.approx(3.0, abs=0.3) and values.min() > 1.0


def test_bounds_that_no_scheduler_can_clip_to_are_refused() -> None:
    class Wide(Pixels):
        range = (-2.0, 2.0)

    with pytest.raises(
        ValueError, match=r"range of the space must be \(-1.0, 1.0\) or None, got \(-2.0, 2.0\)"
    ):
        sampler.Sampling(process=Process(target="v"), space=Wide((1, 4, 4)), sampler="ddim", steps=2)


def test_names_and_rules_need_no_torch() -> None:
    code = (
        "import sys; from osmotic.diffusion import compatibility as c;"
        "assert c.compatible('v', 'unipc') is None and c.steps_fit('ddim', 9, 9) is None and c.nfe(3, 2.0) == 6;"
        "assert set(c.SCHEDULES) == {'linear', 'cosine'} and len(c.TARGETS) == 4 and len(c.SAMPLERS) == 6;"
        "assert not {'torch', 'diffusers', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_two_threads_never_ask_diffusers_for_a_scheduler_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    inside, most = [], []
    make = type(SAMPLERS["ddim"]).scheduler

    def slow(self: Any, *given: Any, **named: Any) -> Any:
        inside.append(1)
        most.append(len(inside))
        time.sleep(0.05)
        inside.pop()
        return make(self, *given, **named)

    monkeypatch.setattr(type(SAMPLERS["ddim"]), "scheduler", slow)
    process = Process(target="v", schedule="cosine", timesteps=100, num_classes=0)
    drawing = sampler.Sampling(process=process, space=Pixels((1, 2, 2)), sampler="ddim", steps=2)
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda _: drawing.scheduler(), range(3)))
    assert max(most) == 1 and len(set(map(id, found))) == 3
