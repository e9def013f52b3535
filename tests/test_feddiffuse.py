"""USplit, ULatDec and UDec: what travels, what stays, what is scored. The counts are Table 2 of arXiv 2406.12575."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from seam_methods import HalfCodec
from small_runs import Crash, crash_at

from osmotic import codecs, seeds
from osmotic.codecs import make
from osmotic.config import schema
from osmotic.config.presets import RECIPES
from osmotic.errors import ConfigError
from osmotic.federation.client import Opened, Worker
from osmotic.federation.downlink import DownLink, held
from osmotic.federation.memory import ClientState
from osmotic.flat import FlatLayout
from osmotic.methods.usplit import USplit
from osmotic.models import parts as network_parts
from osmotic.models.parts import PARTS
from osmotic.protocol.messages import MERGE, Client, Packet, Phase, Reply
from osmotic.protocol.view import View
from osmotic.runs import plan, resolve
from osmotic.storage.store import StateLost, read_checked
from osmotic.training.weights import copy_weights

P, D, M, U = 2_996_315, 1_280_642, 999_376, 716_297  # 28x28x1: all, encoder, bottleneck, decoder
MILLIONS = {
    "full": {2: 179.78, 5: 449.45, 10: 898.89},
    "usplit": {2: 134.83, 10: 674.17},
    "ulatdec": {2: 105.50, 5: 263.75, 10: 527.51},
    "udec": {2: 47.54, 5: 118.84, 10: 237.69},  # Table 2 prints 118.85 for K = 5: 118,844,640, rounded twice
}


def planned(preset: str, clients: int, *sets: str) -> dict[str, Any]:
    """What `osmotic plan` says of the paper's setting: Fashion-MNIST at 28x28, 15 rounds, everybody."""
    asked = [f"data.clients={clients}", "training.rounds=15", *sets]
    return plan.plan(resolve.load(preset=preset, data="fashion-mnist", sets=asked))


def conveyed(figures: dict[str, Any]) -> int:
    return int(figures["parameters_up"] + figures["parameters_down"])


