"""From names to objects: what `prepare` refuses, and what a resumed run must find unchanged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_runs import SMALL

from osmotic.data.strata import apportion
from osmotic.errors import ConfigError
from osmotic.runs import launch, resolve, study
from osmotic.runs.grids import pick_for_grid


def prepared(*sets: str) -> study.Study:
    return study.prepare(resolve.load(sets=[*SMALL, *sets]))


def test_largest_remainder_by_hand() -> None:
    # Shares of 10: 5.0, 3.33, 1.67; floors 5, 3, 1 leave one, which goes to the largest remainder, the third.
    assert np.bincount(apportion(np.array([6, 4, 2]), 10)).tolist() == [5, 3, 2]
    # Of equal remainders the smaller label comes first.
    assert np.bincount(apportion(np.array([1, 1, 1]), 4)).tolist() == [2, 1, 1]
    assert len(apportion(np.array([0, 7]), 3)) == 3 and set(apportion(np.array([0, 7]), 3)) == {1}


def test_the_grid_has_a_row_for_every_class_with_enough_images() -> None:
    labels = np.repeat([0, 1, 2], [12, 3, 10])
    picked, rows = pick_for_grid(labels, len(labels), ["a", "b", "c"])
    assert rows == ["a", "c"]
    assert picked.tolist() == [*range(10), *range(15, 25)]
    assert pick_for_grid(None, 30, [])[1] is None


def test_a_class_of_few_images_makes_the_rows_of_the_grid_shorter_and_stays_in_it() -> None:
    labels = np.repeat([0, 1, 2], [12, 6, 10])
    picked, rows = pick_for_grid(labels, len(labels), ["a", "b", "c"])
    assert rows == ["a", "b", "c"]
    assert picked.reshape(3, 6)[:, [0, -1]].tolist() == [[0, 5], [12, 17], [18, 23]]


def test_guidance_is_on_only_where_it_can_work() -> None:
    assert prepared("score.guidance=auto").blueprint.guidance == 1.5
    assert prepared("score.guidance=auto", "model.conditional=false").blueprint.guidance == 1.0
    assert prepared("score.guidance=auto", "recipe.label_dropout=0").blueprint.guidance == 1.0


def test_contract_tells_what_no_tensor_shape_shows() -> None:
    base = prepared().blueprint.contract()
    assert base["norm_groups"] == 8 and base["image"] == [8, 8, 1] and base["classes"] == 10
    others = [
        prepared(s).blueprint.contract()
        for s in ("model.target=epsilon", "model.schedule=linear", "data.image_size=12")
    ]
    others.append({**base, "norm_groups": 4})
    from osmotic.protocol.messages import contract_hash

    assert len({contract_hash(c) for c in [base, *others]}) == 5


def test_workers_never_exceed_the_clients() -> None:
    assert prepared("engine.workers=64").workers == 3
    assert prepared("engine.workers=2").workers == 2


def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"engine.device = 'cuda:99': is not available on this machine"):
        study.choose_device("cuda:99")


class Quiet:
    """An observer that sees nothing."""

    def __init__(self, *_: Any) -> None: ...
    def phase_started(self, *_: Any) -> None: ...
    def run_started(self, *_: Any) -> None: ...
    def answered(self, *_: Any) -> None: ...
    def worked(self, *_: Any) -> None: ...
    def phase_done(self, *_: Any) -> None: ...


def begun(tmp_path: Path, *sets: str) -> Path:
    """A finished small run whose checkpoint says one of two rounds is done."""
    out = tmp_path / "run"
    launch.start(resolve.load(sets=[*SMALL, "training.rounds=2", *sets]), out, Quiet)
    newest = max((out / "checkpoints").glob("*.safetensors"))
    newest.unlink()
    return out


def test_resume_refuses_other_data(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)

    def write(first: int) -> None:
        images = rng.integers(0, 255, (60, 8, 8), dtype=np.uint8)
        images[0] = first
        np.savez(tmp_path / "a.npz", train_images=images, train_labels=np.arange(60) % 3)

    write(1)
    out = begun(tmp_path, f"data.source=npz:{tmp_path / 'a.npz'}", "data.max_images=0")
    write(2)
    with pytest.raises(ConfigError, match=r"data.source = .*: holds other images"):
        launch.resume(out, Quiet)


def test_resume_refuses_another_network(tmp_path: Path) -> None:
    out = begun(tmp_path)
    text = (out / "config.toml").read_text()
    (out / "config.toml").write_text(text.replace('target = "v"', 'target = "epsilon"'))
    with pytest.raises(ConfigError, match=r"model.target = 'epsilon': was 'v' when this run began"):
        launch.resume(out, Quiet)


def test_a_run_stopped_before_its_first_checkpoint_begins_anew(tmp_path: Path) -> None:
    out = begun(tmp_path)
    expected = json.loads((out / "summary.json").read_text())
    for path in (out / "checkpoints").glob("*.safetensors"):
        path.unlink()
    for name in ("metrics.jsonl", "ledger.jsonl", "summary.json", "partition.json"):
        (out / name).unlink()
    launch.resume(out, Quiet)
    again = json.loads((out / "summary.json").read_text())
    assert again["weights_sha256"] == expected["weights_sha256"] and again["quality"] == expected["quality"]


def test_a_finished_run_is_only_summed_up_again(tmp_path: Path) -> None:
    out = tmp_path / "run"
    launch.start(resolve.load(sets=[*SMALL, "training.rounds=1"]), out, Quiet)
    before = json.loads((out / "summary.json").read_text())
    lines = (out / "metrics.jsonl").read_text()
    launch.resume(out, Quiet)
    after = json.loads((out / "summary.json").read_text())
    del before["wall_seconds"], after["wall_seconds"]
    assert after == before and (out / "metrics.jsonl").read_text() == lines


def test_edm_is_told_that_the_images_have_another_standard_deviation_than_it_expects(
    recwarn: pytest.WarningsRecorder,
) -> None:
    edm = ("model.target=edm", "score.sampler=edm-dpm-solver++")
    images = prepared().dataset.train.images
    spread = (images / 127.5 - 1).std()
    prepared(*edm, f"model.sigma_data={spread:.2f}")
    prepared()  # other targets expect none
    assert not [w for w in recwarn if "sigma_data" in str(w.message)]
    prepared(*edm)
    [told] = [str(w.message) for w in recwarn if "sigma_data" in str(w.message)]
    assert told.startswith(
        f"model.sigma_data = 0.5, and these images have a standard deviation of {spread:.2f}"
    )
