"""Workers that are processes: the bits of threads, deaths of every kind, deadlines, full memory, and nobody left behind."""

from __future__ import annotations

import errno
import json
import logging
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from small_runs import SMALL, NoScore, Silent

from osmotic import methods, plugins
from osmotic.config.schema import Config
from osmotic.data import sources
from osmotic.engines import processes
from osmotic.engines.nursery import Nursery
from osmotic.engines.processes import Processes
from osmotic.errors import ConfigError, RunStopped
from osmotic.federation.client import StoreFailed
from osmotic.methods.fedavg import FedAvg
from osmotic.models import NETWORKS
from osmotic.pieces import PIECES
from osmotic.protocol.messages import Client, Phase, Task
from osmotic.protocol.view import View
from osmotic.runs import apart, launch, resolve, study
from osmotic.storage.folder import RunDir
from osmotic.storage.store import digest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="worker processes need Linux")

PLUGIN = Path(__file__).with_name("process_plugin.py")
TINY = (
    *SMALL,
    "data.max_images=60",
    "model.network=tiny-of-a-file",
    "training.batch_size=8",
    "engine.workers=2",
)


class Shared(Nursery):
    """A nursery for many engines one after the other: it takes seconds to start."""

    def close(self) -> None:
        pass


@pytest.fixture(scope="module", autouse=True)
def plugin() -> Iterator[None]:
    """What the plugin registers is known while these tests run."""
    plugins.load_file(PLUGIN)
    yield
    plugins.FILES.remove(PLUGIN.resolve())
    del PIECES["mishap"], NETWORKS["tiny-of-a-file"]


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    shared = Shared(apart.PROGRAM)
    yield shared
    Nursery.close(shared)


Make = Callable[..., Any]


@pytest.fixture
def make(nursery: Nursery, tmp_path: Path) -> Iterator[Make]:
    """A server whose clients are served by processes, or by threads."""
    engines: list[Any] = []

    def make(*sets: str, name: str = "run", threads: bool = False, settings: Iterable[str] = TINY) -> Any:
        prepared = study.prepare(resolve.load(sets=[*settings, *sets]))
        study.make_deterministic(prepared)
        run = RunDir(tmp_path / name)
        run.path.mkdir(exist_ok=True)
        server, _ = launch.make_server(prepared, run, Silent(), None if threads else nursery)
        server.scorer = NoScore()
        assert isinstance(server.engine, Processes) != threads
        engines.append(server.engine)
        return server

    yield make
    for engine in engines:
        engine.close()


def left(server: Any) -> dict[str, Any]:
    """What a run leaves, but for its failures and the time."""
    tensors, notes = server.state.to_checkpoint()
    del notes["wall_seconds"], notes["failures"], notes["totals"]
    return {"tensors": digest(tensors), **json.loads(json.dumps(notes))}


def failures(server: Any) -> list[tuple[int, int, str, str]]:
    return [(f["round"], f["client_id"], f["kind"], f["reason"]) for f in server.state.failures]


# --- the same bits ---

