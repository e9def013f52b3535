"""First contact by seed: clients draw the initial weights themselves, a hash proves it, and who draws otherwise is sent them."""

from __future__ import annotations

import json
import warnings
from typing import Any

import numpy as np
import pytest
import tiny_network
from small_runs import Crash, crash_at

from osmotic import codecs
from osmotic.codecs import EXACT
from osmotic.errors import RunStopped
from osmotic.federation.client import Worker
from osmotic.federation.downlink import DownLink, OtherDraw, drawn_hash, receive
from osmotic.federation.memory import ClientState
from osmotic.flat import Flat, FlatLayout
from osmotic.models.parts import PARTS
from osmotic.protocol.messages import Packet
from osmotic.runs import plan
from osmotic.runs.summary import weights_sha256
from osmotic.storage.store import digest

TINY = (
    "model.network=tiny",
    "data.max_images=72",
    "training.batch_size=8",
    "data.clients=4",
    "training.rounds=3",
)
SEED = "codec.first_contact=seed"
SECOND = "client-001"
DOWN = {codec: (f"codec.down={codec}",) for codec in codecs.CODECS if codec != "learned"} | {
    "int8, entropy": ("codec.down=int8", "codec.int8.entropy=true"),
    "fp32, moved parts": ("codec.changed_only=true",),
    "int4 both ways": ("codec.down=int4", "codec.up=int4", "codec.error_feedback=true"),
}
OTHERWISE = "draws other initial weights of the encoder than the server: it has to be sent them"


@pytest.fixture(autouse=True)
def tiny() -> None:
    tiny_network.register()


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, str, Packet]]:
    """(round, client, packet) of every task of a round of training."""
    kept: list[tuple[int, str, Packet]] = []
    serve = Worker.serve

    def record(self: Worker, site: Any, packet: Packet) -> Packet:
        if packet.header["phase"] == "train":
            kept.append((packet.header["server_round"], site.client.name, packet))
        return serve(self, site, packet)

    monkeypatch.setattr(Worker, "serve", record)
    return kept


