"""All clients' models as one: scored in `quality.mixture`, drawn from by `osmotic sample --client mixture`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_network
from small_runs import SMALL, Silent

from osmotic.errors import ConfigError
from osmotic.runs import launch, resolve, saved, study
from osmotic.runs.scoring import Scoring
from osmotic.storage.folder import RunDir

# Clients of 16, 32 and 48 images.
LINEAR = ("method.name=local", "data.partition=linear", "data.max_images=96", "score.every=0")


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    tiny_network.register()
    settings = [*SMALL, *LINEAR, "model.network=tiny", "training.rounds=1", "score.samples=60"]
    return launch.start(resolve.load(sets=settings), tmp_path / "run", lambda run, config: Silent())


def test_images_come_from_each_model_by_its_size_and_in_its_own_mix(run: RunDir) -> None:
    told = json.loads(run.partition.read_text())
    assert told["sizes"] == [16, 32, 48]
    images, labels = saved.draw(run, 60, steps=2, client="mixture", seed=3)
    assert labels is not None and images.shape == (60, 8, 8, 1)
    start = 0
    for name, count, counts in zip(told["clients"], (10, 20, 30), told["counts"], strict=True):
        mine = labels[start : start + count]
        expected = np.array(counts) / sum(counts) * count
        assert (np.abs(np.bincount(mine, minlength=10) - expected) < 1).all(), "by largest remainder"
        # As its own model draws them: noise follows the place in the pool.
        pipe = saved.load(run, name)
        again = saved._drawn(run, pipe, mine, range(start, start + count), 2, None, 3, True)
        assert np.array_equal(images[start : start + count], again)
        start += count
    same, _ = saved.draw(run, 60, steps=2, client="mixture", seed=3)
    assert np.array_equal(images, same)


def test_one_class_comes_from_those_who_hold_it(run: RunDir) -> None:
    told = json.loads(run.partition.read_text())
    counts = np.array(told["counts"])[:, 4]
    _, labels = saved.draw(run, 12, label=4, steps=1, client="mixture")
    assert labels == [4] * 12 and counts.sum() > 0
    with pytest.raises(ConfigError, match=r"client.*must be one of client-000"):
        saved.draw(run, 4, client="client-009")


def test_a_partition_that_does_not_say_is_told_in_one_line(run: RunDir) -> None:
    told = json.loads(run.partition.read_text())
    del told["sizes"]
    run.partition.write_text(json.dumps(told))
    with pytest.raises(ConfigError, match=r"partition.json.*does not say who holds how many images"):
        saved.draw(run, 4, client="mixture")


def test_the_score_is_of_each_pool_by_size(tmp_path: Path) -> None:
    prepared = study.prepare(resolve.load(sets=[*SMALL, *LINEAR, "data.max_images=300", "score.samples=200"]))
    scoring = Scoring(prepared, None)
    shapes = {h.client.name: (200, 8, 8, 1) for h in prepared.holdings}
    pools = {
        name: np.random.default_rng(i).integers(0, 256, shape, dtype=np.uint8)
        for i, (name, shape) in enumerate(sorted(shapes.items()))
    }
    found = scoring.score_personal(pools, "after", 1)["mixture"]
    sizes = [len(h.train) for h in prepared.holdings]
    assert sizes == [50, 100, 150]
    taken: dict[str, int] = {}

    def counted(made: np.ndarray) -> tuple[float, float]:
        for name, pool in pools.items():
            own = scoring.encoder.features(pool)
            rows = {row.tobytes() for row in own}
            taken[name] = sum(row.tobytes() in rows for row in made)
        return 1.0, 2.0

    scoring.yardstick.distances = counted  # type: ignore[method-assign]
    again = scoring._mixture({name: scoring.encoder.features(pool) for name, pool in pools.items()})
    assert again is not None and again["samples"] == found["samples"] == sum(taken.values())
    shares = np.array([taken[h.client.name] for h in prepared.holdings])
    assert (np.abs(shares / shares.sum() - np.array(sizes) / 300) < 0.02).all()
    del pools[prepared.holdings[0].client.name]
    missing: dict[str, Any] = scoring.score_personal(pools, "after", 1)
    assert missing["mixture"] is None, "not of some alone"
