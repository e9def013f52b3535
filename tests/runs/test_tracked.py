"""What trackers are told of a phase."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from osmotic.federation.server import Server
from osmotic.runs import tracked, trackers
from osmotic.runs.progress import Progress

LINE: dict[str, Any] = {
    "round": 3,
    "phase": "train",
    "loss": 0.5,
    "client_loss": {"client-000": 0.25, "north/ward": None},
    "bytes_up": 700,
    "bytes_down": 900,
    "learning_rate": 0.001,
    "kept_old_weights": False,
    "prox/pull": 2.0,
    "quality": {
        "fd": 4.0,
        "kid": None,
        "encoder": "classifier-digits",
        "num_samples": 1000,
        "nfe": 20,
        "guidance": 1.5,
        "encoder_accuracy": 0.98,
        "fd_floor": 2.0,
        "floor_samples": 360,
        "class_histogram": [1, 2],
        "held_out": {"fd": 5.0, "floor": 2.5, "images": 360, "samples": 360},
        "near_copies": {"features": 0.02, "expected": 0.01, "images": 1000, "held_out": 360},
        "mean": {"fd_own": 6.0, "clients_own": 3},
        "metrics": {"sharpness": 0.7},
    },
}


def test_a_phase_is_told_by_what_moves_from_round_to_round() -> None:
    # 700 - 600 and 900 - 850 bytes since the phase before.
    assert tracked.curves(LINE, {"bytes_up": 600, "bytes_down": 850}) == {
        "loss": 0.5,
        "client_loss/client-000": 0.25,
        "bytes_up/total": 700,
        "bytes_up/round": 100,
        "bytes_down/total": 900,
        "bytes_down/round": 50,
        "learning_rate": 0.001,
        "prox/pull": 2.0,
        "quality/fd": 4.0,
        "quality/held_out/fd": 5.0,
        "quality/near_copies/features": 0.02,
        "quality/mean/fd_own": 6.0,
        "quality/metrics/sharpness": 0.7,
    }


def test_the_first_phase_counts_from_nothing_and_an_older_line_tells_no_bytes() -> None:
    assert tracked.curves(LINE)["bytes_up/round"] == 700
    assert "bytes_up/round" not in tracked.curves(
        LINE, {"round": 2}
    )  # begun by a version without these fields
    assert not any("bytes" in name for name in tracked.curves({"round": 1, "loss": 1.0}))


class Heard:
    """A tracker that remembers every curve: name -> values by round."""

    def __init__(self) -> None:
        self.curves: dict[str, list[float]] = {}

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        for name, value in scalars.items():
            self.curves.setdefault(name, []).append(value)

    def image(self, step: int, name: str, array: np.ndarray) -> None: ...

    def close(self) -> None: ...


def test_trackers_hear_losses_of_clients_bytes_and_learning_rate_of_a_run_that_was_resumed(
    make_server: Callable[..., Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = Heard()
    monkeypatch.setitem(trackers.OPENERS, "tensorboard", lambda *_: heard)
    settings = ("training.lr_schedule=cosine", "track.backends=['tensorboard']")
    for rounds in (2, 3):
        server = make_server(*settings, resume=rounds == 3)
        server.observer = server.exchange.observer = Progress(server.run_dir, server.config, quiet=True)
        server.phases = server.phases[:rounds]
        server.run()
    folder = server.run_dir.path
    ledger = [json.loads(line) for line in (folder / "ledger.jsonl").read_text().splitlines()]
    for way in ("up", "down"):
        sent = [
            sum(e["bytes"] for e in ledger if e["direction"] == way and e["round"] == r) for r in (1, 2, 3)
        ]
        assert heard.curves[f"bytes_{way}/round"] == sent
        assert heard.curves[f"bytes_{way}/total"] == [sent[0], sum(sent[:2]), sum(sent)]
    # Half a cosine over three rounds: the rate times 1, (1 + cos 60 deg) / 2 and (1 + cos 120 deg) / 2.
    rate = server.config.training.learning_rate
    assert heard.curves["learning_rate"] == pytest.approx([rate, 0.75 * rate, 0.25 * rate])
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for client in ("client-000", "client-001", "client-002"):
        assert heard.curves[f"client_loss/{client}"] == [line["client_loss"][client] for line in lines]


def test_of_many_clients_trackers_are_told_quantiles() -> None:
    line = {"round": 1, "client_loss": {f"client-{i:04d}": float(i) for i in range(1, 21)}}
    # Of 1 to 20: 5 % have at most the first, 25 % at most the fifth, ...
    told = tracked.curves(line, clients=101)
    assert told == {
        "client_loss/quantile_0.05": 1.0,
        "client_loss/quantile_0.25": 5.0,
        "client_loss/quantile_0.5": 10.0,
        "client_loss/quantile_0.75": 15.0,
        "client_loss/quantile_0.95": 19.0,
    }
    assert len(tracked.curves(line, clients=100)) == 20
    assert tracked.curves({"round": 1, "client_loss": {}}, clients=101) == {}
