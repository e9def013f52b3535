"""Runs whose clients are trained as one: the plain run's results but for rounding, and every failure its own client's."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_runs import Crash, crash_at
from torch import nn

from osmotic.config.schema import refuse_changes, to_dict
from osmotic.errors import ConfigError
from osmotic.federation.client import Worker
from osmotic.models import NETWORKS
from osmotic.models.own import OwnNetwork
from osmotic.models.parts import WHOLE
from osmotic.models.unet import ResidualUNet
from osmotic.runs import apart, resolve
from osmotic.runs.summary import weights_sha256

# Plain SGD, whose steps are as exact as the gradients: AdamW makes a whole step of what is only rounding.
SETTINGS = (
    "training.optimizer=sgd",
    "training.learning_rate=0.05",
    "training.rounds=2",
    "data.clients=4",
    "data.max_images=60",
    "model.network=tiny",
)
LEARNING_RULES = {
    "fedavg": (),
    "prox, scaffold, dropout, flips": (
        "local.pieces=['prox', 'scaffold']",
        "local.prox.mu=0.1",
        "recipe.dropout=0.1",
        "data.flip=true",
    ),
    "usplit, frozen": ("method.name=usplit", "method.freeze=true"),
    "udec": ("method.name=udec",),
    "personalise": ("after.pieces=['personalise']", "after.personalise.epochs=2"),
}


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """One more network of the package's family, for tests of seconds."""
    monkeypatch.setitem(NETWORKS, "tiny", ResidualUNet((8, 16), 1, (False, True), 4, 8))


def ended(make_server: Any, *sets: str, name: str, **kwargs: Any) -> Any:
    server = make_server(*SETTINGS, *sets, name=name, **kwargs)
    server.run()
    return server


def flat(weights: Any) -> np.ndarray:
    return np.concatenate([weights[name].ravel() for name in sorted(weights)])


@pytest.mark.parametrize("rule", sorted(LEARNING_RULES))
def test_a_run_of_clients_trained_as_one_is_the_plain_run_but_for_rounding(
    make_server: Any, rule: str
) -> None:
    plain = ended(make_server, *LEARNING_RULES[rule], name="plain")
    batched = ended(make_server, *LEARNING_RULES[rule], "engine.batched_clients=3", name="batched")
    start, one, other = (
        flat(w) for w in (plain.blueprint.initial(), plain.state.weights, batched.state.weights)
    )
    # 24 bits, and some 30 layers of sums: as in tests/training/test_batched.py.
    assert np.linalg.norm(one - other) <= 1e-4 * np.linalg.norm(one - start)
    assert [line["bytes_up"] for line in plain.observer.lines] == [
        line["bytes_up"] for line in batched.observer.lines
    ]
    for before, after in zip(plain.observer.lines, batched.observer.lines, strict=True):
        assert after["client_loss"] == pytest.approx(before["client_loss"], rel=1e-4)
        assert after["num_counted"] == before["num_counted"] == (0 if after["phase"] == "merge" else 4)
    assert vars(plain.state.totals) == vars(batched.state.totals)
    if rule == "personalise":
        own, others = (server.personal_models(book=False) for server in (plain, batched))
        assert len(own) == 4 and own.keys() == others.keys()
        for client, model in own.items():
            moved = np.linalg.norm(flat(model) - one)
            assert np.linalg.norm(flat(model) - flat(others[client])) <= 1e-3 * moved > 0


def test_moments_of_each_client_live_from_round_to_round(make_server: Any) -> None:
    kept = (
        "training.optimizer_state=keep",
        "training.optimizer=adamw",
        "training.batch_size=4",
        "data.partition=iid",
    )
    steps, names = [], []
    for sets in ((), ("engine.batched_clients=3",)):
        server = ended(make_server, *kept, *sets, name=f"run{len(sets)}")
        hashes = server.state.state_hashes
        states = {n: server.engine.sites[n].store.load(2, hashes[n]) for n in sorted(hashes)}
        names.append({n: sorted(state) for n, state in states.items()})
        steps.append(
            {n: {float(v) for k, v in state.items() if k.endswith("|step")} for n, state in states.items()}
        )
    assert names[0] == names[1] and len(names[0]) == 4
    # 60 images of 4 clients: 15 each, 4 batches of 4 or fewer in each of two rounds.
    assert steps[0] == steps[1] == {f"client-{i:03d}": {8.0} for i in range(4)}


