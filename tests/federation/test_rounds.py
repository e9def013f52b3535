"""What a round does beside moving weights: its noise, its moments, what is scored of it, what it cost."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from small_runs import SMALL, NoScore
from torch.utils.flop_counter import FlopCounterMode

from osmotic.diffusion.process import Process
from osmotic.runs import resolve, study
from osmotic.runs.launch import flops_per_image

TINY = ("data.max_images=60", "training.rounds=2", "score.every=1")


def test_every_round_and_every_client_has_noise_of_its_own(
    make_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 20 images a client in batches of 16: two steps, so three clients take twelve in two rounds.
    first: list[float] = []
    loss = Process.loss

    def listening(self: Process, model: Any, x: Any, labels: Any, generator: torch.Generator) -> Any:
        state = generator.get_state()
        first.append(torch.randn((), generator=generator).item())
        generator.set_state(state)
        return loss(self, model, x, labels, generator)

    monkeypatch.setattr(Process, "loss", listening)
    make_server(*TINY, "data.partition=iid").run()
    assert len(first) == 12 == len(set(first)), "no two steps draw alike"


@pytest.mark.parametrize("state, kept", [("reset", False), ("keep", True)])
def test_federated_moments_live_as_long_as_the_configuration_says(
    make_server: Any, state: str, kept: bool
) -> None:
    server = make_server(*TINY, f"training.optimizer_state={state}")
    server.run()
    for site in server.engine.sites.values():
        assert bool(site.store._versions()) == kept


def test_central_training_goes_on_with_its_moments_from_round_to_round(make_server: Any) -> None:
    # 60 images in batches of 16 are 4 steps a round, and Adam counts them in its moments.
    server = make_server(*TINY, "method.name=central")
    server.run()
    [site] = server.engine.sites.values()
    counts = {
        float(t) for n, t in site.store.load(2).items() if n.startswith("optimizer/") and n.endswith("|step")
    }
    assert counts == {8.0}


class Listening(NoScore):
    """Keeps what it is given to score."""

    def __init__(self) -> None:
        super().__init__()
        self.scored: list[Any] = []

    def score_global(self, weights: Any, server_round: int) -> dict[str, Any]:
        self.scored.append(weights)
        return {}


@pytest.mark.parametrize("averaged", [True, False])
def test_the_average_is_scored_and_the_raw_weights_only_without_one(make_server: Any, averaged: bool) -> None:
    # 60 images a round and a half-life of 60: two rounds weigh 1/4 and 1/2, over 3/4.
    lives = "[60.0]" if averaged else "[]"
    server = make_server(*TINY, f"recipe.ema_half_lives={lives}")
    server.scorer = Listening()
    rounds: list[Any] = []
    done = server.observer.phase_done
    server.observer.phase_done = lambda line: (rounds.append(server.state.weights), done(line))
    server.run()
    for name, second in rounds[1].items():
        wanted = rounds[0][name] / 3 + second * 2 / 3 if averaged else second
        np.testing.assert_allclose(server.scorer.scored[-1][name], wanted, rtol=1e-5, atol=1e-6)
    apart = max(float(np.abs(rounds[1][n] - rounds[0][n]).max()) for n in rounds[0])
    assert apart > 1e-3, "the two rounds can be told apart"


def test_an_image_costs_a_forward_and_a_backward_pass() -> None:
    prepared = study.prepare(resolve.load(sets=SMALL))
    model = prepared.model()
    image = torch.zeros(1, *prepared.blueprint.space.shape, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        output = model(image, torch.zeros(1), class_labels=torch.zeros(1, dtype=torch.long))[0]
        output.sum().backward()
    # A backward pass is counted, not taken as twice the forward one; what it saves at the first layers is small.
    assert flops_per_image(prepared) == pytest.approx(counter.get_total_flops(), rel=0.02)


def test_counting_what_an_image_costs_imports_no_algebra_system() -> None:
    code = (
        "import sys; from osmotic import lean; lean.start()\n"
        "from osmotic.runs import launch, resolve, study\n"
        "print(launch.flops_per_image(study.prepare(resolve.load())), 'sympy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    prepared = study.prepare(resolve.load())
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        prepared.model().eval()(
            torch.zeros(1, 1, 8, 8), torch.zeros(1), class_labels=torch.zeros(1, dtype=torch.long)
        )
    # What is left out, enlarging an image, counts nothing.
    assert done.stdout.split() == [str(3 * counter.get_total_flops()), "False"]
