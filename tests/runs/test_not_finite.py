"""A model whose images are not finite: the run goes on and says it, and nobody is shown black images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import osmotic
from osmotic.errors import ConfigError
from osmotic.federation.blueprint import Blueprint
from osmotic.runs import saved
from osmotic.storage.folder import RunDir

KEYS = {
    "data.max_images": 60,
    "data.clients": 2,
    "training.rounds": 2,
    "training.local_epochs": 1.0,
    "score.every": 1,
    "score.samples": 20,
    "score.steps": 2,
    "track.backends": [],
}


class Broken(torch.nn.Module):
    """A network whose answers are no numbers, whatever its weights."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return tuple(answer * torch.nan for answer in self.network(*args, **kwargs))


@pytest.fixture
def breaks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Draws of the run, by number, that a broken network makes."""
    broken: list[int] = []
    drawn = iter(range(1_000))

    def spoil(draw: Any) -> Any:
        def spoilt(self: Blueprint, network: Any, *args: Any, **kwargs: Any) -> Any:
            if next(drawn) in broken:
                network = [Broken(n) for n in network] if isinstance(network, list) else Broken(network)
            return draw(self, network, *args, **kwargs)

        return spoilt

    for name in ("draw", "draw_chunks"):
        monkeypatch.setattr(Blueprint, name, spoil(getattr(Blueprint, name)))
    return broken


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_a_round_whose_model_draws_no_images_counts_and_is_not_scored(
    breaks: list[int], tmp_path: Path
) -> None:
    breaks.append(0)
    with pytest.warns(
        UserWarning, match=r"round 1 is not scored: 20 of 20 images .* not finite; the run goes on"
    ):
        run = osmotic.run(keys=KEYS, out=tmp_path / "run", quiet=True)
    first, second = lines(run.path)
    assert first["quality"] is None and "not finite" in first["unscored"]
    assert second["quality"]["fd"] > 0 and second["unscored"] is None
    assert run.summary["quality"]["fd"] == second["quality"]["fd"]


def test_a_last_model_that_draws_no_images_leaves_a_whole_run_without_the_score_of_an_earlier_one(
    breaks: list[int], tmp_path: Path
) -> None:
    breaks += [1, 2]
    with pytest.warns(UserWarning, match="round 2 is not scored"):
        run = osmotic.run(keys=KEYS, out=tmp_path / "run", quiet=True)
    assert run.finished and run.summary["quality"] is None
    assert lines(run.path)[0]["quality"]["fd"] > 0
    assert run.report().exists()
    with pytest.raises(ConfigError, match=r"cannot be scored: 20 of 20 images .* not finite"):
        run.evaluate()


def test_a_client_whose_own_model_draws_no_images_is_a_failure_that_says_so(
    breaks: list[int], tmp_path: Path
) -> None:
    breaks.append(1)
    keys = KEYS | {"training.rounds": 1, "engine.workers": 1}
    run = osmotic.run(preset="local", keys=keys, out=tmp_path / "run", quiet=True)
    [failure] = run.summary["failures"]
    assert failure["kind"] == "raised" and "not finite" in failure["reason"]
    assert len(run.summary["quality"]["per_client"]) == 1


def test_sampling_from_a_saved_model_that_is_broken_is_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Pipe:
        num_classes = 0

        def set_progress_bar_config(self, **options: Any) -> None:
            pass

        def __call__(self, batch_size: int, **options: Any) -> Any:
            self.images = np.full((batch_size, 8, 8, 1), np.nan, np.float32)
            return self

    monkeypatch.setattr(saved, "load", lambda run, client: Pipe())
    with pytest.raises(ConfigError, match="draws values that are not finite"):
        saved.draw(RunDir(tmp_path), 3)
