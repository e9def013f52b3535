"""What fine-tuning gained each client: its loss on held-out images, by both models, and the pass that was kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_network
from small_runs import SMALL, Silent

from osmotic.federation.client import Worker
from osmotic.flat import Flat
from osmotic.protocol.messages import contract_hash
from osmotic.report.reading import read
from osmotic.runs import commands, launch, resolve, saved, study
from osmotic.storage.folder import RunDir
from osmotic.training.images import Images

tiny_network.register()
SETS = (
    *SMALL,
    "training.rounds=2",
    "model.network=tiny",
    "recipe.ema_half_lives=[100.0]",
    "after.pieces=personalise",
    "data.holdout=0.3",
)
GAINS = ("loss_published", "loss_own", "kept_pass")


def start(out: Path, *sets: str) -> RunDir:
    return launch.start(resolve.load(sets=[*SETS, *sets]), out, lambda r, c: Silent())


def personal(run: RunDir) -> dict[str, dict[str, Any]]:
    told = json.loads(run.summary.read_text())["quality"]["personal"]["per_client"]
    return {entry["name"]: entry for entry in told}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    return start(tmp_path_factory.mktemp("gains") / "run", "after.personalise.epochs=3")


def test_every_client_has_its_loss_by_the_models_that_are_saved(run: RunDir) -> None:
    """On the images that it neither trained on nor chose by: computed here from the folders of the run."""
    found = personal(run)
    made = study.prepare(resolve.recorded(run.config))
    blueprint, train = made.blueprint, made.dataset.train
    assert len(found) == len(made.holdings) == 3 and train.labels is not None
    for holding in made.holdings:
        name, rows = holding.client.name, holding.own_test
        assert len(rows) and not set(rows) & {*holding.watched, *holding.train}
        images = Images.of(
            blueprint.space.prepare(train.images[rows]), train.labels[rows], made.device, blueprint.space
        )
        for key, client in (("loss_published", None), ("loss_own", name)):
            weights = saved.weights(run, client).tensors
            worker = Worker(
                blueprint, made.model(), Flat.of(blueprint.flat, weights), contract_hash(blueprint.contract())
            )
            worker.network.load(weights)
            assert found[name][key] == worker.watch(name, images)
        # Whose distances are null has these all the same.
        assert found[name]["fd_own"] is None and found[name]["own_images"] == len(rows) < 50


def test_the_pass_that_was_kept_is_told(run: RunDir, tmp_path: Path) -> None:
    assert {entry["kept_pass"] for entry in personal(run).values()} <= {1, 2, 3}
    worse = personal(start(tmp_path / "worse", "after.personalise.rate=100", "training.learning_rate=0.01"))
    assert [entry["kept_pass"] for entry in worse.values()] == [0, 0, 0], "the published model has won"
    assert all(entry["loss_own"] == entry["loss_published"] for entry in worse.values())


def test_which_pass_is_the_one_of_the_lowest_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks at 0, 1, 2 and 3 passes; what is looked at afterwards, for the losses, is another matter."""
    told = iter([3.0, 2.0, 1.0, 5.0, 0.25, 0.125])
    monkeypatch.setattr(Worker, "watch", lambda self, client, images: next(told))
    [entry] = personal(start(tmp_path / "run", "data.clients=1", "after.personalise.epochs=3")).values()
    assert [entry[key] for key in GAINS] == [0.25, 0.125, 2]


def test_without_held_out_images_there_is_nothing_to_tell(tmp_path: Path) -> None:
    for entry in personal(start(tmp_path / "run", "data.holdout=0", "training.rounds=1")).values():
        assert [entry[key] for key in GAINS] == [None, None, None]


def test_a_run_that_is_finished_anew_tells_the_same(run: RunDir) -> None:
    before = run.summary.read_bytes()
    launch.resume(run.path, lambda r, c: Silent())
    assert run.summary.read_bytes() == before


def test_evaluate_scores_the_own_models_as_the_run_did(run: RunDir) -> None:
    quality = json.loads(run.summary.read_text())["quality"]
    again = commands.evaluate(run.path)
    assert again["personal"] == quality["personal"] and again["fd"] == quality["fd"]
    assert "clients' own models" in commands.quality_text(again)
    # Otherwise scored, their scores are others, and what they gained is what it was.
    other = commands.evaluate(run.path, sets=["score.samples=30"])["personal"]
    assert other["mean"]["fd_all"] != quality["personal"]["mean"]["fd_all"]
    for mine, its in zip(other["per_client"], quality["personal"]["per_client"], strict=True):
        assert [mine[key] for key in GAINS] == [its[key] for key in GAINS]
    # Another average of the global model: own models were tuned from the published one, and stay what they are.
    raw = commands.evaluate(run.path, ema=0)
    assert raw["personal"] == quality["personal"] and raw["fd"] != quality["fd"]
    assert read(run.path).summary["quality"] == quality, "the run stays as it is"


@pytest.mark.parametrize("name", ["when=rounds", "fp16"])
def test_other_ways_to_an_own_model_have_losses_too(tmp_path: Path, name: str) -> None:
    sets = {"when=rounds": ["after.personalise.when=rounds"], "fp16": ["codec.down=fp16"]}[name]
    for entry in personal(start(tmp_path / "run", *sets)).values():
        assert np.isfinite([entry["loss_published"], entry["loss_own"]]).all()
        assert (entry["kept_pass"] is None) == (name == "when=rounds"), "who does not train watches nothing"
