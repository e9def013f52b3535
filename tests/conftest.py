"""Small runs for tests: a few digits, few clients, seconds on one core; the cache folder is the test's own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_runs import SMALL, NoScore, Silent


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Encoders trained by tests never reach the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OSMOTIC_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def make_server(tmp_path: Path) -> Callable[..., Any]:
    """A real server over real clients of a small run; the same `name` gives the same folder, to go on after a crash."""
    from osmotic.runs import launch, resolve, study
    from osmotic.storage.folder import RunDir

    def make(*sets: str, name: str = "run", at: Any = None, resume: bool = False, change: Any = None) -> Any:
        cfg = resolve.load(sets=[*SMALL, *sets])
        prepared = study.prepare(cfg)
        study.make_deterministic(prepared)
        run = RunDir(tmp_path / name)
        run.path.mkdir(exist_ok=True)
        server, _ = launch.make_server(prepared, run, Silent(at) if at else Silent())
        server.scorer = NoScore(bool(prepared.spec.num_classes))
        if change:
            change(server)
        if resume:
            server.restore()
        return server

    return make
