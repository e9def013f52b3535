"""Ctrl-C at every moment of a phase: what has counted stays, what has not is done again, and no line is written twice."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import seam_methods
import tiny_network
from small_runs import SMALL, Silent

from osmotic import codecs, pieces
from osmotic.federation.client import Worker
from osmotic.federation.server import Server
from osmotic.runs import launch, resolve
from osmotic.runs.launch import ServerTrainer
from osmotic.runs.scoring import Scoring
from osmotic.storage import checkpoint
from osmotic.storage.folder import RunDir

TINY = (
    *SMALL,
    "model.network=tiny",
    "data.max_images=60",
    "training.batch_size=8",
    "recipe.ema_half_lives=[40.0]",
    "score.every=1",
)


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_network.register()
    monkeypatch.setitem(pieces.PIECES, "auxiliary", seam_methods.Auxiliary)
    monkeypatch.setitem(codecs.CODECS, "trained", seam_methods.TrainedCodec)


def result(run: RunDir) -> dict[str, Any]:
    """All that a run leaves, but for the time; the ledger as it stands, line for line."""
    summary = json.loads(run.summary.read_text())
    metrics = [json.loads(line) for line in run.log("metrics").read_text().splitlines()]
    for line in (summary, *metrics):
        del line["wall_seconds"]
    models = {
        str(p.relative_to(run.path)): p.read_bytes()
        for folder in (run.model, run.personal)
        for p in sorted(folder.rglob("*.safetensors"))
    }
    return {
        "summary": summary,
        "metrics": metrics,
        "ledger": run.log("ledger").read_text(),
        "models": models,
    }


def start(folder: Path, settings: tuple[str, ...], at: Any = None) -> RunDir:
    config = resolve.load(sets=[*TINY, *settings])
    return launch.start(config, folder, lambda run, config: Silent(at) if at else Silent())


def resumed(folder: Path, at: Any = None) -> RunDir:
    return launch.resume(folder, lambda run, config: Silent(at) if at else Silent())


@contextmanager
def interrupted(owner: type, name: str, call: int, after: bool = False) -> Iterator[None]:
    """Ctrl-C in this call of a method, before its work or after it; a second call as such goes through."""
    original, calls = getattr(owner, name), []

    def method(self: Any, *arguments: Any, **named: Any) -> Any:
        calls.append(name)
        done = original(self, *arguments, **named) if after or len(calls) != call else None
        if len(calls) == call:
            raise KeyboardInterrupt
        return done

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, method)
        with pytest.raises(KeyboardInterrupt):
            yield
    assert len(calls) == call, "nothing went on after it"


def state_of(folder: Path) -> tuple[int, dict[str, Any]]:
    """Step and notes of the newest checkpoint."""
    step, _, notes = checkpoint.load_latest(RunDir(folder).checkpoints)
    return step, notes


def lines(folder: Path, log: str) -> int:
    return len(RunDir(folder).log(log).read_text().splitlines()) if RunDir(folder).log(log).exists() else 0


FEDAVG = ("training.rounds=3",)
UDEC = ("method.name=udec", "training.rounds=2")
BESIDE = ("after.pieces=personalise", "training.rounds=2")
RARE = ("training.rounds=3", "checkpoint.every=2")
# Settings, what scores, in which of its calls, and the step whose phase has counted by then.
SCORES = [
    *((FEDAVG, "score_global", call, call) for call in (1, 2, 3)),
    *((UDEC, "score_personal", call, call) for call in (1, 2, 3)),
    (BESIDE, "score_global", 2, 2),
    (BESIDE, "score_personal", 1, 3),
    (RARE, "score_global", 1, 1),
    (RARE, "score_global", 2, 2),
]


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(("settings", "scorer", "call", "step"), SCORES)
def test_a_phase_that_is_stopped_while_it_is_scored_has_counted_and_its_score_is_taken_later(
    tmp_path: Path, settings: tuple[str, ...], scorer: str, call: int, step: int, after: bool
) -> None:
    unbroken, folder = result(start(tmp_path / "unbroken", settings)), tmp_path / "broken"
    with interrupted(Scoring, scorer, call, after):
        start(folder, settings)
    found, notes = state_of(folder)
    assert found == step and notes["pending"]["round"] == unbroken["metrics"][step - 1]["round"]
    assert notes["pending"]["quality"] is None
    assert lines(folder, "metrics") == step - 1, "the line is closed when its score is there"
    assert result(resumed(folder)) == unbroken
    assert state_of(folder)[1]["pending"] is None


@pytest.mark.parametrize("times", [2, 3])
@pytest.mark.parametrize(
    ("settings", "scorer"), [(FEDAVG, "score_global"), (UDEC, "score_personal"), (BESIDE, "score_personal")]
)
def test_a_score_may_be_stopped_again_and_again(
    tmp_path: Path, settings: tuple[str, ...], scorer: str, times: int
) -> None:
    unbroken, folder = result(start(tmp_path / "unbroken", settings)), tmp_path / "broken"
    with interrupted(Scoring, scorer, 1):
        start(folder, settings)
    before = state_of(folder)
    for time in range(1, times):
        with interrupted(Scoring, scorer, 1, after=time % 2 == 1):
            resumed(folder)
        step, notes = state_of(folder)
        del notes["wall_seconds"], before[1]["wall_seconds"]
        assert (step, notes) == before, "it stands where it stood, with the files as long"
        before = state_of(folder)
    assert result(resumed(folder)) == unbroken


@pytest.mark.parametrize("answers", [4, 6, 9, 13, 15])
def test_a_stop_while_clients_draw_for_the_score_is_one_too(tmp_path: Path, answers: int) -> None:
    # Of a round, answers 1 to 3 are of training and 4 to 6 of sampling; 13 to 15 are of the merged models.
    unbroken, folder = result(start(tmp_path / "unbroken", UDEC)), tmp_path / "broken"
    seen: list[str] = []

    def at(event: str, value: Any) -> None:
        if event == "answered":
            seen.append(value)
            if len(seen) == answers:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        start(folder, UDEC, at)
    step, notes = state_of(folder)
    if answers == 9:  # the last answer of training in round 2: the phase was not whole
        assert (step, notes["pending"]) == (1, None)
    else:
        assert step == {4: 1, 6: 1, 13: 3, 15: 3}[answers] and notes["pending"] is not None
    assert result(resumed(folder)) == unbroken


@pytest.mark.parametrize("call", [1, 2, 3])
def test_a_client_that_cannot_be_scored_is_a_failure_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    sample = Worker.sample

    def failing(self: Worker, opened: Any) -> Any:
        if opened.site.client.name == "client-001":
            raise RuntimeError
        return sample(self, opened)

    monkeypatch.setattr(Worker, "sample", failing)
    unbroken, folder = result(start(tmp_path / "unbroken", UDEC)), tmp_path / "broken"
    with interrupted(Scoring, "score_personal", call):
        start(folder, UDEC)
    assert len(state_of(folder)[1]["failures"]) == call - 1, "those of the score are not there yet"
    assert result(resumed(folder)) == unbroken
    assert [(f["round"], f["client_id"]) for f in unbroken["summary"]["failures"]] == [(1, 1), (2, 1), (3, 1)]


@pytest.mark.parametrize("settings", [UDEC, BESIDE], ids=["udec", "beside a global one"])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_stop_while_own_models_are_fetched_books_them_once(
    tmp_path: Path, settings: tuple[str, ...], after: bool
) -> None:
    unbroken, folder = result(start(tmp_path / "unbroken", settings)), tmp_path / "broken"
    with interrupted(Server, "personal_models", 1, after):
        start(folder, settings)
    assert state_of(folder)[1]["pending"] is None and not RunDir(folder).summary.exists()
    assert result(resumed(folder)) == unbroken
    assert result(resumed(folder)) == unbroken, "and a finished run is only summed up again"


# --- training on the server ---

SERVER = ("after.pieces=auxiliary", "server.pieces=momentum", "local.pieces=scaffold", "training.rounds=2")


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(("method", "call", "step"), [("sample", 2, 0), ("fit", 1, 1), ("fit", 2, 2)])
def test_a_phase_that_is_stopped_while_the_server_trains_is_done_again(
    tmp_path: Path, method: str, call: int, step: int, after: bool
) -> None:
    unbroken, folder = result(start(tmp_path / "unbroken", SERVER)), tmp_path / "broken"
    with interrupted(ServerTrainer, method, call, after):
        start(folder, SERVER)
    found, notes = state_of(folder)
    assert (found, notes["pending"], notes["server_steps"]) == (step, None, 2 * max(0, step - 1))
    assert lines(folder, "metrics") == step and lines(folder, "ledger") == step * (3 * 2 + 1)
    assert result(resumed(folder)) == unbroken


@pytest.mark.parametrize("answers", [1, 2, 3])
def test_what_a_stopped_phase_has_moved_in_the_codecs_is_not_saved(tmp_path: Path, answers: int) -> None:
    # No checkpoint stands at round 2, so that Ctrl-C writes one, while the codec is renewed for round 3.
    settings = ("codec.up=trained", "codec.down=int8", "training.rounds=4", "checkpoint.every=4")
    unbroken, folder = result(start(tmp_path / "unbroken", settings)), tmp_path / "broken"
    seen: list[str] = []

    def at(event: str, value: Any) -> None:
        if event == "answered":
            seen.append(value)
            if len(seen) == 2 * 3 + answers:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        start(folder, settings, at)
    assert state_of(folder)[0] == 2
    assert result(resumed(folder)) == unbroken


# --- signals: steps 7 and 9 alone hold them back ---


def signalled(log: str, number: int, times: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real Ctrl-C while a log is written for the time of this number, so often."""
    append, calls = RunDir.append_text, []

    def writing(self: RunDir, name: str, text: str) -> None:
        calls.append(name)
        if name == log and calls.count(log) == number:
            for _ in range(times):
                os.kill(os.getpid(), signal.SIGINT)
        append(self, name, text)

    monkeypatch.setattr(RunDir, "append_text", writing)