def odd_encoders(seed: int, clients: int = 5, rounds: int = 15) -> int:
    """Rounds in which the client left over draws the encoder, by the draws of methods/usplit.py."""
    drawn = 0
    for r in range(1, rounds + 1):
        rng = seeds.rng(seed, seeds.METHOD, r)
        rng.permutation(clients)
        [rng.integers(2) for _ in range(clients // 2)]
        drawn += int(rng.integers(2))
    return drawn


@pytest.mark.parametrize("mode, clients", [(m, k) for m, row in MILLIONS.items() for k in row])
def test_the_counts_of_table_2(mode: str, clients: int) -> None:
    figures = planned(f"feddiffuse-{mode}", clients)
    assert figures["parameters"] == P
    assert f"{conveyed(figures) / 1e6:.2f}" == f"{MILLIONS[mode][clients]:.2f}"


def test_the_counts_of_usplit_with_an_odd_client_follow_its_coin() -> None:
    drawn = {seed: odd_encoders(seed) for seed in range(200)}
    six = next(seed for seed, count in drawn.items() if count == 6)
    # Table 2 prints 343.73; 0 and 15 draws would give 340.35 or 348.81.
    assert f"{conveyed(planned('feddiffuse-usplit', 5, f'seed={six}')) / 1e6:.2f}" == "343.73"
    for seed in (min(drawn, key=lambda s: drawn[s]), max(drawn, key=lambda s: drawn[s])):
        total = conveyed(planned("feddiffuse-usplit", 5, f"seed={seed}"))
        count = drawn[seed]
        assert total == 15 * 5 * P + 15 * (2 * P + M) + count * D + (15 - count) * U
        assert 340.35e6 - 5e3 < total < 348.81e6 + 5e3
    lowest, highest = (15 * 5 * P + 15 * (2 * P + M + part) for part in (U, D))
    assert (f"{lowest / 1e6:.2f}", f"{highest / 1e6:.2f}") == ("340.35", "348.81")


def test_the_recipe_is_the_papers() -> None:
    """arXiv 2406.12575 and its code: Huber, Adam 1e-4, linear betas, epsilon, batches of 128; no averages, no clipping."""
    assert RECIPES["feddiffuse"] == {
        "model.network": "convnext-unet",
        "model.conditional": False,
        "model.target": "epsilon",
        "model.schedule": "linear",
        "recipe.loss": "huber",
        "recipe.min_snr": 0.0,
        "recipe.ema_half_lives": (),
        "training.batch_size": 128,
        "training.optimizer": "adam",
        "training.learning_rate": 1e-4,
        "training.grad_clip": 0.0,
    }
    plain = resolve.load(preset="feddiffuse-udec", sets=["recipe.name=default"])
    assert (plain.model, plain.recipe, plain.training) == (
        schema.ModelConfig(),
        schema.RecipeConfig(),
        schema.TrainingConfig(),
    )
    assert plain.method.name == "udec"


def test_the_coin_is_fair() -> None:
    # 3,000 fair coins: the count leaves 1500 +- 137 (five standard deviations) once in two million seeds.
    assert abs(sum(odd_encoders(seed) for seed in range(200)) - 1500) < 137


def drawn_tasks(clients: int, rounds: int) -> list[dict[str, tuple[str, ...]]]:
    """What each client returns, round by round, as `tasks` of the method draws it."""
    cfg = resolve.load(preset="usplit", sets=[f"data.clients={clients}"])
    layout = {"conv_in.weight": (1,), "mid_block.bias": (1,), "conv_out.weight": (1,)}
    everyone = [Client(i, f"client-{i:03d}", 10) for i in range(clients)]
    view = View(cfg, layout, network_parts.table(layout), everyone)
    phases = (Phase("train", r) for r in range(1, rounds + 1))
    return [{t.client.name: t.returns for t in USplit().tasks(view, p, everyone)} for p in phases]


def test_pairs_are_drawn_at_random_and_their_coin_is_fair() -> None:
    rounds = 400
    drawn = drawn_tasks(4, rounds)
    for returned in drawn:
        assert sorted(part for parts in returned.values() for part in parts) == sorted(PARTS * 2)
    # Fair coins leave their mean +- five standard deviations once in two million cases.
    with_decoder = sum(parts == ("bottleneck", "decoder") for r in drawn for parts in r.values())
    assert abs(with_decoder - rounds) < 5 * (2 * rounds * 0.25) ** 0.5
    for name in drawn[0]:
        decoders = sum("decoder" in r[name] for r in drawn)
        assert abs(decoders - rounds / 2) < 5 * (rounds * 0.25) ** 0.5, f"{name} returns either part as often"
    # Of three others each is as often the one with the same part: a third of the rounds.
    for name in list(drawn[0])[1:]:
        alike = sum(("decoder" in r["client-000"]) == ("decoder" in r[name]) for r in drawn)
        assert abs(alike - rounds / 3) < 5 * (rounds * 2 / 9) ** 0.5, "partners change"


@pytest.mark.parametrize("mode", ["full", "usplit", "ulatdec", "udec"])
def test_savings_do_not_depend_on_the_network(mode: str) -> None:
    """The same formulas for another network, from `plan` alone."""
    figures = planned(f"feddiffuse-{mode}", 4, "recipe.name=default", "data.image_size=8")
    layout = plan.models.layout(
        plan.network(resolve.load(data="fashion-mnist", sets=["data.image_size=8"]))[0]
    )
    d, m, u = (sum(int(np.prod(layout[n])) for n in network_parts.names(layout, [p])) for p in PARTS)
    p, k, r = d + m + u, 4, 15
    expected = {
        "full": 2 * k * p * r,
        "usplit": r * k * p + r * 2 * p,
        "ulatdec": k * p + k * (m + u) * (2 * r - 1),
        "udec": k * p + k * u * (2 * r - 1),
    }
    assert figures["parameters"] == p, "the default recipe brings back the default network, conditional"
    assert conveyed(figures) == expected[mode]


VARIANTS = {
    "usplit": ("method.name=usplit",),
    "usplit, five of six": ("method.name=usplit", "data.clients=6", "training.fraction_train=0.83"),
    "usplit, one of two, moved parts only": (
        "method.name=usplit",
        "data.clients=2",
        "training.fraction_train=0.5",
        "training.rounds=8",
        "codec.changed_only=true",
    ),
    "usplit, moved parts only, int8": (
        "method.name=usplit",
        "data.clients=2",
        "training.fraction_train=0.5",
        "training.rounds=8",
        "codec.changed_only=true",
        "codec.down=int8",
        "codec.up=int8",
    ),
    "usplit frozen, moments kept": (
        "method.name=usplit",
        "method.freeze=true",
        "training.optimizer_state=keep",
    ),
    "ulatdec": ("method.name=ulatdec",),
    "udec": ("method.name=udec",),
    "udec, two of three": ("method.name=udec", "training.fraction_train=0.67", "training.rounds=5"),
    "udec, int8 both ways": ("method.name=udec", "codec.up=int8", "codec.down=int8"),
    "udec, encoder every second round": (
        "method.name=udec",
        "method.encoder_every=2",
        "training.fraction_train=0.67",
        "training.rounds=6",
    ),
    "ulatdec, encoder, moved parts only": (
        "method.name=ulatdec",
        "method.encoder_every=2",
        "codec.changed_only=true",
        "training.fraction_train=0.67",
        "training.rounds=5",
    ),
}


def outcome(server: Any) -> dict[str, Any]:
    """All that a run leaves but for the time: weights, averages, states on disk, ledger."""
    states = {}
    for site in server.engine.sites.values():
        name = site.client.name
        if name in server.state.counted and site.store.folder.exists():
            state = site.store.load(server.state.counted[name])
            states[name] = {k: t.tobytes() for k, t in state.items()}
    return {
        "weights": {n: t.tobytes() for n, t in server.state.weights.items()},
        "averages": {n: t.tobytes() for n, t in server.state.ema.state()[0].items()},
        "states": states,
        "hashes": server.state.state_hashes,
        "totals": vars(server.state.totals),
        "changed": server.state.changed,
        "ledger": server.run_dir.log("ledger").read_text(),
    }


@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_killed_and_resumed_gives_the_same_bits_and_the_plan_the_same_bytes(
    make_server: Any, variant: str
) -> None:
    settings = ("data.max_images=60", *VARIANTS[variant])
    unbroken = make_server(*settings, name="unbroken")
    unbroken.run()
    assert not unbroken.state.failures
    with pytest.raises(Crash):
        make_server(*settings, name="broken", at=crash_at(3, 1)).run()
    resumed = make_server(*settings, name="broken", resume=True)
    assert resumed.state.step == 2
    resumed.run()
    assert outcome(resumed) == outcome(unbroken)
    two = make_server(*settings, "engine.workers=2", name="two")
    two.run()
    assert outcome(two) == outcome(unbroken)
    figures = plan.plan(unbroken.config)
    for total in ("parameters_up", "parameters_down", "bytes_up", "bytes_down"):
        assert figures[total] == getattr(unbroken.state.totals, total), total


def test_a_run_of_udec_killed_while_it_merges_gives_the_same_bits(make_server: Any) -> None:
    settings = ("data.max_images=60", "method.name=udec", "training.rounds=2", "score.every=0")
    unbroken = make_server(*settings, name="unbroken")
    unbroken.run()
    assert [p.name for p in unbroken.phases] == ["train", "train", MERGE]

    def die(event: str, value: Any) -> None:
        if event == "phase" and value.name == MERGE:
            raise Crash

    with pytest.raises(Crash):
        make_server(*settings, name="broken", at=die).run()
    resumed = make_server(*settings, name="broken", resume=True)
    resumed.run()
    assert outcome(resumed) == outcome(unbroken)
    phases = [json.loads(line)["phase"] for line in resumed.run_dir.log("ledger").read_text().splitlines()]
    assert phases.count("score") == phases.count(MERGE) == 2 * 3


# --- USplit ---


def replies_of(server: Any) -> dict[str, Any]:
    """Runs the server and records every reply to training by (round, client name)."""
    seen: dict[tuple[int, str], Any] = {}
    take = server.exchange._decode

    def decode(phase: Any, task: Any, packet: Packet, *rest: Any) -> Any:
        reply = take(phase, task, packet, *rest)
        if task.action == "train":
            assert isinstance(reply, Reply), reply
            key = (server.phases[server.state.step].server_round, task.client.name)
            seen[key] = (task, reply.weight, {n: t.copy() for n, t in reply.tensors.items()})
        return reply

    server.exchange._decode = decode
    server.run()
    return seen


@pytest.mark.parametrize("clients", [4, 5])
def test_usplit_averages_each_part_over_those_that_returned_it(make_server: Any, clients: int) -> None:
    server = make_server(
        "method.name=usplit", f"data.clients={clients}", "training.rounds=1", "recipe.ema_half_lives=[]"
    )
    start = {n: w.copy() for n, w in server.state.weights.items()}
    replies = {name: value for (r, name), value in replies_of(server).items() if r == 1}
    assert len(replies) == clients
    returned = sorted(task.returns for task, _, _ in replies.values())
    assert sum("decoder" in parts for parts in returned) >= clients // 2
    assert sum("encoder" in parts for parts in returned) >= clients // 2
    assert sum("bottleneck" in parts for parts in returned) == (clients + 1) // 2
    assert all(task.send == PARTS for task, _, _ in replies.values())
    for part in PARTS:
        own = [(w, t) for task, w, t in replies.values() if part in task.returns]
        total = sum(w for w, _ in own)
        assert 0 < total < sum(w for _, w, _ in replies.values()), "some returned it, not all"
        for n in server.part_names[part]:
            change = sum(w * t[f"model/{n}"].astype(np.float64) for w, t in own) / total
            expected = start[n] + change.astype(np.float32)
            # The mean and the sum are each rounded once to float32.
            np.testing.assert_allclose(server.state.weights[n], expected, rtol=2**-22, atol=2**-24)


def test_usplit_redraws_its_tasks_every_round(make_server: Any) -> None:
    server = make_server("method.name=usplit", "data.clients=4", "data.max_images=48", "training.rounds=6")
    tasks = {key: task.returns for key, (task, _, _) in replies_of(server).items()}
    by_client = {name: [tasks[r, name] for r in range(1, 7)] for _, name in tasks}
    assert all(len(set(drawn)) > 1 for drawn in by_client.values())
    assert len({tuple(drawn) for drawn in by_client.values()}) == 4


def test_a_round_in_which_nobody_returns_a_part_leaves_it_as_it_was(
    make_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve = Worker._serve

    def failing(self: Any, site: Any, packet: Packet) -> Packet:
        if "decoder" in packet.header["returns"] and packet.header["server_round"] == 1:
            raise RuntimeError
        return serve(self, site, packet)

    monkeypatch.setattr(Worker, "_serve", failing)
    server = make_server("method.name=usplit", "data.clients=4", "training.rounds=2")
    start = {n: w.copy() for n, w in server.state.weights.items()}
    after: dict[str, Any] = {}

    def at(event: str, value: Any) -> None:
        if event == "done" and value["round"] == 1:
            after.update(server.state.weights)

    server.observer.at = at
    server.run()
    assert [f["kind"] for f in server.state.failures] == ["raised"] * 2
    assert all(np.array_equal(after[n], start[n]) for n in server.part_names["decoder"])
    assert any(not np.array_equal(after[n], start[n]) for n in server.part_names["encoder"])
    assert any(not np.array_equal(server.state.weights[n], start[n]) for n in server.part_names["decoder"])
    assert np.isfinite(list(map(np.sum, server.state.weights.values()))).all()


def test_a_frozen_client_moves_only_what_it_returns(
    make_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[set[str], set[str], set[str]]] = []
    train = Worker.train

    def watched(self: Worker, opened: Opened) -> Any:
        answer = train(self, opened)
        received = opened.step.received
        moved = {n for n, p in self.named.items() if not np.array_equal(p.detach(), received[n])}
        with_gradient = {n for n, p in self.named.items() if p.grad is not None}
        asked = set(network_parts.names(self.named, opened.header["returns"]))
        assert {n.removeprefix("model/") for n in answer.coded} == asked
        seen.append((moved, with_gradient, asked))
        return answer

    monkeypatch.setattr(Worker, "train", watched)
    settings = ("method.name=usplit", "data.clients=2", "training.rounds=4", "engine.workers=1")
    make_server(*settings, "method.freeze=true", name="frozen").run()
    assert len(seen) == 8
    assert all(moved == asked == held for moved, held, asked in seen), "nor does it hold other gradients"
    seen.clear()
    make_server(*settings, name="free").run()
    assert all(moved > asked for moved, _, asked in seen), (
        "as in the paper, the rest is trained and thrown away"
    )


@pytest.mark.parametrize("network", ["unet-8", "convnext-unet"])
def test_freezing_works_without_a_class_embedding(make_server: Any, network: str) -> None:
    """Nothing before the trained part needs a gradient then, which crashed a group norm of torch 2.13 on the CPU."""
    server = make_server(
        "method.name=usplit",
        "method.freeze=true",
        "model.conditional=false",
        f"model.network={network}",
        "data.clients=2",
        "training.rounds=4",
    )
    seen = replies_of(server)
    assert not server.state.failures
    assert {part for task, _, _ in seen.values() for part in task.returns} == set(PARTS)
    moved = [float(np.abs(t).max()) for _, _, tensors in seen.values() for t in tensors.values()]
    assert np.isfinite(moved).all() and np.mean(np.array(moved) > 0) > 0.9


def test_frozen_parts_change_no_gradient_of_the_trained_ones(make_server: Any) -> None:
    """The first step of a client is the same whether the rest is frozen or trained along, but for rounding."""
    settings = (
        "method.name=usplit",
        "model.conditional=false",
        "data.clients=2",
        "data.max_images=20",
        "training.rounds=1",
        "training.optimizer=sgd",
        "training.grad_clip=0",
        "training.learning_rate=0.1",
    )
    free = replies_of(make_server(*settings, name="free"))
    frozen = replies_of(make_server(*settings, "method.freeze=true", name="frozen"))
    for key, (task, _, tensors) in frozen.items():
        assert task.returns == free[key][0].returns
        for name, tensor in tensors.items():
            np.testing.assert_allclose(tensor, free[key][2][name], rtol=1e-3, atol=1e-7)


# --- ULatDec and UDec ---


@pytest.mark.parametrize("method, shared", [("ulatdec", PARTS[1:]), ("udec", PARTS[2:])])
def test_personal_parts_never_leave_and_never_reset(
    make_server: Any, monkeypatch: pytest.MonkeyPatch, method: str, shared: tuple[str, ...]
) -> None:
    began: dict[tuple[int, str], Any] = {}
    ended: dict[tuple[int, str], Any] = {}
    train = Worker.train

    def watched(self: Worker, opened: Opened) -> Any:
        key = (opened.step.server_round, opened.site.client.name)
        began[key] = dict(self.network.copy())
        answer = train(self, opened)
        ended[key] = dict(self.network.copy())
        left = {*answer.coded, *answer.exact}
        assert {n.removeprefix("model/") for n in left} == set(network_parts.names(self.named, shared))
        return answer

    monkeypatch.setattr(Worker, "train", watched)
    server = make_server(f"method.name={method}", "data.max_images=60")
    start = {n: w.copy() for n, w in server.state.weights.items()}
    globals_after: dict[int, Any] = {0: start}

    def at(event: str, value: Any) -> None:
        if event == "done":
            globals_after[value["round"]] = dict(server.state.weights)

    server.observer.at = at
    server.run()
    ours = network_parts.names(start, shared)
    theirs = sorted(set(start) - set(ours))
    for (r, name), weights in began.items():
        assert all(np.array_equal(weights[n], globals_after[r - 1][n]) for n in ours)
        before = ended[r - 1, name] if r > 1 else start
        assert all(np.array_equal(weights[n], before[n]) for n in theirs), "as this client left them"
    kept = server.state.weights
    assert all(np.array_equal(kept[n], start[n]) for n in theirs), "the server's own are never used"
    final = [ended[3, name] for name in ("client-000", "client-001")]
    assert any(not np.array_equal(final[0][n], final[1][n]) for n in theirs)


class Recording:
    """A scorer that keeps the pools it is given."""

    def __init__(self, wanted: Any) -> None:
        self.wanted = wanted
        self.pools: dict[str, Any] = {}
        self.rounds: dict[str, int] = {}

    def sums_wanted(self) -> None:
        return None

    def score_personal(self, pools: Any, stage: str, server_round: int) -> dict[str, Any]:
        self.pools[stage], self.rounds[stage] = dict(pools), server_round
        return {}

    def with_after(self, before: Any, after: Any) -> dict[str, Any]:
        return {"both": True}


@pytest.mark.parametrize("averages", ["[]", "[40.0]"])
def test_models_are_sampled_as_trained_and_with_the_last_average(make_server: Any, averages: str) -> None:
    """Images of both stages, drawn a second time from weights put together by hand."""
    settings = ("method.name=udec", "data.max_images=60", "training.rounds=2", "codec.down=int8")
    server = make_server(*settings, f"recipe.ema_half_lives={averages}", "score.samples=4")
    wanted = server.scorer.wanted(None) | {"samples": 4, "labels": [0, 1, 2, 3]}
    server.scorer = Recording(lambda client: wanted)
    server.run()
    assert server.scorer.rounds == {"before": 2, "after": 3}
    assert server.state.last_quality == {"both": True}
    replica = server.state.down.streams["decoder"].replica
    for site in server.engine.sites.values():
        name = site.client.name
        state = ClientState.of(site.store.load(server.state.counted[name]))
        own = state.average or state.personal
        assert bool(state.average) == (averages != "[]")
        worker = server.engine._make_worker()
        opened: Any = Opened(site, {"control": {"score": wanted}}, ClientState(), None, None)  # type: ignore[arg-type]
        drawn = {}
        published = server.state.scored_weights()
        coded = {n: coded_step(replica[n], published[n]) for n in server.part_names["decoder"]}
        for stage, weights in (("before", own), ("after", {**own, **coded})):
            copy_weights(worker.named, weights)
            drawn[stage] = worker.sample(opened).exact["image/samples"]
        assert not np.array_equal(drawn["before"], drawn["after"])
        for stage, images in drawn.items():
            assert np.array_equal(server.scorer.pools[stage][name], images), (stage, name)


def coded_step(replica: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Where a client of this replica stands after one int8 packet towards `target`."""
    data = make("int8").encode({"x": target - replica}, {})
    [(_, change)] = make("int8").decode(data, {}, {"x": ("float32", replica.shape)})
    return replica + change


def test_clients_that_join_late_get_everything_once(make_server: Any) -> None:
    server = make_server(
        "method.name=udec", "data.clients=4", "training.fraction_train=0.5", "training.rounds=5"
    )
    sends = {key: task.send for key, (task, _, _) in replies_of(server).items()}
    first = {name: min(r for r, n in sends if n == name) for _, name in sends}
    assert len(set(first.values())) > 1, "somebody joined late"
    assert all(send == (PARTS if r == first[name] else ("decoder",)) for (r, name), send in sends.items())


def test_the_encoder_is_averaged_rarely_and_reaches_everybody(
    make_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    began: dict[tuple[int, str], Any] = {}
    train = Worker.train

    def watched(self: Worker, opened: Opened) -> Any:
        began[opened.step.server_round, opened.site.client.name] = dict(self.network.copy())
        return train(self, opened)

    monkeypatch.setattr(Worker, "train", watched)
    server = make_server(
        "method.name=udec",
        "method.encoder_every=2",
        "data.clients=4",
        "data.max_images=60",
        "training.fraction_train=0.5",
        "training.rounds=7",
    )
    encoders: dict[int, Any] = {}

    def at(event: str, value: Any) -> None:
        if event == "done":
            encoders[value["round"]] = {n: server.state.weights[n] for n in server.part_names["encoder"]}

    server.observer.at = at
    tasks = {key: task for key, (task, _, _) in replies_of(server).items()}
    late = 0
    last: dict[str, int] = {}
    for (r, name), task in sorted(tasks.items()):
        assert task.returns == (("encoder", "decoder") if r % 2 == 0 else ("decoder",))
        newest = (r - 1) // 2 * 2  # round of the last average of encoders before this one
        if name not in last:
            assert task.send == PARTS
        elif newest >= last[name] and newest > 0:
            assert task.send == ("encoder", "decoder")
            late += newest < r - 1
            assert all(np.array_equal(began[r, name][n], t) for n, t in encoders[newest].items())
        else:
            assert task.send == ("decoder",)
        last[name] = r
    assert late, "somebody got it later than in the next round"


def test_the_last_round_averages_no_encoder_that_nobody_would_train_from() -> None:
    def up(rounds: int, every: int) -> int:
        sets = (f"training.rounds={rounds}", f"method.encoder_every={every}")
        return int(planned("feddiffuse-udec", 2, *sets)["parameters_up"])

    assert up(5, 5) == up(5, 0) == 5 * 2 * U
    assert up(6, 5) == 6 * 2 * U + 2 * D


def test_an_average_of_encoders_without_a_quorum_is_not_sent(
    make_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve = Worker._serve

    def failing(self: Any, site: Any, packet: Packet) -> Packet:
        if packet.header["server_round"] == 2:
            raise RuntimeError
        return serve(self, site, packet)

    monkeypatch.setattr(Worker, "_serve", failing)
    server = make_server("method.name=udec", "method.encoder_every=2", "data.max_images=60")
    tasks = {key: task.send for key, (task, _, _) in replies_of(server).items()}
    assert {send for (r, _), send in tasks.items() if r == 3} == {("decoder",)}
    assert server.state.changed == {"decoder": 3}


# --- what only moved parts save ---


def test_sending_only_moved_parts_changes_nothing_but_the_bytes(make_server: Any) -> None:
    settings = ("method.name=usplit", "data.clients=2", "training.fraction_train=0.5", "training.rounds=8")
    whole, moved = (
        make_server(*settings, f"codec.changed_only={flag}", name=flag) for flag in ("false", "true")
    )
    whole.run()
    moved.run()
    assert {n: w.tobytes() for n, w in moved.state.weights.items()} == {
        n: w.tobytes() for n, w in whole.state.weights.items()
    }
    assert moved.state.totals.parameters_down < whole.state.totals.parameters_down
    assert moved.state.totals.bytes_down < whole.state.totals.bytes_down
    assert moved.state.totals.bytes_up == whole.state.totals.bytes_up


@pytest.mark.parametrize("fraction, saves", [(0.5, True), (1.0, False)])
def test_only_a_lone_client_per_round_leaves_a_part_unmoved(fraction: float, saves: bool) -> None:
    sets = (f"training.fraction_train={fraction}", "training.rounds=15")
    down = [
        planned("feddiffuse-usplit", 2, *sets, f"codec.changed_only={flag}")["parameters_down"]
        for flag in ("false", "true")
    ]
    assert (down[1] < down[0]) == saves


def test_a_client_that_lost_what_it_keeps_is_a_failure_and_not_a_guess(make_server: Any) -> None:
    settings = ("method.name=usplit", "data.clients=1", "training.rounds=6", "codec.changed_only=true")
    server = make_server(*settings, at=crash_at(6, 1))
    with pytest.raises(Crash):
        server.run()
    for path in server.run_dir.client("client-000").glob("*.safetensors"):
        path.unlink()
    resumed = make_server(*settings, resume=True)
    resumed.run()
    assert [f["kind"] for f in resumed.state.failures] == ["raised"]
    assert "is missing" in resumed.state.failures[0]["reason"]


def test_a_part_counts_as_moved_only_if_it_moved_since_the_client_heard_it() -> None:
    layout = FlatLayout({p: (2,) for p in PARTS}, {p: [p] for p in PARTS})
    link = DownLink(make("fp32"), layout, changed_only=True)
    link.commit({"client-000": PARTS}, 3)
    assert link.unmoved("client-000", PARTS, {}) == dict.fromkeys(PARTS, 3)
    # Moved at the end of round 2: what was sent in round 3 has it. Moved at the end of round 3: it has not.
    assert link.unmoved("client-000", PARTS, {"encoder": 2, "decoder": 3}) == {"encoder": 3, "bottleneck": 3}
    assert link.unmoved("client-001", PARTS, {}) == {}
    everything = DownLink(make("fp32"), layout)
    everything.commit({"client-000": PARTS}, 3)
    assert everything.unmoved("client-000", PARTS, {}) == {}


def test_a_part_that_is_kept_must_be_of_the_round_that_the_server_names() -> None:
    state = ClientState(replica={"w": np.ones(3, np.float32)}, heard={"decoder": 2})
    assert held({"decoder": 2}, {"decoder": ["w"]}, state)["decoder"]["w"] is state.replica["w"]
    with pytest.raises(StateLost, match="decoder as of round 3"):
        held({"decoder": 3}, {"decoder": ["w"]}, state)


# --- what a client keeps, and averages ---


def test_frozen_parts_keep_their_moments(make_server: Any) -> None:
    settings = ("method.name=usplit", "method.freeze=true", "training.optimizer_state=keep", "data.clients=2")
    server = make_server(*settings, "training.rounds=6", "checkpoint.keep=9")
    tasks = {key: task.returns for key, (task, _, _) in replies_of(server).items()}
    compared = 0
    for site in server.engine.sites.values():
        states = {r: read_checked(site.store._path(r)) for r in range(1, 7)}
        for r in range(2, 7):
            for part in PARTS:
                names = [f"optimizer/{n}|exp_avg" for n in server.part_names[part]]
                before = [states[r - 1].get(n) for n in names]
                if any(b is None for b in before):
                    continue  # this client has not trained the part yet
                same = all(np.array_equal(b, states[r][n]) for b, n in zip(before, names, strict=True))
                assert same == (part not in tasks[r, site.client.name])
                compared += same
    assert compared, "somebody kept the moments of a frozen part"


def test_scoring_leaves_no_state_on_clients(make_server: Any) -> None:
    server = make_server("method.name=udec", "training.rounds=2", "score.every=1", "data.max_images=60")
    server.run()
    rounds = {int(p.stem.removeprefix("state-")) for p in server.run_dir.path.glob("clients/*/state-*")}
    assert max(rounds) == 2, "nothing of the phase after the rounds"


@pytest.mark.parametrize("method", ["fedavg", "udec", "local"])
def test_every_average_of_a_run_reaches_back_as_many_rounds(make_server: Any, method: str) -> None:
    # 60 images a round on two uneven clients and a half-life of 60: a round renews one half of every average. After three
    # rounds they weigh 1/8, 1/4 and 1/2, over 7/8: 1/7, 2/7 and 4/7, at the server and on each client.
    settings = ("data.max_images=60", "data.clients=2", "data.partition=linear", "checkpoint.keep=9")
    server = make_server(f"method.name={method}", "recipe.ema_half_lives=[60.0]", *settings)
    assert len({s.client.num_examples for s in server.engine.sites.values()}) == 2
    history: list[Any] = []
    update = server.state.ema.update

    def spy(weights: Any, images: int) -> None:
        history.append(weights)
        update(weights, images)

    server.state.ema.update = spy
    server.run()

    def check(rounds: list[Any], average: Any) -> None:
        for name in average:
            expected = sum(w[name] * share / 7 for w, share in zip(rounds, (1, 2, 4), strict=True))
            np.testing.assert_allclose(average[name], expected, rtol=1e-5, atol=1e-6)

    if server.method.shared:
        check(history, server.state.ema.average(60.0))
    for site in server.engine.sites.values() if not server.method.global_model else ():
        states = [ClientState.of(read_checked(site.store._path(r))) for r in (1, 2, 3)]
        check([s.personal for s in states], states[2].average)


def test_a_trained_codec_is_not_renewed_for_clients_that_only_sample(
    make_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(codecs.CODECS, "half", HalfCodec)
    asked: list[int] = []

    def refresh(self: Any, server_round: int, rng: Any) -> None:
        asked.append(server_round)

    monkeypatch.setattr(HalfCodec, "refresh", refresh)
    settings = ("codec.up=half", "codec.down=half", "data.max_images=60", "training.rounds=2")
    make_server("method.name=udec", *settings).run()
    assert asked == [1, 2]


# --- small clients ---


@pytest.mark.parametrize("method", ["fedavg", "usplit", "ulatdec", "udec"])
def test_a_client_of_13_images_and_a_batch_of_128(make_server: Any, method: str) -> None:
    server = make_server(
        f"method.name={method}", "data.max_images=39", "data.partition=iid", "training.batch_size=128"
    )
    assert {s.client.num_examples for s in server.engine.sites.values()} == {13}
    server.run()
    assert not server.state.failures
    assert server.state.totals.images_seen == 3 * 39 and server.state.totals.client_steps == 3 * 3


def test_a_key_of_another_method_is_named_with_its_owner() -> None:
    with pytest.raises(ConfigError, match=r"method\.freeze = True: is a key of usplit; method udec has"):
        resolve.load(preset="udec", sets=["method.freeze=true"])


def test_the_plan_for_people_names_the_method_and_the_sum_of_both_ways() -> None:
    text = plan.text(planned("feddiffuse-full", 5))
    assert text.startswith("feddiffuse-full (method fedavg): 5 clients, 15 rounds")
    assert "(449,447,250 weights)" in text
