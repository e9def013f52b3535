"""Every hook of exchanges, pieces and codecs, with a crash in between: the run after it is the unbroken one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import seam_methods
import tiny_network
from seam_methods import Auxiliary, Clipped
from small_runs import SMALL, Crash, Silent, crash_at

from osmotic import codecs, methods, pieces
from osmotic.errors import ConfigError, RunStopped
from osmotic.federation.client import Opened, Worker
from osmotic.federation.lab import ServerLab
from osmotic.federation.memory import ClientState
from osmotic.protocol.messages import Packet
from osmotic.runs import launch, plan, resolve
from osmotic.runs.summary import weights_sha256
from osmotic.storage.store import digest
from osmotic.tensors import group

SLIM = ("training.rounds=2", "data.max_images=60", "data.clients=3")
TINY = (*SLIM, "model.network=tiny", "training.batch_size=8", "recipe.ema_half_lives=[40.0]")


@pytest.fixture(autouse=True)
def seams(monkeypatch: pytest.MonkeyPatch) -> None:
    registries = (
        (methods.METHODS, seam_methods.METHODS),
        (pieces.PIECES, seam_methods.PIECES),
        (codecs.CODECS, seam_methods.CODECS),
    )
    for registry, stand_ins in registries:
        for name, cls in stand_ins.items():
            monkeypatch.setitem(registry, name, cls)  # type: ignore[arg-type]
    tiny_network.register()


def outcome(server: Any) -> dict[str, Any]:
    """All that a run leaves, but for the time."""
    tensors, notes = server.state.to_checkpoint()
    logs = {
        name: [json.loads(line) for line in server.run_dir.log(name).read_text().splitlines()]
        for name in ("ledger", "metrics")
    }
    for line in (notes, *logs["metrics"]):
        del line["wall_seconds"]
    return {"tensors": digest(tensors), **json.loads(json.dumps(notes)), **logs}


# What is chained, and the phases that the chain makes of it.
CHAINS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "freezing and a bent loss": (("method.name=decoder-only", "local.pieces=anchor"), ("train", "train")),
    "a filter, and extras through the codec": (
        ("local.pieces=clipped", "codec.up=fp16", "training.fraction_train=0.67"),
        ("train", "train"),
    ),
    "a question before the rounds": (("local.pieces=census",), ("census", "train", "train")),
    "training on the server": (("after.pieces=auxiliary",), ("alone", "train", "train")),
    "scaffold": (("local.pieces=scaffold",), ("train", "train")),
    "personalise": (("after.pieces=personalise",), ("train", "train", "personalise")),
    "all in one": (
        (
            "local.pieces=census,scaffold,clipped,anchor,prox",
            "server.pieces=momentum,adam",
            "after.pieces=personalise,auxiliary",
            "codec.up=trained",
            "codec.down=int8",
            "training.fraction_train=0.67",
        ),
        ("census", "alone", "train", "train", "personalise"),
    ),
    "all in one, parts by lot": (
        (
            "method.name=usplit",
            "local.pieces=clipped,scaffold,census",
            "server.pieces=nesterov",
            "after.pieces=auxiliary",
            "codec.up=int8",
            "codec.error_feedback=true",
            "codec.changed_only=true",
        ),
        ("census", "alone", "train", "train"),
    ),
}


@pytest.mark.parametrize("name", sorted(CHAINS))
def test_a_crash_in_any_phase_changes_nothing(make_server: Any, name: str) -> None:
    settings, phases = (*TINY, *CHAINS[name][0]), CHAINS[name][1]
    unbroken = make_server(*settings, name="unbroken")
    assert tuple(p.name for p in unbroken.phases) == phases
    before, rounds = phases.index("train"), phases.count("train")
    assert [p.server_round for p in unbroken.phases] == [
        *range(-before, 0),
        *range(1, len(phases) - before + 1),
    ]
    assert [p.name for p in unbroken.phases if 1 <= p.server_round <= rounds] == ["train"] * rounds
    unbroken.run()
    assert not unbroken.state.failures
    for number in range(1, len(phases) + 1):
        with pytest.raises(Crash):
            make_server(*settings, name=f"broken-{number}", at=crash_at(number, answers=1)).run()
        resumed = make_server(*settings, name=f"broken-{number}", resume=True)
        assert resumed.state.step == number - 1
        resumed.run()
        assert outcome(resumed) == outcome(unbroken), phases[number - 1]


@pytest.mark.parametrize("workers", [1, 2])
def test_the_order_of_arrival_changes_nothing(make_server: Any, workers: int) -> None:
    settings = (*TINY, *CHAINS["all in one"][0])
    expected = make_server(*settings, "engine.workers=1", name="expected")
    expected.run()

    def turned(server: Any) -> None:
        exchange = server.engine.exchange
        server.engine.exchange = lambda tasks, seconds: reversed(list(exchange(tasks, seconds)))

    server = make_server(*settings, f"engine.workers={workers}", name="turned", change=turned)
    server.run()
    assert outcome(server) == outcome(expected)


CODED = ("codec.up=trained", "codec.down=int8", "training.fraction_train=0.67", "training.rounds=4")


def test_a_trained_codec_with_memory_survives_a_crash(make_server: Any) -> None:
    settings = (*SLIM, *CODED)
    unbroken = make_server(*settings, name="unbroken")
    unbroken.run()
    assert unbroken.state.up.version == 4 and unbroken.state.up.memory, (
        "the codec was refreshed and remembers"
    )
    codec = unbroken.state.up.codec
    assert (codec.seen, codec.renewed) == (4 * 2, 3), (
        "it saw every reply once, and was renewed from round 2 on"
    )
    assert codec.peak > 0
    with pytest.raises(Crash):
        make_server(*settings, name="broken", at=crash_at(3, answers=1)).run()
    resumed = make_server(*settings, name="broken", resume=True)
    resumed.run()
    assert outcome(resumed) == outcome(unbroken)


def test_a_trained_codec_both_ways_survives_a_crash_and_refreshes(make_server: Any) -> None:
    settings = (
        *SLIM,
        "codec.up=half",
        "codec.down=half",
        "training.fraction_train=0.67",
        "training.rounds=6",
    )
    unbroken = make_server(*settings, name="unbroken")
    unbroken.run()
    assert unbroken.state.up.version == 5
    for site in unbroken.engine.sites.values():
        if unbroken.state.counted[site.client.name] == 6:
            state = site.store.load(6)
            for stream in unbroken.state.down.streams.values():
                assert all(np.array_equal(state[f"replica/{n}"], t) for n, t in stream.replica.items())
    with pytest.raises(Crash):
        make_server(*settings, name="broken", at=crash_at(4, answers=1)).run()
    resumed = make_server(*settings, name="broken", resume=True)
    resumed.run()
    assert outcome(resumed) == outcome(unbroken)


def failing(
    monkeypatch: pytest.MonkeyPatch, server_round: int, names: tuple[str, ...] = ("client-001",)
) -> None:
    """Makes these clients raise in this round."""
    serve = Worker._serve

    def broken(self: Any, site: Any, packet: Packet) -> Packet:
        if packet.header["server_round"] == server_round and site.client.name in names:
            raise RuntimeError
        return serve(self, site, packet)

    monkeypatch.setattr(Worker, "_serve", broken)


def test_a_phase_without_a_quorum_leaves_no_trace_in_codec_or_pieces(
    make_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(monkeypatch, -1)
    settings = (
        *SLIM,
        "codec.up=trained",
        "local.pieces=clipped",
        "after.pieces=auxiliary",
        "training.quorum_clients=3",
    )
    server = make_server(*settings)
    begun = {n: t.copy() for n, t in server.state.pieces.items()}
    with pytest.raises(RunStopped, match="phase alone, which the rounds build on, has no quorum: 2 of 3"):
        server.run()
    assert server.state.step == 0 and not server.observer.lines
    # Two of three clients had answered in the lost phase; the third's failure takes back what they left.
    codec = server.state.up.codec
    assert (codec.seen, codec.peak, server.state.up.memory) == (0, 0, {})
    assert digest(server.state.pieces) == digest(begun) and set(begun) == {"clipped/bound"}
    assert server.state.counted == {}


def test_a_codec_that_trains_is_set_back_with_a_round_that_does_not_count(
    make_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(monkeypatch, 3)
    server = make_server(*TINY, "codec.up=trained", "training.quorum_clients=3", "training.rounds=4")
    server.run()
    assert [line["kept_old_weights"] for line in server.observer.lines] == [False, False, True, False]
    codec = server.state.up.codec
    # Seen in rounds 1, 2 and 4; renewed for rounds 2 and 4.
    assert (codec.seen, codec.renewed, server.state.up.version) == (3 * 3, 2, 4)
    assert set(server.state.up.heard.values()) == {4}


def test_a_phase_without_a_quorum_is_as_if_the_codec_had_not_been_renewed_in_it(
    make_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The scale of round 3 is lost with its round: both ends must go on with the one that both have.
    failing(monkeypatch, 3)
    settings = (*TINY, "codec.up=half", "codec.down=half", "training.quorum_clients=3", "training.rounds=4")
    server = make_server(*settings, name="whole")
    server.run()
    assert [line["kept_old_weights"] for line in server.observer.lines] == [False, False, True, False]
    assert server.state.up.version is None
    for site in server.engine.sites.values():
        replica = ClientState.of(site.store.load(4)).replica
        for stream in server.state.down.streams.values():
            assert all(np.array_equal(replica[n], t) for n, t in stream.replica.items())
    with pytest.raises(Crash):
        make_server(*settings, name="broken", at=crash_at(4, answers=1)).run()
    resumed = make_server(*settings, name="broken", resume=True)
    resumed.run()
    assert outcome(resumed) == outcome(server)


def test_a_codec_that_remembers_cannot_go_down() -> None:
    with pytest.raises(ConfigError, match=r"codec.down = 'trained': remembers earlier packets"):
        resolve.load(sets=["codec.up=trained", "codec.down=trained"])


def test_a_trained_codec_loses_no_more_than_rounding(make_server: Any) -> None:
    plain, coded = make_server(*SLIM, name="plain"), make_server(*SLIM, CODED[0], name="coded")
    plain.run()
    coded.run()
    # x / 2^k * 2^k is exact; adding and taking away half of the last packet rounds once at its size (below 2),
    # four packets and two directions long; then the difference has trained on.
    worst = max(
        float(np.abs(plain.state.weights[n] - coded.state.weights[n]).max()) for n in plain.state.weights
    )
    assert worst < 1e-3


# --- what the hooks do ---


def test_personal_parts_stay_on_the_client(make_server: Any) -> None:
    server = make_server("method.name=udec", *SLIM)
    start = {n: w.copy() for n, w in server.state.weights.items()}
    server.run()
    for n in server.part_names["encoder"] + server.part_names["bottleneck"]:
        assert np.array_equal(server.state.weights[n], start[n])
    assert len(set(server.state.state_hashes.values())) == 3, "each client has a state of its own"
    decoder = sum(start[n].size for n in server.part_names["decoder"])
    whole = sum(w.size for w in start.values())
    # papers.md 1.2: K P down at first contact, then K U per round; up K U per round. The phase after is not counted.
    assert server.state.totals.parameters_down == 3 * whole + 3 * decoder
    assert server.state.totals.parameters_up == 2 * 3 * decoder
    assert phases_of(server) == {"train", "score", "merge"}


def phases_of(server: Any) -> set[str]:
    """The names of the phases in the ledger."""
    lines = server.run_dir.log("ledger").read_text().splitlines()
    return {json.loads(line)["phase"] for line in lines}


def test_clients_personalise_after_the_rounds_outside_the_totals(make_server: Any) -> None:
    plain, server = make_server(*SLIM, name="plain"), make_server(*SLIM, "after.pieces=personalise")
    plain.run()
    server.run()
    assert phases_of(server) == {"train", "personalise", "score"}
    assert vars(server.state.totals) == vars(plain.state.totals)
    assert len(set(server.state.state_hashes.values())) == 3, "each client has a state of its own"


def test_variates_travel_and_are_counted(make_server: Any) -> None:
    server = make_server("local.pieces=scaffold", *SLIM)
    server.run()
    whole = sum(w.size for w in server.state.weights.values())
    assert server.state.totals.parameters_up == server.state.totals.parameters_down == 2 * 3 * 2 * whole
    assert all(
        np.abs(server.state.pieces[f"scaffold/{n}"]).max() > 0 for n in ("conv_in.bias", "conv_out.bias")
    )


def test_frozen_parts_do_not_move(make_server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    moved: list[set[str]] = []
    train = Worker.train

    def watched(self: Worker, opened: Opened) -> Any:
        result = train(self, opened)
        received = opened.step.received
        moved.append({n for n, p in self.named.items() if not np.array_equal(p.detach(), received[n])})
        return result

    monkeypatch.setattr(Worker, "train", watched)
    server = make_server("method.name=decoder-only", *SLIM, "training.rounds=1")
    start = dict(server.state.weights)
    server.run()
    assert moved == [set(server.part_names["decoder"])] * 3, "on the clients"
    for n in server.part_names["encoder"]:
        assert np.array_equal(server.state.weights[n], start[n])
    assert any(not np.array_equal(server.state.weights[n], start[n]) for n in server.part_names["decoder"])


def test_a_bent_loss_bends_the_training_and_a_weight_of_0_does_not(make_server: Any) -> None:
    def moved(*settings: str) -> tuple[float, str]:
        server = make_server(*TINY, "training.rounds=1", *settings, name=str(len(settings)) + settings[-1])
        start = dict(server.state.weights)
        server.run()
        last = [n for n in start if n.startswith("conv_out")]
        return max(float(np.abs(server.state.weights[n] - start[n]).max()) for n in last), weights_sha256(
            server.state.weights
        )

    plain = moved("training.optimizer=sgd")
    none = moved("training.optimizer=sgd", "local.pieces=anchor", "local.anchor.strength=0.0")
    bent = moved("training.optimizer=sgd", "local.pieces=anchor", "local.anchor.strength=20.0")
    assert none == plain, "a bent loss of weight 0 is the loss, bit for bit"
    assert 0 < bent[0] < 0.9 * plain[0], "pulled back to where it began"


def test_what_is_filtered_is_what_is_sent_and_only_that(
    make_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: dict[tuple[int, str], Any] = {}
    norms: dict[tuple[int, str], float] = {}
    train, made = Worker.train, Clipped.filter

    def watched(self: Worker, opened: Opened) -> Any:
        result = train(self, opened)
        sent[opened.step.server_round, opened.site.client.name] = result
        return result

    def filtered(self: Clipped, step: Any, state: Any, change: Any) -> Any:
        norms[step.server_round, step.client.name] = float(
            np.sqrt(sum(np.square(t, dtype=np.float64).sum() for t in change.values()))
        )
        return made(self, step, state, change)

    monkeypatch.setattr(Worker, "train", watched)
    monkeypatch.setattr(Clipped, "filter", filtered)
    options = ("local.clipped.noise=0.0", "local.clipped.bound=0.1")
    server = make_server(*TINY, "local.pieces=clipped", *options, "codec.up=fp16")
    start = dict(server.state.weights)
    bounds: list[float] = [0.1]
    replies: dict[tuple[int, str], Any] = {}

    def at(event: str, value: Any) -> None:
        if event == "done":
            bounds.append(value["clipped/bound"])

    server.observer.at = at
    gather = server.chain.pieces["clipped"].gather

    def gathering(view: Any, gathered: Any, reply: Any) -> Any:
        replies[server.state.step + 1, reply.task.client.name] = reply.tensors["norms"].copy()
        return gather(view, gathered, reply)

    object.__setattr__(server.chain.pieces["clipped"], "gather", gathering)
    server.run()
    assert len(sent) == 2 * 3 and server.state.totals.parameters_down == 2 * 3 * (
        sum(w.size for w in start.values()) + 1
    )
    for key, result in sent.items():
        assert set(result.coded) == {*(f"model/{n}" for n in start), "clipped/norms"} and not result.exact
        changes = [t for n, t in result.coded.items() if n != "clipped/norms"]
        size = float(np.sqrt(sum(np.square(t, dtype=np.float64).sum() for t in changes)))
        assert size == pytest.approx(min(norms[key], bounds[key[0] - 1]), rel=1e-5), "clipped to the bound"
        # A matrix of float32 went through the lossy codec, as its Spec asks for, and not beside it.
        exact = result.coded["clipped/norms"]
        assert exact.shape == (3, 1)
        assert np.array_equal(replies[key], exact.astype(np.float16).astype(np.float32))
        assert not np.array_equal(replies[key], exact)
    assert any(norms[r, n] > bounds[r - 1] for r, n in norms), "somebody was clipped"
    for r in (1, 2):
        mean = np.mean([t for (number, _), t in replies.items() if number == r], axis=0)
        assert bounds[r] == pytest.approx(0.5 * (bounds[r - 1] + np.linalg.norm(mean)), rel=1e-6)


def test_what_a_piece_keeps_on_a_client_stays_there_and_bends_its_next_round(make_server: Any) -> None:
    server = make_server(*TINY, "local.pieces=clipped", "training.fraction_train=0.67", "training.rounds=3")
    server.run()
    asked = [0, 0, 0]
    for line in server.run_dir.log("ledger").read_text().splitlines():
        entry = json.loads(line)
        asked[int(entry["client"][-1])] += entry["direction"] == "up"
    kept = [
        ClientState.of(site.store.load(server.state.counted[name])).pieces["clipped/rounds"].tolist()
        for name, site in sorted(server.engine.sites.items())
    ]
    assert kept == [[n] for n in asked] and len(set(asked)) > 1


def test_a_question_before_the_rounds_sends_nothing_and_moves_nothing(make_server: Any) -> None:
    plain, server = make_server(*TINY, name="plain"), make_server(*TINY, "local.pieces=census", name="asked")
    plain.run()
    server.run()
    for name, site in server.engine.sites.items():
        labels = site.images.labels.numpy()
        assert np.array_equal(server.state.pieces[f"census/{name}"], np.bincount(labels, minlength=10))
    entries = [json.loads(line) for line in server.run_dir.log("ledger").read_text().splitlines()]
    census = [e for e in entries if e["phase"] == "census"]
    assert [e["parameters"] for e in census] == [0] * 6 and not any(e["total"] for e in census)
    assert all((e["bytes"] > 0) == (e["direction"] == "up") for e in census)
    assert vars(server.state.totals) == vars(plain.state.totals)
    assert weights_sha256(server.state.weights) == weights_sha256(plain.state.weights)
    assert digest(server.state.ema.state()[0]) == digest(plain.state.ema.state()[0])


def test_the_server_trains_after_the_average(make_server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[tuple[dict[str, Any], np.ndarray]] = []
    train = ServerLab.train

    def watched(self: ServerLab, images: np.ndarray, *rest: Any) -> None:
        trained.append((self.weights, images))
        train(self, images, *rest)

    monkeypatch.setattr(ServerLab, "train", watched)
    server = make_server("after.pieces=auxiliary", *SLIM)
    start = dict(server.state.weights)
    ended: list[dict[str, Any]] = []

    def at(event: str, value: Any) -> None:
        if event == "done":
            ended.append(server.state.weights)

    server.observer.at = at
    server.run()
    assert server.state.server_steps == 2 * 2
    assert set(server.state.pieces) == {f"auxiliary/image/client-{i:03d}" for i in range(3)}
    images = list(server.state.pieces.values())
    assert all(pixels.dtype == np.uint8 and pixels.shape == (8, 8, 8, 1) for pixels in images)
    assert len({pixels.tobytes() for pixels in images}) == 3, "of each client's own model"
    assert [(p.name, p.server_round) for p in server.phases] == [("alone", -1), ("train", 1), ("train", 2)]
    assert [line.get("auxiliary/images") for line in server.observer.lines] == [24.0, None, None]
    assert all(np.array_equal(ended[0][n], w) for n, w in start.items()), "alone, nothing is averaged"
    pool = np.concatenate([server.state.pieces[k] for k in sorted(server.state.pieces)])
    for number, (averaged, images_seen) in enumerate(trained, 1):
        assert np.array_equal(images_seen, pool)
        assert any(not np.array_equal(averaged[n], ended[number - 1][n]) for n in start), "after the average"
        assert any(not np.array_equal(averaged[n], ended[number][n]) for n in start), "and it moved them on"
    whole = sum(w.size for w in start.values())
    assert server.state.totals.parameters_up == server.state.totals.parameters_down == 3 * 3 * whole


def test_images_are_drawn_of_what_the_client_trained(make_server: Any) -> None:
    server = make_server("after.pieces=auxiliary", *TINY, "engine.workers=1")
    ended: dict[str, Any] = {}
    train = Worker.train

    def watched(self: Worker, opened: Opened) -> Any:
        result = train(self, opened)
        if opened.step.phase == "alone":
            ended[opened.site.client.name] = {n: p.detach().numpy().copy() for n, p in self.named.items()}
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Worker, "train", watched)
        server.run()
    lab = ServerLab(server._view(), server.phases[0], {}, server.trainer)
    for name, weights in ended.items():
        start = server.blueprint.initial()
        summed = {n: start[n] + (w - start[n]) for n, w in weights.items()}
        again = lab.sample(summed, np.arange(8) % 10, 8, name)
        assert np.array_equal(server.state.pieces[f"auxiliary/image/{name}"], again)
    other = lab.sample(server.blueprint.initial(), np.arange(8) % 10, 8, "client-000")
    assert not np.array_equal(server.state.pieces["auxiliary/image/client-000"], other)


def test_what_a_piece_says_of_its_images_is_in_the_summary(tmp_path: Path) -> None:
    settings = [*SMALL, *TINY, "after.pieces=auxiliary", "after.auxiliary.samples=4", "score.every=0"]
    run = launch.start(resolve.load(sets=settings), tmp_path / "run", lambda run, config: Silent())
    summary = json.loads(run.summary.read_text())
    assert summary["auxiliary"]["images"] == 3 * 4
    assert (summary["pieces"], summary["server_steps"]) == (["auxiliary"], 4)


PLANNED = [
    name
    for name, (settings, _) in CHAINS.items()
    if "codec.up=trained" not in settings  # whose own weights are not counted
]


@pytest.mark.parametrize("name", PLANNED)
def test_the_plan_equals_the_ledger(make_server: Any, name: str) -> None:
    server = make_server(*TINY, *CHAINS[name][0])
    figures = plan.plan(server.config)
    server.run()
    for total in ("parameters_up", "parameters_down", "bytes_up", "bytes_down"):
        assert figures[total] == getattr(server.state.totals, total), total


def test_pieces_see_their_own_names_alone(make_server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, list[set[str]]] = {"extras": [], "state": [], "replies": [], "server": []}
    begin, gather, change = Auxiliary.client_begin, Clipped.gather, Clipped.change

    def client_begin(self: Any, step: Any, state: Any) -> Any:
        seen["extras"].append({*step.extras, *step.control})
        seen["state"].append(set(state))
        return begin(self, step, state)

    def gathering(self: Any, view: Any, gathered: Any, reply: Any) -> Any:
        seen["replies"].append(set(reply.tensors))
        return gather(self, view, gathered, reply)

    def changing(self: Any, view: Any, state: Any, *rest: Any) -> Any:
        seen["server"].append(set(state))
        return change(self, view, state, *rest)

    monkeypatch.setattr(Clipped, "client_begin", client_begin)
    monkeypatch.setattr(Clipped, "gather", gathering)
    monkeypatch.setattr(Clipped, "change", changing)
    server = make_server(*TINY, "local.pieces=scaffold,clipped", "after.pieces=auxiliary")
    server.run()
    assert seen["extras"] == [set()] * 3 + [{"bound", "noise"}] * 6
    assert seen["state"] == [set()] * 6 + [{"rounds"}] * 3
    assert seen["replies"] == [set()] * 3 + [{"norms"}] * 6
    assert seen["server"] == [{"bound"}] * 3
    assert {k.split("/")[0] for k in server.state.pieces} == {"scaffold", "clipped", "auxiliary"}
    assert set(group(server.state.pieces, "scaffold")) == set(server.layout)


def test_an_exchange_in_which_a_piece_cannot_work_is_refused() -> None:
    rule = r"after.pieces = 'auxiliary': cannot work with method udec: there is no global model"
    with pytest.raises(ConfigError, match=rule):
        resolve.load(sets=["method.name=udec", "after.pieces=auxiliary"])


@pytest.mark.parametrize("hook", ["extend", "gather", "change", "after"])
def test_a_crash_in_a_hook_of_the_server_changes_nothing(
    make_server: Any, monkeypatch: pytest.MonkeyPatch, hook: str
) -> None:
    settings = (*TINY, *CHAINS["all in one"][0])
    unbroken = make_server(*settings, name="unbroken")
    unbroken.run()
    broken = make_server(*settings, name="broken")
    original = getattr(Auxiliary, hook)

    def dying(self: Any, *arguments: Any) -> Any:
        made = original(self, *arguments)
        if broken.phases[broken.state.step].server_round == 2:
            raise Crash
        return made

    with monkeypatch.context() as patch:
        patch.setattr(Auxiliary, hook, dying)
        with pytest.raises(Crash):
            broken.run()
    resumed = make_server(*settings, name="broken", resume=True)
    assert resumed.state.step == 3
    resumed.run()
    assert outcome(resumed) == outcome(unbroken)
