"""Tasks out, answers in: whatever an answer holds, it is counted once, or it is its client's failure in one plain line."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import tiny_network

from osmotic import models
from osmotic.codecs import EXACT, described, make
from osmotic.codecs.base import HEAD, contents_of, seal
from osmotic.errors import RunStopped
from osmotic.federation.bookkeeping import Tally
from osmotic.flat import Flat, FlatLayout
from osmotic.protocol.messages import Answer, Client, Failure, Packet, Sent
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


TOO_LONG = "are more than the"
PARTLY = (TOO_LONG, "bytes are less than the")
OTHERS = "holds other tensors than were asked for, or in other shapes"


def with_header(answer: Answer, **fields: Any) -> Answer:
    assert answer.packet is not None
    return replace(answer, packet=Packet({**answer.packet.header, **fields}, answer.packet.blobs))


def with_metrics(answer: Answer, **metrics: Any) -> Answer:
    assert answer.packet is not None
    return with_header(answer, metrics={**answer.packet.header["metrics"], **metrics})


def with_blobs(answer: Answer, *blobs: bytes) -> Answer:
    assert answer.packet is not None
    return replace(answer, packet=Packet(answer.packet.header, blobs))


@cache
def layout() -> FlatLayout:
    """Where the changes of a reply lie: both ends know it, and it does not travel."""
    tiny_network.register()
    spec = models.resolve("tiny", 28, 1, 10, 0.0)
    return FlatLayout(models.layout(spec), spec.part_names()).named("model/")


def sent(answer: Answer) -> Flat:
    assert answer.packet is not None
    return Flat.over(layout(), EXACT.read(answer.packet.blobs[0], {}, None, layout())).copy()


def renamed(answer: Answer, name: str) -> bytes:
    """The reply with its first tensor under another name."""
    tensors = sent(answer)
    first = next(iter(tensors))
    return EXACT.encode({name if n == first else n: t for n, t in tensors.items()}, {})


def more(answer: Answer, tensors: dict[str, np.ndarray]) -> bytes:
    """The reply with further tensors."""
    return EXACT.encode({**sent(answer), **tensors}, {})


def larger(answer: Answer) -> Answer:
    """The change of one weight beyond `training.max_abs_update`, its checksum made to fit."""
    assert answer.packet is not None
    tensors = sent(answer)
    tensors[min(tensors)].flat[0] = 8.5
    return with_blobs(answer, EXACT.encode(tensors, {}))


SAID = {
    "in its own words": (["raised", "no disk left"], ("raised", "no disk left")),
    "as a tuple": (("refused", "not with me"), ("refused", "not with me")),
    "with control characters": (["raised", "a\nb\x1b[31mc\x00"], ("raised", "a b\\x1b[31mc\\x00")),
    "at length": (["raised", "x" * 10_000], ("raised", "x" * 200)),
    "not as a text": (["raised", {"a": 1}], ("raised", "{'a': 1}")),
    "of no known kind": (["exploded", "x"], ("bad", "says that it failed, and not how")),
    "of a kind that is no text": ([["raised"], "x"], ("bad", "says that it failed, and not how")),
    "in three words": (["raised", "x", "y"], ("bad", "says that it failed, and not how")),
    "as a text": ("raised", ("bad", "says that it failed, and not how")),
    "as a truth value": (True, ("bad", "says that it failed, and not how")),
}

BAD: dict[str, tuple[Any, tuple[str, str | None]]] = {
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
    "an answer that the engine forgot": (None, ("lost", "nothing came back")),
    "no blob": (lambda a: with_blobs(a), ("bad", "holds 0 blobs, not 1")),
    "a blob too many": (lambda a: with_blobs(a, *a.packet.blobs * 2), ("bad", "holds 2 blobs, not 1")),
    "a blob of nothing": (lambda a: with_blobs(a, b""), ("bad", "0 bytes are shorter than a packet head")),
    "a value out of range": (
        larger,
        ("range", "model/class_embedding.weight holds 8.5, outside +-8"),
    ),
    "a header that is no table": (
        lambda a: replace(a, packet=Packet(None, a.packet.blobs)),  # type: ignore[arg-type]
        ("bad", "is no header and byte strings"),
    ),
    "a packet that is a table": (
        lambda a: replace(a, packet={"header": {}, "blobs": []}),  # type: ignore[arg-type]
        ("bad", "is no header and byte strings"),
    ),
    **{
        f"blobs that are {blobs!r}": (
            lambda a, blobs=blobs: replace(a, packet=Packet(a.packet.header, blobs)),
            ("bad", "is no header and byte strings"),
        )
        for blobs in (None, "text", ("text",), 7)
    },
    **{
        f"a blob that is a view of {what}": (
            lambda a, view=view: with_blobs(a, view),
            ("bad", "is no header and byte strings"),
        )
        for what, view in {
            "numbers": memoryview(np.zeros(100, np.float32)),
            "every second byte": memoryview(b"OSM2" * 100)[::2],
            "rows of bytes": memoryview(np.zeros((10, 10), np.uint8)),
        }.items()
    },
    "a blob that is a view of too few bytes": (
        lambda a: with_blobs(a, memoryview(b"OSM2")),
        ("bad", "4 bytes are shorter than a packet head"),
    ),
    "a transport's failure at length": (
        lambda a: replace(a, packet=None, failure=Failure("lost", "\ud800" + "x" * 10_000)),
        ("lost", "\\ud800" + "x" * 194),
    ),
    "a tensor named with a lone surrogate": (
        lambda a: with_blobs(a, renamed(a, "model/\ud800")),
        ("bad", OTHERS),
    ),
    "a tensor more, named with a lone surrogate": (
        lambda a: with_blobs(a, more(a, {"model/\ud800\x1b[2J": np.zeros(1, np.float32)})),
        ("bad", TOO_LONG),
    ),
    "very many tensors more that are empty": (
        lambda a: with_blobs(a, more(a, {f"e{i}": np.zeros(0, np.float32) for i in range(5000)})),
        ("bad", OTHERS),
    ),
    "the same values in another order": (
        lambda a: with_blobs(a, EXACT.encode(dict(sent(a)), {})),
        ("bad", OTHERS),
    ),
    "the same values in a packet that describes itself": (
        lambda a: with_blobs(a, described.encode(sent(a))),
        ("bad", TOO_LONG),
    ),
    "the same values by another codec": (
        lambda a: with_blobs(a, make("fp16").encode(sent(a), {})),
        ("bad", "is coded with 'fp16', expected 'fp32'"),
    ),
    "the sections of another codec under the head of this one": (
        lambda a: with_blobs(
            a, seal(EXACT, contents_of(layout()), make("fp16").encode(sent(a), {})[HEAD.size :])
        ),
        ("bad", "bytes are less than the"),
    ),
    "a weight of very many digits": (
        lambda a: with_header(a, num_examples=10**5000),
        ("bad", "weight a value that cannot be written (int) is not a whole number in 1..20"),
    ),
    "a figure of very many digits": (
        lambda a: with_metrics(a, loss=10**5000),
        ("bad", "metric loss is not a finite number within the float32 range"),
    ),
    "a loss whose mean would be infinite": (
        lambda a: with_metrics(a, loss=1.7e308),
        ("bad", "metric loss is not a finite number within the float32 range"),
    ),
    "a figure by a number": (
        lambda a: with_header(a, metrics={7: 1.0}),
        ("bad", "metric 7 is not a name of up to 100 characters"),
    ),
    "a figure by a long name": (
        lambda a: with_metrics(a, **{"x" * 101: 1.0}),
        ("bad", "metric '" + "x" * 39 + " is not a name of up to 100 characters"),
    ),
    "a figure by a name that does not print": (
        lambda a: with_metrics(a, **{"a\u202e": 1.0}),
        ("bad", "metric 'a\\u202e' is not a name of up to 100 characters"),
    ),
    "very many figures": (
        lambda a: with_header(a, metrics={f"m{i}": 1.0 for i in range(65)}),
        ("bad", "65 metrics are more than 64"),
    ),
    "no weight": (
        lambda a: with_header(a, num_examples=None),
        ("bad", "weight None is not a whole number in 1..20"),
    ),
    "metrics that are no table": (lambda a: with_header(a, metrics=[1]), ("bad", "metrics are not a table")),
    "a loss that is not a number": (
        lambda a: with_metrics(a, loss=float("nan")),
        ("bad", "metric loss is not a finite number within the float32 range"),
    ),
    **{
        f"an answer that says {field} {value!r}": (
            lambda a, field=field, value=value: with_header(a, **{field: value}),
            ("bad", None),
        )
        for field, values in {
            "contract": ("0" * 64, None),
            "run": ("0" * 16, None, ["x"]),
            "phase": ("score", None),
            "server_round": (2, 0, True, 1.0, "1", None),
            "client": ("client-000", None),
        }.items()
        for value in values
    },
    "an answer that says nothing of itself": (
        lambda a: replace(a, packet=Packet({"num_examples": 20}, a.packet.blobs)),
        ("bad", None),
    ),
    "a failure of another round": (
        lambda a: with_header(a, server_round=2, failure=["lost", "no"]),
        ("bad", "answers for server_round 2, not 1"),
    ),
    "more work than was asked": (
        lambda a: with_metrics(a, images=10**9),
        ("bad", "metric images is 1000000000, not a whole number in 0..24"),
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_answer_is_the_failure_of_its_client_and_of_nobody_else(make_server: Any, name: str) -> None:
    spoil, (kind, reason) = BAD[name]
    server = make_server(*TINY, "data.partition=iid", change=changing(lambda a: [spoil(a)] if spoil else []))
    server.run()
    [failure] = server.state.failures
    assert (failure["round"], failure["client_id"], failure["kind"]) == (1, 1, kind)
    if reason is None:
        assert re.fullmatch(r"answers for \w+ .+, not .+", failure["reason"])
    else:
        assert failure["reason"] == reason or (reason in PARTLY and reason in failure["reason"])
    assert failure["reason"].isprintable() and len(failure["reason"]) <= 200
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


def test_an_answer_to_a_task_that_was_not_posted_in_this_phase_is_dropped(
    make_server: Any, caplog: pytest.LogCaptureFixture
) -> None:
    plain = make_server(*TINY, name="plain")
    plain.run()

    def change(server: Any) -> None:
        exchange, old = server.engine.exchange, []

        def altered(tasks: Iterable[Sent], seconds: float) -> Iterator[Answer]:
            now = list(exchange(tasks, seconds))
            stranger = replace(now[0].sent.task, client=Client(7, "client-007", 20))
            yield replace(now[0], sent=replace(now[0].sent, task=stranger))
            yield from old  # the answers of the round before, first
            yield from now
            old[:] = now

        server.engine.exchange = altered

    server = make_server(*TINY, name="mixed", change=change)
    server.run()
    assert weights_sha256(server.state.weights) == weights_sha256(plain.state.weights)
    assert not server.state.failures
    assert server.run_dir.log("ledger").read_text() == plain.run_dir.log("ledger").read_text()
    assert caplog.text.count("client-007 to a task that was not posted is dropped") == 2


def test_a_run_whose_first_phase_nobody_came_through_stops_and_can_be_resumed(make_server: Any) -> None:
    broken = ["client-000", "client-001", "client-002"]

    def breaks(server: Any) -> None:
        server.engine.sites = dict(server.engine.sites)  # kept, not made anew for each task
        for name in broken:
            server.engine.sites[name].images = None

    server = make_server(*TINY, change=breaks)
    with pytest.raises(
        RunStopped, match="no client came through the first phase, train 1: client-000: TypeError"
    ):
        server.run()
    assert server.state.step == 0 and not server.run_dir.log("metrics").exists()
    resumed, whole = make_server(*TINY, resume=True), make_server(*TINY, name="whole")
    resumed.run()
    whole.run()
    assert weights_sha256(resumed.state.weights) == weights_sha256(whole.state.weights)
    broken.pop()
    one = make_server(*TINY, name="one", change=breaks)
    one.run()
    assert len(one.state.failures) == 4, "one that came through is enough to go on"


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
        (
            "contract",
            "0" * 64,
            f"model contract differs ({server.contract[:16]} here, {'0' * 16} asked for): other network, process or data shape",
        ),
        ("action", "erase", "is asked for an action that it does not know"),
        ("client", "client-001", "is asked for what another client is asked"),
    ):
        other = worker.serve(site, Packet({**sent.packet.header, field: value}, sent.packet.blobs))
        assert other.header["failure"] == ["refused", reason] and not other.blobs
        assert other.header["client"] == client.name, "its own name, whatever it was told"


def test_what_goes_wrong_on_a_client_is_told_without_its_paths(
    make_server: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(server: Any) -> None:
        server.engine.sites = dict(server.engine.sites)  # kept, not made anew for each task
        server.engine.sites[SECOND].images = None

    server = make_server(*TINY, "training.rounds=1", change=broken)
    server.run()
    [failure] = server.state.failures
    assert (failure["kind"], failure["reason"]) == ("raised", "TypeError")
    assert f"{SECOND} could not do its task" in caplog.text, "its own log has the details"


SAMPLES = {"image/samples": np.zeros((40, 28, 28, 1), np.uint8)}
NO_SAMPLES: dict[str, Any] = {
    **{
        f"of shape {shape}": ({"image/samples": np.zeros(shape, np.uint8)}, None)
        for shape in ((40, 3, 3, 1), (40, 8, 8, 3), (1, 8, 8, 1), (40, 0, 2**20, 1))
    },
    "under a name with a lone surrogate": (
        {"\ud800": np.zeros(1, np.uint8)},
        "image/samples is missing (1 in all)",
    ),
    "beside a tensor of such a name": (
        {**SAMPLES, "\ud800\x1b[2J": np.zeros(1, np.float32)},
        "more than the|does not fit",
    ),
    "beside very many tensors that are empty": (
        {**SAMPLES, **{f"e{i}": np.zeros(0, np.float32) for i in range(5000)}},
        "more than the|does not fit",
    ),
    "in a coded packet": (
        EXACT.encode({"image/samples": np.zeros(9, np.uint8)}, {}),
        "does not start like a packet that describes itself",
    ),
    "not at all": (b"", "shorter than a packet head"),
}


@pytest.mark.parametrize("name", NO_SAMPLES)
def test_images_of_another_shape_than_the_runs_never_reach_the_scores(make_server: Any, name: str) -> None:
    made, reason = NO_SAMPLES[name]
    images = made if isinstance(made, bytes) else described.encode(made)
    server = make_server(*TINY, "method.name=local", "training.rounds=1")
    exchange = server.engine.exchange

    def altered(tasks: Iterable[Sent], seconds: float) -> Iterator[Answer]:
        for answer in exchange(tasks, seconds):
            drawn = answer.sent.packet.header["action"] == "sample"
            yield with_blobs(answer, images) if drawn and answer.sent.task.client.name == SECOND else answer

    server.engine.exchange = altered
    pools: dict[str, Any] = {}
    server.scorer.score_personal = lambda found, *rest: pools.update(found) or {}
    server.run()
    assert sorted(pools) == ["client-000", "client-002"]
    [failure] = server.state.failures
    assert (failure["client_id"], failure["kind"]) == (1, "bad")
    assert failure["reason"].isprintable() and len(failure["reason"]) <= 200
    assert reason is None or re.search(re.escape(reason).replace(r"\|", "|"), failure["reason"])


def test_a_client_whose_change_is_too_long_is_refused_and_the_run_is_one_without_it(
    make_server: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from osmotic.federation.client import Worker

    result = Worker.result

    def long(self: Worker, begun: Any, loss: float, seen: int) -> Any:
        found = result(self, begun, loss, seen)
        if begun.opened.step.client.client_id == 1:
            for change in found.coded.values():
                change *= 20.0
        return found

    monkeypatch.setattr(Worker, "result", long)
    server = make_server("training.rounds=1", "training.max_update_norm=50", "training.max_abs_update=1000")
    server.run()
    [failure] = server.state.failures
    assert (failure["client_id"], failure["kind"]) == (1, "range") and "above 50" in failure["reason"]
