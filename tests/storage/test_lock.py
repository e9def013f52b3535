"""The lock of a run folder: one writer at a time, gone with the process that held it, no sign of a run by itself."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from osmotic.errors import ConfigError
from osmotic.storage import lock
from osmotic.storage.folder import RunDir

pytest.importorskip("fcntl")

HOLD = """
import sys, time
from pathlib import Path
from osmotic.storage import lock
with lock.held(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_writer_is_told_in_one_line_and_changes_nothing(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    leftover = tmp_path / ".summary.json.abcdefgh.tmp"
    with run.held():
        leftover.write_bytes(b"being written")
        with pytest.raises(ConfigError, match="another process is writing to this run") as caught, run.held():
            pytest.fail("two writers")
        assert caught.value.key == str(tmp_path) and "\n" not in str(caught.value)
        assert leftover.exists(), "it is the first writer's"
    with run.held():
        assert not leftover.exists()


def test_the_lock_goes_with_the_process_however_it_dies(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        with pytest.raises(ConfigError, match="another process"), lock.held(tmp_path):
            pass
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    deadline = time.monotonic() + 10
    while True:  # the kernel lets go when it has buried the process
        try:
            with lock.held(tmp_path):
                return
        except ConfigError:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_an_error_inside_gives_the_lock_back(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), lock.held(tmp_path):
        raise KeyboardInterrupt
    with lock.held(tmp_path):
        pass


@pytest.mark.parametrize("broken", ["no module", "no locks"])
def test_where_there_are_no_locks_runs_work_without(
    tmp_path: Path, broken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if broken == "no module":
        monkeypatch.setattr(lock, "fcntl", None)
    else:

        def refuse(*arguments: object) -> None:
            raise OSError(95, "Operation not supported")

        monkeypatch.setattr(lock.fcntl, "flock", refuse)
    with lock.held(tmp_path), lock.held(tmp_path):
        pass


def test_an_id_is_written_once_and_read_back(tmp_path: Path) -> None:
    run, first = RunDir(tmp_path), lock.fresh_id()
    assert run.run_id is None
    with run.held():
        assert run.run_id is None, "the lock alone says nothing"
        run.identify(first)
        run.identify(lock.fresh_id())
    with run.held():
        assert RunDir(tmp_path).run_id == first
    assert lock.fresh_id() != lock.fresh_id()


@pytest.mark.parametrize("torn", [b"", b"0123", b"\xff" * 16, b"0" * 16 + b"\nmore"])
def test_a_torn_id_is_none_and_is_written_anew(tmp_path: Path, torn: bytes) -> None:
    (tmp_path / lock.NAME).write_bytes(torn)
    assert lock.read_id(tmp_path) is None
    lock.write_id(tmp_path, "0123456789abcdef")
    assert (tmp_path / lock.NAME).read_text() == "0123456789abcdef\n"
