"""Server optimisers: two steps worked out by hand, and their limits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from osmotic.pieces import PIECES
from osmotic.protocol.messages import Phase

VIEW: Any = None  # none of the optimisers looks at the server
ROUND = Phase("train", 1)


def steps(name: str, changes: list[float], **options: float) -> list[float]:
    """What the server moves by, given the mean changes of one weight, round after round."""
    piece, state, moved = PIECES[name](**options), {}, []
    for change in changes:
        bent, state, _ = piece.change(VIEW, state, None, ROUND, {"w": np.array([change], np.float32)})
        moved.append(float(bent["w"][0]))
    return moved


# Worked out by hand. momentum: m = 2, then 0.5 * 2 + 1 = 2. nesterov: m = 2, 0.5 * (2 + 0.5 * 2) = 1.5; then m = 2,
# 0.5 * (1 + 0.5 * 2) = 1. The adaptive ones begin with v = tau^2.
# adam: m = 0.5 * 3 = 1.5, v = 0.5 * 1 + 0.5 * 9 = 5, 1.5 / (sqrt 5 + 1); m = 0.75 + 0.5 = 1.25, v = 2.5 + 0.5 = 3.
# yogi: v = 1 - 0.5 * 9 * sign(1 - 9) = 5.5; then 5.5 - 0.5 * 1 * sign(5.5 - 1) = 5.
# adagrad: v = 16 + 9 = 25, 3 / (5 + 4) = 1/3; then v = 25 + 144 = 169, 12 / (13 + 4).
BY_HAND = [
    ("momentum", {"momentum": 0.5}, [2, 1], [2, 2]),
    ("momentum", {"momentum": 0.5, "learning_rate": 0.25}, [2, 1], [0.5, 0.5]),
    ("nesterov", {"momentum": 0.5, "learning_rate": 0.5}, [2, 1], [1.5, 1.0]),
    (
        "adam",
        {"learning_rate": 1.0, "beta1": 0.5, "beta2": 0.5, "tau": 1.0},
        [3, 1],
        [1.5 / (5**0.5 + 1), 1.25 / (3**0.5 + 1)],
    ),
    (
        "yogi",
        {"learning_rate": 1.0, "beta1": 0.5, "beta2": 0.5, "tau": 1.0},
        [3, 1],
        [1.5 / (5.5**0.5 + 1), 1.25 / (5**0.5 + 1)],
    ),
    ("adagrad", {"learning_rate": 1.0, "tau": 4.0}, [3, 12], [1 / 3, 12 / 17]),
]


@pytest.mark.parametrize(("name", "options", "changes", "expected"), BY_HAND)
def test_two_steps_by_hand(name: str, options: Any, changes: list[float], expected: list[float]) -> None:
    assert steps(name, changes, **options) == pytest.approx(expected, rel=1e-6)


def test_the_defaults_are_those_of_the_page() -> None:
    # As docs/methods.md states them, and Flower's implementations of 2003.00295 have betas and tau.
    adam, yogi, adagrad = PIECES["adam"](), PIECES["yogi"](), PIECES["adagrad"]()
    assert (adam.beta1, adam.beta2, adam.tau) == (yogi.beta1, yogi.beta2, yogi.tau) == (0.9, 0.99, 1e-3)
    assert adagrad.beta1 == 0 and adagrad.tau == 1e-3
    assert (PIECES["momentum"]().momentum, PIECES["momentum"]().learning_rate) == (0.9, 1.0)
    assert (PIECES["nesterov"]().momentum, PIECES["nesterov"]().learning_rate) == (0.9, 0.7)


@pytest.mark.parametrize("name", ["momentum", "nesterov", "adam", "yogi", "adagrad"])
def test_a_part_that_nobody_returned_keeps_its_moments(name: str) -> None:
    piece = PIECES[name]()
    one = np.ones(2, np.float32)
    _, state, _ = piece.change(VIEW, {}, None, ROUND, {"a": one, "b": one})
    bent, later, _ = piece.change(VIEW, state, None, ROUND, {"a": one})
    assert set(bent) == {"a"}
    kept = [k for k in state if k.split("/")[-1] == "b"]
    assert kept and all(np.array_equal(state[k], later[k]) for k in kept)
    assert not np.array_equal(bent["a"], np.zeros(2))


def test_rate_1_without_momentum_is_fedavg_bit_for_bit(make_server: Any) -> None:
    plain = make_server(name="plain")
    plain.run()
    server = make_server("server.pieces=momentum", "server.momentum.momentum=0.0", name="momentum")
    server.run()
    assert all(np.array_equal(w, server.state.weights[n]) for n, w in plain.state.weights.items())


def test_a_round_without_a_quorum_moves_no_moment(make_server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from osmotic.federation.client import Worker

    serve = Worker._serve

    def failing(self: Any, site: Any, packet: Any) -> Any:
        if packet.header["server_round"] == 2:
            raise RuntimeError
        return serve(self, site, packet)

    monkeypatch.setattr(Worker, "_serve", failing)
    states = []
    server = make_server("server.pieces=adam", "training.rounds=2")
    phase = server._phase

    def remember(number: Any) -> None:
        phase(number)
        states.append(dict(server.state.pieces))

    server._phase = remember
    server.run()
    assert server.observer.lines[1]["kept_old_weights"]
    assert states[0].keys() == states[1].keys() and any(k.startswith("adam/m/") for k in states[0])
    assert all(np.array_equal(t, states[1][k]) for k, t in states[0].items())


def test_a_step_that_is_not_finite_stops_the_run_before_it_counts(make_server: Any, monkeypatch: Any) -> None:
    from osmotic.errors import ConfigError

    change = PIECES["momentum"].change

    def exploding(self: Any, view: Any, state: Any, gathered: Any, phase: Any, mean: Any) -> Any:
        bent, state, metrics = change(self, view, state, gathered, phase, mean)
        if phase.server_round == 2:
            bent = {n: t * np.float32(np.nan) for n, t in bent.items()}
        return bent, state, metrics

    monkeypatch.setattr(PIECES["momentum"], "change", exploding)
    server = make_server("server.pieces=momentum")
    with pytest.raises(ConfigError, match=r"piece momentum: would move .* not finite in train 2"):
        server.run()
    assert server.state.step == 1 and all(np.isfinite(w).all() for w in server.state.weights.values())
