"""Checkpoints written beside the next round: what they hold, what waits for them, and what ends with them."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import tiny_network
from small_runs import Crash, crash_at

from osmotic.storage import checkpoint
from osmotic.storage.beside import Beside
from osmotic.storage.store import digest

TINY = (
    "model.network=tiny",
    "data.max_images=60",
    "training.batch_size=8",
    "training.rounds=3",
    "checkpoint.keep=9",
)


@pytest.fixture(autouse=True)
def tiny() -> None:
    tiny_network.register()


def slow(patch: pytest.MonkeyPatch, wait: Callable[[], object]) -> None:
    """Every checkpoint but the first, of round 0, waits before it is written."""
    write = checkpoint.write_checked

    def late(path: Any, *rest: Any) -> str:
        if not path.name.endswith("000000.safetensors"):
            wait()
        return write(path, *rest)

    patch.setattr(checkpoint, "write_checked", late)


def test_the_next_round_begins_while_a_checkpoint_is_written(
    make_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    answered, waited = threading.Event(), []
    slow(monkeypatch, lambda: waited.append(answered.wait(10)))
    server = make_server(*TINY, "training.rounds=2")
    tell = server.observer.answered

    def heard(client: str) -> None:
        if server.state.step == 1:
            answered.set()
        tell(client)

    server.observer.answered = heard
    server.run()
    assert waited == [True, True]
    assert checkpoint.steps(server.run_dir.checkpoints) == [0, 1, 2]


def states(server: Any) -> dict[int, tuple[str, Any]]:
    """Step -> hash of tensors, and notes without time."""
    folder, found = server.run_dir.checkpoints, {}
    for step in checkpoint.steps(folder):
        tensors, notes = checkpoint.load(folder, step)
        for timed in ("wall_seconds", "run", "files", "files_sha256"):
            del notes[timed]
        found[step] = digest(tensors), notes
    return found


@pytest.mark.parametrize("pieces", ["[]", "adam"])
def test_a_checkpoint_holds_its_own_step_however_late_it_is_written(
    make_server: Any, monkeypatch: pytest.MonkeyPatch, pieces: str
) -> None:
    sets = (*TINY, f"server.pieces={pieces}", "recipe.ema_half_lives=[40.0]")
    at_once = make_server(*sets, name="at once")
    at_once.run()
    with monkeypatch.context() as patch:
        as_late_as_may_be(patch)
        late = make_server(*sets, name="late")
        late.run()
    assert states(late) == states(at_once) and len(states(late)) == 4
    # The lengths of the logs are those of the step too, not of the round in which it was written.
    sizes = [checkpoint.load(late.run_dir.checkpoints, step)[1]["files"]["ledger"] for step in range(4)]
    assert sizes == sorted(set(sizes))
    assert sizes[-1] == late.run_dir.log("ledger").stat().st_size


def as_late_as_may_be(patch: pytest.MonkeyPatch) -> None:
    """Nothing is written before it is awaited."""
    begun: dict[int, Callable[[], Any]] = {}

    def begin(self: Any, work: Callable[[], Any]) -> None:
        self.wait()
        begun[id(self)] = work

    patch.setattr(Beside, "begin", begin)
    patch.setattr(Beside, "wait", lambda self: begun.pop(id(self))() if id(self) in begun else None)


@pytest.mark.parametrize("method", ["fedavg", "udec"])
def test_where_clients_keep_a_state_the_next_round_knows_of_the_checkpoint(
    make_server: Any, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    as_late_as_may_be(monkeypatch)
    server, known = make_server(*TINY, f"method.name={method}"), []
    server.observer.phase_started = lambda phase, index, count: known.append(max(server.exchange.checkpoints))
    server.run()
    # Who keeps nothing can delete nothing, so the round before the last one is still to be written.
    assert known[:3] == ([0, 1, 2] if method == "udec" else [0, 0, 1])


@pytest.mark.parametrize("end", [Crash, KeyboardInterrupt])
def test_a_run_that_ends_in_the_next_round_ends_after_the_write(
    make_server: Any, monkeypatch: pytest.MonkeyPatch, end: type[BaseException]
) -> None:
    slow(monkeypatch, lambda: time.sleep(0.3))
    server = make_server(*TINY, at=crash_at(2, 1, end))
    with pytest.raises(end):
        server.run()
    assert checkpoint.steps(server.run_dir.checkpoints) == [0, 1]


def test_a_checkpoint_that_found_the_disk_full_ends_the_run_with_its_name(
    make_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow(monkeypatch, full)
    server = make_server(*TINY)
    with pytest.raises(OSError, match=r"No space left on device: 'a checkpoint'"):
        server.run()
    assert checkpoint.steps(server.run_dir.checkpoints) == [0]


def test_ctrl_c_tries_a_checkpoint_again_that_found_the_disk_full(
    make_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    times: list[int] = []
    slow(monkeypatch, lambda: times.append(1) or (full() if len(times) == 1 else None))
    server = make_server(*TINY, at=crash_at(2, 1, KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        server.run()
    assert checkpoint.steps(server.run_dir.checkpoints) == [0, 1]


def full() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "a checkpoint")
