"""Checkpoints: whole or not there, verified when loaded, the one before where the newest is damaged."""

from __future__ import annotations

import ast
import json
import os
import random
import signal
import stat
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest

from osmotic.errors import ConfigError
from osmotic.storage import checkpoint
from osmotic.storage.store import StateLost, write_checked

TENSORS = {
    "weights/a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "down/chain": np.array([1, 2], np.uint8),
}
STATE = {"counted": {"client-000": 3}, "totals": {"bytes_up": 12}, "loss": 0.1, "nothing": None}


def save(folder: Path, step: int, keep: int = 2) -> list[int]:
    return checkpoint.save(folder, step, {n: t + t.dtype.type(step % 100) for n, t in TENSORS.items()}, {**STATE, "step": step}, keep)  # fmt: skip


def is_step(loaded: tuple[dict[str, np.ndarray], dict[str, object]], step: int) -> bool:
    tensors, state = loaded
    return state == {**STATE, "step": step} and all(
        np.array_equal(tensors[n], t + t.dtype.type(step % 100)) and tensors[n].dtype == t.dtype
        for n, t in TENSORS.items()
    )


def test_tensors_and_state_come_back(tmp_path: Path):
    save(tmp_path, 4)
    assert is_step(checkpoint.load(tmp_path, 4), 4)
    step, *rest = checkpoint.load_latest(tmp_path)
    assert step == 4
    assert is_step((rest[0], rest[1]), 4)


def test_the_last_few_are_kept(tmp_path: Path):
    assert [save(tmp_path, s, keep=2) for s in (0, 1, 2, 3)] == [[0], [0, 1], [1, 2], [2, 3]]
    assert checkpoint.steps(tmp_path) == [2, 3]
    assert save(tmp_path, 4, keep=1) == [4]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint-000004.safetensors"]


def test_steps_are_ordered_as_numbers(tmp_path: Path):
    for step in (999_999, 1_000_000):
        save(tmp_path, step)
    assert checkpoint.load_latest(tmp_path)[0] == 1_000_000


def test_a_file_torn_at_any_length_is_detected(tmp_path: Path):
    save(tmp_path, 1)
    path = checkpoint.path_of(tmp_path, 1)
    whole = path.read_bytes()
    for length in range(0, len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(StateLost):
            checkpoint.load(tmp_path, 1)
    path.write_bytes(whole + b"\0")
    with pytest.raises(StateLost):
        checkpoint.load(tmp_path, 1)


@pytest.mark.parametrize("flip", [0x01, 0x80, 0xFF])
def test_one_altered_byte_anywhere_is_detected(tmp_path: Path, flip: int):
    save(tmp_path, 1)
    path = checkpoint.path_of(tmp_path, 1)
    whole = path.read_bytes()
    unnoticed = []
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ flip]) + whole[place + 1 :])
        try:
            checkpoint.load(tmp_path, 1)
            unnoticed.append(place)
        except StateLost:
            pass
    assert unnoticed == []


@pytest.mark.parametrize("damage", ["torn", "altered", "empty"])
def test_the_one_before_is_used_with_a_warning_that_names_the_damaged_file(tmp_path: Path, damage: str):
    save(tmp_path, 1)
    save(tmp_path, 2)
    path = checkpoint.path_of(tmp_path, 2)
    whole = path.read_bytes()
    path.write_bytes({"torn": whole[:-5], "altered": whole[:-1] + b"\x55", "empty": b""}[damage])
    with pytest.warns(UserWarning, match=r"checkpoint-000002.safetensors is damaged"):
        step, tensors, state = checkpoint.load_latest(tmp_path)
    assert step == 1
    assert is_step((tensors, state), 1)
    assert checkpoint.steps(tmp_path) == [1]


def test_a_whole_newest_file_is_loaded_without_a_word(tmp_path: Path):
    save(tmp_path, 1)
    save(tmp_path, 2)
    checkpoint.path_of(tmp_path, 1).write_bytes(b"")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert checkpoint.load_latest(tmp_path)[0] == 2


def test_none_left_is_the_users_to_know(tmp_path: Path):
    with pytest.raises(ConfigError, match="holds no checkpoint"):
        checkpoint.load_latest(tmp_path / "none")
    save(tmp_path, 1)
    checkpoint.path_of(tmp_path, 1).write_bytes(b"x")
    with (
        pytest.warns(UserWarning, match="damaged"),
        pytest.raises(ConfigError, match="holds no undamaged checkpoint"),
    ):
        checkpoint.load_latest(tmp_path)


