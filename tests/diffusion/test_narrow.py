"""Samplers on narrow Gaussians with an ideal network: what the page says of them, and what the default is worth."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

from osmotic.config.schema import ScoreConfig
from osmotic.diffusion.process import Process
from osmotic.diffusion.solvers import SAMPLERS, even_stops
from osmotic.models import pipeline

ROOT = Path(__file__).parents[2]


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The study's own measure, so that page, study and test have one."""
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    return importlib.import_module("samplers.study")


@pytest.mark.parametrize("steps", [7, 20])
def test_the_measure_is_ddims_own_recursion(study: Any, steps: int) -> None:
    # x0 = k x and x -> b x0 + sqrt(1 - b^2) (x - a x0) / sqrt(1 - a^2), with k = a std^2 / (a^2 std^2 + 1 - a^2).
    process, std, gain = Process(target="v"), 0.2, 1.0
    stops = even_stops(process, steps)
    for here, there in zip(stops, [*stops[1:], None], strict=True):
        a2 = float(process.alpha_bar[here])
        b2 = 1.0 if there is None else float(process.alpha_bar[there])
        k = a2**0.5 * std**2 / (a2 * std**2 + 1 - a2)
        gain *= b2**0.5 * k + ((1 - b2) / (1 - a2)) ** 0.5 * (1 - a2**0.5 * k)
    assert study.variance_ratio("ddim", process, std, steps) == pytest.approx((gain / std) ** 2, rel=1e-4)


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
@pytest.mark.parametrize("std", [0.05, 0.2, 0.5, 1.0])
def test_the_default_sampler_keeps_the_variance_of_narrow_and_wide_data(
    study: Any, std: float, schedule: str
) -> None:
    default = ScoreConfig()
    ratio = study.variance_ratio(default.sampler, Process(target="v", schedule=schedule), std, default.steps)
    assert ratio == pytest.approx(1, abs=0.07)


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
@pytest.mark.parametrize("std", [0.05, 0.2, 0.5, 1.0])
def test_so_does_the_scheduler_that_is_saved_with_a_model(study: Any, std: float, schedule: str) -> None:
    process = Process(target="v", schedule=schedule)
    scheduler = pipeline.scheduler(process.contract(), stock=False)
    scheduler.register_to_config(thresholding=False)  # the clip, which no narrow data notice
    scheduler.set_timesteps(ScoreConfig().steps)
    assert study.ratio_of(scheduler, process, std) == pytest.approx(1, abs=0.07)


def test_no_other_sampler_is_better_at_its_worst_at_as_many_evaluations(study: Any) -> None:
    default = ScoreConfig()
    worst = {
        name: max(
            abs(study.variance_ratio(name, Process(target="v"), std, default.steps) - 1) for std in study.STDS
        )
        for name in SAMPLERS
        if not SAMPLERS[name].edm
    }
    assert min(worst, key=worst.__getitem__) == default.sampler, worst


def test_the_pages_table_is_what_is_measured(study: Any) -> None:
    page = (ROOT / "docs" / "scores.md").read_text()
    for line in study.table(SAMPLERS, "cosine"):
        assert line in page, line
