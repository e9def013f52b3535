"""FedDDPM, FedDDPM+ and one shot: the set of synthetic images, when the server trains on it, and what it does not take."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_network
from small_runs import SMALL, Crash, Silent, crash_at

from osmotic.codecs import described
from osmotic.diffusion.sampler import NotFinite
from osmotic.errors import ConfigError, RunStopped
from osmotic.federation.client import Worker
from osmotic.federation.lab import ServerLab
from osmotic.flat import Flat
from osmotic.pieces import PIECES, Piece, slow, synthetic
from osmotic.pieces.correction import LOCAL, Correction
from osmotic.protocol.messages import Packet
from osmotic.protocol.view import Extension
from osmotic.report import curves, reading
from osmotic.report.page import corrected, metrics
from osmotic.runs import commands, launch, leaves, plan, resolve
from osmotic.runs.launch import ServerTrainer
from osmotic.runs.summary import weights_sha256
from osmotic.storage.shelf import Shelf
from osmotic.storage.store import read_checked

TINY = (
    "model.network=tiny",
    "data.max_images=120",
    "data.clients=3",
    "data.partition=iid",
    "training.rounds=3",
    "training.batch_size=8",
    "recipe.ema_half_lives=[40.0]",
    "server.pieces=correction",
    "server.correction.local_epochs=2",
    # A network of three thousand weights draws noise, of which nothing is near anything.
    "server.correction.size=0.3",
)
WAYS = {
    "site": (),
    "upload": ("server.correction.images=upload",),
    "federated": (
        "server.correction.images=federated",
        "server.correction.draw_after=1",
        "server.correction.local_epochs=30",  # its default: no model is trained alone
    ),
    "oneshot": ("method.name=oneshot",),
}


@pytest.fixture(autouse=True)
def tiny() -> None:
    tiny_network.register()


def held(server: Any) -> dict[str, np.ndarray]:
    """The set that the server has in the end."""
    return server.shelf.take(bytes(server.state.pieces["correction/set"]).hex())


def outcome(server: Any) -> dict[str, Any]:
    metrics = [json.loads(line) for line in server.run_dir.log("metrics").read_text().splitlines()]
    return {
        "weights": weights_sha256(server.state.weights, server.state.state_hashes),
        "pieces": {n: t.tobytes() for n, t in server.state.pieces.items()},
        "totals": vars(server.state.totals),
        "server_steps": server.state.server_steps,
        "failures": server.state.failures,
        "ledger": server.run_dir.log("ledger").read_text(),
        "metrics": [{k: v for k, v in line.items() if k != "wall_seconds"} for line in metrics],
    }


# --- the set ---


@pytest.mark.parametrize("way", ["site", "upload", "oneshot"])
def test_every_client_gives_its_share_in_the_mix_of_its_own_classes(make_server: Any, way: str) -> None:
    server = make_server(*TINY, *WAYS[way], "data.partition=pathological", "data.classes_per_client=2")
    server.run()
    found = held(server)
    assert found["images"].dtype == np.uint8 and found["images"].shape[1:] == (8, 8, 1)
    sizes = [client.num_examples for client in server.clients]
    assert np.bincount(found["client"]).tolist() == [round(0.3 * n) for n in sizes]
    assert (np.diff(found["client"]) >= 0).all(), "sorted by client"
    for number in range(3):
        mine = found["labels"][found["client"] == number]
        assert len(np.unique(mine)) == 2, "two classes each, and no other is drawn"
    assert len(np.unique(found["images"].reshape(len(found["images"]), -1), axis=0)) == len(found["images"])
    assert not any("client/" in name for name in server.state.pieces), "the state has the hash alone"
    assert [(p.name, p.server_round) for p in server.phases][:2] == [(LOCAL, -1), ("train", 1)]


def test_as_many_of_each_client_and_class_where_that_is_asked_for(make_server: Any) -> None:
    server = make_server(
        *TINY, "data.partition=q-skew", "server.correction.spread=even", "server.correction.classes=even"
    )
    server.run()
    found = held(server)
    assert set(np.bincount(found["client"])) == {round(0.3 * 40)}
    for number in range(3):
        counts = np.bincount(found["labels"][found["client"] == number])
        assert set(counts[counts > 0]) <= {1, 2}


def test_a_model_of_the_first_rounds_may_stand_for_all_and_is_drawn_from_anew(make_server: Any) -> None:
    server = make_server(*TINY, *WAYS["federated"], "server.correction.redraw=1")
    server.run()
    assert [p.name for p in server.phases] == ["train"] * 3, "nobody trains alone"
    assert set(np.bincount(held(server)["labels"])) <= {3, 4} and len(held(server)["images"]) == 36
    assert len(list((server.run_dir.path / "auxiliary").iterdir())) == 3, "one for each of three rounds"
    steps = [line.get("correction/steps") for line in server.observer.lines]
    assert steps == [None, 5.0, 5.0], "drawn after round 1, so trained on from round 2"
    once = make_server(*TINY, *WAYS["federated"], name="once")
    once.run()
    assert int(once.state.pieces["correction/drawn"][0]) == 1


def test_an_uploaded_model_draws_what_its_site_would(
    make_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: dict[str, dict[str, np.ndarray]] = {}
    result = Worker.result

    def watched(self: Worker, begun: Any, loss: float, seen: int) -> Any:
        last = {n: p.detach().numpy().copy() for n, p in self.named.items()}
        found = result(self, begun, loss, seen)
        if begun.opened.step.phase == LOCAL:
            name = begun.opened.step.client.name
            trained[name] = {n: p.detach().numpy().copy() for n, p in self.named.items()}
            assert any(not np.array_equal(last[n], t) for n, t in trained[name].items()), "an average"
        return found

    monkeypatch.setattr(Worker, "result", watched)
    server = make_server(*TINY, *WAYS["upload"], "engine.workers=1")
    start = server.blueprint.initial()
    server.run()
    lab = ServerLab(server._view(), server.phases[0], {}, server.trainer)
    found = held(server)
    for number, (name, weights) in enumerate(sorted(trained.items())):
        summed = {n: start[n] + (t - start[n]) for n, t in weights.items()}
        mine = found["client"] == number
        again = lab.sample(summed, found["labels"][mine], int(mine.sum()), name)
        assert np.array_equal(found["images"][mine], again)


@pytest.mark.parametrize("together", [1, 3])
def test_near_copies_never_leave_their_site(
    make_server: Any, monkeypatch: pytest.MonkeyPatch, together: int
) -> None:
    def draws_its_own(self: Worker, labels: Any, samples: int, seed: int) -> np.ndarray:
        fresh = np.random.default_rng(seed).integers(0, 256, (samples, 8, 8, 1), dtype=np.uint8)
        fresh[::2] = self.mine[: len(fresh[::2])]
        return fresh

    begin = Correction.client_begin

    def watched(self: Correction, step: Any, state: Any) -> Any:
        step.draw.__self__.mine = synthetic.own_images(step.images)
        return begin(self, step, state)

    monkeypatch.setattr(Correction, "client_begin", watched)
    monkeypatch.setattr(Worker, "_draw", draws_its_own)
    # A network of one's own is trained one client at a time.
    several = ("model.network=unet-8", f"engine.batched_clients={together}") if together > 1 else ()
    server = make_server(*TINY, "engine.workers=1", *several)
    server.run()
    assert not server.state.failures
    told = server.chain.auxiliary(server.state.pieces)
    assert told["near_copies"] >= 3 * 6 and told["filtered"] == told["near_copies"]
    images = held(server)["images"]
    assert len(images) == told["images"] < 36, "of twelve each, a few are not replaced in three attempts"
    without = make_server(*TINY, "engine.workers=1", "server.correction.drop_copies=false", name="without")
    without.run()
    assert without.chain.auxiliary(without.state.pieces)["images"] == 36


def test_the_copy_filter_finds_copies_and_lets_fresh_images_through() -> None:
    rng = np.random.default_rng(0)
    real = rng.normal(0, 1, (900, 4)) @ rng.normal(0, 1, (4, 64)) * 20 + 128
    real = np.clip(real, 0, 255).astype(np.uint8).reshape(-1, 8, 8, 1)
    own, fresh = real[:600], real[600:]
    copies = synthetic.CopyFilter(own, mirrored=False)
    near = np.clip(own[:200].astype(int) + rng.integers(-1, 2, own[:200].shape), 0, 255).astype(np.uint8)
    assert copies.copies(own).all() and copies.copies(near).mean() > 0.8
    assert copies.copies(fresh).mean() < 0.04
    assert copies.copies(own[:, :, ::-1]).mean() < 0.04
    assert synthetic.CopyFilter(own, mirrored=True).copies(own[:, :, ::-1]).all()
    # One image that a small client holds twice says nothing of how close others lie.
    few, twice = own[:50], np.concatenate([own[:50], own[:1]])
    assert synthetic.CopyFilter(twice, False).threshold >= synthetic.CopyFilter(few, False).threshold > 0.1


def test_outliers_are_those_that_stand_alone() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(0, 1, (100, 6)).astype(np.float32)
    features[[3, 50]] += 30
    features[50, 0] += 30
    found = synthetic.outliers(features, 0.02)
    assert np.flatnonzero(found).tolist() == [3, 50]
    assert not synthetic.outliers(features, 0.0).any() and not synthetic.outliers(features[:4], 0.5).any()


def test_the_server_drops_outliers_by_the_encoder(make_server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def features(self: ServerTrainer, images: np.ndarray) -> np.ndarray:
        return images.reshape(len(images), -1).astype(np.float32)

    monkeypatch.setattr(ServerTrainer, "features", features)
    server = make_server(*TINY, "server.correction.drop_outliers=0.25")
    server.run()
    told = server.chain.auxiliary(server.state.pieces)
    assert (told["images"], told["outliers"], told["filtered"]) == (27, 9, 9)


# --- when the server trains ---


def test_it_trains_after_every_round_at_the_rate_of_the_round(
    make_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[Any, ...]] = []
    train = ServerLab.train

    def watched(self: ServerLab, images: Any, labels: Any, *how: Any) -> None:
        asked.append(how)
        train(self, images, labels, *how)

    monkeypatch.setattr(ServerLab, "train", watched)
    more = (
        "server.correction.skip_cleanest=0.25",
        "server.correction.passes=2",
        "server.correction.rate=0.5",
        "server.correction.batch_size=4",
    )
    server = make_server(*TINY, *more, "training.lr_schedule=cosine")
    server.run()
    rates = [line["learning_rate"] for line in server.observer.lines[1:]]
    assert asked == [(2 * 9, 0.5 * rate, 4, 0.25) for rate in rates]
    assert server.state.server_steps == 3 * 18
    lines = [json.loads(line) for line in server.run_dir.log("ledger").read_text().splitlines()]
    own = [line for line in lines if line["direction"] == "server"]
    assert [(e["phase"], e["steps"], e["images"], e["bytes"]) for e in own] == [("train", 18, 72, 0)] * 3
    cost = server.exchange.flops_per_image
    assert server.state.totals.server_flops == 3 * 72 * cost == sum(e["flops"] for e in own)


def test_drawing_on_the_server_is_on_its_ledger(make_server: Any) -> None:
    server = make_server(*TINY, *WAYS["upload"])
    server.run()
    lines = [json.loads(line) for line in server.run_dir.log("ledger").read_text().splitlines()]
    first = next(line for line in lines if line["direction"] == "server")
    assert (first["phase"], first["steps"], first["flops"]) == (LOCAL, 0, 36 * server.trainer.flops_per_drawn)


WATCHED = ("training.rounds=9", "server.correction.window=2", "server.correction.local_epochs=1")


@pytest.mark.parametrize("rule", ["loss", "agreement"])
def test_once_is_once_and_slow_pauses(make_server: Any, rule: str) -> None:
    # Any fall of the loss under all of it, and any agreement under full agreement, is slow: it fires as soon as it may.
    sure = (
        "server.correction.least_gain=1" if rule == "loss" else "server.correction.least_agreement=1",
        f"server.correction.rule={rule}",
    )
    rounds = {}
    for when in ("once", "slow"):
        server = make_server(*TINY, *WATCHED, *sure, f"server.correction.when={when}", name=when)
        server.run()
        told = server.chain.auxiliary(server.state.pieces)["corrected"]
        rounds[when] = [entry["round"] for entry in told]
        assert all(0 <= entry[rule] < 1 for entry in told)
        steps = {line["round"] for line in server.observer.lines if line.get("correction/steps")}
        assert steps == set(rounds[when]) and server.state.server_steps == 5 * len(steps)
    first = 3 if rule == "loss" else 1
    assert rounds["once"] == [first]
    assert rounds["slow"] == list(range(first, 10, 3)), "two rounds of pause after each"


def test_it_does_not_fire_while_learning_goes_on(make_server: Any) -> None:
    never = ("server.correction.least_gain=0", "server.correction.when=slow", "training.rounds=6")
    server = make_server(*TINY, *never, "server.correction.window=2")
    server.run()
    losses = server.state.pieces["correction/losses"]
    assert len(losses) == 6 and losses[-1] < losses[0]
    assert server.state.server_steps == 0 and server.chain.auxiliary(server.state.pieces)["corrected"] == []


@dataclass(frozen=True, kw_only=True)
class Longer(Piece):
    """Another piece that asks for other epochs in the rounds, as `correction` does in phase 0."""

    section = "local"

    def extend(self, view: Any, state: Any, phase: Any, task: Any) -> Extension:
        return Extension(local_epochs=2.0, control={"mine": 1})


def test_it_watches_the_rounds_beside_a_piece_that_asks_for_other_epochs(
    make_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PIECES, "longer", Longer)
    keys = ("server.correction.when=slow", "server.correction.window=1", "local.pieces=longer")
    server = make_server(*TINY, *keys)
    server.run()
    assert len(server.state.pieces["correction/losses"]) == 3


def test_the_rules_by_hand() -> None:
    replies = {"b": slow.Report(1, 4.0, 3.0), "a": slow.Report(3, 8.0, 5.0)}
    assert slow.smoothed(np.zeros(0), replies).tolist() == [8.0], "the median by images: a has three of four"
    assert slow.smoothed(np.array([2.0]), replies) == pytest.approx([2.0, 0.8 * 2 + 0.2 * 8])
    assert slow.gain(np.array([0.0, 7.0, 6.0]), 2) is None
    assert slow.gain(np.array([8.0, 7.0, 6.0]), 2) == 0.25 and slow.gain(np.array([8.0, 7.0]), 2) is None
    # Weighted lengths: (3 * 5 + 1 * 3) / 4 = 4.5
    assert slow.agreement(replies, 2.25) == 0.5 and slow.agreement(replies, 9.0) == 1.0
    assert slow.agreement({"a": slow.Report(1, 1.0, 0.0)}, 0.0) is None


# --- what no server takes ---


def lying(change: Callable[[dict[str, np.ndarray]], None], who: str = "client-001") -> Callable[[Any], None]:
    """Makes one client send other exact tensors in phase 0, rightly packed."""

    def changed(server: Any) -> None:
        exchange = server.engine.exchange

        def engine(tasks: Any, seconds: float) -> Any:
            for answer in exchange(tasks, seconds):
                task = answer.sent.task
                if task.client.name == who and answer.sent.packet.header["phase"] == LOCAL:
                    *coded, exact = answer.packet.blobs
                    tensors = {n: t.copy() for n, t in described.decode(exact).items()}
                    change(tensors)
                    packet = Packet(answer.packet.header, (*coded, described.encode(tensors)))
                    answer = type(answer)(answer.sent, packet)
                yield answer

        server.engine.exchange = engine

    return changed


def constant(tensors: dict[str, np.ndarray]) -> None:
    tensors["correction/images"][:] = 7


def copies(tensors: dict[str, np.ndarray]) -> None:
    tensors["correction/images"][:] = tensors["correction/images"][:1]


def small(tensors: dict[str, np.ndarray]) -> None:
    tensors["correction/images"] = tensors["correction/images"][:, :4].copy()


def not_a_number(tensors: dict[str, np.ndarray]) -> None:
    tensors["correction/images"] = np.full(tensors["correction/images"].shape, np.nan, np.float32)


def more(tensors: dict[str, np.ndarray]) -> None:
    tensors["correction/images"] = np.repeat(tensors["correction/images"], 2, axis=0)


def other_label(tensors: dict[str, np.ndarray]) -> None:
    tensors["correction/labels"][0] = 10


def none(tensors: dict[str, np.ndarray]) -> None:
    tensors["correction/count"][0] = 0


def too_many(tensors: dict[str, np.ndarray]) -> None:
    tensors["correction/count"][0] = 13


def dropped(tensors: dict[str, np.ndarray]) -> None:
    tensors["correction/count"][1] = -1


def all_copies(tensors: dict[str, np.ndarray]) -> None:
    tensors["correction/count"][:] = 0, 36


LIES = {
    constant: "correction: 12 of 12 images are of one value all over",
    copies: "correction: 12 images are copies of 1",
    small: "correction/images is uint8 .*, not uint8",
    not_a_number: "correction/images is float32|bytes are more than the",
    more: "bytes are more than the|correction/images is uint8",
    other_label: "correction: a label lies outside 0..9",
    none: "correction: there is no image",
    too_many: "correction: says that it sends 13 of 12 images and has dropped 0",
    dropped: "correction: says that it sends 12 of 12 images and has dropped -1",
    all_copies: "correction: has no image to send: 36 near-copies of its own were dropped",
}


@pytest.mark.parametrize("lie", LIES, ids=lambda lie: lie.__name__)
def test_images_that_are_none_are_refused_and_the_set_is_that_of_the_others(
    make_server: Any, lie: Any
) -> None:
    server = make_server(*TINY, change=lying(lie))
    server.run()
    [failure] = server.state.failures
    assert (failure["round"], failure["client_id"], failure["kind"]) == (-1, 1, "bad")
    assert re.search(LIES[lie], failure["reason"]), failure["reason"]
    assert np.bincount(held(server)["client"]).tolist() == [12, 0, 12] and server.state.server_steps > 0


def test_an_uploaded_model_that_draws_nothing_of_use_is_left_out(
    make_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample = ServerTrainer.sample
    calls: list[int] = []

    def second_is_blank(self: ServerTrainer, *rest: Any) -> np.ndarray:
        calls.append(1)
        found = sample(self, *rest)
        return found * 0 if len(calls) == 2 else found

    monkeypatch.setattr(ServerTrainer, "sample", second_is_blank)
    server = make_server(*TINY, *WAYS["upload"])
    server.run()
    told = server.chain.auxiliary(server.state.pieces)
    assert (told["images"], told["useless_clients"]) == (24, 1)


def test_an_upload_that_draws_what_is_not_finite_costs_no_more_than_itself(make_server: Any) -> None:
    def huge(server: Any) -> None:
        exchange = server.engine.exchange

        def engine(tasks: Any, seconds: float) -> Any:
            for answer in exchange(tasks, seconds):
                header = answer.sent.packet.header
                if header["client"] == "client-001" and header["phase"] == LOCAL:
                    change = server.blueprint.flat.named("model/")
                    far = Flat(change, np.full(change.size, 8.0, np.float32))
                    blob = server.blueprint.codec("up").encode(far, {}, None)
                    answer = type(answer)(
                        answer.sent, Packet(answer.packet.header, (blob, *answer.packet.blobs[1:]))
                    )
                yield answer

        server.engine.exchange = engine

    # Of this network the images would be finite, so what the server draws is played.
    with pytest.MonkeyPatch.context() as patch:
        sample = ServerTrainer.sample

        def drawn(self: ServerTrainer, weights: Any, *rest: Any) -> np.ndarray:
            if max(float(np.abs(t).max()) for t in weights.values()) > 7:
                raise NotFinite("12 of 12 images drawn by the model hold values that are not finite")
            return sample(self, weights, *rest)

        patch.setattr(ServerTrainer, "sample", drawn)
        server = make_server(*TINY, *WAYS["upload"], change=huge)
        server.run()
    told = server.chain.auxiliary(server.state.pieces)
    assert (told["images"], told["useless_clients"]) == (24, 1)


def test_a_set_drawn_anew_is_as_large_as_the_first_whatever_was_dropped(
    make_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def features(self: ServerTrainer, images: np.ndarray) -> np.ndarray:
        return images.reshape(len(images), -1).astype(np.float32)

    monkeypatch.setattr(ServerTrainer, "features", features)
    server = make_server(*TINY, "server.correction.drop_outliers=0.25", "server.correction.redraw=1")
    server.run()
    told = server.chain.auxiliary(server.state.pieces)
    assert (told["images"], told["outliers"], told["from"]) == (27, 9, "global model")


@pytest.mark.parametrize("method", ["oneshot", "fedavg"])
def test_a_run_without_a_synthetic_image_stops_and_says_so(
    make_server: Any, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    monkeypatch.setattr(
        ServerTrainer, "sample", lambda self, weights, labels, n, seed: np.zeros((n, 8, 8, 1), np.uint8)
    )
    server = make_server(*TINY, f"method.name={method}", "server.correction.images=upload")
    with pytest.raises(RunStopped, match=r"no client has given a synthetic image.*nothing of use: 3$"):
        server.run()
    assert server.state.step == 0


@pytest.mark.parametrize("way", ["blank", "not finite"])
def test_a_global_model_that_draws_nothing_of_use_is_asked_again_and_it_is_told(
    make_server: Any, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """The set that there is stays, whatever a later model would put in its place."""
    sample = ServerTrainer.sample
    rounds: list[int] = []

    def drawn(self: ServerTrainer, weights: Any, labels: Any, n: int, seed: Any) -> np.ndarray:
        rounds.append(server.state.step + 1)
        if len(rounds) == 2:
            if way == "not finite":
                raise NotFinite("12 of 12 images drawn by the model hold values that are not finite")
            return np.zeros((n, 8, 8, 1), np.uint8)
        return sample(self, weights, labels, n, seed)

    monkeypatch.setattr(ServerTrainer, "sample", drawn)
    keys = (*WAYS["federated"], "server.correction.redraw=1")
    server = make_server(*TINY, *keys, "training.rounds=3")
    with pytest.warns(
        UserWarning, match="round 2: the global model gives no synthetic images: .*asked again"
    ):
        server.run()
    assert rounds == [1, 2, 3]
    told = {line["round"]: line for line in server.observer.lines}
    assert told[2]["correction/useless"] == 1 and "correction/useless" not in told[3]
    assert int(server.state.pieces["correction/drawn"][0]) == 3


def test_one_shot_is_scored_by_its_average(make_server: Any) -> None:
    server = make_server(*TINY, *WAYS["oneshot"])
    server.run()
    assert not server.state.ema.empty
    scored = server.state.scored_weights()
    assert any(not np.array_equal(scored[n], t) for n, t in server.state.weights.items())


def test_a_correction_that_diverges_is_not_taken(make_server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fit = ServerTrainer.fit

    def broken(self: ServerTrainer, *how: Any) -> Any:
        weights, moments = fit(self, *how)
        return {n: t * np.float32(np.nan) for n, t in weights.items()}, moments

    monkeypatch.setattr(ServerTrainer, "fit", broken)
    server = make_server(*TINY)
    with pytest.raises(ConfigError, match="weights that are not finite in train 1"):
        server.run()
    assert all(np.isfinite(t).all() for t in server.state.weights.values())


def test_server_images_are_those_that_were_seen(make_server: Any) -> None:
    server = make_server(*TINY, "server.correction.batch_size=16", "training.rounds=1")
    server.run()
    lines = [json.loads(line) for line in server.run_dir.log("ledger").read_text().splitlines()]
    assert [(e["steps"], e["images"]) for e in lines if e["direction"] == "server"] == [(3, 36)]


def test_rounds_are_not_begun_without_what_they_build_on(make_server: Any) -> None:
    few = ("data.max_images=60", "data.partition=linear", "data.clients=5", "training.quorum_weight=0.95")
    server = make_server(*TINY, *few)
    with pytest.raises(RunStopped, match=r"phase local.*no quorum: \d of 5 clients.*too few for a model"):
        server.run()
    assert server.state.step == 0, "it is gone through again when the run goes on"
    assert len(list((server.run_dir.path / "journal").rglob("*.safetensors"))) == 3, (
        "of those that came through"
    )


def test_a_run_whose_server_alone_trained_is_no_failure() -> None:
    nobody = {"images_seen": 0, "failures": []}
    assert commands.untrained(nobody | {"server_steps": 3}) is None
    assert commands.untrained(nobody | {"server_steps": 0}) is not None


def test_too_few_images_for_phase_0_are_known_before_work(tmp_path: Path) -> None:
    few = ("data.max_images=60", "data.partition=iid", "data.clients=10")
    with pytest.raises(ConfigError, match="clients of at least 10 images, and 0 of 10 are"):
        launch.start(resolve.load(sets=[*SMALL, *TINY, *few]), tmp_path / "run", lambda run, config: Silent())
    assert not (tmp_path / "run").exists()


def wrong_counts(tensors: dict[str, np.ndarray]) -> None:
    # Their sum wraps round to one that could be.
    tensors["correction/classes"][:] = [2**63 - 1, 2**63 - 1, 12, 0, 0, 0, 0, 0, 0, 0]


def test_class_counts_that_cannot_be_are_refused(make_server: Any) -> None:
    server = make_server(*TINY, *WAYS["upload"], change=lying(wrong_counts))
    server.run()
    assert [f["reason"] for f in server.state.failures] == [
        "correction: its images of each class are not its images"
    ]


@pytest.mark.parametrize("way", ["site", "upload"])
def test_a_client_with_too_few_images_says_so_and_takes_part_in_the_rounds(
    make_server: Any, way: str
) -> None:
    few = ("data.max_images=60", "data.partition=linear", "data.clients=5")
    server = make_server(*TINY, *WAYS[way], *few)
    server.run()
    sizes = {c.client_id: c.num_examples for c in server.clients}
    assert {f["client_id"] for f in server.state.failures} == {i for i, n in sizes.items() if n < 10} != set()
    assert all("too few for a model of its own" in f["reason"] for f in server.state.failures)
    assert all(server.state.counted[c.name] == 3 for c in server.clients)


@pytest.mark.parametrize(
    ("sets", "said"),
    [
        (("method.name=udec",), "there is no global model that the server could train"),
        (("method.name=central",), "one trainer holds all images"),
        (("method.name=oneshot", *WAYS["federated"]), "images must be of site or upload"),
        (
            ("method.name=oneshot", "server.correction.when=once", "server.correction.window=2"),
            "when must be always",
        ),
        (("method.name=oneshot", "server.pieces=adam,correction"), "there is no mean change"),
        (
            ("method.name=oneshot", "after.pieces=personalise", "after.personalise.when=rounds"),
            "when must be after",
        ),
        (("server.correction.draw_after=1",), "draw_after: is of images = federated"),
        (
            ("server.correction.images=upload", "server.correction.drop_copies=false"),
            "drop_copies: only sites know",
        ),
        (("server.correction.images=federated",), "local_epochs: nobody trains alone"),
        (("server.correction.rule=agreement",), "rule: is of when = once or slow"),
        (("server.correction.when=slow", "server.correction.least_agreement=0.5"), "is not of rule = loss"),
        (("server.correction.when=slow",), "a window of 5 rounds never ends in 3"),
        ((*WAYS["federated"], "server.correction.draw_after=3"), "are trained on in no round"),
        (("server.correction.redraw=3",), "nothing is drawn anew after 3 of 3 rounds"),
        (
            ("method.name=usplit", "server.correction.when=slow", "server.correction.rule=agreement"),
            "such changes cannot agree",
        ),
        (
            ("engine.name=sites", "server.correction.drop_outliers=0.1"),
            "needs an encoder, and images are at their",
        ),
        (("model.network=autoencoder",), "an autoencoder draws none"),
        (("server.correction.images=elsewhere",), "must be one of"),
        (("server.correction.size=0",), "must be > 0"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(sets: tuple[str, ...], said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        resolve.load(sets=[*TINY, *sets])


def test_one_shot_needs_a_piece_that_trains_on_the_server() -> None:
    with pytest.raises(ConfigError, match="needs a piece that trains on the server"):
        resolve.load(sets=["method.name=oneshot"])


# --- killed, and gone on with ---


class Stop(BaseException):
    """Plays a kill in the server's own work."""


