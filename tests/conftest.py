"""Small runs for tests: a few digits, few clients, seconds on one core; the cache folder is the test's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

SMALL = (
    "data.max_images=96",
    "data.clients=3",
    "training.rounds=3",
    "training.local_epochs=1",
    "score.samples=40",
    "score.steps=3",
    "score.guidance=1",
    "track.backends=[]",
)


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Encoders trained by tests never reach the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OSMOTIC_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


class Silent:
    """An observer that remembers the lines; `at` may raise to play a crash."""

    def __init__(self, at: Callable[[str, Any], None] = lambda event, value: None) -> None:
        self.lines: list[Mapping[str, Any]] = []
        self.at = at

    def phase_started(self, phase: Any, index: int, count: int) -> None:
        self.at("phase", phase)

    def answered(self, client: str) -> None:
        self.at("answered", client)

    def phase_done(self, line: Mapping[str, Any]) -> None:
        self.lines.append(line)
        self.at("done", line)


class NoScore:
    """A scorer that measures nothing, for tests about training alone."""

    def score_global(self, weights: Any, server_round: int) -> dict[str, Any]:
        return {}

    def wanted(self, client: Any) -> dict[str, Any]:
        return {"samples": 40, "labels": [0] * 40, "seed": 1, "guidance": 1.0}

    def score_personal(self, pools: Any, stage: str, server_round: int) -> dict[str, Any]:
        return {}


@pytest.fixture
def make_server(tmp_path: Path) -> Callable[..., Any]:
    """A real server over real clients of a small run; the same `name` gives the same folder, to go on after a crash."""
    from osmotic import config, study
    from osmotic.rundir import RunDir

    def make(*sets: str, name: str = "run", at: Any = None, resume: bool = False, change: Any = None) -> Any:
        cfg = config.load(sets=[*SMALL, *sets])
        prepared = study.prepare(cfg)
        study.make_deterministic(prepared)
        run = RunDir(tmp_path / name)
        run.path.mkdir(exist_ok=True)
        server, _ = study.make_server(prepared, run, Silent(at) if at else Silent())
        server.scorer = NoScore()
        if change:
            change(server)
        if resume:
            server.restore()
        return server

    return make
