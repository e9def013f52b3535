"""Tasks out, answers in: whatever an answer holds, it is counted once, or it is its client's failure in one plain line."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import tiny_network

from osmotic.codecs import EXACT
from osmotic.federation.bookkeeping import Tally
from osmotic.protocol.messages import Answer, Failure, Packet, Sent
from osmotic.runs.summary import weights_sha256

TINY = ("model.network=tiny", "data.max_images=60", "training.batch_size=8", "training.rounds=2")
SECOND = "client-001"


@pytest.fixture(autouse=True)
def tiny() -> None:
    tiny_network.register()


def changing(make_answers: Any) -> Any:
    """A server whose engine gives `make_answers(answer)` instead of each answer of client-001 in round 1."""

    def change(server: Any) -> None:
        exchange = server.engine.exchange

        def altered(tasks: Iterable[Sent], seconds: float) -> Iterator[Answer]:
            for answer in exchange(tasks, seconds):
                header = answer.sent.packet.header
                if (header["server_round"], answer.sent.task.client.name) == (1, SECOND):
                    yield from make_answers(answer)
                else:
                    yield answer

        server.engine.exchange = altered

    return change


def with_header(answer: Answer, **fields: Any) -> Answer:
    assert answer.packet is not None
    return replace(answer, packet=Packet({**answer.packet.header, **fields}, answer.packet.blobs))


def with_metrics(answer: Answer, **metrics: Any) -> Answer:
    assert answer.packet is not None
    return with_header(answer, metrics={**answer.packet.header["metrics"], **metrics})


def with_blobs(answer: Answer, *blobs: bytes) -> Answer:
    assert answer.packet is not None
    return replace(answer, packet=Packet(answer.packet.header, blobs))


def larger(answer: Answer) -> Answer:
    """The change of one weight beyond `training.max_abs_update`, its checksum made to fit."""
    assert answer.packet is not None
    tensors = {n: t.copy() for n, t in EXACT.decode(answer.packet.blobs[0], {})}
    tensors[min(tensors)].flat[0] = 8.5
    return with_blobs(answer, EXACT.encode(tensors, {}))


SAID = {
    "in its own words": (["raised", "no disk left"], ("raised", "no disk left")),
    "as a tuple": (("refused", "not with me"), ("refused", "not with me")),
    "with control characters": (["raised", "a\nb\x1b[31mc\x00"], ("raised", "a b [31mc ")),
    "at length": (["raised", "x" * 10_000], ("raised", "x" * 200)),
    "not as a text": (["raised", {"a": 1}], ("raised", "{'a': 1}")),
    "of no known kind": (["exploded", "x"], ("bad", "says that it failed, and not how")),
    "of a kind that is no text": ([["raised"], "x"], ("bad", "says that it failed, and not how")),
    "in three words": (["raised", "x", "y"], ("bad", "says that it failed, and not how")),
    "as a text": ("raised", ("bad", "says that it failed, and not how")),
    "as a truth value": (True, ("bad", "says that it failed, and not how")),
}
BAD: dict[str, tuple[Any, tuple[str, str]]] = {
    **{
        f"a failure told {how}": (lambda a, said=said: with_header(a, failure=said), told)
        for how, (said, told) in SAID.items()
    },
    "no packet": (lambda a: replace(a, packet=None), ("lost", "nothing came back")),
    "a failure of the transport": (
        lambda a: replace(a, packet=None, failure=Failure("late", "no answer within 1 s")),
        ("late", "no answer within 1 s"),
    ),
    "a failure beside a packet": (lambda a: replace(a, failure=Failure("lost", "gone")), ("lost", "gone")),
    "no blob": (lambda a: with_blobs(a), ("bad", "holds 0 blobs, not 1")),
    "a blob too many": (lambda a: with_blobs(a, *a.packet.blobs * 2), ("bad", "holds 2 blobs, not 1")),
    "a blob of nothing": (lambda a: with_blobs(a, b""), ("bad", "0 bytes are shorter than a packet head")),
    "a value out of range": (
        larger,
        ("range", "model/class_embedding.weight holds 8.5, outside +-8"),
    ),
    "a header that is no table": (
        lambda a: replace(a, packet=Packet(None, a.packet.blobs)),  # type: ignore[arg-type]
        ("bad", "cannot be read (AttributeError)"),
    ),
    "no weight": (
        lambda a: with_header(a, num_examples=None),
        ("bad", "weight None is not a whole number in 1..20"),
    ),
    "metrics that are no table": (lambda a: with_header(a, metrics=[1]), ("bad", "metrics are not a table")),
    "a loss that is not a number": (
        lambda a: with_metrics(a, loss=float("nan")),
        ("bad", "metric loss is not a finite number"),
    ),
    "more work than was asked": (
        lambda a: with_metrics(a, images=10**9),
        ("bad", "metric images is 1000000000, not a whole number in 0..24"),
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_answer_is_the_failure_of_its_client_and_of_nobody_else(make_server: Any, name: str) -> None:
    spoil, (kind, reason) = BAD[name]
    server = make_server(*TINY, "data.partition=iid", change=changing(lambda a: [spoil(a)]))
    server.run()
    assert server.state.failures == [{"round": 1, "client_id": 1, "kind": kind, "reason": reason}]
    assert [line["num_counted"] for line in server.observer.lines] == [2, 3], "round 2 has it back"
    assert all(np.isfinite(w).all() for w in server.state.weights.values())
    entries = [json.loads(line) for line in server.run_dir.log("ledger").read_text().splitlines()]
    spoilt = [e for e in entries if (e["round"], e["client"]) == (1, SECOND)]
    down, up = (next(e for e in spoilt if e["direction"] == way) for way in ("down", "up"))
    came = up["bytes"] > 0
    assert up["status"] == down["status"] == ("refused" if came else "failed")
    assert (up["parameters"], up["images"], up["steps"], up["flops"]) == (0, 0, 0, 0), "no work is claimed"
    assert down["parameters"] > 0 and down["bytes"] > 0, "what was sent was sent"
    assert server.state.totals.bytes_up == sum(e["bytes"] for e in entries if e["direction"] == "up")


def test_an_answer_that_comes_twice_counts_once(make_server: Any) -> None:
    plain = make_server(*TINY, name="plain")
    plain.run()
    twice = make_server(*TINY, name="twice", change=changing(lambda a: [a, a, larger(a)]))
    twice.run()
    assert weights_sha256(twice.state.weights) == weights_sha256(plain.state.weights)
    assert vars(twice.state.totals) == vars(plain.state.totals) and not twice.state.failures
    assert twice.run_dir.log("ledger").read_text() == plain.run_dir.log("ledger").read_text()


def test_a_failure_stands_whatever_comes_after_it(make_server: Any) -> None:
    late = Failure("late", "no answer within 1 s")
    server = make_server(
        *TINY, change=changing(lambda a: [replace(a, packet=None, failure=late), a]), name="late"
    )
    server.run()
    assert [(f["round"], f["kind"]) for f in server.state.failures] == [(1, "late")]
    assert [line["num_counted"] for line in server.observer.lines] == [2, 3]


def test_weights_that_would_sum_above_what_was_announced_are_refused(make_server: Any) -> None:
    # A client's own bound is the gate's; that of the whole sum would only break if two claimed one client's share.
    server = make_server(*TINY, "training.rounds=1", "data.partition=iid")
    check = server.exchange.gate.expect

    def loose(task: Any) -> Any:
        return replace(check(task), announced=1000)

    server.exchange.gate.expect = loose
    exchange = server.engine.exchange
    server.engine.exchange = lambda tasks, seconds: (
        with_header(a, num_examples=60) if a.sent.task.client.name == "client-002" else a
        for a in sorted(exchange(tasks, seconds), key=lambda a: a.sent.task.client.name)
    )
    server.run()
    [failure] = server.state.failures
    assert (failure["client_id"], failure["kind"]) == (2, "range")
    assert "weights would sum above the announced 60" in failure["reason"]


def test_a_method_that_asks_a_client_twice_is_told(make_server: Any) -> None:
    server = make_server(*TINY)
    method = type(server.method)

    class Twice(method):  # type: ignore[misc,valid-type]
        def tasks(self, view: Any, phase: Any, clients: Any) -> Iterator[Any]:
            tasks = list(super().tasks(view, phase, clients))
            yield from [*tasks, tasks[0]]

    server.method = Twice()
    with pytest.raises(ValueError, match="method fedavg asks client-000 twice in one phase"):
        server.run()


def test_a_client_does_nothing_for_a_packet_of_another_contract_or_of_an_unknown_action(
    make_server: Any,
) -> None:
    server = make_server(*TINY)
    phase, tally = server.phases[0], Tally()
    client = server.engine.clients(1, 0.0)[0]
    [task] = server.method.tasks(server._view(), phase, [client])
    [sent] = server.exchange.post(phase, [task], tally)
    worker, site = server.engine._make_worker(), server.engine.sites[client.name]
    assert "failure" not in worker.serve(site, sent.packet).header
    for field, value, reason in (
        ("contract", "0" * 64, "model contract differs: other network, process or data shape"),
        ("action", "erase", "is asked for an action that it does not know"),
    ):
        other = worker.serve(site, Packet({**sent.packet.header, field: value}, sent.packet.blobs))
        assert other == Packet({"failure": ["refused", reason]})


def test_what_goes_wrong_on_a_client_is_told_without_its_paths(
    make_server: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(server: Any) -> None:
        server.engine.sites[SECOND].images = None

    server = make_server(*TINY, "training.rounds=1", change=broken)
    server.run()
    [failure] = server.state.failures
    assert (failure["kind"], failure["reason"]) == ("raised", "TypeError")
    assert f"{SECOND} could not do its task" in caplog.text, "its own log has the details"