@pytest.mark.parametrize("answers", [1, 2])
@pytest.mark.parametrize("way", ["site", "upload", "oneshot"])
def test_killed_in_phase_0_it_asks_only_those_who_have_not_answered(
    make_server: Any, way: str, answers: int
) -> None:
    unbroken = make_server(*TINY, *WAYS[way], "engine.workers=1", name="unbroken")
    unbroken.run()
    with pytest.raises(Crash):
        at = crash_at(1, answers=answers)
        make_server(*TINY, *WAYS[way], "engine.workers=1", name="broken", at=at).run()
    resumed = make_server(*TINY, *WAYS[way], "engine.workers=1", name="broken", resume=True)
    trained: list[str] = []
    train = Worker.train

    def watched(self: Worker, opened: Any) -> Any:
        if opened.step.phase == LOCAL:
            trained.append(opened.step.client.name)
        return train(self, opened)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Worker, "train", watched)
        resumed.run()
    assert len(trained) == 3 - answers, "what came before the kill is not asked for again"
    assert outcome(resumed) == outcome(unbroken)
    assert not (resumed.run_dir.path / "journal").exists()


def test_clients_trained_as_one_are_asked_again_as_they_were(make_server: Any) -> None:
    two = ("model.network=unet-8", "data.clients=4", "engine.batched_clients=2", "engine.workers=1")
    settings = (*TINY, *two, "training.rounds=1", "server.correction.local_epochs=1")
    unbroken = make_server(*settings, name="unbroken")
    unbroken.run()
    with pytest.raises(Crash):
        make_server(*settings, name="broken", at=crash_at(1, answers=1)).run()
    resumed = make_server(*settings, name="broken", resume=True)
    resumed.run()
    assert outcome(resumed) == outcome(unbroken)