def test_the_same_bits_with_any_number_of_workers_and_after_a_crash(make_server: Any) -> None:
    sets = ("engine.batched_clients=3", "local.pieces=['scaffold']")
    hashes = set()
    for name, workers in (("a", 1), ("b", 2)):
        server = ended(make_server, *sets, f"engine.workers={workers}", name=name)
        hashes.add(weights_sha256(server.state.weights, server.state.state_hashes))
    with pytest.raises(Crash):
        ended(make_server, *sets, name="c", at=crash_at(2, 1))
    resumed = ended(make_server, *sets, name="c", resume=True)
    hashes.add(weights_sha256(resumed.state.weights, resumed.state.state_hashes))
    assert len(hashes) == 1


def test_clients_of_different_sizes_are_trained_as_one(make_server: Any) -> None:
    skewed = ("data.partition=linear", "training.batch_size=7", "training.local_epochs=1.5")
    plain = ended(make_server, *skewed, name="plain")
    batched = ended(make_server, *skewed, "engine.batched_clients=4", name="batched")
    assert len(set(client.num_examples for client in plain.engine.clients(1, 0))) > 1
    assert vars(plain.state.totals) == vars(batched.state.totals)
    start, one, other = (
        flat(w) for w in (plain.blueprint.initial(), plain.state.weights, batched.state.weights)
    )
    assert np.linalg.norm(one - other) <= 1e-4 * np.linalg.norm(one - start)


def test_a_client_that_lost_its_state_is_its_own_failure(make_server: Any, tmp_path: Path) -> None:
    def lose(event: str, value: Any) -> None:
        if event == "done":
            shutil.rmtree(tmp_path / "lost" / "clients" / "client-001", ignore_errors=True)

    sets = ("engine.batched_clients=4", "local.pieces=['scaffold']")
    server = ended(make_server, *sets, name="lost", at=lose)
    assert [line["num_counted"] for line in server.observer.lines] == [4, 3]
    (failure,) = server.state.failures
    assert (failure["client_id"], failure["kind"]) == (1, "raised")
    assert "round 1" in failure["reason"]


def test_what_all_share_fails_them_all_and_the_run_says_why(
    make_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any, **kwargs: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr("osmotic.federation.team.fit_many", full)
    server = make_server(*SETTINGS, "engine.batched_clients=2", name="full")
    with pytest.raises(Exception, match="MemoryError"):
        server.run()


def test_a_run_goes_on_with_as_many_clients_as_one_as_it_began_with(make_server: Any) -> None:
    before, now = (to_dict(resolve.load(sets=[f"engine.batched_clients={n}"])) for n in (1, 2))
    with pytest.raises(ConfigError, match=r"engine\.batched_clients"):
        refuse_changes(before, now)


def test_one_client_or_a_network_of_ones_own_cannot_be_trained_as_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(ConfigError, match=r"engine.batched_clients = 4: .*central has one client"):
        resolve.load(sets=["method.name=central", "engine.batched_clients=4"])
    monkeypatch.setitem(NETWORKS, "mine", OwnNetwork(lambda spec: nn.Identity(), 1, WHOLE, 0, False))
    with pytest.raises(ConfigError, match=r"engine.batched_clients = 4: .*network mine"):
        resolve.load(sets=["model.network=mine", "engine.batched_clients=4"])


@pytest.mark.skipif(sys.platform != "linux", reason="processes need Linux")
def test_clients_trained_as_one_are_threads() -> None:
    assert apart.against(resolve.load(sets=["engine.device=cpu"])) is None
    reason = apart.against(resolve.load(sets=["engine.device=cpu", "engine.batched_clients=4"]))
    assert reason is not None and "engine.batched_clients" in reason


def test_workers_are_made_once(make_server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Worker] = []
    plain = Worker.__init__

    def counted(self: Worker, *args: Any, **kwargs: Any) -> None:
        made.append(self)
        plain(self, *args, **kwargs)

    monkeypatch.setattr(Worker, "__init__", counted)
    ended(make_server, "engine.batched_clients=2", "engine.workers=1", name="run")
    assert len(made) == 2
