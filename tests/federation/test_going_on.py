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
from osmotic.federation.bookkeeping import Tally
from osmotic.federation.journal import Journal
from osmotic.runs.summary import weights_sha256
from osmotic.storage import checkpoint, lock
from osmotic.storage.folder import RunDir
from osmotic.storage.store import Store

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


@pytest.mark.parametrize("died_at", ["the first entry", "the folder"])
def test_no_journal_outlives_a_run_that_died_between_its_last_checkpoint_and_its_end(
    make_server: Any, monkeypatch: pytest.MonkeyPatch, died_at: str
) -> None:
    sets = (*TINY, "training.rounds=1", "server.pieces=correction", "server.correction.local_epochs=0.5")
    server = make_server(*sets)

    def die(journal: Journal) -> None:
        if died_at == "the folder":
            for path in journal.folder.rglob("*.safetensors"):
                path.unlink()
        raise Crash

    with monkeypatch.context() as patch, pytest.raises(Crash):
        patch.setattr(Journal, "clear", die)
        server.run()
    folder = server.run_dir.journal
    assert folder.exists() and server.state.step == len(server.phases)
    make_server(*sets, resume=True).run()
    assert not folder.exists()


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


# --- the disk is full ---


def full(*arguments: Any) -> Any:
    raise OSError(28, "No space left on device", "state")


PERSONAL = (*TINY, "method.name=udec", "codec.up=int8", "codec.error_feedback=true")


@pytest.mark.parametrize("call", ["save", "load"])
def test_a_full_disk_under_a_simulated_client_stops_the_run_and_fails_nobody(
    make_server: Any, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    whole = make_server(*PERSONAL, name="whole")
    whole.run()
    kept, calls = getattr(Store, call), []

    def once(self: Store, *arguments: Any) -> Any:
        calls.append(1)
        return full() if len(calls) == 5 else kept(self, *arguments)

    monkeypatch.setattr(Store, call, once)
    server = make_server(*PERSONAL)
    with pytest.raises(OSError, match="No space left on device"):
        server.run()
    assert not server.state.failures and server.state.step == 1
    resumed = make_server(*PERSONAL, resume=True)
    resumed.run()
    assert outcome(resumed) == outcome(whole)


def test_a_full_disk_on_a_site_is_that_clients_failure(make_server: Any) -> None:
    server = make_server(*PERSONAL)
    phase, tally = server.phases[0], Tally()
    client = server.engine.clients(1, 0.0)[0]
    server.state.up.begin(1, refresh=True)
    [task] = server.method.tasks(server._view(), phase, [client])
    [sent] = server.exchange.post(phase, [task], tally)
    worker, site = server.engine._make_worker(), server.engine.sites[client.name]
    worker.own_disk, site.store.save = True, full
    answer = worker.serve(site, sent.packet)
    assert answer.header["failure"] == ["raised", "OSError"] and not answer.blobs


@pytest.mark.parametrize("what", ["checkpoint", "metrics", "ledger"])
def test_a_full_disk_at_the_server_stops_the_run_and_it_goes_on_to_the_same_end(
    make_server: Any, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    whole = make_server(*TINY, name="whole")
    whole.run()
    server = make_server(*TINY)
    with monkeypatch.context() as patch:
        if what == "checkpoint":
            save, calls = checkpoint.write_checked, []
            patch.setattr(checkpoint, "write_checked", lambda *a: save(*a) if not calls.append(1) and len(calls) < 3 else full())  # type: ignore[func-returns-value]  # fmt: skip
        else:
            write = RunDir.append_text

            def torn(self: RunDir, name: str, text: str) -> None:
                if name == what and server.state.step == 1 + (what == "metrics"):
                    write(self, name, text[: len(text) // 2])
                    full()
                write(self, name, text)

            patch.setattr(RunDir, "append_text", torn)
        with pytest.raises(OSError, match="No space left on device"):
            server.run()
    resumed = make_server(*TINY, resume=True)
    assert resumed.state.step == 1
    resumed.run()
    assert outcome(resumed) == outcome(whole)


# --- private state that is lost after the last phase ---


@pytest.mark.parametrize("loss", ["torn", "newest deleted", "folder deleted"])
def test_private_state_lost_after_the_last_phase_is_a_failure_when_the_run_is_summed_up_again(
    make_server: Any, loss: str
) -> None:
    server = make_server(*PERSONAL)
    server.run()
    assert sorted(server.personal_models()) == ["client-000", "client-001", "client-002"]
    assert not server.state.failures
    folder = server.run_dir.client("client-001")
    newest = max(folder.glob("state-*"))
    if loss == "torn":
        newest.write_bytes(newest.read_bytes()[:-1])
    elif loss == "newest deleted":
        newest.unlink()
    else:
        shutil.rmtree(folder)
    resumed = make_server(*PERSONAL, resume=True)
    resumed.run()
    assert sorted(resumed.personal_models()) == ["client-000", "client-002"]
    [failure] = resumed.state.failures
    assert (failure["client_id"], failure["kind"]) == (1, "raised")
    assert "missing" in failure["reason"] or "state" in failure["reason"]