def test_a_model_of_ones_own_leaves_the_rounds_neither_residual_nor_moments(make_server: Any) -> None:
    keeping = ("codec.up=int2", "codec.error_feedback=true", "training.optimizer_state=keep")
    server = make_server(*TINY, *WAYS["upload"], *keeping, at=crash_at(2, answers=3))
    with pytest.raises(Crash):
        server.run()
    folder = server.run_dir.path / "clients" / "client-000"
    kinds = {
        number: {name.partition("/")[0] for name in read_checked(folder / f"state-{number:+09d}.safetensors")}
        for number in (-1, 1)
    }
    assert not {"memory", "optimizer"} & kinds[-1]
    assert {"memory", "optimizer"} <= kinds[1], "of a round both are kept"


def test_a_phase_before_the_rounds_has_a_checkpoint_of_its_own(make_server: Any) -> None:
    rarely = (*TINY, "checkpoint.every=10")
    unbroken = make_server(*rarely, name="unbroken")
    unbroken.run()
    with pytest.raises(Crash):
        make_server(*rarely, name="broken", at=crash_at(3, answers=1)).run()
    resumed = make_server(*rarely, name="broken", resume=True)
    assert resumed.state.step == 1, "phase 0 is not gone through again"
    resumed.run()
    assert outcome(resumed) == outcome(unbroken)


