"""FedProx and SCAFFOLD: numbers by hand, limits, and what must hold between clients and server after every round."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from osmotic.config.schema import TrainingConfig
from osmotic.methods import METHODS
from osmotic.pieces import PIECES
from osmotic.pieces.chain import Chain
from osmotic.protocol.messages import Client, Phase, Reply, Task
from osmotic.protocol.view import Step, View
from osmotic.runs import resolve
from osmotic.training.images import Images
from osmotic.training.loop import fit
from osmotic.training.network import FlatNetwork

PLAIN_SGD = TrainingConfig(optimizer="sgd", grad_clip=0.0, batch_size=2, learning_rate=0.1)


class Quadratic:
    """A process whose loss is the mean squared output, with no noise at all."""

    def loss(self, model: Any, x: torch.Tensor, labels: Any, generator: Any) -> torch.Tensor:
        return (model(x.flatten(1)) ** 2).mean()


def make_step(model: torch.nn.Module, extras: dict[str, np.ndarray] | None = None) -> Step:
    """A client's step on this network, of which all parameters are asked back."""
    named = dict(model.named_parameters())
    return Step(
        client=Client(0, "client-000", 6),
        phase="train",
        server_round=1,
        seed=0,
        training=PLAIN_SGD,
        learning_rate=PLAIN_SGD.learning_rate,
        returns=("decoder",),
        part_names={"encoder": [], "bottleneck": [], "decoder": sorted(named)},
        extras=extras or {},
        model=model,
        received={n: p.detach().clone() for n, p in named.items()},
        parameters=named,
    )


def train(chain: Chain, step: Step, state: dict[str, np.ndarray], steps: int) -> Any:
    """The real loop on six images with this chain; returns the rule after the last step."""
    images = np.random.default_rng(0).integers(0, 256, (6, 2, 2, 1)).astype(np.uint8)
    rule = chain.open(METHODS["fedavg"](), step, state)
    fit(
        FlatNetwork(step.model),  # type: ignore[arg-type]
        Images.of(images, None, torch.device("cpu")),
        Quadratic(),  # type: ignore[arg-type]
        PLAIN_SGD,
        steps=steps,
        learning_rate=step.learning_rate,
        rng=np.random.default_rng(1),
        rule=rule,
    )
    return rule


