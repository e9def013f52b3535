"""The positive control: a model that has seen twenty images for too long is caught copying them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from small_runs import Silent

from osmotic.runs import launch, resolve

SETTINGS = (
    "data.clients=2",
    "data.partition=iid",
    "method.name=central",
    "training.rounds=1",
    "score.samples=100",
    "track.backends=[]",
)


@pytest.mark.slow
def test_a_model_overfitted_on_twenty_images_is_caught(tmp_path: Path) -> None:
    # 1,000 steps of 16 images: every image is seen 800 times.
    config = resolve.load(sets=[*SETTINGS, "data.max_images=20", "training.local_epochs=500"])
    run = launch.start(config, tmp_path / "run", lambda run, config: Silent())
    quality = json.loads(run.summary.read_text())["quality"]
    found = quality["near_copies"]
    assert (found["images"], found["held_out"], found["expected"]) == (100, 360, 3 / 361)
    # Fresh images are found at 0.8 %: more than ten of a hundred have a chance below one in a million.
    assert min(found["pixels"], found["features"]) > 0.1
    assert quality["fd"] < quality["fd_floor"] / 2, "by the training images it looks better than real ones"
    assert (run.samples / "nearest.png").is_file()
