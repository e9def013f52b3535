"""Replies that no honest client sends, one in each whole run: exactly one failure, and the bits of a run that never asked."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from osmotic import codecs
from osmotic.codecs import described
from osmotic.codecs.base import HEAD, contents
from osmotic.codecs.buffer import row_of
from osmotic.flat import Flat, FlatLayout
from osmotic.protocol.messages import Answer, Packet

from .packets import ODD, resealed, sealed, taken_apart
from .runs import Farm, left, settings

LIAR, ROUND = "client-001", 2
CODEC = {"fedavg": "fp32", "udec": "int8"}
Reply = Callable[[Packet, str, list[Packet]], Any]  # (honest reply, codec, replies before it) -> what is sent


def header(**values: Any) -> Reply:
    """Other values in the header."""
    return lambda packet, codec, before: Packet({**packet.header, **values}, packet.blobs)


def metrics(values: Mapping[Any, Any]) -> Reply:
    """Other figures beside it."""
    return lambda packet, codec, before: Packet(
        {**packet.header, "metrics": {**packet.header["metrics"], **values}}, packet.blobs
    )


def blob(change: Callable[[bytes], Any]) -> Reply:
    """Another first blob."""
    return lambda packet, codec, before: Packet(packet.header, (change(packet.blobs[0]), *packet.blobs[1:]))


def layout_of(packet: Packet) -> FlatLayout:
    """Where the changes of a reply lie; it does not say so itself."""
    return LAYOUTS[id(packet)]


LAYOUTS: dict[int, FlatLayout] = {}  # by what was answered; `lie` fills it in the child


def tensors(change: Callable[[dict[str, np.ndarray]], Any]) -> Reply:
    """Other tensors, name -> array [...], coded as they should be; `change` alters the table."""

    def reply(packet: Packet, codec: str, before: list[Packet]) -> Packet:
        coder, layout = codecs.make(codec), layout_of(packet)
        table = dict(Flat.over(layout, coder.read(packet.blobs[0], {}, None, layout)).copy())
        change(table)
        with np.errstate(all="ignore"):
            return Packet(packet.header, (written(coder, table, layout), *packet.blobs[1:]))

    return reply


def written(coder: codecs.Codec, table: dict[str, np.ndarray], layout: FlatLayout) -> bytes:
    """The packet of these tensors, also of values that the codec itself would not write."""
    shapes = {n: ("float32", t.shape) for n, t in table.items() if t.dtype == np.float32}
    fits = list(table) == list(layout) and shapes == layout.wanted
    try:
        return coder.encode(Flat.of(layout, table) if fits else table, {})
    except ValueError:
        finite = {
            n: np.where(np.isfinite(t), np.clip(t, -6e4, 6e4), 0).astype(t.dtype) for n, t in table.items()
        }
        head, body = taken_apart(coder.encode(Flat.of(layout, finite), {}))
        changed = bytearray(body)
        for i, name in enumerate(row_of(layout).names):
            if not np.array_equal(finite[name], table[name]):
                changed[2 * i : 2 * i + 2] = (0x7F80).to_bytes(
                    2, "little"
                )  # the upper half of a float32: infinite
        return sealed(head, bytes(changed))


def first(table: dict[str, np.ndarray]) -> str:
    """A weight of two axes or more."""
    return next(n for n in sorted(table) if table[n].ndim > 1)


def value(number: float) -> Reply:
    """One value of one tensor."""

    def change(table: dict[str, np.ndarray]) -> None:
        table[first(table)].flat[0] = number

    return tensors(change)


def renamed(name: str) -> Reply:
    """One tensor under another name."""

    def change(table: dict[str, np.ndarray]) -> None:
        table[name] = table.pop(first(table))

    return tensors(change)


def reshaped(shape: Callable[[np.ndarray], np.ndarray]) -> Reply:
    """One tensor in another shape or dtype."""

    def change(table: dict[str, np.ndarray]) -> None:
        table[first(table)] = shape(table[first(table)])

    return tensors(change)


def many_entries(data: bytes) -> bytes:
    """A header of half a million empty tensors."""
    return resealed(json.dumps([[f"{i}", "float32", [0]] for i in range(500_000)]).encode(), b"")


def many_coded(data: bytes) -> bytes:
    """A head that says so of half a million empty tensors."""
    return head(data, holds=contents([(f"{i}", "float32", (0,)) for i in range(500_000)]))


def head(data: bytes, **fields: Any) -> bytes:
    """Other fields in the head, under a checksum that fits."""
    magic, name, version, holds, _ = HEAD.unpack(data[: HEAD.size])
    found = {"magic": magic, "name": name, "version": version, "holds": holds} | fields
    return sealed(HEAD.pack(*found.values(), 0), data[HEAD.size :])


def raising(packet: Packet, codec: str, before: list[Packet]) -> Packet:
    raise RuntimeError("reads /home/site/secret.png\n and dies")


def of_another_codec(packet: Packet, codec: str, before: list[Packet]) -> Packet:
    layout = layout_of(packet)
    values = Flat.over(layout, codecs.make(codec).read(packet.blobs[0], {}, None, layout))
    return Packet(packet.header, (codecs.make("fp16").encode(values, {}), *packet.blobs[1:]))


def described_instead(packet: Packet, codec: str, before: list[Packet]) -> Packet:
    layout = layout_of(packet)
    values = codecs.make(codec).read(packet.blobs[0], {}, None, layout)
    return Packet(packet.header, (described.encode(values), *packet.blobs[1:]))


KINDS: dict[str, Reply] = {
    # the packet itself
    "nothing": lambda packet, codec, before: None,
    "a table instead of a packet": lambda packet, codec, before: {"header": packet.header},
    "no header": lambda packet, codec, before: Packet(None, packet.blobs),  # type: ignore[arg-type]
    "a list as header": lambda packet, codec, before: Packet([], packet.blobs),  # type: ignore[arg-type]
    "an empty header": lambda packet, codec, before: Packet({}, packet.blobs),
    "no blobs": lambda packet, codec, before: Packet(packet.header, None),  # type: ignore[arg-type]
    "text as blobs": lambda packet, codec, before: Packet(packet.header, "blob"),  # type: ignore[arg-type]
    "text in blobs": lambda packet, codec, before: Packet(packet.header, ("blob",)),  # type: ignore[arg-type]
    "numbers in blobs": lambda packet, codec, before: Packet(packet.header, (10**12,)),  # type: ignore[arg-type]
    "blobs left out": lambda packet, codec, before: Packet(packet.header, ()),
    "a blob twice": lambda packet, codec, before: Packet(packet.header, packet.blobs * 2),
    "a thousand blobs": lambda packet, codec, before: Packet(packet.header, packet.blobs * 1000),
    # whose it is
    "of another client": lambda packet, codec, before: before[-1],
    "of an earlier round": lambda packet, codec, before: before[1],
    "says another round": header(server_round=ROUND + 1),
    "says another phase": header(phase="merge"),
    "says another client": header(client="client-000"),
    "says another run": header(run="f" * 32),
    # its weight
    **{
        f"num_examples {name}": header(num_examples=number)
        for name, number in {
            "0": 0, "negative": -1, "1.0": 1.0, "true": True, "text": "24", "none": None, "10**5000": 10**5000,
            "more than announced": 1000, "nan": float("nan"), "a list": [24],
        }.items()
    },
    # its figures
    "metrics none": header(metrics=None),
    "metrics a list": header(metrics=[1]),
    **{
        f"a metric {name}": metrics({"loss": number})
        for name, number in {
            "inf": float("inf"), "nan": float("nan"), "1.7e308": 1.7e308, "10**400": 10**400, "true": True, "none": None,
            "text of 5 MB": "x" * 5_000_000, "a nested list": [[[]]],
        }.items()
    },
    "a metric with a number as name": metrics({3: 1.0}),
    "a metric with a surrogate in its name": metrics({"\ud800": 1.0}),
    "a metric with a name of 5 MB": metrics({"n" * 5_000_000: 1.0}),
    "ten thousand metrics": metrics({f"n{i}": 1.0 for i in range(10_000)}),
    "more steps than asked": metrics({"steps": 10**6}),
    "fewer images than none": metrics({"images": -1}),
    "a state's hash that is none": metrics({"state_sha256": "<script>"}),
    # its bytes
    "an empty blob": blob(lambda data: b""),
    "torn": blob(lambda data: data[:-1]),
    "half of it": blob(lambda data: data[: len(data) // 2]),
    "a bit flipped": blob(lambda data: data[:-9] + bytes([data[-9] ^ 4]) + data[-8:]),
    "random bytes": blob(lambda data: random.Random(1).randbytes(len(data))),
    "64 MB of zeros behind it": blob(lambda data: data + bytes(64 * 2**20)),
    "half a million empty tensors": blob(many_entries),
    "a head of half a million empty tensors": blob(many_coded),
    "of another codec": of_another_codec,
    "in a packet that describes itself": described_instead,
    "a head of another version": blob(lambda data: head(data, version=77)),
    "a head of another codec": blob(lambda data: head(data, name=codecs.base.tag("fp16"))),
    "a head of nothing": blob(lambda data: head(data, holds=contents([]))),
    "a head of the form before": blob(lambda data: head(data, magic=b"OSM2")),
    "no section": blob(lambda data: sealed(data[: HEAD.size], b"")),
    "a section twice": blob(lambda data: sealed(data[: HEAD.size], data[HEAD.size :] * 2)),
    "a section of 0xFF": blob(lambda data: sealed(data[: HEAD.size], b"\xff" * (len(data) - HEAD.size))),
    # its tensors
    "a tensor missing": tensors(lambda table: table.pop(first(table))),
    "a tensor unasked": tensors(lambda table: table.update({"model/more": np.zeros(3, np.float32)})),
    "a tensor renamed": renamed("model/other"),
    "a tensor with a surrogate in its name": renamed("\ud800"),
    "a tensor with a name of 5 MB": renamed("n" * 5_000_000),
    "a tensor with escapes in its name": renamed("\x1b[2J\u202e"),
    "a tensor of another shape": reshaped(lambda t: t[:1]),
    "a tensor reshaped": reshaped(lambda t: t.reshape(-1)),
    "a tensor of float16": reshaped(lambda t: t.astype(np.float16)),
    "a tensor of whole numbers": reshaped(lambda t: t.astype(np.int64)),
    "a value nan": value(float("nan")),
    "a value inf": value(float("-inf")),
    "a value out of range": value(3e6),
    "a value near the largest": value(3e38),
    # its failure
    "a failure without a kind": header(failure="no"),
    "a failure of an unknown kind": header(failure=["nice", "no"]),
    "a failure of 5 MB": header(failure=["raised", "x" * 5_000_000]),
    "a failure with escapes": header(failure=["raised", "\x1b[2J\u202e\ud800\n"]),
    "a failure with no text": header(failure=["raised", None]),
    "asks for the weights, and fails": header(failure=["refused", "draws others"], first_contact="weights"),
    "asks for 5 MB of weights, and fails": header(failure=["refused", "no"], first_contact="weights" * 700_000),
    "an error": raising,
    **{f"failure {i}: {str(odd)[:20]!a}": header(failure=odd) for i, odd in enumerate(ODD) if odd is not None and i % 7 == 0},
}  # fmt: skip


def lie(kind: str, codec: str) -> None:
    """In the child: one reply of this run is a lie."""
    from osmotic.federation.client import Worker

    serve, before = Worker.serve, []

    def lying(self: Worker, site: Any, packet: Packet) -> Any:
        h = packet.header
        hit = (h["action"], h["phase"], h["server_round"], site.client.name) == (
            "train",
            "train",
            ROUND,
            LIAR,
        )
        answer = serve(self, site, packet)
        before.append(answer)
        LAYOUTS[id(answer)] = self.network.layout.of_parts(h["returns"]).named("model/")
        return KINDS[kind](answer, codec, before[:-1]) if hit else answer

    def wrong(self: Worker, site: Any, packet: Packet) -> Packet:
        h = packet.header
        answer = inner(self, site, packet)
        if (h["action"], h["phase"], h["server_round"], site.client.name) == ("train", "train", ROUND, LIAR):
            raising(answer, codec, [])
        return answer

    if KINDS[kind] is raising:  # inside, where a client's own errors are
        inner, Worker._serve = Worker._serve, wrong  # type: ignore[method-assign]
    else:
        Worker.serve = lying  # type: ignore[method-assign, assignment]


def leave_out(config: str) -> None:
    """In the child: the liar never hears of that round."""
    from osmotic.engines.inprocess import InProcess
    from osmotic.methods.fedavg import FedAvg

    tasks, serve = FedAvg.tasks, InProcess._serve

    def fewer(self: Any, view: Any, phase: Any, clients: Any) -> Any:
        for task in tasks(self, view, phase, clients):
            if (phase.server_round, task.client.name) != (ROUND, LIAR):
                yield task

    def undelivered(self: Any, group: list[Any]) -> list[Any]:
        answers = []
        for sent in group:
            header = sent.packet.header
            hit = (header["phase"], header["server_round"], sent.task.client.name) == ("train", ROUND, LIAR)
            answers += [Answer(sent)] if hit else serve(self, [sent])
        return answers

    if config == "fedavg":
        FedAvg.tasks = fewer  # type: ignore[method-assign]
    else:  # averages of clients' own models go by the images asked for in a round: there it is asked, and hears nothing
        InProcess._serve = undelivered  # type: ignore[method-assign]


def never_asked(farm: Farm, config: str) -> dict[str, Any]:
    """What a run leaves that did not ask the liar."""
    farm.unbroken(config)  # trains the encoder
    return farm.once(f"without-{config}", lambda folder: farm.finished(config, folder, leave_out, config))


BITS = ("weights_sha256", "scored_weights_sha256", "images_seen", "client_steps", "flops", "quality")


def take(farm: Farm, config: str, kind: str) -> list[str]:
    """A whole run with one bad reply: what is wrong with what it left."""
    expected = never_asked(farm, config)
    folder = farm.folder / f"lie-{config}-{list(KINDS).index(kind)}"
    try:
        ended = farm.run(["run", *settings(config), "--out", str(folder)], lie, kind, CODEC[config])
        if ended.code:
            return [f"exit code {ended.code}: {' | '.join(ended.said[-4:])[-400:]}"]
        found = left(folder)
        for name in ("metrics.jsonl", "ledger.jsonl", "summary.json"):
            json.loads(json.dumps(found[name]), parse_constant=_no_constant)
        [summary], [wanted] = found["summary.json"], expected["summary.json"]
        wrong = [f"{name} differs" for name in BITS if summary[name] != wanted[name]]
        wrong += [
            f"{n} differs"
            for n in expected
            if n.startswith(("clients/", "model/")) and found.get(n) != expected[n]
        ]
        failures = [(f["round"], f["client_id"]) for f in summary["failures"]]
        if failures != [(ROUND, 1)]:
            wrong.append(f"failures of {failures}, not of {[(ROUND, 1)]}")
        wrong += [
            f"a reason of {len(r)} characters"
            for r in _reasons(summary)
            if len(r) > 250 or not r.isprintable()
        ]
        wrong += ["a reason tells of the site's files" for r in _reasons(summary) if "secret" in r]
        return wrong
    except ValueError as error:
        return [f"not JSON: {error}"]
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _reasons(summary: Mapping[str, Any]) -> list[str]:
    return [f["reason"] for f in summary["failures"]]


def _no_constant(text: str) -> None:
    raise ValueError(f"{text} is not JSON")


def check(farm: Farm, cases: list[tuple[str, str]], workers: int = 2) -> list[str]:
    """Takes these (configuration, kind); what went wrong, a line each."""
    with ThreadPoolExecutor(workers) as pool:
        results = list(pool.map(lambda case: take(farm, *case), cases))
    return [
        f"python -m tests.chaos replies --config {config} --kind {kind!r}: {line}"
        for (config, kind), wrong in zip(cases, results, strict=True)
        for line in wrong
    ]


def every() -> list[tuple[str, str]]:
    """Every kind against both configurations."""
    return [(config, kind) for config in CODEC for kind in KINDS]
