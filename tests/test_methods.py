"""One table for all methods, and the limits in which one method is another."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest

from osmotic.config.presets import PRESETS
from osmotic.methods import METHODS
from osmotic.runs.summary import weights_sha256

QUICK = ("training.rounds=2", "data.max_images=48")


def saved(server: Any) -> tuple[dict[str, bytes], dict[str, Any]]:
    """What a checkpoint holds of a server, but for the time."""
    tensors, notes = server.state.to_checkpoint()
    del notes["wall_seconds"]
    return {n: t.tobytes() for n, t in tensors.items()}, json.loads(json.dumps(notes))


@pytest.mark.parametrize("name", sorted(METHODS))
def test_contract_of_every_method(make_server: Any, name: str) -> None:
    setting = f"method.name={name}"
    # Where no client trains in a round the server must.
    more = ("server.pieces=correction", "data.partition=iid") if METHODS[name].server_trains else ()
    first, second = (make_server(setting, *more, *QUICK, name=n) for n in ("a", "b"))
    shapes = {n: w.shape for n, w in first.state.weights.items()}
    first.run()
    second.run()
    assert weights_sha256(first.state.weights, first.state.state_hashes) == weights_sha256(
        second.state.weights, second.state.state_hashes
    )
    assert {n: w.shape for n, w in first.state.weights.items()} == shapes
    assert all(w.dtype == np.float32 and np.isfinite(w).all() for w in first.state.weights.values())
    assert not first.state.failures
    numbers = [p.server_round for p in first.phases]
    assert numbers == sorted(set(numbers)), "rounds of phases are unique and ascend"
    with pytest.raises(dataclasses.FrozenInstanceError):
        first.method.images = {}  # what a phase leaves behind is the server's state, never the method's
    restored = make_server(setting, *more, *QUICK, name="a", resume=True)
    assert saved(restored) == saved(first)
    assert name in PRESETS, "every method is also a preset of its own name"


def test_fedavg_with_one_client_is_central_training(make_server: Any) -> None:
    settings = (
        "data.clients=1",
        "data.partition=iid",
        "training.optimizer=sgd",
        "training.learning_rate=0.05",
        *QUICK,
    )
    federated = make_server("method.name=fedavg", *settings, name="federated")
    central = make_server("method.name=central", *settings, name="central")
    # The random order of images and noise follows the client's name, so both must have the same one.
    site = federated.engine.sites["client-000"]
    site.client = central.engine.sites["central"].client
    federated.engine.sites, federated.engine._clients = {"central": site}, [site.client]
    federated.run()
    central.run()
    worst = max(
        float(np.abs(federated.state.weights[n] - central.state.weights[n]).max())
        for n in central.state.weights
    )
    assert worst == 0.0
    assert federated.state.totals.bytes_up > 0 == central.state.totals.bytes_up


def test_fedavg_is_the_mean_by_number_of_images(make_server: Any) -> None:
    server = make_server("training.rounds=1", "recipe.ema_half_lives=[]", name="all")
    start = {n: w.copy() for n, w in server.state.weights.items()}
    replies: dict[str, Any] = {}
    fold = type(server.method).fold

    class Recording(type(server.method)):  # type: ignore[misc]
        def fold(self, total: Any, reply: Any) -> None:
            replies[reply.task.client.name] = (reply.weight, {n: t.copy() for n, t in reply.tensors.items()})
            fold(self, total, reply)

    server.method = Recording()
    server.run()
    total = sum(weight for weight, _ in replies.values())
    assert sorted(w for w, _ in replies.values()) == sorted(
        s.client.num_examples for s in server.engine.sites.values()
    )
    for n, w in start.items():
        by_hand = sum(weight * t[f"model/{n}"].astype(np.float64) for weight, t in replies.values()) / total
        expected = w + by_hand.astype(np.float32)
        # The mean and the sum are each rounded once to float32.
        np.testing.assert_allclose(server.state.weights[n], expected, rtol=2**-22, atol=2**-24)


def test_local_sends_nothing_and_every_client_differs(make_server: Any) -> None:
    server = make_server("method.name=local", *QUICK)
    start = {n: w.copy() for n, w in server.state.weights.items()}
    server.run()
    assert (server.state.totals.bytes_up, server.state.totals.bytes_down) == (0, 0)
    assert (server.state.totals.parameters_up, server.state.totals.parameters_down) == (0, 0)
    assert all(np.array_equal(server.state.weights[n], start[n]) for n in start)
    assert len(set(server.state.state_hashes.values())) == len(server.engine.sites)


def test_central_holds_the_union_of_what_clients_hold(make_server: Any) -> None:
    central = make_server("method.name=central", "data.holdout=0.25", name="central")
    federated = make_server("data.holdout=0.25", name="federated")
    [site] = central.engine.sites.values()
    assert len(site.images) == sum(len(s.images) for s in federated.engine.sites.values())
