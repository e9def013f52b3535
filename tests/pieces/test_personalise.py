"""Personalise: a global model and one for each client, both kept and both scored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_network
import torch
from small_runs import SMALL, Crash, Silent

from osmotic.config.schema import TrainingConfig
from osmotic.errors import ConfigError
from osmotic.models.parts import PARTS
from osmotic.pieces import personalise
from osmotic.pieces.low_rank import LowRank
from osmotic.protocol.messages import Answer, Client, Failure
from osmotic.protocol.view import Step
from osmotic.runs import launch, resolve


def test_the_global_model_stays_and_every_client_has_its_own(make_server: Any) -> None:
    plain = make_server(name="plain")
    plain.run()
    server = make_server("after.pieces=personalise", name="own")
    server.run()
    assert [p.name for p in server.phases] == ["train"] * 3 + ["personalise"]
    assert all(np.array_equal(w, server.state.weights[n]) for n, w in plain.state.weights.items())
    own = server.personal_models()
    assert sorted(own) == ["client-000", "client-001", "client-002"]
    name = next(iter(server.layout))
    assert len({m[name].tobytes() for m in [*own.values(), server.state.weights]}) == 4, "all differ"
    assert vars(server.state.totals) == vars(plain.state.totals), (
        "what follows the rounds is outside the totals"
    )


def test_half_participation_still_gives_everybody_a_model(make_server: Any) -> None:
    server = make_server("after.pieces=personalise", "training.fraction_train=0.34", "training.rounds=1")
    server.run()
    assert server.observer.lines[-1]["num_counted"] == 3 and len(server.personal_models()) == 3


def test_both_are_scored_saved_and_summed_up(tmp_path: Path) -> None:
    sets = [*SMALL, "after.pieces=personalise", "after.personalise.epochs=1", "training.rounds=1"]
    run = launch.start(resolve.load(sets=sets), tmp_path / "run", lambda r, c: Silent())
    summary = json.loads(run.summary.read_text())
    assert summary["pieces"] == ["personalise"] and summary["global_model"] and summary["personal"]
    quality = summary["quality"]
    assert quality["fd"] is not None and quality["personal"]["mean"]["fd_all"] is not None
    assert quality["personal"]["mean"]["fd_all"] != quality["mean"]["fd_all"]
    assert len(quality["personal"]["per_client"]) == 3
    assert (run.model / "model_index.json").is_file()
    assert len(list(run.personal.glob("*/model_index.json"))) == 3
    ledger = [json.loads(line) for line in run.log("ledger").read_text().splitlines()]
    fetched = [e for e in ledger if e["phase"] == "models" and e["direction"] == "up"]
    assert [e["parameters"] for e in fetched] == [summary["parameters"]] * 3, (
        "who gave a model away is on the ledger"
    )
    assert not any(e["total"] for e in fetched)


@pytest.mark.parametrize("method", ["central", "local", "udec"])
def test_where_nobody_could_be_personalised_it_is_refused_with_the_reason(method: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"after.pieces = 'personalise': cannot work with method {method}:"
    ):
        resolve.load(sets=["after.pieces=personalise", f"method.name={method}"])


def test_clients_keep_all_parts_after_it_and_none_before(make_server: Any) -> None:
    server = make_server("after.pieces=personalise", "training.rounds=1")
    server.run()
    site = next(iter(server.engine.sites.values()))
    names = {n for part in PARTS for n in server.part_names[part]}
    kept = {k.removeprefix("personal/") for k in site.store.load(2) if k.startswith("personal/")}
    assert kept == names


# --- what may move ---

PERSONAL = ("after.pieces=personalise", "training.rounds=1", "recipe.ema_half_lives=[1000.0]")


@pytest.mark.parametrize("trains", ["all", "decoder", "adapter", "embedding"])
def test_what_may_not_move_stays_as_it_is_published(make_server: Any, trains: str) -> None:
    rank = 2
    server = make_server(
        *PERSONAL,
        f"after.personalise.trains={trains}",
        *([f"after.personalise.rank={rank}"] if trains == "adapter" else []),
        "training.rounds=2",
    )
    server.run()
    published, last = server.state.scored_weights(), server.state.weights
    assert any(not np.array_equal(published[n], last[n]) for n in last), "an average over rounds"
    for own in server.personal_models().values():
        moved = {n for n, w in own.items() if not np.array_equal(w, published[n])}
        if trains == "all":
            assert len(moved) > 0.9 * len(own)
        elif trains == "decoder":
            assert moved and moved <= set(server.part_names["decoder"])
        elif trains == "embedding":
            assert moved == {"class_embedding.weight", "time_embedding.linear_2.bias"}
            assert sum(own[n].size for n in moved) <= 2**14
        else:
            assert moved and all(own[n].ndim >= 2 for n in moved)
            for n in moved:
                change = (own[n].astype(np.float64) - published[n]).reshape(len(own[n]), -1)
                assert np.linalg.matrix_rank(change, tol=1e-5 * np.linalg.norm(change)) <= rank, n


def test_an_adapters_gradients_are_those_of_the_product() -> None:
    """By autograd through W0 + B A, a step of Adam each; the layer's own gradient is zero after it."""
    torch.manual_seed(0)
    base = torch.randn(6, 5, 3, 3)
    goal = torch.randn(6, 45)
    layer = torch.nn.Parameter(base.clone())
    training = TrainingConfig(optimizer="adam", grad_clip=0.0)
    step = Step(
        Client(0, "one", 1),
        "personalise",
        1,
        0,
        training,
        1e-2,
        (),
        {},
        received={"layer": base},
        parameters={"layer": layer},
    )
    adapter = LowRank(step, 2, 7)
    a, b = (f.clone().requires_grad_() for f in adapter.factors["layer"])
    with torch.no_grad():
        b += 0.1
        adapter.factors["layer"][1].add_(0.1)
    adapter.merge(step.parameters)
    expected = torch.optim.Adam([a, b], lr=1e-2)
    for _ in range(3):
        ((layer.reshape(6, 45) - goal) ** 2).sum().backward()
        adapter.step(step.parameters)
        assert layer.grad is not None and not layer.grad.any()
        adapter.merge(step.parameters)
        expected.zero_grad()
        ((base.reshape(6, 45) + b @ a - goal) ** 2).sum().backward()
        expected.step()
        torch.testing.assert_close(adapter.factors["layer"][0], a.detach(), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(
            layer.detach(), (base.reshape(6, 45) + b @ a).detach().view_as(layer), rtol=1e-5, atol=1e-6
        )


def test_an_embedding_is_at_most_64_kb_and_a_network_without_one_is_told_of() -> None:
    names = {
        "class_embedding.weight": (1001, 256),
        "time_embedding.linear_2.bias": (256,),
        "conv_in.bias": (256,),
    }
    assert personalise.embedding(names) == ["time_embedding.linear_2.bias"], "a thousand classes are too many"
    assert personalise.embedding({"conv_in.bias": (256,)}) == []


# --- when it is best ---


def test_who_gets_worse_keeps_the_published_model(make_server: Any) -> None:
    """A rate at which training destroys the model: with images held out every client keeps what it was sent, without them none does."""
    keys = (
        *PERSONAL,
        "after.personalise.rate=100",
        "training.learning_rate=0.01",
        "after.personalise.epochs=2",
    )
    careless = make_server(*keys, name="careless")
    careless.run()
    published = careless.state.scored_weights()
    assert not any(
        np.array_equal(own[n], published[n])
        for own in careless.personal_models().values()
        for n in ("conv_in.weight",)
    )
    careful = make_server(*keys, "data.holdout=0.2", name="careful")
    careful.run()
    published = careful.state.scored_weights()
    models = careful.personal_models()
    assert len(models) == 3
    for own in models.values():
        assert all(np.array_equal(w, published[n]) for n, w in own.items())


def test_the_pass_that_was_best_is_kept(make_server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is watched is asked before the first step and after every pass, and the weights of the lowest are kept."""
    told = iter([3.0, 2.0, 1.0, 5.0, 0.9])
    seen: list[dict[str, np.ndarray]] = []
    from osmotic.federation.client import Worker

    def watch(self: Worker, client: str, images: Any) -> float:
        seen.append({n: p.detach().numpy().copy() for n, p in self.named.items()})
        return next(told)

    monkeypatch.setattr(Worker, "watch", watch)
    server = make_server(*PERSONAL, "data.clients=1", "data.holdout=0.2", "after.personalise.epochs=3")
    server.run()
    [own] = server.personal_models().values()
    assert len(seen) == 4
    assert all(np.array_equal(w, seen[2][n]) for n, w in own.items())
    assert any(not np.array_equal(seen[3][n], seen[2][n]) for n in own)


@pytest.mark.parametrize("trains", ["all", "decoder", "adapter"])
@pytest.mark.parametrize("watched", [True, False])
def test_a_pass_is_judged_and_kept_by_the_mean_of_its_steps(
    make_server: Any, monkeypatch: pytest.MonkeyPatch, trains: str, watched: bool
) -> None:
    """Of an adapter the means of its factors; the next pass goes on from the last step, not from the mean."""
    piece = personalise.Personalise
    passes: list[list[list[torch.Tensor]]] = [[]]  # what is trained, after each step of each pass
    looked: list[dict[str, np.ndarray]] = []
    begun: list[list[torch.Tensor]] = []
    own_step, own_backward, own_look = piece.stepped, piece.after_backward, piece._look

    def backward(self: Any, step: Step, work: Any) -> None:
        if work is not None and not passes[-1]:
            begun.append([one.clone() for one in work.moving])
            if (
                adapter := work.low_rank
            ) is not None:  # the gradient was that of the layers where the last pass has ended
                for name, (a, b) in adapter.factors.items():
                    layer = adapter.base[name] + (b @ a).view(adapter.base[name].shape)
                    assert torch.equal(step.parameters[name].data, layer), name
        own_backward(self, step, work)

    def stepped(self: Any, step: Step, work: Any) -> None:
        if work is not None:
            passes[-1].append([one.clone() for one in work.moving])
        own_step(self, step, work)

    def look(step: Step, work: Any) -> None:
        own_look(step, work)
        if passes[-1]:
            means = [torch.stack(values).mean(0) for values in zip(*passes[-1], strict=True)]
            assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(means, work.moving, strict=True))
            assert any(not torch.equal(a, b) for a, b in zip(passes[-1][-1], work.moving, strict=True))
            looked.append({n: p.detach().numpy().copy() for n, p in step.parameters.items()})
            passes.append([])

    monkeypatch.setattr(piece, "after_backward", backward)
    monkeypatch.setattr(piece, "stepped", stepped)
    monkeypatch.setattr(piece, "_look", staticmethod(look))
    keys = ["data.clients=1", "after.personalise.epochs=2", f"after.personalise.trains={trains}"]
    server = make_server(
        *PERSONAL, *keys, "training.batch_size=4", *(["data.holdout=0.2"] if watched else [])
    )
    server.run()
    assert len(looked) == 2 and len(passes[0]) == len(passes[1]) > 1
    assert all(torch.equal(a, b) for a, b in zip(begun[1], passes[0][-1], strict=True))
    [own] = server.personal_models(book=False).values()
    kept = looked if watched else looked[1:]
    assert any(all(np.array_equal(own[n], one[n]) for n in own) for one in kept)


def test_what_is_watched_is_not_scored_by(make_server: Any) -> None:
    from osmotic.runs import study

    plain = study.prepare(resolve.load(sets=[*SMALL, "data.holdout=0.3"]))
    made = study.prepare(resolve.load(sets=[*SMALL, "data.holdout=0.3", "after.pieces=personalise"]))
    for before, after in zip(plain.holdings, made.holdings, strict=True):
        assert not len(before.watched) and len(after.watched) >= len(after.own_test) > 0
        both = np.concatenate([after.watched, after.own_test])
        assert sorted(both) == sorted(before.own_test) and np.array_equal(before.train, after.train)


def test_a_look_is_the_same_each_time_and_moves_nothing(make_server: Any) -> None:
    server = make_server("training.rounds=1", "after.pieces=personalise", "data.holdout=0.3")
    site = next(iter(server.engine.sites.values()))
    from osmotic.federation.client import Worker

    worker = Worker(
        server.blueprint,
        server.blueprint.model(torch.device("cpu")),
        server.blueprint.initial(),
        server.contract,
    )
    assert site.watched is not None
    before = torch.get_rng_state()
    one = worker.watch("client-000", site.watched)
    assert one == worker.watch("client-000", site.watched) > 0
    assert one != worker.watch("client-001", site.watched), "noise of its own"
    assert torch.equal(before, torch.get_rng_state()) and worker.model.training


# --- during the rounds ---


def test_the_last_rounds_own_training_can_be_kept_at_no_cost(make_server: Any) -> None:
    plain = make_server("training.rounds=2", name="plain")
    plain.run()
    server = make_server(
        "after.pieces=personalise", "after.personalise.when=rounds", "training.rounds=2", name="own"
    )
    server.run()
    assert all(np.array_equal(w, server.state.weights[n]) for n, w in plain.state.weights.items())
    assert vars(server.state.totals) == vars(plain.state.totals)
    lines = server.run_dir.log("ledger").read_text().splitlines()
    assert [line for line in lines if '"score"' not in line] == plain.run_dir.log(
        "ledger"
    ).read_text().splitlines()
    models = server.personal_models(book=False)
    assert len(models) == 3
    sizes = {c.name: c.num_examples for c in server.clients}
    for n, averaged in server.state.weights.items():
        mean = sum(sizes[c] * m[n].astype(np.float64) for c, m in models.items()) / sum(sizes.values())
        assert np.allclose(mean, averaged, atol=1e-5), "what they kept is what the server averaged"
    assert (
        server.observer.lines[-1]["phase"] == "personalise" and server.observer.lines[-1]["num_counted"] == 0
    )


def test_who_has_trained_in_no_round_has_no_model_of_its_own(make_server: Any) -> None:
    # All go through the phase before the rounds, one of three is drawn for the only round.
    server = make_server(
        "after.pieces=personalise",
        "after.personalise.when=rounds",
        "server.pieces=correction",
        "server.correction.local_epochs=1",
        "training.fraction_train=0.34",
        "training.rounds=1",
    )
    server.run()
    trained = [name for name, number in server.state.counted.items() if number == 1]
    assert len(server.state.counted) == 3 and len(trained) < 3
    assert list(server.personal_models(book=False)) == trained


def test_a_model_that_training_breaks_is_its_clients_failure(make_server: Any) -> None:
    sets = (
        "training.rounds=1",
        "training.grad_clip=0",
        "after.pieces=personalise",
        "after.personalise.rate=100",
    )
    server = make_server(
        *sets, "training.learning_rate=1", "training.optimizer=sgd", "training.max_abs_update=1000000"
    )
    server.run()
    told = {failure["reason"] for failure in server.state.failures if failure["round"] == 2}
    assert told == {"piece personalise: leaves weights that are not finite: a smaller rate, or fewer epochs"}
    assert server.personal_models(book=False) == {}


def test_the_rate_that_is_told_is_the_one_that_was_used(make_server: Any) -> None:
    server = make_server(
        "after.pieces=personalise",
        "after.personalise.rate=0.1",
        "training.learning_rate=0.002",
        "training.lr_schedule=cosine",
    )
    server.run()
    # Half a cosine over three rounds: 1, 3/4 and 1/4 of the rate; then a tenth of it, constant.
    told = [line["learning_rate"] for line in server.observer.lines]
    assert told == pytest.approx([0.002, 0.0015, 0.0005, 0.0002])


# --- killed ---

INSIDE: dict[str, tuple[str, ...]] = {
    "all": ("data.holdout=0.3",),
    "adapter": ("data.holdout=0.3", "after.personalise.trains=adapter"),
    "embedding": (
        "data.holdout=0.3",
        "after.personalise.trains=embedding",
        "codec.up=int8",
        "codec.down=int8",
        "codec.error_feedback=true",
    ),
    "rounds": ("after.personalise.when=rounds", "training.fraction_train=0.67"),
}


@pytest.mark.parametrize("kind", INSIDE)
def test_killed_inside_its_phase_and_resumed_it_has_equal_bits(make_server: Any, kind: str) -> None:
    keys = ("after.pieces=personalise", "training.rounds=2", *INSIDE[kind])

    def at(event: str, value: Any) -> None:
        """After the first client of that phase; as it is closed where nobody is asked, before it has a checkpoint."""
        nonlocal inside
        inside |= event == "phase" and value.name == "personalise"
        if inside and event == ("done" if kind == "rounds" else "answered"):
            raise Crash

    unbroken, inside = make_server(*keys, name="unbroken"), False
    unbroken.run()
    with pytest.raises(Crash):
        make_server(*keys, name="broken", at=at).run()
    resumed = make_server(*keys, name="broken", resume=True)
    assert resumed.state.step == 2 and len(resumed.phases) == 3, "the rounds are not done again"
    resumed.run()
    expected, found = (server.personal_models(book=False) for server in (unbroken, resumed))
    assert expected and expected.keys() == found.keys()
    for client, own in expected.items():
        assert all(np.array_equal(w, found[client][n]) for n, w in own.items()), client
    assert all(np.array_equal(w, resumed.state.weights[n]) for n, w in unbroken.state.weights.items())
    assert resumed.state.state_hashes == unbroken.state.state_hashes


# --- what cannot be ---


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        (
            ("after.personalise.trains=embedding", "model.network=tiny", "model.conditional=false"),
            "has no embedding of class or time",
        ),
        (
            ("after.personalise.trains=adapter", "after.personalise.rank=1024"),
            "no layer of this network is wider",
        ),
        (("after.personalise.rank=3",), "rank: is of trains = adapter"),
        (
            ("after.personalise.when=rounds", "after.personalise.epochs=3"),
            "epochs: when = rounds trains nothing",
        ),
    ],
)
def test_what_would_do_nothing_is_refused_before_any_work(
    make_server: Any, keys: tuple[str, ...], told: str
) -> None:
    tiny_network.register()
    with pytest.raises(ConfigError, match=told):
        make_server("after.pieces=personalise", *keys)


def test_who_fails_in_that_phase_has_no_model_of_its_own(make_server: Any) -> None:
    server = make_server("after.pieces=personalise", "training.rounds=1")
    exchange = server.engine.exchange

    def failing(tasks: Any, deadline: float) -> Any:
        for answer in exchange(tasks, deadline):
            header = answer.sent.packet.header
            fails = header["client"] == "client-001" and header["phase"] == "personalise"
            yield Answer(answer.sent, failure=Failure("raised", "cannot")) if fails else answer

    server.engine.exchange = failing
    server.run()
    assert sorted(server.personal_models(book=False)) == ["client-000", "client-002"]


def test_a_part_of_a_pass_is_looked_at_too(make_server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from osmotic.federation.client import Worker

    told = iter([3.0, 2.0])
    monkeypatch.setattr(Worker, "watch", lambda self, client, images: next(told))
    keys = ("data.clients=1", "data.holdout=0.2", "after.personalise.epochs=0.5", "training.batch_size=4")
    server = make_server(*PERSONAL, *keys)
    server.run()
    [own] = server.personal_models(book=False).values()
    published = server.state.scored_weights()
    assert any(not np.array_equal(w, published[n]) for n, w in own.items()) and next(told, None) is None
