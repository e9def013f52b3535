"""The folder of a run: never overwritten, logs of whole lines, cut back on resume."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from osmotic.errors import ConfigError
from osmotic.storage.folder import RunDir


def test_a_new_or_empty_folder_is_taken(tmp_path: Path):
    assert RunDir.new(tmp_path / "a" / "b").path.is_dir()
    (tmp_path / "empty").mkdir()
    assert RunDir.new(tmp_path / "empty").path == tmp_path / "empty"


@pytest.mark.parametrize("name", ["note.txt", ".hidden"])
def test_a_folder_that_holds_anything_is_refused_and_left_alone(tmp_path: Path, name: str):
    (tmp_path / name).write_text("mine")
    with pytest.raises(ConfigError) as caught:
        RunDir.new(tmp_path)
    assert (caught.value.key, caught.value.value) == ("--out", str(tmp_path))
    assert "osmotic resume" in caught.value.rule
    assert [p.name for p in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "mine"


def test_a_file_in_the_place_of_the_folder_or_above_it_is_refused(tmp_path: Path):
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(ConfigError) as caught:
            RunDir.new(path)
        assert caught.value.key == "--out"


def test_a_folder_without_a_configuration_is_no_run(tmp_path: Path):
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(ConfigError, match=r"has no config\.toml"):
            RunDir.existing(path)
    (tmp_path / "config.toml").write_text("")
    assert RunDir.existing(tmp_path).path == tmp_path


def test_the_paths_are_those_of_the_contract(tmp_path: Path):
    run = RunDir(tmp_path)
    found = [
        run.config,
        run.log("metrics"),
        run.log("ledger"),
        run.checkpoints,
        run.samples,
        run.model,
        run.summary,
    ]
    assert [p.name for p in found] == [
        "config.toml",
        "metrics.jsonl",
        "ledger.jsonl",
        "checkpoints",
        "samples",
        "model",
        "summary.json",
    ]
    assert all(p.parent == tmp_path for p in found)


def test_a_log_grows_by_one_line_a_record(tmp_path: Path):
    run = RunDir(tmp_path)
    assert run.sizes() == {"metrics": 0, "ledger": 0}
    run.append("metrics", [{"round": 1}, {"round": 2, "name": "zwölf\n"}])
    run.append("metrics", [])
    run.append_text("metrics", '{"round": 3}\n')
    rows = [json.loads(line) for line in run.log("metrics").read_text().splitlines()]
    assert [r["round"] for r in rows] == [1, 2, 3]
    assert run.sizes() == {"metrics": run.log("metrics").stat().st_size, "ledger": 0}


def test_cutting_back_gives_the_bytes_of_the_checkpoint(tmp_path: Path):
    run = RunDir(tmp_path)
    run.append("metrics", [{"round": 1}])
    sizes, before = run.sizes(), run.log("metrics").read_bytes()
    run.append("metrics", [{"round": 2}])
    run.append("ledger", [{"round": 2}])
    run.append_text("ledger", '{"torn')
    run.cut(sizes)
    assert run.log("metrics").read_bytes() == before
    assert run.sizes() == sizes
    run.cut(sizes)
    assert run.log("metrics").read_bytes() == before


@pytest.mark.parametrize("short", ["metrics", "ledger"])
def test_a_log_shorter_than_the_checkpoint_knew_it_is_refused_before_anything_is_cut(
    tmp_path: Path, short: str
):
    run = RunDir(tmp_path)
    for name in ("metrics", "ledger"):
        run.append(name, [{"round": 1}])
    sizes = run.sizes()
    sizes[short] += 1
    other = "ledger" if short == "metrics" else "metrics"
    run.append(other, [{"round": 2}])
    longer = run.log(other).read_bytes()
    with pytest.raises(ConfigError) as caught:
        run.cut(sizes)
    assert caught.value.key == str(run.log(short))
    assert run.log(other).read_bytes() == longer
