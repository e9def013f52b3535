"""The folder of a run: never overwritten, logs of whole lines, cut back on resume."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from osmotic.errors import ConfigError
from osmotic.storage import atomic
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


def test_hashes_follow_the_lines_whoever_wrote_them(tmp_path: Path):
    one, other = RunDir(tmp_path / "a"), RunDir(tmp_path / "b")
    for run in (one, other):
        run.path.mkdir()
    one.append("metrics", [{"round": 1}])
    one.append("metrics", [{"round": 2}])
    other.append("metrics", [{"round": 1}, {"round": 2}])
    assert one.hashes() == other.hashes() == RunDir(one.path).hashes(), "also read from disk"
    again = RunDir(one.path)
    again.append("metrics", [{"round": 3}])
    other.append("metrics", [{"round": 3}])
    assert again.hashes() == other.hashes() != one.hashes()


def test_keeping_the_hash_up_reads_nothing_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = RunDir(tmp_path)
    run.append("metrics", [{"round": 1}])
    run.append("ledger", [{"round": 1}])
    monkeypatch.setattr("osmotic.storage.folder._hashed", lambda *a: pytest.fail("read again"))
    run.append("metrics", [{"round": 2}])
    assert run.sizes()["metrics"] == run.log("metrics").stat().st_size
    assert run.hashes()["metrics"] == hashlib.sha256(run.log("metrics").read_bytes()).hexdigest()


@pytest.mark.parametrize("altered", ["metrics", "ledger"])
def test_a_log_with_another_digit_is_refused_before_anything_is_cut(tmp_path: Path, altered: str):
    run = RunDir(tmp_path)
    for name in ("metrics", "ledger"):
        run.append(name, [{"bytes": 1234}])
    sizes, hashes = run.sizes(), run.hashes()
    for name in ("metrics", "ledger"):
        run.append(name, [{"bytes": 5}])
    run.log(altered).write_text(run.log(altered).read_text().replace("1234", "1235"))
    found = {n: run.log(n).read_bytes() for n in sizes}
    with pytest.raises(ConfigError, match="are not those that the run wrote") as caught:
        RunDir(tmp_path).cut(sizes, hashes)
    assert caught.value.key == str(run.log(altered))
    assert {n: run.log(n).read_bytes() for n in sizes} == found
    RunDir(tmp_path).cut(sizes)  # checkpoints of earlier versions have no hashes


def test_after_a_cut_hashes_are_those_of_the_checkpoint(tmp_path: Path):
    run = RunDir(tmp_path)
    run.append("metrics", [{"round": 1}])
    sizes, hashes = run.sizes(), run.hashes()
    run.append("metrics", [{"round": 2}])
    run.cut(sizes, hashes)
    assert (run.sizes(), run.hashes()) == (sizes, hashes)
    run.append("metrics", [{"round": 2}])
    assert run.hashes() == RunDir(tmp_path).hashes()


def test_an_append_that_failed_is_not_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = RunDir(tmp_path)
    run.append("metrics", [{"round": 1}])
    sizes, hashes = run.sizes(), run.hashes()

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        run.append("metrics", [{"round": 2}])
    assert (run.sizes(), run.hashes()) == (sizes, hashes)


@pytest.mark.parametrize("name", ["metrics.jsonl", "summary.json"])
def test_a_full_disk_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str):
    # As the system gives it for a write: without a name.
    monkeypatch.setattr(
        "os.fsync", lambda handle: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    )
    with pytest.raises(OSError) as caught:
        if name == "metrics.jsonl":
            RunDir(tmp_path).append("metrics", [{"round": 1}])
        else:
            atomic.write_text(tmp_path / name, "{}")
    assert caught.value.filename == str(tmp_path / name)


def test_a_folder_with_unfinished_files_and_a_lock_alone_is_free_and_with_anything_else_is_not(
    tmp_path: Path,
):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / ".config.toml.ab_c1234.tmp").write_bytes(b"half")
    (folder / "run.lock").write_bytes(b"")
    RunDir.refuse_used(folder)
    for name in ("config.toml", ".hidden", ".x.tmp", "a.tmp", ".config.toml.ab_c1234.tmp.txt"):
        (folder / name).write_bytes(b"")
        with pytest.raises(ConfigError, match="new or empty"):
            RunDir.refuse_used(folder)
        (folder / name).unlink()
    (folder / ".model.abcdefgh.tmp").mkdir()
    with pytest.raises(ConfigError, match="new or empty"):
        RunDir.refuse_used(folder)


def test_what_killed_writers_left_is_cleared_everywhere_in_the_folder_and_nothing_else(tmp_path: Path):
    run, outside = RunDir(tmp_path / "run"), tmp_path / "outside"
    outside.mkdir()
    for folder in ("", "samples", "checkpoints", "clients/client-000", "model", "personal"):
        (run.path / folder).mkdir(parents=True, exist_ok=True)
        (run.path / folder / ".a.png.ab_c1234.tmp").write_bytes(b"half")
        (run.path / folder / "kept.tmp").write_bytes(b"whole")
    for folder in (".model.new", ".model.old", "model/.client-000.new"):
        (run.path / folder / "unet").mkdir(parents=True)
        (run.path / folder / "unet" / "config.json").write_bytes(b"{}")
    (outside / ".b.ab_c1234.tmp").write_bytes(b"of somebody else")
    (run.path / "link").symlink_to(outside)
    with run.held():
        left = sorted(str(p.relative_to(run.path)) for p in run.path.rglob("*") if p.is_file())
        assert [name for name in left if not name.endswith("kept.tmp")] == ["run.lock"]
        assert len(left) == 7 and (outside / ".b.ab_c1234.tmp").exists()
        assert not any(p.name.startswith(".") for p in run.path.rglob("*"))


def test_a_path_too_long_for_the_file_system_is_told_as_one(tmp_path: Path):
    for name in ("x" * 5000, "x/" * 5000):
        for call in (RunDir.refuse_used, RunDir.existing, RunDir.new):
            with pytest.raises(ConfigError, match="too long"):
                call(tmp_path / name)