needs_main_thread = pytest.mark.skipif(
    threading.current_thread() is not threading.main_thread(), reason="signals reach the main thread alone"
)


@needs_main_thread
@pytest.mark.parametrize(("log", "pending"), [("ledger", True), ("metrics", False)])
@pytest.mark.parametrize("settings", [FEDAVG, RARE, UDEC], ids=["fedavg", "rare checkpoints", "udec"])
def test_a_signal_waits_until_the_phase_is_booked(
    tmp_path: Path, log: str, pending: bool, settings: tuple[str, ...]
) -> None:
    unbroken, folder = result(start(tmp_path / "unbroken", settings)), tmp_path / "broken"
    # Of UDec the ledger is written for scores too, so its third time is that of round 2.
    with pytest.MonkeyPatch.context() as patch:
        signalled(log, 3 if settings == UDEC and log == "ledger" else 2, 1, patch)
        with pytest.raises(KeyboardInterrupt):
            start(folder, settings)
    step, notes = state_of(folder)
    assert step == 2 and (notes["pending"] is not None) == pending
    assert lines(folder, "metrics") == (1 if pending else 2)
    assert result(resumed(folder)) == unbroken


@needs_main_thread
@pytest.mark.parametrize("settings", [FEDAVG, UDEC], ids=["fedavg", "udec"])
def test_a_signal_while_a_score_is_booked_leaves_it_to_be_taken_again(
    tmp_path: Path, settings: tuple[str, ...]
) -> None:
    unbroken, folder = result(start(tmp_path / "unbroken", settings)), tmp_path / "broken"
    if settings == UDEC:
        with pytest.MonkeyPatch.context() as patch:
            signalled("ledger", 4, 1, patch)
            with pytest.raises(KeyboardInterrupt):
                start(folder, settings)
        step, notes = state_of(folder)
        assert step == 2 and notes["pending"] is not None
        assert notes["files"]["ledger"] < RunDir(folder).log("ledger").stat().st_size
    else:
        with interrupted(Scoring, "save_grid", 2, after=True):
            start(folder, settings)
    assert result(resumed(folder)) == unbroken


@needs_main_thread
@pytest.mark.parametrize("log", ["ledger", "metrics"])
def test_a_second_signal_waits_for_nothing_and_nothing_half_done_is_saved(tmp_path: Path, log: str) -> None:
    unbroken, folder = result(start(tmp_path / "unbroken", FEDAVG)), tmp_path / "broken"
    with pytest.MonkeyPatch.context() as patch:
        signalled(log, 2, 2, patch)
        with pytest.raises(KeyboardInterrupt):
            start(folder, FEDAVG)
    step, notes = state_of(folder)
    assert (step, notes["pending"]) == (1, None), "round 2 is done again"
    assert result(resumed(folder)) == unbroken


def test_handlers_are_those_of_before_again(tmp_path: Path) -> None:
    before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
    start(tmp_path / "whole", ("training.rounds=1", "score.every=0"))
    with interrupted(Scoring, "score_global", 1):
        start(tmp_path / "broken", ("training.rounds=1",))
    assert {s: signal.getsignal(s) for s in before} == before
