"""Going on with a run whose folder was changed meanwhile: what cannot be the run's own is refused, nothing is begun anew."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny_network
from small_runs import Crash, crash_at

from osmotic.errors import ConfigError
from osmotic.runs.summary import weights_sha256
from osmotic.storage import lock

TINY = ("model.network=tiny", "data.max_images=60", "training.batch_size=8", "training.rounds=3")


@pytest.fixture(autouse=True)
def tiny() -> None:
    tiny_network.register()


def stopped(make_server: Any, *sets: str, phase: int = 3, name: str = "run") -> Path:
    """The folder of a run that died in this phase; it has an id, as runs that the command begins."""
    server = make_server(*TINY, *sets, name=name, at=crash_at(phase, 1))
    lock.write_id(server.run_dir.path, server.run_id)
    with pytest.raises(Crash):
        server.run()
    return server.run_dir.path  # type: ignore[no-any-return]


def outcome(server: Any) -> tuple[str, Any, str]:
    rows = [json.loads(line) for line in server.run_dir.log("metrics").read_text().splitlines()]
    for row in rows:
        del row["wall_seconds"]
    return weights_sha256(server.state.weights), rows, server.run_dir.log("ledger").read_text()


@pytest.mark.parametrize("every", [1, 2, 9])
@pytest.mark.parametrize("phase", [1, 2, 3])
def test_a_run_killed_in_any_phase_goes_on_to_the_same_end(make_server: Any, every: int, phase: int) -> None:
    whole = make_server(*TINY, f"checkpoint.every={every}", name="whole")
    whole.run()
    stopped(make_server, f"checkpoint.every={every}", phase=phase)
    resumed = make_server(*TINY, f"checkpoint.every={every}", resume=True)
    resumed.run()
    assert outcome(resumed) == outcome(whole)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("log", ["metrics", "ledger"])
def test_a_changed_digit_in_a_log_is_refused_and_nothing_is_changed(make_server: Any, log: str) -> None:
    folder = stopped(make_server)
    path = folder / f"{log}.jsonl"
    path.write_text(path.read_text().replace('"round": 1', '"round": 7', 1))
    before = contents(folder)
    with pytest.raises(ConfigError, match="are not those that the run wrote") as caught:
        make_server(*TINY, resume=True)
    assert caught.value.key == str(path)
    assert contents(folder) == before


@pytest.mark.parametrize("finished", [True, False])
def test_a_run_whose_checkpoints_are_gone_is_not_begun_anew_over_its_logs(
    make_server: Any, finished: bool
) -> None:
    folder = stopped(make_server)
    shutil.rmtree(folder / "checkpoints")
    if finished:
        (folder / "summary.json").write_text("{}")
        (folder / "metrics.jsonl").unlink()
        (folder / "ledger.jsonl").unlink()
    before = contents(folder)
    with pytest.raises(ConfigError, match="its checkpoints are gone"):
        make_server(*TINY, resume=True)
    assert contents(folder) == before


def test_a_run_killed_before_its_first_checkpoint_begins_anew(make_server: Any) -> None:
    server = make_server(*TINY)
    lock.write_id(server.run_dir.path, server.run_id)
    assert not server.run_dir.checkpoints.exists()
    resumed = make_server(*TINY, resume=True)
    assert resumed.state.step == 0
    resumed.run()
    assert resumed.state.step == 3


def test_the_newest_checkpoint_of_a_run_of_the_same_configuration_is_not_taken(make_server: Any) -> None:
    other = stopped(make_server, "training.rounds=3", name="other")
    folder = stopped(make_server, phase=2)
    newest = max((other / "checkpoints").iterdir())
    shutil.copy(newest, folder / "checkpoints" / newest.name)
    with pytest.warns(UserWarning, match="it is of another run"):
        resumed = make_server(*TINY, resume=True)
    assert resumed.state.step == 1
    resumed.run()
    whole = make_server(*TINY, name="whole")
    whole.run()
    assert outcome(resumed) == outcome(whole)


def test_the_two_newest_checkpoints_swapped_leave_no_phase_out(make_server: Any) -> None:
    folder = stopped(make_server, "checkpoint.keep=9")
    one, two = sorted((folder / "checkpoints").iterdir())[-2:]
    data = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(data)
    with pytest.warns(UserWarning, match="it is that of step"):
        resumed = make_server(*TINY, "checkpoint.keep=9", resume=True)
    assert resumed.state.step == 0
    resumed.run()
    whole = make_server(*TINY, name="whole")
    whole.run()
    assert outcome(resumed) == outcome(whole)


def test_a_run_of_an_earlier_version_takes_over_the_id_that_it_is_given(make_server: Any) -> None:
    folder = stopped(make_server, phase=2)
    (folder / lock.NAME).unlink()
    first = make_server(*TINY, resume=True)
    with pytest.raises(KeyboardInterrupt):
        first.observer.at = lambda event, value: (_ for _ in ()).throw(KeyboardInterrupt)
        first.run()
    again = make_server(*TINY, resume=True)
    assert again.run_id == first.run_id, "of the checkpoint, where no file says it"