@pytest.mark.parametrize("call", range(1, 4))
@pytest.mark.parametrize("what", ["sample", "fit"])
def test_killed_in_the_servers_own_work_it_loses_the_piece_under_way(
    make_server: Any, monkeypatch: pytest.MonkeyPatch, what: str, call: int
) -> None:
    # A correction of two passes of five steps is two pieces.
    monkeypatch.setattr("osmotic.federation.lab.PIECE", 3)
    settings = (*TINY, *WAYS["upload"], "server.correction.passes=2")
    unbroken = make_server(*settings, name="unbroken")
    unbroken.run()
    done: list[int] = []
    real = getattr(ServerTrainer, what)

    def counted(self: ServerTrainer, *rest: Any) -> Any:
        done.append(1)
        if len(done) == call:
            raise Stop
        return real(self, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ServerTrainer, what, counted)
        with pytest.raises(Stop):
            make_server(*settings, name="broken").run()
        resumed = make_server(*settings, name="broken", resume=True)
        resumed.run()
    # The call that was cut off is made again, and none of those before it.
    assert len(done) == 1 + {"sample": 3, "fit": 3 * 2}[what]
    assert outcome(resumed) == outcome(unbroken)


def test_a_set_that_was_damaged_is_not_trained_on(make_server: Any) -> None:
    with pytest.raises(Crash):
        make_server(*TINY, name="broken", at=crash_at(3, answers=1)).run()
    folder = make_server(*TINY, name="broken").run_dir.path
    [file] = (folder / "auxiliary").iterdir()
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    before = {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
    # Before anybody trains, and before anything of the run is changed.
    with pytest.raises(ConfigError, match=r"does not match its checksum.*put the file back"):
        make_server(*TINY, name="broken", resume=True)
    assert before == {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_shelf_gives_what_was_put_there_and_nothing_else(tmp_path: Any) -> None:
    table = {"images": np.arange(12, dtype=np.uint8).reshape(3, 4)}
    name = Shelf(tmp_path / "shelf").keep(table)
    again = Shelf(tmp_path / "shelf")
    assert np.array_equal(again.take(name)["images"], table["images"])
    for other in ("0" * 64, "../../etc/passwd", name[:-1]):
        with pytest.raises(ConfigError):
            again.take(other)
    other = Shelf(tmp_path / "shelf").keep({"images": table["images"][:2]})
    (tmp_path / "shelf" / f"{other}.safetensors").replace(tmp_path / "shelf" / f"{name}.safetensors")
    with pytest.raises(ConfigError, match="another table"):
        Shelf(tmp_path / "shelf").take(name)


# --- what is told of it ---


@pytest.mark.parametrize("way", WAYS)
def test_the_plan_has_the_bytes_of_the_run(make_server: Any, way: str) -> None:
    server = make_server(*TINY, *WAYS[way])
    server.run()
    figures = plan.plan(server.config)
    totals = server.state.totals
    assert (figures["bytes_up"], figures["bytes_down"]) == (totals.bytes_up, totals.bytes_down)
    assert figures["parameters_up"] == totals.parameters_up
    by_size = way in ("site", "oneshot")  # which sites draw themselves
    assert figures["exact"] is not by_size
    assert any("who holds how many images" in note for note in figures["notes"]) is by_size
    # Shares that are not equal may send more than was planned.
    assert figures["estimated"] is by_size and ("about" in plan.text(figures).partition("time")[0]) is by_size
    assert "at most" not in plan.text(figures)


def test_a_site_is_told_that_images_leave_it() -> None:
    told = leaves.leaves(resolve.load(sets=[*TINY]))
    first = told["exchanges"][0]
    assert first["phase"] == LOCAL and first["from_site"]["tensors"]["correction"]["tensors"] == 3
    assert "images that a model trained on the site's images alone draws" in told["pieces_send"]["correction"]
    assert "near-copies" in told["reveals"]["piece correction"]
    assert any("figures are for equal shares" in note for note in told["notes"])
    assert "how many images there are of each class" not in told["stays"]
    assert "what the figures suppose" in leaves.text(told).lower()
    without = leaves.leaves(resolve.load(sets=[*TINY, *WAYS["federated"]]))
    assert not without["notes"] and "how many images there are of each class" in without["stays"]


def test_a_plan_counts_the_models_that_the_server_holds() -> None:
    def server(*sets: str) -> int:
        return int(plan.plan(resolve.load(sets=[*TINY, *sets]))["memory_bytes"]["server"])

    parameters = plan.plan(resolve.load(sets=[*TINY]))["parameters"]
    assert server(*WAYS["upload"]) - server() == 3 * 4 * parameters


@pytest.mark.parametrize("way", WAYS)
def test_a_whole_run_has_a_page_a_card_and_its_place_beside_others(tmp_path: Path, way: str) -> None:
    sets = [*SMALL, *TINY, *WAYS[way], "score.samples=20", "score.every=2"]
    run = launch.start(resolve.load(sets=sets), tmp_path / way, lambda run, config: Silent())
    page, card = commands.report(run.path).read_text(), (run.path / "model" / "README.md").read_text()
    told = json.loads(run.summary.read_text())
    assert f"{told['auxiliary']['images']} synthetic images" in card and "Traffic in training" in page
    against = "fp32 FedAvg" in re.sub(r"\s+", " ", card)
    assert against is (way != "oneshot"), "without rounds there is nothing to compare with"
    assert "compressed training images" in re.sub(r"\s+", " ", page)
    commands.compare([run.path, run.path], tmp_path / "compare.html", json=False)
    assert "correction" in (tmp_path / "compare.html").read_text()


def test_corrected_rounds_are_marked_on_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sure = ("server.correction.when=slow", "server.correction.window=2", "server.correction.least_gain=1")
    sets = [*SMALL, *TINY, *sure, "training.rounds=6", "score.samples=20", "score.every=0"]
    run = launch.start(resolve.load(sets=sets), tmp_path / "run", lambda run, config: Silent())
    [first, second] = json.loads(run.summary.read_text())["auxiliary"]["corrected"]
    assert (first["round"], second["round"]) == (3, 6)
    page = commands.report(run.path).read_text()
    told = re.search(r"Learning was found slow.*?</p>", page, re.DOTALL)
    assert told is not None and re.search(r"round 3 \(loss down by \d+\.\d %\), round 6 \(loss", told[0])
    read = reading.read(run.path)
    assert [number for number, _ in corrected(read)] == [3, 6]
    marks: list[Any] = []
    monkeypatch.setattr(curves, "metric", lambda points, name, number, marked=(): marks.append(list(marked)))
    metrics(read)
    assert marks and all(marked == [3, 6] for marked in marks), "every figure of the learning rule"
    monkeypatch.undo()
    unmarked = curves.metric([(n, 1.0) for n in range(1, 7)], "x", 0)
    marked = curves.metric([(n, 1.0) for n in range(1, 7)], "x", 0, [3, 6])
    assert unmarked and marked and marked.count("<path") > unmarked.count("<path")