def test_nothing_in_the_package_pickles():
    banned = {"pickle", "cPickle", "dill", "joblib", "shelve", "marshal"}
    for path in Path(checkpoint.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Import():
                    assert not banned & {name.name.split(".")[0] for name in node.names}, path
                case ast.ImportFrom():
                    assert (node.module or "").split(".")[0] not in banned, path
                case ast.Call(func=ast.Attribute(value=ast.Name(id="torch"), attr=attr)):
                    assert attr not in ("save", "load"), path
                case ast.keyword(arg="allow_pickle"):
                    assert isinstance(node.value, ast.Constant) and node.value.value is False, path


def test_a_write_that_fails_before_the_rename_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    save(tmp_path, 1)
    before = checkpoint.path_of(tmp_path, 1).read_bytes()

    def full(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save(tmp_path, 1, {"w": np.zeros(9, np.float32)}, {}, 2)
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [before]


def test_file_then_rename_then_folder_are_forced_to_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    done = []
    fsync, replace = os.fsync, os.replace

    def synced(handle: int) -> None:
        done.append("folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file")
        fsync(handle)

    def renamed(old: str, new: Path) -> None:
        done.append("rename")
        replace(old, new)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", renamed)
    save(tmp_path, 1)
    assert done == ["file", "rename", "folder"]


WRITER = """
import sys, numpy as np
from osmotic.storage import checkpoint
step = int(sys.argv[2])
print("ready", flush=True)
while True:
    checkpoint.save(sys.argv[1], step, {"w": np.full(200_000, step, np.float32)}, {"step": step}, 2)
    step += 1
"""


def test_a_writer_killed_at_any_moment_leaves_whole_files_only(tmp_path: Path):
    rng = random.Random(0)
    folder = tmp_path / "checkpoints"
    newest = 0
    for _ in range(6):
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, str(folder), str(newest + 1)], stdout=subprocess.PIPE
        ) as writer:
            assert writer.stdout is not None
            writer.stdout.readline()
            deadline = time.monotonic() + 30
            while not checkpoint.steps(folder) and time.monotonic() < deadline:
                time.sleep(0.001)
            time.sleep(rng.uniform(0.0, 0.05))
            os.kill(writer.pid, signal.SIGKILL)
        found = checkpoint.steps(folder)
        # While the oldest is being deleted there may be one more than is kept.
        assert 1 <= len(found) <= 3
        for step in found:
            tensors, state = checkpoint.load(folder, step)
            assert state == {"step": step}
            assert np.array_equal(tensors["w"], np.full(200_000, step, np.float32))
        assert found[-1] >= newest
        newest = found[-1]


def test_what_a_killed_writer_left_unfinished_is_cleared_away(tmp_path: Path):
    unfinished = tmp_path / ".checkpoint-000001.safetensors.abc123.tmp"
    unfinished.write_bytes(b"half a checkpoint")
    save(tmp_path, 1)
    save(tmp_path, 2)
    assert not unfinished.exists()


def test_checkpoints_under_each_others_names_are_passed_over(tmp_path: Path):
    for step in (1, 2, 3):
        save(tmp_path, step, keep=3)
    two, three = checkpoint.path_of(tmp_path, 2), checkpoint.path_of(tmp_path, 3)
    data = two.read_bytes()
    two.write_bytes(three.read_bytes())
    three.write_bytes(data)
    with pytest.warns(UserWarning, match=r"is damaged \(it is that of step [23]\)"):
        assert checkpoint.load_latest(tmp_path)[0] == 1


def test_an_older_checkpoint_copied_over_the_newest_is_passed_over(tmp_path: Path):
    save(tmp_path, 1), save(tmp_path, 2)
    checkpoint.path_of(tmp_path, 2).write_bytes(checkpoint.path_of(tmp_path, 1).read_bytes())
    with pytest.warns(UserWarning, match="that of step 1"):
        assert checkpoint.load_latest(tmp_path)[0] == 1


def test_a_checkpoint_of_another_run_is_passed_over(tmp_path: Path):
    mine, other = "a" * 16, "b" * 16
    for step, run in ((1, mine), (2, mine), (3, other)):
        checkpoint.save(tmp_path, step, TENSORS, {**STATE, "run": run}, 3)
    with pytest.warns(UserWarning, match="it is of another run"):
        assert checkpoint.load_latest(tmp_path, run_id=mine)[0] == 2
    assert checkpoint.counted(tmp_path, other) == {}, "nor do clients keep anything for it"
    assert checkpoint.load_latest(tmp_path)[2]["run"] == mine


def test_a_checkpoint_of_an_earlier_version_without_step_and_run_is_read(tmp_path: Path):
    text = json.dumps(STATE)
    write_checked(checkpoint.path_of(tmp_path, 4), TENSORS, {"state": text})
    step, _, state = checkpoint.load_latest(tmp_path, run_id="a" * 16)
    assert (step, state) == (4, STATE)


def test_old_ones_are_dropped_also_where_nothing_new_is_written(tmp_path: Path):
    for step in (0, 2, 3):
        save(tmp_path, step, keep=3)
    assert checkpoint.drop_old(tmp_path, keep=2) == [2, 3]
    assert checkpoint.steps(tmp_path) == [2, 3]
