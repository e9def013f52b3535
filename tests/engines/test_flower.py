"""Clients behind Flower: the bits of threads over a grid in this process, every failure of the transport, hostile records."""

from __future__ import annotations

import inspect
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

flwr = pytest.importorskip("flwr", reason="flwr is not installed: pip install 'osmotic[flower]'")
pytest.importorskip("ray", reason="Ray is not installed: pip install 'osmotic[flower]'")

from flower_grid import LocalGrid, Runtime, failed, hostile, in_place_of_flower  # noqa: E402
from flwr.app import Message, RecordDict  # noqa: E402
from flwr.app.message import remove_content_from_message  # noqa: E402
from flwr.common.constant import ErrorCode  # noqa: E402
from flwr.common.serde import message_to_proto  # noqa: E402
from flwr.proto.message_pb2 import PullObjectResponse  # noqa: E402
from flwr.proto.runtime_pb2 import PullAppMessagesResponse  # noqa: E402
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree  # noqa: E402
from flwr.supercore.run import Run  # noqa: E402
from flwr.supercore.task_identity import TaskIdentity  # noqa: E402
from flwr.superlink.grid import http_grid  # noqa: E402
from flwr.superlink.grid.http_grid import HttpGrid  # noqa: E402
from process_tree import alive, command, descendants  # noqa: E402

from osmotic.engines import flower  # noqa: E402
from osmotic.engines.envelope import NoPacket, packet_of, records  # noqa: E402
from osmotic.errors import ConfigError, RunStopped  # noqa: E402
from osmotic.protocol.messages import Packet, Spec, Task  # noqa: E402
from osmotic.runs import resolve  # noqa: E402
from osmotic.storage.store import digest  # noqa: E402

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="simulated clients on Flower need Linux")

Fate = Callable[[int, Message], list[Message] | None]


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> type[Runtime]:
    return in_place_of_flower(monkeypatch)


def tasks_only(fate: Fate) -> staticmethod[Any, Any]:
    """A fate of tasks: everybody says who it is."""

    def told(place: int, message: Message) -> list[Message] | None:
        return None if message.metadata.message_type == flower.HELLO else fate(place, message)

    return staticmethod(told)


def left(server: Any) -> dict[str, Any]:
    """What a run leaves, but for the time."""
    tensors, notes = server.state.to_checkpoint()
    del notes["wall_seconds"]
    return {"tensors": digest(tensors), **json.loads(json.dumps(notes))}


# --- the same bits ---