def make_model() -> torch.nn.Module:
    """Four inputs, three outputs; the same weights every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return torch.nn.Linear(4, 3)


# --- FedProx ---


def test_the_gradient_is_that_of_half_mu_times_squared_distance() -> None:
    # w - w0 = (3, 4): the gradient of mu / 2 * 25 with mu = 2 is (6, 8), on top of a gradient of 1.
    model = torch.nn.Linear(2, 1, bias=False)
    model.weight.data = torch.tensor([[3.0, 4.0]])
    step = make_step(model)
    step.received = {"weight": torch.zeros(1, 2)}
    piece = PIECES["prox"](mu=2.0)
    work = piece.client_begin(step, {})
    model.weight.grad = torch.ones(1, 2)
    piece.after_backward(step, work)
    assert model.weight.grad.tolist() == [[7.0, 9.0]]
    gap = (model.weight - step.received["weight"]).square().sum()
    [by_torch] = torch.autograd.grad(2.0 / 2 * gap, [model.weight])
    assert torch.equal(model.weight.grad - 1, by_torch)


def test_at_mu_0_it_is_fedavg_bit_for_bit(make_server: Any) -> None:
    plain = make_server(name="plain")
    plain.run()
    prox = make_server("local.pieces=prox", "local.prox.mu=0.0", name="prox")
    prox.run()
    pulled = make_server("local.pieces=prox", "local.prox.mu=1.0", name="pulled")
    pulled.run()
    assert all(np.array_equal(w, prox.state.weights[n]) for n, w in plain.state.weights.items())
    assert any(not np.array_equal(w, pulled.state.weights[n]) for n, w in plain.state.weights.items())


def test_a_strong_pull_keeps_clients_near_the_rounds_weights(make_server: Any) -> None:
    moved = []
    for mu in (0.0, 10.0):
        server = make_server("local.pieces=prox", f"local.prox.mu={mu}", "training.rounds=1", name=str(mu))
        server.run()
        moved.append(server.observer.lines[0]["update_norm"])
    assert moved[1] < 0.9 * moved[0]


# --- SCAFFOLD ---


def test_under_plain_sgd_a_clients_variate_is_option_2_of_the_paper() -> None:
    model, rng = make_model(), np.random.default_rng(5)
    shapes = {n: tuple(p.shape) for n, p in model.named_parameters()}
    common = {n: rng.normal(size=s).astype(np.float32) for n, s in shapes.items()}
    own = {n: rng.normal(size=s).astype(np.float32) for n, s in shapes.items()}
    step = make_step(model, {f"scaffold/{n}": t for n, t in common.items()})
    rule = train(
        Chain({"scaffold": PIECES["scaffold"]()}), step, {f"scaffold/{n}": t for n, t in own.items()}, 5
    )
    _, sent, kept = rule.close(dict)
    for n in shapes:
        start, end = step.received[n].numpy(), dict(model.named_parameters())[n].detach().numpy()
        # Option II: c_k - c + (x - y_k) / (K eta), with K = 5 and eta = 0.1.
        option_2 = own[n] - common[n] + (start - end) / (5 * 0.1)
        np.testing.assert_allclose(kept[f"scaffold/{n}"], option_2, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(sent[f"scaffold/{n}"], option_2 - own[n], rtol=1e-4, atol=1e-5)


def test_gradients_are_corrected_by_the_difference_of_the_variates() -> None:
    model = torch.nn.Linear(1, 1, bias=False)
    step = make_step(model, {"weight": np.array([[3.0]], np.float32)})
    piece = PIECES["scaffold"]()
    work = piece.client_begin(step, {"weight": np.array([[1.0]], np.float32)})
    model.weight.grad = torch.tensor([[10.0]])
    piece.after_backward(step, work)
    assert model.weight.grad.item() == 12.0, "g - c_k + c = 10 - 1 + 3"
    assert work.sums["weight"].item() == 10.0, "the variate is of uncorrected gradients"


def test_the_servers_variate_counts_clients_that_were_not_asked() -> None:
    clients = [Client(i, f"client-{i:03d}", 5 * i + 1) for i in range(4)]
    view = View(resolve.load(), {"w": (1,)}, {"encoder": [], "bottleneck": [], "decoder": ["w"]}, clients)
    piece, gathered = PIECES["scaffold"](), None
    for client, delta in ((clients[0], 1.0), (clients[2], 3.0)):
        reply = Reply(Task(client, "train"), {"w": np.array([delta], np.float32)}, client.num_examples, {})
        gathered = piece.gather(view, gathered, reply)
    mean = {"w": np.zeros(1, np.float32)}
    _, state, _ = piece.change(view, piece.server_start(view), gathered, Phase("train", 1), mean)
    assert state["w"].tolist() == [1.0], "(1 + 3) / 4, whatever the clients' sizes"


def test_with_variates_of_zero_the_first_round_is_fedavgs(make_server: Any) -> None:
    plain = make_server("training.rounds=1", name="plain")
    plain.run()
    server = make_server("training.rounds=1", "local.pieces=scaffold", name="scaffold")
    server.run()
    assert all(np.array_equal(w, server.state.weights[n]) for n, w in plain.state.weights.items())
    later = [
        make_server("training.rounds=2", *s, name=n)
        for s, n in (((), "p2"), (("local.pieces=scaffold",), "s2"))
    ]
    for run in later:
        run.run()
    assert any(not np.array_equal(w, later[1].state.weights[n]) for n, w in later[0].state.weights.items())


@pytest.mark.parametrize("settings", [(), ("training.fraction_train=0.67", "codec.up=int8")])
def test_the_servers_variate_is_the_mean_of_what_clients_keep(make_server: Any, settings: Any) -> None:
    server = make_server("local.pieces=scaffold", "training.rounds=4", *settings)
    server.run()
    total = {n: np.zeros(s, np.float64) for n, s in server.layout.items()}
    for site in server.engine.sites.values():
        counted = server.state.counted.get(site.client.name)
        if counted is not None:
            state = site.store.load(counted)
            for n in total:
                total[n] += state[f"piece/scaffold/{n}"]
    for n, t in total.items():
        np.testing.assert_allclose(server.state.pieces[f"scaffold/{n}"], t / 3, rtol=1e-4, atol=1e-7)


def test_its_bytes_are_twice_fedavgs_and_its_weights_too() -> None:
    from osmotic.runs import plan

    fedavg, scaffold = (plan.plan(resolve.load(preset=p)) for p in ("fedavg", "scaffold"))
    assert scaffold["parameters_up"] == 2 * fedavg["parameters_up"]
    assert scaffold["parameters_down"] == 2 * fedavg["parameters_down"]
    int8 = plan.plan(resolve.load(preset="scaffold", sets=["codec.up=int8"]))
    assert int8["bytes_up"] > 1.2 * fedavg["bytes_up"], "variates travel exactly, whatever the codec"


def test_a_variate_out_of_range_is_a_failure_and_not_a_sum(make_server: Any, monkeypatch: Any) -> None:
    scaffold = PIECES["scaffold"]
    end = scaffold.client_end

    def exploding(self: Any, step: Any, work: Any, state: Any) -> Any:
        sent, kept = end(self, step, work, state)
        if step.client.name == "client-001":
            sent = {n: np.full_like(t, 1e6) for n, t in sent.items()}
        return sent, kept

    monkeypatch.setattr(scaffold, "client_end", exploding)
    server = make_server("local.pieces=scaffold", "training.rounds=1")
    server.run()
    [failure] = server.state.failures
    assert (failure["client_id"], failure["kind"]) == (1, "range") and "scaffold/" in failure["reason"]


def test_options_are_a_frozen_dataclass_and_nothing_else() -> None:
    for name, cls in PIECES.items():
        piece = cls()
        assert dataclasses.is_dataclass(piece), name
        with pytest.raises(dataclasses.FrozenInstanceError):
            piece.anything = 1  # type: ignore[attr-defined]