@pytest.fixture
def other_draw(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Clients put in here draw one initial weight otherwise, by its last bit."""
    names: set[str] = set()
    serve = Worker.serve

    def otherwise(self: Worker, site: Any, packet: Packet) -> Packet:
        mine = self.initial
        if site.client.name in names:
            self.initial = mine.copy()
            self.initial.buffer[0] = np.nextafter(mine.buffer[0], np.float32(9))
        try:
            return serve(self, site, packet)
        finally:
            self.initial = mine

    monkeypatch.setattr(Worker, "serve", otherwise)
    return names


def ledger(server: Any, direction: str = "down") -> dict[tuple[int, str], int]:
    """(round, client) -> bytes of training in this direction."""
    rows = [json.loads(line) for line in server.run_dir.log("ledger").read_text().splitlines()]
    return {
        (e["round"], e["client"]): e["bytes"]
        for e in rows
        if e["direction"] == direction and e["phase"] == "train"
    }


def planned(server: Any) -> None:
    """Ledger and totals are the plan's; where a length depends on the data, at most that."""
    figures, totals = plan.plan(server.config), server.state.totals
    for way in ("down", "up"):
        if server.config.method.name == "fedavg":  # others ask for more than rounds
            assert sum(ledger(server, way).values()) == getattr(totals, f"bytes_{way}")
        assert getattr(totals, f"parameters_{way}") == figures[f"parameters_{way}"]
        if figures["exact"]:
            assert getattr(totals, f"bytes_{way}") == figures[f"bytes_{way}"]
        else:
            assert getattr(totals, f"bytes_{way}") <= figures[f"bytes_{way}"]


def outcome(server: Any) -> dict[str, Any]:
    """All that a run leaves, but for the time."""
    metrics = [json.loads(line) for line in server.run_dir.log("metrics").read_text().splitlines()]
    tensors, notes = server.state.down.state()
    return {
        "weights": weights_sha256(server.state.weights, server.state.state_hashes),
        "averages": digest(server.state.ema.state()[0]),
        "down": (digest(tensors), notes),
        "totals": vars(server.state.totals),
        "failures": server.state.failures,
        "counted": server.state.counted,
        "ledger": server.run_dir.log("ledger").read_text(),
        "metrics": [{k: v for k, v in line.items() if k != "wall_seconds"} for line in metrics],
    }


# --- all draw alike ---


@pytest.mark.parametrize("share", ["1.0", "0.5"])
@pytest.mark.parametrize("down", DOWN)
def test_the_first_round_sends_nothing_down_and_the_model_is_the_same_bits(
    make_server: Any, sent: Any, down: str, share: str
) -> None:
    sets = (*TINY, *DOWN[down], f"training.fraction_train={share}", "recipe.ema_half_lives=[40.0]")
    drawn = make_server(*sets, SEED, name="drawn")
    drawn.run()
    headers = {(r, c): p.header for r, c, p in sent}
    told = make_server(*sets, name="told")
    told.run()
    assert not drawn.state.failures and not drawn.state.down.draws_otherwise
    assert weights_sha256(drawn.state.weights) == weights_sha256(told.state.weights)
    assert digest(drawn.state.ema.state()[0]) == digest(told.state.ema.state()[0])
    asked = ledger(drawn)
    assert asked.keys() == ledger(told).keys()
    for (number, client), length in asked.items():
        first = number == 1
        assert (length == 0) == first and ledger(told)[number, client] > 0
        for entry in headers[number, client]["down"]:
            assert not first or (entry["blobs"], entry["rounds"]) == (0, [])
            assert not first or entry["drawn"] == drawn_hash(drawn.blueprint.initial().part(entry["part"]))
    assert drawn.state.totals.bytes_down < told.state.totals.bytes_down
    assert drawn.state.totals.bytes_up == told.state.totals.bytes_up
    planned(drawn)
    planned(told)


@pytest.mark.parametrize("codec", ["int8", "int4", "fp16"])
def test_newcomers_get_the_packets_since_the_origin_or_the_full_replica_whichever_is_smaller(
    make_server: Any, sent: Any, codec: str
) -> None:
    sets = (
        "data.clients=8",
        "training.fraction_train=0.25",
        "training.rounds=9",
        f"codec.down={codec}",
        SEED,
    )
    server = make_server(*TINY, *sets, "score.every=0")
    server.run()
    sizes = {
        part: (make.packet_bytes(layout.wanted), EXACT.packet_bytes(layout.wanted))
        for make in [codecs.make(codec)]
        for part in PARTS
        for layout in [server.blueprint.flat.of_parts([part])]
    }
    heard: dict[str, int] = {}
    newcomers: list[tuple[int, bool]] = []  # (round, whether of the packets since the origin)
    for number, client, packet in sent:
        # Who has heard nothing stands where the replica of round 1 does: at the initial weights.
        since = number - heard.get(client, 1)
        lengths = {part: min(since * change, full) for part, (change, full) in sizes.items()}
        entries = {e["part"]: e for e in packet.header["down"]}
        blobs = list(packet.blobs)
        for part in PARTS:
            e = entries[part]
            mine, blobs = blobs[: e["blobs"]], blobs[e["blobs"] :]
            assert sum(map(len, mine)) == lengths[part]
            by_changes = since * sizes[part][0] <= sizes[part][1]
            assert e["base"] == (number - since if by_changes else None)
            assert ("drawn" in e) == (by_changes and client not in heard)
        if client not in heard:
            newcomers.append((number, "drawn" in entries["encoder"]))
        heard[client] = number
        assert ledger(server)[number, client] == sum(lengths.values())
    assert {by for _, by in newcomers} == {True, False} and max(newcomers)[0] > 2, "some of either"
    planned(server)
    assert not server.state.failures


def test_parts_that_clients_keep_from_the_first_round_on_are_drawn_when_they_are_first_needed(
    make_server: Any,
) -> None:
    for method in (
        ("method.name=usplit", "method.freeze=true"),
        ("method.name=udec", "method.encoder_every=2"),
        ("method.name=ulatdec",),
    ):
        found = []
        for first in (SEED, "codec.first_contact=weights"):
            server = make_server(
                *TINY, *method, first, "codec.changed_only=true", name=f"{method[0][-4:]}{first[-4:]}"
            )
            server.run()
            assert not server.state.failures
            planned(server)
            found.append(weights_sha256(server.state.weights, server.state.state_hashes))
        assert found[0] == found[1]


# --- some draw otherwise ---


@pytest.mark.parametrize("down", ["fp32", "int8", "int2"])
def test_a_client_that_draws_otherwise_is_refused_once_and_then_sent_the_weights(
    make_server: Any, sent: Any, other_draw: set[str], down: str
) -> None:
    other_draw.add(SECOND)
    server = make_server(*TINY, f"codec.down={down}", SEED)
    with pytest.warns(
        UserWarning, match=f"first contact: {SECOND}: initial weights drawn there differ: sent from now on"
    ) as told:
        server.run()
    assert len([w for w in told if "first contact" in str(w.message)]) == 1
    [failure] = server.state.failures
    assert (failure["round"], failure["client_id"], failure["kind"], failure["reason"]) == (
        1,
        1,
        "refused",
        OTHERWISE,
    )
    assert [line["num_counted"] for line in server.observer.lines if line["phase"] == "train"] == [3, 4, 4]
    assert server.state.counted[SECOND] == 3
    packets = {(r, c): p for r, c, p in sent}
    full = sum(EXACT.packet_bytes(server.blueprint.flat.of_parts([p]).wanted) for p in PARTS)
    assert [packets[r, SECOND].num_bytes for r in (1, 2)] == [0, full]
    assert all(e["base"] is None and "drawn" not in e for e in packets[2, SECOND].header["down"])
    assert ledger(server)[2, SECOND] == full
    assert (packets[3, SECOND].num_bytes == full) == (down == "fp32"), "then what all others get"
    assert packets[3, SECOND].blobs == packets[3, "client-000"].blobs
    # What it is sent is the replica that all have.
    never = make_server(
        *TINY, f"codec.down={down}", SEED, name="never", change=lambda s: leave_out(s, 1, SECOND)
    )
    other_draw.clear()
    never.run()
    assert weights_sha256(server.state.weights) == weights_sha256(never.state.weights)


def leave_out(server: Any, number: int, name: str) -> None:
    """A client that hears nothing of a round."""
    exchange = server.engine.exchange
    server.engine.exchange = lambda tasks, seconds: (
        a
        for a in exchange(tasks, seconds)
        if (a.sent.packet.header["server_round"], a.sent.task.client.name) != (number, name)
        or a.sent.packet.header["phase"] != "train"
    )


@pytest.mark.parametrize("down", ["fp32", "int8"])
@pytest.mark.filterwarnings("ignore:first contact")
def test_a_run_in_which_nobody_draws_as_the_server_does_goes_on_with_weights(
    make_server: Any, other_draw: set[str], down: str
) -> None:
    other_draw |= {f"client-00{i}" for i in range(4)}
    server = make_server(*TINY, f"codec.down={down}", SEED)
    start = server.state.weights.copy()
    server.run()
    assert [(f["round"], f["kind"], f["reason"]) for f in server.state.failures] == [
        (1, "refused", OTHERWISE)
    ] * 4
    lines = [line for line in server.observer.lines if line["phase"] == "train"]
    assert [line["num_counted"] for line in lines] == [0, 4, 4]
    assert server.state.down.draws_otherwise == other_draw
    assert not np.array_equal(server.state.weights.buffer, start.buffer)


def test_a_run_whose_first_phase_fails_for_other_reasons_still_stops(
    make_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Any, opened: Any) -> Any:
        raise RuntimeError

    monkeypatch.setattr(Worker, "train", broken)
    with pytest.raises(RunStopped, match="no client came through the first phase"):
        make_server(*TINY, SEED).run()


@pytest.mark.filterwarnings("ignore:first contact")
@pytest.mark.parametrize("down", ["fp32", "int8", "sparse"])
@pytest.mark.parametrize("phase", [1, 2, 3])
def test_killed_and_resumed_it_has_equal_bits_and_knows_who_draws_otherwise(
    make_server: Any, other_draw: set[str], down: str, phase: int
) -> None:
    other_draw.add(SECOND)
    sets = (*TINY, f"codec.down={down}", SEED, "training.fraction_train=0.75")
    whole = make_server(*sets, name="whole")
    whole.run()
    assert whole.state.down.draws_otherwise == {SECOND} and len(whole.state.failures) == 1
    with pytest.raises(Crash):
        make_server(*sets, name="broken", at=crash_at(phase, answers=2)).run()
    resumed = make_server(*sets, name="broken", resume=True)
    at = whole.state.failures[0]["round"]
    assert resumed.state.down.draws_otherwise == ({SECOND} if phase > at else set())
    resumed.run()
    assert outcome(resumed) == outcome(whole)


@pytest.mark.filterwarnings("ignore:first contact")
@pytest.mark.parametrize("method", ["fedavg", "oneshot"])
@pytest.mark.parametrize("names", [(SECOND,), tuple(f"client-00{i}" for i in range(4))], ids=["one", "all"])
def test_a_phase_before_the_rounds_asks_at_once_who_draws_otherwise(
    make_server: Any, other_draw: set[str], method: str, names: tuple[str, ...]
) -> None:
    """There is no next time: whoever is left out of phase 0 has no image in the set."""
    other_draw.update(names)
    sets = (*TINY, SEED, f"method.name={method}", "server.pieces=correction", "server.correction.size=0.3")
    sets = (*sets, "server.correction.local_epochs=2", "data.partition=iid", "training.quorum_clients=4")
    server = make_server(*sets, name="whole")
    server.run()
    assert not server.state.failures and server.state.down.draws_otherwise == set(names)
    held = server.shelf.take(bytes(server.state.pieces["correction/set"]).hex())
    assert np.bincount(held["client"]).tolist() == [5, 5, 5, 5]
    rows = [json.loads(line) for line in server.run_dir.log("ledger").read_text().splitlines()]
    full = sum(EXACT.packet_bytes(server.blueprint.flat.of_parts([p]).wanted) for p in PARTS)
    first = [e["bytes"] for e in rows if e["direction"] == "down" and e["phase"] == "local"]
    assert sorted(first) == [0] * 4 + [full] * len(names)
    for answers in (2, 4 + len(names)):  # of the first asking, and the last of the second
        name = f"killed after {answers}"
        with pytest.raises(Crash):
            make_server(*sets, name=name, at=crash_at(1, answers)).run()
        resumed = make_server(*sets, name=name, resume=True)
        resumed.run()
        assert outcome(resumed) == outcome(server)


@pytest.mark.filterwarnings("ignore:first contact")
def test_who_draws_otherwise_twice_is_not_asked_for_ever(
    make_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client may say so of weights that it was sent."""
    serve = Worker.serve

    def lies(self: Worker, site: Any, packet: Packet) -> Packet:
        answer = serve(self, site, packet)
        if site.client.name == SECOND and packet.header["phase"] == "local":
            told = {"failure": ["refused", OTHERWISE], "first_contact": "weights"}
            answer = Packet(dict(answer.header) | told, answer.blobs)
        return answer

    monkeypatch.setattr(Worker, "serve", lies)
    keys = ("server.pieces=correction", "server.correction.size=0.3", "server.correction.local_epochs=2")
    server = make_server(*TINY, SEED, *keys)
    server.run()
    [failure] = [f for f in server.state.failures if f["round"] < 1]
    assert (failure["client_id"], failure["kind"]) == (1, "refused")


# --- the links by themselves ---

SHAPES = {"conv.weight": (16, 40), "conv.bias": (16,), "out.weight": (8, 30)}
LAYOUT = FlatLayout(SHAPES, {"encoder": ["conv.bias", "conv.weight"], "decoder": ["out.weight"]})


def weights(number: int) -> Flat:
    rng = np.random.default_rng(number)
    return Flat(LAYOUT, rng.normal(size=LAYOUT.size).astype(np.float32))


def seeded(codec: str) -> DownLink:
    return DownLink(
        codecs.make(codec), LAYOUT, drawn={p: drawn_hash(weights(0).part(p)) for p in LAYOUT.part_names}
    )


@pytest.mark.parametrize("codec", ["fp32", "int8"])
def test_other_weights_than_the_global_ones_are_sent_to_everybody(codec: str) -> None:
    # Those that a score is of, say: nobody can draw them, though they may lie where no part has moved yet.
    entries, blobs = seeded(codec).message("a", ("encoder", "decoder"), 1, weights(5), None)
    assert [e["base"] for e in entries] == [None, None] and len(blobs) == 2
    entries, blobs = seeded(codec).message("a", ("encoder", "decoder"), 1, weights(0), {"encoder": 0})
    assert [(e["part"], "drawn" in e) for e in entries] == [("encoder", False), ("decoder", True)]
    assert len(blobs) == 1, "what has moved before is sent"


@pytest.mark.parametrize("codec", ["fp32", "int8"])
def test_a_hash_that_does_not_fit_leaves_no_trace_at_the_client(codec: str) -> None:
    link, state = seeded(codec), ClientState()
    entries, blobs = link.message("a", ("encoder", "decoder"), 1, weights(0), {})
    for initial in (weights(1), None):
        with pytest.raises(OtherDraw, match="draws other initial weights of the encoder"):
            receive(entries, blobs, codecs.make(codec), state, LAYOUT, initial=initial)
    assert state.tensors() == {} and state.heard == {}
    initial = weights(0)
    got = receive(entries, blobs, codecs.make(codec), state, LAYOUT, initial=initial)
    assert all(np.array_equal(got[p][n], weights(0)[n]) for p in got for n in got[p])
    assert not any(np.shares_memory(got[p][n], initial.buffer) for p in got for n in got[p]), (
        "a copy: it is trained on"
    )


def test_who_draws_otherwise_is_sent_the_replica_and_then_the_changes() -> None:
    link = seeded("int8")
    link.draws_otherwise.add("b")
    moved: dict[str, int] = {}
    states = {name: ClientState() for name in "ab"}
    for number in (1, 2, 3):
        now = Flat(LAYOUT, weights(0).buffer + np.float32(number - 1))
        for name, state in states.items():
            initial = weights(0 if name == "a" else 9)
            entries, blobs = link.message(name, ("encoder", "decoder"), number, now, moved)
            assert len(blobs) == (0 if (name, number) == ("a", 1) else 2)
            receive(
                json.loads(json.dumps(entries)), blobs, codecs.make("int8"), state, LAYOUT, initial=initial
            )
        link.commit({name: ("encoder", "decoder") for name in states}, number)
        moved = dict.fromkeys(("encoder", "decoder"), number)
        assert all(np.array_equal(states["a"].replica[n], states["b"].replica[n]) for n in SHAPES)
    tensors, notes = link.state()
    again = seeded("int8")
    again.restore(tensors, json.loads(json.dumps(notes)))
    assert again.draws_otherwise == {"b"} and again.streams["encoder"].origin == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert again.message("new", ("encoder",), 4, now, moved)[0][0]["base"] == 1