KINDS = {
    "fedavg": (),
    "codecs that remember, half of the clients, control variates": (
        "codec.up=int8",
        "codec.down=int4",
        "codec.error_feedback=true",
        "codec.first_contact=seed",
        "training.fraction_train=0.67",
        "local.pieces=scaffold",
    ),
    "models of their own, drawn from": ("method.name=udec", "training.optimizer_state=keep", "score.every=1"),
    "images from sites": (
        "server.pieces=correction",
        "server.correction.size=0.5",
        "server.correction.local_epochs=1",
        "server.correction.passes=1",
    ),
    "fine-tuned while images held out are watched": (
        "after.pieces=personalise",
        "after.personalise.trains=adapter",
        "data.holdout=0.3",
        "training.rounds=1",
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_clients_on_flower_give_the_bits_of_threads(
    make_server: Callable[..., Any], runtime: type[Runtime], kind: str
) -> None:
    threads = make_server(*KINDS[kind], name="threads")
    threads.run()
    server = make_server(*KINDS[kind], "engine.name=flower", name="flower")
    server.run()
    assert left(server) == left(threads) and not server.state.failures
    assert server.run_dir.log("ledger").read_text() == threads.run_dir.log("ledger").read_text()
    [grid] = runtime.opened
    assert 1 <= grid.most <= server.engine.workers + 1, "who waits for a place is not on its way yet"


def test_a_run_killed_on_flower_goes_on_with_threads_and_the_same_bits(
    make_server: Callable[..., Any], runtime: type[Runtime]
) -> None:
    from small_runs import Crash, crash_at

    keys = ("codec.up=int8", "codec.error_feedback=true")
    unbroken = make_server(*keys, name="unbroken")
    unbroken.run()
    with pytest.raises(Crash):
        make_server(*keys, "engine.name=flower", name="killed", at=crash_at(2, 1)).run()
    server = make_server(*keys, name="killed", resume=True)
    server.run()
    assert left(server) == left(unbroken)


# --- what befalls messages ---


def test_what_is_lost_is_sent_again_and_nothing_shows_it(
    make_server: Callable[..., Any], runtime: type[Runtime]
) -> None:
    unbroken = make_server(name="unbroken")
    unbroken.run()
    seen: list[int] = []

    def once_each(place: int, message: Message) -> list[Message] | None:
        seen.append(place)
        return [failed(message, ErrorCode.UNKNOWN)] if seen.count(place) == 1 else None

    runtime.fate = tasks_only(once_each)
    server = make_server("engine.name=flower", name="flower")
    server.run()
    assert left(server) == left(unbroken) and not server.state.failures
    assert len(runtime.opened) > 1, (
        "Flower gives a process that died work again: a new simulation is in its place"
    )


def test_who_is_always_lost_is_a_failure_and_the_rest_is_a_run_without_it(
    make_server: Callable[..., Any], runtime: type[Runtime]
) -> None:
    seen: list[int] = []

    def gone(place: int, message: Message) -> list[Message] | None:
        seen.append(place)
        return [failed(message, ErrorCode.NODE_UNAVAILABLE)] if place == 1 else None

    runtime.fate = tasks_only(gone)
    server = make_server("engine.name=flower", "training.rounds=2", name="flower")
    server.run()
    told = {(f["round"], f["client_id"], f["kind"], f["reason"]) for f in server.state.failures}
    assert told == {(r, 1, "lost", "Flower reports error 5") for r in (1, 2)}, "and no word of a traceback"
    assert seen.count(1) == 2 * flower.TRIES
    without = make_server("training.rounds=2", name="without")
    empty = Packet({"failure": ["lost", "Flower reports error 5"]})
    without.engine._make_worker = lambda make=without.engine._make_worker: Deaf(make(), "client-001", empty)
    without.run()
    assert np.array_equal(without.state.weights.buffer, server.state.weights.buffer)


class Deaf:
    """A worker that does not do one client's tasks."""

    def __init__(self, worker: Any, name: str, instead: Packet) -> None:
        self.worker, self.name, self.instead = worker, name, instead

    def serve_all(self, tasks: Any) -> list[Packet]:
        [(site, packet)] = tasks
        if site.client.name == self.name:
            return [self.worker.guarded(site, packet, lambda: self.instead)]
        return self.worker.serve_all(tasks)


def test_what_flower_gives_up_before_the_deadline_is_sent_again_to_the_same_simulation(
    make_server: Callable[..., Any], runtime: type[Runtime]
) -> None:
    unbroken = make_server("engine.deadline_seconds=60", name="unbroken")
    unbroken.run()
    seen: list[int] = []

    def once(place: int, message: Message) -> list[Message] | None:
        seen.append(place)
        return [failed(message, ErrorCode.MESSAGE_UNAVAILABLE)] if len(seen) == 1 else None

    runtime.fate = tasks_only(once)
    server = make_server("engine.name=flower", "engine.deadline_seconds=60", name="flower")
    server.run()
    assert left(server) == left(unbroken) and not server.state.failures
    assert len(runtime.opened) == 1, "nothing died"


@pytest.mark.parametrize(("code", "kind"), sorted(flower.KINDS.items()))
def test_every_error_of_flower_is_a_failure_of_its_kind(
    make_server: Callable[..., Any], runtime: type[Runtime], code: int, kind: str
) -> None:
    runtime.fate = tasks_only(lambda place, message: [failed(message, code)] if place == 2 else None)
    server = make_server("engine.name=flower", "training.rounds=1", name="flower")
    server.run()
    assert [(f["client_id"], f["kind"]) for f in server.state.failures] == [(2, kind)]


def test_the_deadline_ends_the_wait(make_server: Callable[..., Any], runtime: type[Runtime]) -> None:
    runtime.fate = tasks_only(lambda place, message: [] if place == 0 else None)
    keys = ("engine.name=flower", "engine.deadline_seconds=2", "engine.workers=1", "training.rounds=1")
    server = make_server(*keys, name="flower")
    begun = time.monotonic()
    server.run()
    assert [(f["client_id"], f["kind"], f["reason"]) for f in server.state.failures] == [
        (0, "late", "no answer within 2 s")
    ]
    assert time.monotonic() - begun < 30
    [stale] = runtime.opened[0].waiting.values()
    assert 0 < stale.metadata.ttl <= 2, "nobody is handed it once its time is over"


def test_answers_to_what_was_not_asked_and_second_answers_are_dropped(
    make_server: Callable[..., Any], runtime: type[Runtime]
) -> None:
    unbroken = make_server(name="unbroken")
    unbroken.run()
    kept: list[Message] = []

    def more(place: int, message: Message) -> list[Message] | None:
        grid = runtime.opened[-1]
        reply = grid.app(message, grid.contexts[message.metadata.dst_node_id])
        old = kept[:1]  # of an earlier round, or of another client
        kept.insert(0, reply)
        return [*old, reply, reply]

    runtime.fate = tasks_only(more)
    server = make_server("engine.name=flower", name="flower")
    server.run()
    assert left(server) == left(unbroken) and not server.state.failures


def test_the_answer_of_another_client_or_round_in_its_place_is_refused(
    make_server: Callable[..., Any], runtime: type[Runtime]
) -> None:
    kept: list[Message] = []

    def swapped(place: int, message: Message) -> list[Message] | None:
        if place != 1:
            return None
        grid = runtime.opened[-1]
        kept.append(grid.app(message, grid.contexts[message.metadata.dst_node_id]))
        return [Message(kept[0].content, reply_to=message)]  # the first round's, replayed as this round's

    runtime.fate = tasks_only(swapped)
    server = make_server("engine.name=flower", "training.rounds=2", name="flower")
    server.run()
    assert [(f["round"], f["kind"]) for f in server.state.failures] == [(2, "bad")]
    assert "answers for server_round 1" in server.state.failures[0]["reason"]


def test_a_reply_that_flower_cannot_read_is_its_clients_failure_and_nobody_elses(
    make_server: Callable[..., Any], runtime: type[Runtime]
) -> None:
    def broken(place: int, message: Message) -> list[Message] | None:
        if place == 1:
            raise TypeError("cannot reshape array: /home/someone/secret.py")
        return None

    runtime.fate = tasks_only(broken)
    server = make_server("engine.name=flower", "training.rounds=2", name="flower")
    server.run()
    assert [(f["client_id"], f["kind"], f["reason"]) for f in server.state.failures] == [
        (1, "bad", "cannot be read (TypeError)")
    ] * 2


def test_a_superlink_that_is_gone_is_nobodys_failure(
    make_server: Callable[..., Any], runtime: type[Runtime]
) -> None:
    def gone(place: int, message: Message) -> list[Message] | None:
        raise httpx.ConnectError("connection refused")

    runtime.fate = tasks_only(gone)
    server = make_server("engine.name=flower", name="flower")
    with pytest.raises(httpx.ConnectError):
        server.run()
    assert not server.state.failures


def test_a_simulation_that_does_not_begin_or_has_ended_is_told_apart(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import threading

    monkeypatch.setattr(flower, "STARTED", 0.05)
    runtime = flower.Runtime.__new__(flower.Runtime)
    runtime._opened, runtime._error = threading.Event(), None
    with pytest.raises(RunStopped, match=r"has not begun within 0\.05 s"):
        runtime.grid()
    runtime._opened.set()
    runtime._error = ValueError("no resources")
    with pytest.raises(RunStopped, match="is not there: ValueError: no resources"):
        runtime.grid()


@pytest.mark.parametrize(
    ("told", "reason"), [("a='b", 'set = "a=\'b": cannot be read'), ("seed", "must be section.key=value")]
)
def test_a_mistake_in_the_keys_of_an_app_is_one_line(
    told: str, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from flwr.app import Context

    from osmotic import flower as apps

    context = Context(1, 1, {}, RecordDict(), {"set": told})
    with pytest.raises(ConfigError):
        apps.main(None, context)
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("osmotic: error: ") and reason in line


def test_a_full_disk_under_the_clients_ends_the_run(
    make_server: Callable[..., Any], runtime: type[Runtime], monkeypatch: pytest.MonkeyPatch
) -> None:
    from osmotic.storage.store import Store

    def full(*args: Any, **kwargs: Any) -> str:
        raise OSError(28, "No space left on device")

    server = make_server("engine.name=flower", "codec.up=int8", "codec.error_feedback=true", name="flower")
    monkeypatch.setattr(Store, "save", full)
    with pytest.raises(OSError, match="private state: No space left"):
        server.run()


def test_nodes_that_are_registered_one_after_the_other_are_waited_for(
    make_server: Callable[..., Any], runtime: type[Runtime], monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = itertools.count(1)
    everybody = LocalGrid.get_node_ids
    monkeypatch.setattr(LocalGrid, "get_node_ids", lambda self: everybody(self)[: next(looks)])
    server = make_server("engine.name=flower", "training.rounds=1", name="flower")
    server.run()
    assert not server.state.failures and len(server.clients) > 1
    monkeypatch.setattr(LocalGrid, "get_node_ids", lambda self: everybody(self)[:1])
    monkeypatch.setattr(flower, "STARTED", 0.1)
    with pytest.raises(RunStopped, match="has 1 clients in the place of"):
        make_server("engine.name=flower", name="too-few").run()


def test_nodes_that_do_not_say_who_they_are_end_the_run(
    make_server: Callable[..., Any], runtime: type[Runtime]
) -> None:
    for header in ({}, {"partition": 7}, {"partition": "0"}, {"partition": 0}):
        runtime.fate = staticmethod(
            lambda place, m, header=header: [Message(records(Packet(header)), reply_to=m)]
        )
        with pytest.raises(RunStopped, match="does not say which it is"):
            make_server("engine.name=flower", name=f"run-{len(runtime.opened)}").run()


# --- records ---


@given(
    st.dictionaries(st.text(max_size=8), st.integers() | st.floats(allow_nan=False) | st.text(max_size=8)),
    st.lists(st.binary(max_size=64), max_size=12),
)
def test_a_packet_comes_out_as_it_went_in(header: dict[str, Any], blobs: list[bytes]) -> None:
    found = packet_of(records(Packet(header, tuple(blobs)), setup="beside"))
    assert found == Packet(header, tuple(blobs))


def test_numbers_of_numpy_and_views_travel() -> None:
    found = packet_of(records(Packet({"n": np.int64(3), "x": np.float32(0.5)}, (memoryview(b"abc"),))))
    assert found == Packet({"n": 3, "x": 0.5}, (b"abc",))


@pytest.mark.parametrize("what", hostile())
def test_records_that_are_no_packet_are_a_failure_of_their_client(
    make_server: Callable[..., Any], runtime: type[Runtime], what: str
) -> None:
    content = hostile()[what]
    with pytest.raises(NoPacket) as refused:
        packet_of(content)
    assert len(str(refused.value)) < 100
    runtime.fate = tasks_only(lambda place, m: [Message(content, reply_to=m)] if place == 0 else None)
    server = make_server("engine.name=flower", "training.rounds=1", name="flower")
    server.run()
    assert [(f["client_id"], f["kind"]) for f in server.state.failures] == [(0, "bad")]


class Link:
    """A SuperLink with one reply, in the place of the client of its API."""

    def __init__(self, reply: Message) -> None:
        self.reply, self.fetched, self.confirmed = reply, 0, False
        reply.metadata.__dict__["_message_id"] = reply.object_id
        self.objects = get_all_nested_objects(reply)

    def PullMessages(self, request: Any) -> Any:
        told = message_to_proto(remove_content_from_message(self.reply))
        return PullAppMessagesResponse(
            messages_list=[told], message_object_trees=[get_object_tree(self.reply)]
        )

    def PullObject(self, request: Any) -> Any:
        content = self.objects[request.object_id].deflate()
        self.fetched += len(content)
        return PullObjectResponse(object_found=True, object_available=True, object_content=content)

    def ConfirmMessageReceived(self, request: Any) -> None:
        self.confirmed = True


@pytest.mark.parametrize("most_bytes", [None, 90_000_000, 20_000_000])
def test_no_more_is_fetched_of_a_reply_than_an_honest_one_has(most_bytes: int | None) -> None:
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
    asked = Message(records(Packet({})), 7, flower.WORK)
    asked.metadata.__dict__["_message_id"] = "asked"
    blobs = tuple(bytes([n]) * 4_000_000 for n in range(20))
    link = Link(Message(records(Packet({"a": 1}, blobs)), reply_to=asked))
    grid = HttpGrid(token="none")
    grid.set_run(Run.create_empty(1))
    grid._client = link  # type: ignore[assignment]
    found = flower.pulled(grid, "asked", most_bytes)
    if most_bytes == 20_000_000:
        assert isinstance(found, NoPacket) and "larger than the 20,000,000 bytes" in str(found)
        assert link.fetched < 40_000_000 and not link.confirmed
    else:
        assert isinstance(found, Message) and packet_of(found.content).blobs == blobs and link.confirmed


def test_most_bytes_of_an_answer_follow_from_what_must_come_back(make_server: Callable[..., Any]) -> None:
    server = make_server("training.rounds=1")
    task = Task(server.engine.clients(1, 1)[0], "train", returns=("decoder",))
    gate = server.exchange.gate
    one = gate.expect(task).most_bytes
    assert one is not None and one > 4 * gate.flat.of_parts(("decoder",)).size
    more = gate.expect(replace(task, expects={"image/x": Spec((1000, 8, 8, 1), "uint8")})).most_bytes
    assert more == one + 2 * 64_000
    assert gate.expect(replace(task, expects={"image/x": Spec((None, 8), "uint8")})).most_bytes is None


# --- what is asked of flwr, and what is refused before it is begun ---


def test_flwr_is_as_the_engine_takes_it() -> None:
    assert flwr.__version__ == "1.41.0"
    codes = {name: value for name, value in vars(ErrorCode).items() if isinstance(value, int)}
    assert (
        set(codes.values()) == set(flower.KINDS)
        and codes["NODE_UNAVAILABLE"] == 5
        and codes["UNKNOWN"] == flower.DIED
    )
    from flwr.simulation import run_simulation
    from ray._private import worker

    names = list(inspect.signature(http_grid.pull_objects).parameters)
    assert names[:2] == ["object_ids", "pull_object_fn"]

    assert list(inspect.signature(worker.print_to_stdstream).parameters) == ["data", "ignore_prefix"]
    taken = list(inspect.signature(run_simulation).parameters)
    assert taken[:3] == ["server_app", "client_app", "num_supernodes"] and "backend_config" in taken


@pytest.mark.parametrize(
    ("key", "told"),
    [
        ("engine.batched_clients=2", "engine.batched_clients = 2: are clients trained in one thread"),
        ("engine.processes=true", "engine.processes = True: is of engine inprocess"),
    ],
)
def test_what_only_threads_can_is_refused(key: str, told: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(told)):
        resolve.load(sets=["engine.name=flower", key])


def test_without_flwr_the_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "ray" else found(name))
    with pytest.raises(ConfigError, match=r"needs ray: pip install 'osmotic\[flower\]'"):
        resolve.load(sets=["engine.name=flower"])


# --- Flower's own runtime ---


def test_a_run_on_flower_survives_its_processes_and_leaves_none(tmp_path: Path) -> None:
    """Real processes, one of them killed in the middle of a round."""
    osmotic = [sys.executable, "-m", "osmotic", "run", "--data", "digits", "--json"]
    keys = [
        "data.clients=2",
        "data.max_images=200",
        "training.rounds=4",
        "score.samples=50",
        "score.steps=3",
        "score.every=0",
    ]
    sets = [word for key in keys for word in ("--set", key)]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([*osmotic, *sets, "--out", tmp_path / "threads"], env=env, check=True, capture_output=True)
    out, lines = tmp_path / "flower", tmp_path / "flower/metrics.jsonl"
    run = subprocess.Popen(
        [*osmotic, *sets, "--set", "engine.name=flower", "--out", out],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    end = time.monotonic() + 200
    while not (lines.exists() and lines.read_text().count("\n") >= 1):
        assert time.monotonic() < end and run.poll() is None
        time.sleep(0.05)
    known = descendants(run.pid)
    actors = [p for p in known if "ClientAppActor" in command(p)]
    assert actors
    os.kill(actors[0], signal.SIGKILL)
    answer, told = run.communicate(timeout=200)
    assert run.returncode == 0, told
    assert json.loads(answer)["engine"] == "flower", "nothing else is on stdout, whatever Ray has to tell"
    one, other = (json.loads((tmp_path / n / "summary.json").read_text()) for n in ("threads", "flower"))
    assert one["weights_sha256"] == other["weights_sha256"] and not other["failures"]
    assert not [p for p in known if alive(p)], "no process outlives the run"