KINDS = {
    "a codec that remembers, and half of the clients": (
        "codec.up=int8",
        "codec.down=int8",
        "codec.error_feedback=true",
        "training.fraction_train=0.67",
        "data.clients=4",
        "local.pieces=scaffold",
    ),
    "models of their own, drawn from": (
        "method.name=udec",
        "training.optimizer_state=keep",
        "score.every=1",
        "training.rounds=2",
    ),
    "fine-tuned while images held out are watched": (
        "after.pieces=personalise",
        "after.personalise.epochs=3",
        "data.holdout=0.3",
        "training.rounds=1",
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_any_number_of_processes_gives_the_bits_of_threads(make: Make, kind: str) -> None:
    expected = make(*KINDS[kind], name="threads", threads=True)
    expected.run()
    ledger = expected.run_dir.log("ledger").read_text()
    for workers in (1, 2, 3):
        server = make(*KINDS[kind], f"engine.workers={workers}", name=f"processes-{workers}")
        server.run()
        assert left(server) == left(expected)
        assert server.run_dir.log("ledger").read_text() == ledger
        assert 1 <= len(server.engine.hired) <= workers
        if not server.method.global_model or server.chain.personal:
            own, threads_own = server.personal_models(book=False), expected.personal_models(book=False)
            assert {n: digest(t) for n, t in own.items()} == {n: digest(t) for n, t in threads_own.items()}


def test_images_mapped_from_a_file_are_mapped_by_workers_too(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = make(name="threads", threads=True)
    expected.run()
    monkeypatch.setattr(sources, "MAPPED_FROM", 0)
    server = make()
    assert len(server.engine.nursery._setup[1]) == 2, "its file goes to them, and no copy"
    server.run()
    assert left(server) == left(expected)


# --- deaths ---


@dataclass(frozen=True, kw_only=True)
class WithoutOne(FedAvg):
    """FedAvg that does not ask client-001 in round 2."""

    def tasks(self, view: View, phase: Phase, clients: Iterable[Client]) -> Iterator[Task]:
        for task in super().tasks(view, phase, clients):
            if (phase.server_round, task.client.name) != (2, "client-001"):
                yield task


@pytest.fixture
def without(make: Make, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A run in which client-001 is not asked in round 2."""
    monkeypatch.setitem(methods.METHODS, "without-one", WithoutOne)
    server = make("method.name=without-one", "local.pieces=mishap", name="expected", threads=True)
    server.run()
    return server


@pytest.mark.parametrize("workers", [1, 2])
def test_a_worker_that_is_killed_is_one_failure_and_is_replaced(
    make: Make, without: Any, workers: int
) -> None:
    server = make("local.pieces=mishap", "local.mishap.what=kill", f"engine.workers={workers}")
    server.run()
    assert failures(server) == [(2, 1, "lost", "its process was killed by SIGKILL")]
    assert left(server) == left(without), "what waited beside it was served by another"
    assert all(alive(worker.pid) for worker in server.engine.hired)


def alive(pid: int, within: float = 0.0) -> bool:
    """Whether this process runs, looked at until it does not or the time is up; one that nobody has reaped does not."""
    end = time.monotonic() + within
    while True:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return False
        if state == "Z":
            return False
        if time.monotonic() >= end:
            return True
        time.sleep(0.02)


# --- deadlines ---


@pytest.mark.parametrize("what", ["slow", "wait"])
def test_who_is_late_is_stopped_and_its_round_is_as_if_it_had_not_been_asked(
    make: Make, without: Any, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    # "slow" looks between two steps; "wait" hangs in one, and its process is killed after the grace.
    monkeypatch.setattr(processes, "GRACE", 20.0 if what == "slow" else 0.2)
    server = make("local.pieces=mishap", f"local.mishap.what={what}", "engine.deadline_seconds=2")
    server.run()
    assert failures(server) == [(2, 1, "late", "no answer within 2 s")]
    assert left(server) == left(without)
    assert len(server.engine.hired) == 2


def test_who_waits_at_a_worker_at_the_deadline_has_not_begun(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "GRACE", 0.2)
    sets = ("local.mishap.what=wait", "local.mishap.client=client-000", "engine.workers=1")
    server = make("local.pieces=mishap", *sets, "engine.deadline_seconds=1")
    server.run()
    told = [f["reason"] for f in server.state.failures]
    assert told == ["no answer within 1 s", "not begun within 1 s", "not begun within 1 s"]
    assert server.state.counted == {f"client-{i:03d}": 3 for i in range(3)}, "the next round is whole"


def test_a_task_that_waits_beside_another_is_given_to_a_worker_that_has_none(
    make: Make, tmp_path: Path
) -> None:
    # client-000 waits for a word of client-002, which is posted behind it at the first of two workers.
    sets = ("local.mishap.what=meet", "local.mishap.client=client-000", "local.mishap.number=1")
    server = make("local.pieces=mishap", *sets, f"local.mishap.at={tmp_path / 'met'}", "training.rounds=1")
    server.run()
    assert failures(server) == []


# --- full disks and full memory ---


def test_a_full_disk_under_a_clients_state_stops_the_run(make: Make) -> None:
    server = make("local.pieces=mishap", "local.mishap.what=disk", "training.optimizer_state=keep")
    with pytest.raises(StoreFailed) as caught:
        server.run()
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, "state")
    assert server.state.step == 1, "the round before has counted"


def test_no_room_for_shared_memory_stops_the_run_in_one_line(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = make(name="expected", threads=True)
    expected.run()
    server = make()
    with monkeypatch.context() as patch:

        def full(*_: Any) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        patch.setattr(os, "posix_fallocate", full)
        with pytest.raises(
            OSError, match=r"No space left on device: .* bytes for worker processes"
        ) as caught:
            server.run()
    assert caught.value.filename == "shared memory"
    server.run()
    assert left(server) == left(expected), "nothing is lost: it goes on from here"


def test_a_worker_without_room_for_its_answer_stops_the_run(make: Make) -> None:
    server = make()
    server.engine.clients(1, 0.0)
    pid = server.engine.nursery._process.pid
    # Forked workers inherit it; memory without a name is a file to the system.
    before = resource.prlimit(pid, resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
    try:
        with pytest.raises(OSError, match="bytes for worker processes") as caught:
            server.run()
    finally:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, before)
    assert caught.value.filename == "shared memory"


# --- what workers say ---


def test_an_exception_on_a_client_is_its_failure_and_in_the_log_of_the_run(
    make: Make, without: Any, caplog: pytest.LogCaptureFixture
) -> None:
    server = make("local.pieces=mishap", "local.mishap.what=raise")
    with caplog.at_level(logging.WARNING):
        server.run()
    assert [f[2] for f in failures(server)] == ["raised"]
    assert left(server) == left(without)
    [record] = [r for r in caplog.records if r.name == "osmotic.client"]
    assert record.getMessage() == "client-001 could not do its task"
    assert "LookupError: a word of this site's own" in str(record.exc_text)


def test_a_warning_on_a_client_is_a_warning_of_the_run(make: Make) -> None:
    server = make("local.pieces=mishap", "local.mishap.what=warn")
    with pytest.warns(UserWarning, match="the light is low"):
        server.run()


def test_progress_comes_for_every_step(make: Make) -> None:
    server = make()
    done: list[tuple[str, float]] = []
    server.engine.worked = lambda work, amount: done.append((work, amount))
    server.run()
    entries = [json.loads(line) for line in server.run_dir.log("ledger").read_text().splitlines()]
    assert sum(amount for work, amount in done if work == "train") == sum(e["steps"] for e in entries) > 0


# --- answers ---


def test_an_answer_that_is_kept_stays_as_it_was(make: Make) -> None:
    server = make("engine.workers=1", "training.rounds=2")
    kept: list[tuple[Any, bytes]] = []
    exchange = server.engine.exchange

    def keeping(tasks: Any, seconds: float) -> Iterator[Any]:
        for answer in exchange(tasks, seconds):
            kept.append((answer.packet.blobs[0], bytes(answer.packet.blobs[0])))
            yield answer

    server.engine.exchange = keeping
    server.run()
    assert len(kept) == 6 and all(bytes(view) == copy for view, copy in kept)


def test_memory_of_answers_is_used_again(make: Make) -> None:
    server = make("engine.workers=1", "data.clients=6", "training.rounds=3")
    server.run()
    assert len(server.engine.hired[0].windows) <= 3, "one handed out, one waiting to be, one being written"
    assert len(server.engine._outbox.pool.slabs) == 3, "one for each part of the network, whoever it goes to"


def test_an_exchange_that_is_given_up_leaves_nobody_at_work_and_the_next_one_works(make: Make) -> None:
    sets = ("local.mishap.what=wait", "local.mishap.client=client-002", "local.mishap.number=1")
    server = make("local.pieces=mishap", *sets)

    def stop(event: str, value: Any) -> None:
        if event == "answered":
            raise KeyboardInterrupt

    server.exchange.observer = Silent(stop)
    with pytest.raises(KeyboardInterrupt):
        server.run()
    assert all(not worker.posted for worker in server.engine.hired)
    assert all(not p.startswith("state") for p in os.listdir(server.run_dir.path))


# --- what stands against it ---


def loaded(*sets: str) -> Config:
    return resolve.load(sets=[*SMALL, *sets])


def test_short_runs_keep_threads_and_long_ones_take_processes() -> None:
    # 96 images at 3 clients, batches of 16: 2 steps a client, so 6 a round.
    two = ("engine.workers=2", "engine.device=cpu")
    assert not apart.pays(loaded(*two, "training.rounds=166"), 96)
    assert apart.pays(loaded(*two, "training.rounds=167"), 96)
    assert not apart.pays(loaded("engine.workers=1", "training.rounds=10000"), 96)
    assert not apart.pays(loaded(*two, "method.name=central", "training.rounds=10000"), 96), "one client"
    with apart.started(loaded("engine.workers=2"), 96) as none:
        assert none is None


def test_what_only_this_process_has_registered_keeps_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    assert apart.against(loaded("local.pieces=mishap", "model.network=tiny-of-a-file")) is None

    class Other(PIECES["mishap"]):  # type: ignore[name-defined,misc]
        """The same name, of a notebook."""

    monkeypatch.setitem(PIECES, "mishap", Other)
    keys = ("local.pieces=mishap", "engine.workers=2", "training.rounds=10000")
    with apart.started(loaded(*keys), 96) as none:
        assert none is None
    with pytest.raises(ConfigError, match=r"engine.processes = True: piece mishap is registered in Python"):
        apart.started(loaded(*keys, "engine.processes=true"), 96).__enter__()


def test_clients_on_a_gpu_keep_threads() -> None:
    told = apart.against(loaded("engine.device=cuda:1"))
    assert told is not None and "GPU" in told


def test_a_program_that_cannot_start_is_one_line() -> None:
    with Nursery("osmotic.no_such_module") as broken:
        broken.prepare({}, [])
        with pytest.raises(RunStopped, match="worker processes cannot start"):
            broken.wait()


# --- the command: nobody is left behind ---


def children_of(pid: int) -> list[int]:
    """The process's children, and theirs."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in map(int, (task / "children").read_text().split()):
            found += [child, *children_of(child)]
    return found


def test_ctrl_c_leaves_a_checkpoint_and_sigkill_nobody(tmp_path: Path, nursery: Nursery) -> None:
    folder = tmp_path / "run"
    keys = [*TINY, "engine.processes=true", "training.rounds=100000", "score.every=0", "score.steps=1"]
    command = [sys.executable, "-m", "osmotic", "run", "--plugin", str(PLUGIN), "--out", str(folder)]
    command += [word for key in keys for word in ("--set", key)]

    def until_rounds(process: subprocess.Popen[str], more: int) -> list[int]:
        log = folder / "metrics.jsonl"
        begun = len(log.read_text().splitlines()) if log.exists() else 0
        end = time.monotonic() + 120
        while not log.exists() or len(log.read_text().splitlines()) < begun + more:
            assert process.poll() is None and time.monotonic() < end
            time.sleep(0.02)
        found = children_of(process.pid)
        assert len(found) == 3, "a nursery and two workers"
        return found

    path = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    started: dict[str, Any] = {
        "stderr": subprocess.PIPE,
        "text": True,
        "start_new_session": True,
        "env": path,
    }
    process = subprocess.Popen(command, **started)
    children = until_rounds(process, 2)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all of them
    said = process.communicate(timeout=30)[1]
    assert process.returncode == 130 and "go on with: osmotic resume" in said
    assert "Traceback" not in said
    assert not any(alive(pid) for pid in children)
    assert list((folder / "checkpoints").iterdir())

    resumed = [sys.executable, "-m", "osmotic", "resume", "--plugin", str(PLUGIN), str(folder)]
    process = subprocess.Popen(resumed, **started)
    children = until_rounds(process, 2)  # the first may be of the round that Ctrl-C broke into
    process.kill()
    process.communicate()
    end = time.monotonic() + 2
    assert not any(alive(pid, within=end - time.monotonic()) for pid in children)


def test_a_new_nursery_whose_plugins_start_threads_is_not_forked(
    make: Make, nursery: Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The last test: it ends the nursery that all of them share, as the system may that is out of memory.
    monkeypatch.setenv("OSMOTIC_TEST_THREAD", "1")
    expected = make(name="expected", threads=True)
    expected.run()
    server = make("engine.workers=1")
    process = nursery._process
    assert process is not None

    def end_it(event: str, value: Any) -> None:
        if event == "phase" and value.server_round == 2:
            pid = server.engine.hired[0].pid
            process.kill()
            process.wait()
            assert not alive(pid, within=2), "its workers end with it"

    server.observer = Silent(end_it)
    server.run()
    assert [f[2] for f in failures(server)] == ["lost"], "whoever was sent to the worker that had ended"
    assert server.state.step == 3
    [worker] = server.engine.hired
    command = Path(f"/proc/{worker.pid}/cmdline").read_bytes().split(b"\0")
    assert apart.PROGRAM.encode() in command and nursery._process is not process
    nursery_command = Path(f"/proc/{nursery._process.pid}/cmdline").read_bytes().split(b"\0")
    assert command != nursery_command, "a program of its own, not a fork"
