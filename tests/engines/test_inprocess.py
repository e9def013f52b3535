"""The engine in this process: which answers come, when, and what a deadline does to those that do not."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import tiny_network
from small_runs import NoScore

from osmotic import methods
from osmotic.engines.inprocess import InProcess
from osmotic.federation.client import Opened, Worker
from osmotic.methods.fedavg import FedAvg
from osmotic.protocol.messages import Answer, Client, Packet, Phase, Sent, Task
from osmotic.protocol.view import View
from osmotic.storage.store import digest
from osmotic.training.loop import Cancelled


@dataclass
class FakeSite:
    """A client of a name."""

    client: Client


@dataclass
class FakeWorker:
    """Does what it is told for a client, and remembers whom it served."""

    work: Callable[[str, threading.Event], None]
    stop: threading.Event
    served: list[str] = field(default_factory=list)

    def serve_all(self, tasks: Sequence[tuple[FakeSite, Packet]]) -> list[Packet]:
        for site, _ in tasks:
            self.served.append(site.client.name)
            self.work(site.client.name, self.stop)
        return [Packet({"of": site.client.name}) for site, _ in tasks]


@dataclass
class Case:
    """An engine over clients that do `work`, and tasks for all of them."""

    engine: InProcess
    workers: list[FakeWorker]
    made: list[str] = field(default_factory=list)

    def tasks(self, names: Iterable[str] | None = None) -> Iterator[Sent]:
        for name in names or sorted(self.engine.sites):
            self.made.append(name)
            yield Sent(Task(self.engine.sites[name].client, "train"), Packet({}))


def nothing(name: str, stop: threading.Event) -> None:
    pass


def make(clients: int, workers: int, work: Callable[[str, threading.Event], None] = nothing) -> Case:
    stop, made = threading.Event(), []

    def make_worker() -> FakeWorker:
        made.append(FakeWorker(work, stop))
        return made[-1]

    known = [Client(i, f"client-{i:03d}", 10) for i in reversed(range(clients))]
    sites: Any = {client.name: FakeSite(client) for client in known}
    engine: Any = InProcess(known, sites, make_worker, workers, 1, stop)
    return Case(engine, made)


def told(answers: Iterable[Answer]) -> dict[str, str]:
    """Client -> "answered", or kind and reason of its failure; every client answers once."""
    found: dict[str, str] = {}
    for answer in answers:
        name = answer.sent.task.client.name
        assert name not in found and (answer.packet is None) != (answer.failure is None)
        if answer.packet is not None:
            assert answer.packet.header["of"] == name, "the answer of this client and of no other"
        found[name] = (
            "answered" if answer.failure is None else f"{answer.failure.kind}: {answer.failure.reason}"
        )
    return found


def stuck_if(*names: str, at: threading.Event | None = None) -> Callable[[str, threading.Event], None]:
    """A training loop that never ends for these clients: it looks at `stop` as the real one does, step by step."""

    def work(name: str, stop: threading.Event) -> None:
        if name in names:
            if at:
                at.set()
            if not stop.wait(60):
                raise AssertionError("nobody stopped it")
            raise Cancelled

    return work


# --- who is there ---


def test_clients_come_sorted_by_name_and_too_few_are_an_error() -> None:
    engine = make(3, 1).engine
    assert [c.name for c in engine.clients(1, 0.0)] == ["client-000", "client-001", "client-002"]
    with pytest.raises(TimeoutError, match="3 clients are here, 4 are needed"):
        engine.clients(4, 0.0)


# --- without a deadline ---


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_every_task_has_one_answer_and_networks_are_reused(workers: int) -> None:
    case = make(6, workers)
    for _ in range(3):
        assert set(told(case.engine.exchange(case.tasks(), 0.0)).values()) == {"answered"}
    assert 1 <= len(case.workers) <= workers
    assert sum(len(w.served) for w in case.workers) == 3 * 6


def test_a_deadline_of_0_waits_for_all() -> None:
    def slow(name: str, stop: threading.Event) -> None:
        assert not stop.wait(0.05)

    case = make(3, 1, slow)
    assert set(told(case.engine.exchange(case.tasks(), 0.0)).values()) == {"answered"}


@pytest.mark.parametrize("workers", [1, 2])
def test_a_packet_is_made_only_when_somebody_is_free_to_take_it(workers: int) -> None:
    case = make(6, workers)
    answers = case.engine.exchange(case.tasks(), 0.0)
    for folded in range(6):
        next(answers)
        # One is handed out, the others are under way.
        assert len(case.made) <= folded + 1 + workers


def test_an_exchange_that_is_given_up_stops_those_under_way_and_the_next_one_works() -> None:
    begun = threading.Event()
    case = make(3, 2, stuck_if("client-001", at=begun))
    answers = case.engine.exchange(case.tasks(), 0.0)
    assert told([next(answers)]) == {"client-000": "answered"}
    assert begun.wait(60)
    started = time.monotonic()
    answers.close()  # type: ignore[attr-defined]
    assert time.monotonic() - started < 30, "it did not wait for a client that never ends"
    others = case.tasks(["client-000", "client-002"])
    assert set(told(case.engine.exchange(others, 0.0)).values()) == {"answered"}


def test_what_a_worker_does_not_answer_for_is_raised() -> None:
    def broken(name: str, stop: threading.Event) -> None:
        raise MemoryError

    case = make(2, 1, broken)
    with pytest.raises(MemoryError):
        list(case.engine.exchange(case.tasks(), 0.0))


# --- with one ---

DEADLINE = 1.0  # seconds; clients that are not stuck take a thousandth of it
LATE = "late: no answer within 1 s"
NOT_BEGUN = "late: not begun within 1 s"


def test_who_is_under_way_at_the_deadline_is_late_and_the_others_keep_their_answers() -> None:
    case = make(4, 2, stuck_if("client-001"))
    assert told(case.engine.exchange(case.tasks(), DEADLINE)) == {
        "client-000": "answered",
        "client-001": LATE,
        "client-002": "answered",
        "client-003": "answered",
    }


def test_who_waits_for_a_worker_at_the_deadline_is_late_too() -> None:
    case = make(4, 1, stuck_if("client-001"))
    assert told(case.engine.exchange(case.tasks(), DEADLINE)) == {
        "client-000": "answered",
        "client-001": LATE,
        "client-002": NOT_BEGUN,
        "client-003": NOT_BEGUN,
    }
    assert case.workers[0].served == ["client-000", "client-001"]


def test_the_next_exchange_works_again_with_the_same_networks() -> None:
    slow = {"client-001"}
    case = make(3, 2, lambda name, stop: stuck_if(*slow)(name, stop))
    assert told(case.engine.exchange(case.tasks(), DEADLINE))["client-001"] == LATE
    slow.clear()
    assert set(told(case.engine.exchange(case.tasks(), DEADLINE)).values()) == {"answered"}
    assert len(case.workers) <= 2


def test_an_answer_that_comes_while_the_clock_runs_out_counts() -> None:
    def just_done(name: str, stop: threading.Event) -> None:
        assert stop.wait(60), "the deadline came"

    case = make(1, 1, just_done)
    assert told(case.engine.exchange(case.tasks(), DEADLINE)) == {"client-000": "answered"}


def test_a_deadline_that_is_kept_changes_nothing() -> None:
    case = make(5, 2)
    assert set(told(case.engine.exchange(case.tasks(), 60.0)).values()) == {"answered"}


def test_all_late_is_all_late_and_ends() -> None:
    names = [f"client-{i:03d}" for i in range(3)]
    case = make(3, 3, stuck_if(*names))
    assert told(case.engine.exchange(case.tasks(), DEADLINE)) == dict.fromkeys(names, LATE)


# --- a whole run with it ---

# Long enough for the others' tenth of a second of training on a machine with other work; the slow one never ends.
SECONDS = 4.0
TINY = (
    "model.network=tiny",
    "data.max_images=60",
    "training.batch_size=8",
    "training.rounds=3",
    "engine.workers=2",
    "local.pieces=scaffold",
    "codec.up=int8",
    "codec.down=int8",
    "codec.error_feedback=true",
    "recipe.ema_half_lives=[40.0]",
)


@dataclass(frozen=True, kw_only=True)
class WithoutLate(FedAvg):
    """FedAvg that does not ask client-001 in round 2."""

    def tasks(self, view: View, phase: Phase, clients: Iterable[Client]) -> Iterator[Task]:
        for task in super().tasks(view, phase, clients):
            if (phase.server_round, task.client.name) != (2, "client-001"):
                yield task


@pytest.fixture
def slow_in_round_2(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_network.register()
    train = Worker.train

    def slow(self: Worker, opened: Opened) -> Any:
        if (opened.step.server_round, opened.site.client.name) == (2, "client-001"):
            assert self.stop.wait(60)
        return train(self, opened)

    monkeypatch.setattr(Worker, "train", slow)


def left(server: Any) -> dict[str, Any]:
    """What a run leaves, but for its failures and the time."""
    tensors, notes = server.state.to_checkpoint()
    del notes["wall_seconds"], notes["failures"], notes["totals"]
    return {"tensors": digest(tensors), **json.loads(json.dumps(notes))}


def test_a_late_client_is_a_failure_and_its_round_is_as_if_it_had_not_been_asked(
    make_server: Any, slow_in_round_2: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(methods.METHODS, "without-late", WithoutLate)
    expected = make_server(*TINY, "method.name=without-late", name="expected")
    expected.run()
    server = make_server(*TINY, f"engine.deadline_seconds={SECONDS}", name="late")
    server.run()
    assert server.state.failures == [
        {"round": 2, "client_id": 1, "kind": "late", "reason": f"no answer within {SECONDS:g} s"}
    ]
    assert [line["num_counted"] for line in server.observer.lines] == [3, 2, 3]
    assert [line["num_failed"] for line in server.observer.lines] == [0, 1, 0]
    assert left(server) == left(expected)
    assert server.state.counted == dict.fromkeys(server.engine.sites, 3), "it takes part again in round 3"
    entries = [json.loads(line) for line in server.run_dir.log("ledger").read_text().splitlines()]
    down, up = (
        next(e for e in entries if (e["round"], e["client"], e["direction"]) == (2, "client-001", way))
        for way in ("down", "up")
    )
    assert (down["status"], up["status"]) == ("failed", "failed")
    assert down["bytes"] > 0 and (up["bytes"], up["parameters"], up["images"], up["steps"]) == (0, 0, 0, 0)


def test_a_round_that_too_few_answer_in_time_leaves_the_old_weights(
    make_server: Any, slow_in_round_2: None
) -> None:
    server = make_server(*TINY, f"engine.deadline_seconds={SECONDS}", "training.quorum_clients=3")
    server.scorer = NoScore()
    server.run()
    assert [line["kept_old_weights"] for line in server.observer.lines] == [False, True, False]
    assert [f["kind"] for f in server.state.failures] == ["late"]
