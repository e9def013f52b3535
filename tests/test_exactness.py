"""Two runs of one configuration give the same bits: twice, with any number of workers, killed and resumed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from small_runs import SMALL, Crash, crash_at

from osmotic import methods
from osmotic.federation.client import Worker
from osmotic.methods.fedavg import FedAvg
from osmotic.protocol.messages import Client, Packet, Phase, Task
from osmotic.protocol.view import View
from osmotic.runs.summary import weights_sha256
from osmotic.storage.store import digest

VARIANTS = {
    "fedavg": (),
    "int8 both ways, half the clients": (
        "codec.up=int8",
        "codec.down=int8",
        "codec.error_feedback=true",
        "training.fraction_train=0.67",
    ),
    "kept moments, holdout": ("training.optimizer_state=keep", "data.holdout=0.2"),
    "local": ("method.name=local",),
    "central": ("method.name=central",),
    "dropout": ("recipe.dropout=0.1",),
    "edm, unconditional": ("model.target=edm", "model.conditional=false", "score.sampler=edm-euler"),
}


def final(server: Any) -> tuple[str, dict[str, Any]]:
    """Hash of raw weights and states, hash of the averages, and the ledger's totals."""
    averages, _ = server.state.ema.state()
    return f"{weights_sha256(server.state.weights, server.state.state_hashes)} {digest(averages)}", vars(
        server.state.totals
    )


@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_the_same_bits_twice_and_with_one_worker_or_two(make_server: Any, variant: str) -> None:
    results = []
    for name, workers in (("a", 1), ("b", 2), ("c", 2)):
        server = make_server(*VARIANTS[variant], f"engine.workers={workers}", name=name)
        server.run()
        results.append((final(server), server.run_dir.log("ledger").read_text()))
    assert results[0] == results[1] == results[2]


def test_another_seed_gives_other_weights(make_server: Any) -> None:
    hashes = set()
    for seed in (0, 1):
        server = make_server(f"seed={seed}", "training.rounds=1", name=str(seed))
        server.run()
        hashes.add(final(server)[0])
    assert len(hashes) == 2


@dataclass(frozen=True, kw_only=True)
class WithoutSecond(FedAvg):
    """FedAvg that does not ask client-001 in round 2."""

    skipped: ClassVar[tuple[int, str]] = (2, "client-001")

    def tasks(self, view: View, phase: Phase, clients: Iterable[Client]) -> Iterator[Task]:
        for task in super().tasks(view, phase, clients):
            if (phase.server_round, task.client.name) != self.skipped:
                yield task


def poisoned(packet: Packet) -> Packet:
    """The same answer with one weight that is not a number, its checksum made to fit."""
    from osmotic.codecs import EXACT
    from osmotic.codecs.base import HEAD, padded, seal

    data = bytes(packet.blobs[0])
    numbers = np.frombuffer(data[padded(EXACT, HEAD.size) :], "<f4").copy()
    numbers[0] = np.nan
    return Packet(packet.header, (seal(EXACT, HEAD.unpack(data[: HEAD.size])[3], numbers.tobytes()),))


def torn(packet: Packet) -> Packet:
    """The same answer without its last byte."""
    return Packet(packet.header, (packet.blobs[0][:-1],))


def heavy(packet: Packet) -> Packet:
    """The same answer with a weight above the announced one."""
    return Packet({**packet.header, "num_examples": packet.header["num_examples"] + 1}, packet.blobs)


def gone(packet: Packet) -> Packet:
    raise RuntimeError("a path like /home/site/secret.png must not travel")


@pytest.mark.parametrize("damage, kind", [(poisoned, "bad"), (torn, "bad"), (heavy, "bad"), (gone, "raised")])
def test_a_failed_client_leaves_the_result_as_if_it_had_not_been_asked(
    make_server: Any, monkeypatch: pytest.MonkeyPatch, damage: Any, kind: str
) -> None:
    monkeypatch.setitem(methods.METHODS, "without-second", WithoutSecond)
    expected = make_server("method.name=without-second", name="expected")
    expected.run()
    serve = Worker._serve

    def damaged(self: Worker, site: Any, packet: Packet) -> Packet:
        answer = serve(self, site, packet)
        hit = (packet.header["server_round"], site.client.name) == WithoutSecond.skipped
        return damage(answer) if hit else answer

    monkeypatch.setattr(Worker, "_serve", damaged)
    server = make_server(name="damaged")
    server.run()
    assert weights_sha256(server.state.weights) == weights_sha256(expected.state.weights)
    assert server.state.counted == expected.state.counted
    [failure] = server.state.failures
    assert (failure["round"], failure["client_id"], failure["kind"]) == (2, 1, kind)
    assert "secret" not in failure["reason"] and "\n" not in failure["reason"]
    assert server.state.totals.images_seen == expected.state.totals.images_seen


def test_without_a_quorum_the_old_weights_stay(make_server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    serve = Worker._serve

    def failing(self: Worker, site: Any, packet: Packet) -> Packet:
        if packet.header["server_round"] == 2 and site.client.name != "client-000":
            raise RuntimeError
        return serve(self, site, packet)

    monkeypatch.setattr(Worker, "_serve", failing)
    server = make_server("training.quorum_clients=2", "training.rounds=2")
    server.run()
    first, second = server.observer.lines
    assert not first["kept_old_weights"] and second["kept_old_weights"]
    assert second["update_norm"] == 0
    assert set(server.state.counted.values()) == {1}
    assert server.state.totals.images_seen == first["images_seen"], "the unused step is not counted as work"


def test_a_round_without_a_quorum_is_as_if_it_had_not_been_asked(
    make_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Kept residuals, a change stream and averages: nothing of the lost round may stay in any of them.
    monkeypatch.setitem(methods.METHODS, "skips-second", SkipsSecond)
    coded = ("codec.up=int8", "codec.down=int8", "codec.error_feedback=true", "training.quorum_clients=3")
    expected = make_server("method.name=skips-second", *coded, name="expected")
    expected.run()
    serve = Worker._serve

    def failing(self: Worker, site: Any, packet: Packet) -> Packet:
        answer = serve(self, site, packet)  # the client did its step, and only the answer got lost
        if packet.header["server_round"] == 2 and site.client.name == "client-002":
            raise RuntimeError
        return answer

    monkeypatch.setattr(Worker, "_serve", failing)
    server = make_server(*coded, name="failing")
    server.run()
    assert [line["kept_old_weights"] for line in server.observer.lines] == [False, True, False]
    assert final(server)[0] == final(expected)[0]
    assert server.state.totals.images_seen == expected.state.totals.images_seen


@dataclass(frozen=True, kw_only=True)
class SkipsSecond(FedAvg):
    """FedAvg that asks nobody in round 2."""

    def tasks(self, view: View, phase: Phase, clients: Iterable[Client]) -> Iterator[Task]:
        return iter(()) if phase.server_round == 2 else super().tasks(view, phase, clients)


@pytest.mark.parametrize("method", ["local", "fedavg"])
def test_a_crash_between_the_logs_and_the_checkpoint_leaves_no_double_lines(
    make_server: Any, method: str
) -> None:
    settings = (f"method.name={method}", "training.rounds=3")
    unbroken = make_server(*settings, name="unbroken")
    unbroken.run()

    class Killed(BaseException):
        pass

    def die(event: str, value: Any) -> None:
        if event == "done" and value["round"] == 2:
            raise Killed

    with pytest.raises(Killed):
        make_server(*settings, name="broken", at=die).run()
    assert make_server(*settings, name="broken").run_dir.log("metrics").read_text().count("\n") == 2
    resumed = make_server(*settings, name="broken", resume=True)
    assert resumed.state.step == 1
    resumed.run()
    assert final(resumed) == final(unbroken)
    assert resumed.run_dir.log("ledger").read_text() == unbroken.run_dir.log("ledger").read_text()
    assert resumed.run_dir.log("metrics").read_text().count("\n") == 3


def test_a_damaged_newest_checkpoint_still_finds_the_clients_older_states(make_server: Any) -> None:
    settings = ("method.name=local", "training.rounds=4", "checkpoint.keep=2")
    unbroken = make_server(*settings, name="unbroken")
    unbroken.run()
    running = {"round": 0}

    class Killed(BaseException):
        pass

    def die(event: str, value: Any) -> None:
        if event == "phase":
            running["round"] = value.server_round
        if event == "answered" and running["round"] == 4:
            raise Killed  # client-000 has saved its state of round 4, the checkpoint of round 3 is the newest

    with pytest.raises(Killed):
        make_server(*settings, "engine.workers=1", name="broken", at=die).run()
    broken = make_server(*settings, name="broken")
    newest = max(broken.run_dir.checkpoints.glob("*.safetensors"))
    newest.write_bytes(newest.read_bytes()[:-1])
    with pytest.warns(UserWarning, match="damaged"):
        resumed = make_server(*settings, name="broken", resume=True)
    assert resumed.state.step == 2
    resumed.run()
    assert not resumed.state.failures
    assert final(resumed) == final(unbroken)


def test_after_a_resume_too_clients_keep_what_the_older_checkpoint_needs(make_server: Any) -> None:
    settings = ("method.name=local", "training.rounds=4", "checkpoint.keep=2", "engine.workers=1")
    unbroken = make_server(*settings, name="unbroken")
    unbroken.run()
    with pytest.raises(KeyboardInterrupt):
        make_server(*settings, name="broken", at=stop_after_round(2)).run()
    # Checkpoints 2 and 3 are on disk in round 4, and only the second is this server's own.
    with pytest.raises(Crash):
        make_server(*settings, name="broken", resume=True, at=crash_at(2, answers=2)).run()
    newest = max((unbroken.run_dir.path.parent / "broken" / "checkpoints").glob("*.safetensors"))
    newest.write_bytes(newest.read_bytes()[:-1])
    with pytest.warns(UserWarning, match="damaged"):
        resumed = make_server(*settings, name="broken", resume=True)
    assert resumed.state.step == 2
    resumed.run()
    assert not resumed.state.failures
    assert final(resumed) == final(unbroken)


def test_the_replica_is_the_same_at_both_ends_after_every_round(make_server: Any) -> None:
    settings = ("codec.down=int8", "training.fraction_train=0.67", "training.rounds=5", "engine.workers=1")
    bases: list[Any] = []
    worst: list[int] = []

    def compare(server: Any) -> None:
        for site in server.engine.sites.values():
            if (
                server.state.counted.get(site.client.name)
                != server.phases[server.state.step - 1].server_round
            ):
                continue
            state = site.store.load(server.state.counted[site.client.name])
            for stream in server.state.down.streams.values():
                worst.extend(
                    int(not np.array_equal(state[f"replica/{n}"], t)) for n, t in stream.replica.items()
                )

    server = make_server(*settings)
    message = server.state.down.message

    def listening(*args: Any) -> Any:
        entries, blobs = message(*args)
        bases.extend((e["base"], e["blobs"]) for e in entries)
        return entries, blobs

    server.state.down.message = listening
    book = server._book

    def after(*args: Any) -> None:
        book(*args)
        server.state.step += 1
        compare(server)
        server.state.step -= 1

    server._book = after
    server.run()
    assert worst and not any(worst)
    assert any(base is not None for base, _ in bases), "changes were sent"
    assert any(blobs > 1 for _, blobs in bases), "and somebody had missed some"


def test_private_state_that_is_lost_is_a_failure_and_not_a_guess(make_server: Any) -> None:
    settings = ("method.name=local", "training.rounds=2")
    server = make_server(*settings, at=stop_after_round(1))
    with pytest.raises(KeyboardInterrupt):
        server.run()
    for path in (server.run_dir.client("client-001")).glob("*.safetensors"):
        path.unlink()
    resumed = make_server(*settings, resume=True)
    resumed.run()
    assert [(f["client_id"], f["kind"]) for f in resumed.state.failures] == [(1, "raised"), (1, "raised")]
    assert "private state of round 1 is missing" in resumed.state.failures[0]["reason"]


def stop_after_round(number: int) -> Any:
    """Ctrl-C when the round after this one begins."""

    def at(event: str, value: Any) -> None:
        if event == "phase" and value.server_round == number + 1:
            raise KeyboardInterrupt

    return at


def test_a_checkpoint_every_few_rounds_still_finds_the_clients_states(make_server: Any) -> None:
    settings = ("method.name=local", "training.rounds=5", "checkpoint.every=2", "checkpoint.keep=1")
    unbroken = make_server(*settings, name="unbroken")
    unbroken.run()

    class Killed(BaseException):
        pass

    def die(event: str, value: Any) -> None:
        if event == "answered" and value == "client-002" and die.rounds == 4:  # type: ignore[attr-defined]
            raise Killed
        if event == "phase":
            die.rounds = value.server_round  # type: ignore[attr-defined]

    with pytest.raises(Killed):
        make_server(*settings, name="broken", at=die).run()
    resumed = make_server(*settings, name="broken", resume=True)
    assert resumed.state.step == 2
    resumed.run()
    assert final(resumed) == final(unbroken)


# --- the real command, really killed ---

KILLED = (
    *SMALL,
    "training.rounds=4",
    "method.name=fedavg",
    "codec.up=int8",
    "codec.error_feedback=true",
    "codec.down=int8",
)
PERSONAL = (*SMALL, "training.rounds=3", "method.name=udec", "codec.down=int8", "data.partition=q-skew")


def command(*words: str) -> list[str]:
    """The command line as a user's shell would start it."""
    return [sys.executable, "-m", "osmotic.cli", *words]


def run_command(out: Path, settings: tuple[str, ...] = KILLED) -> list[str]:
    sets = [part for s in settings for part in ("--set", s)]
    return command("run", *sets, "--out", str(out), "--json")


def comparable(out: Path) -> dict[str, Any]:
    """The summary without the time, and the logs without theirs."""
    summary = json.loads((out / "summary.json").read_text())
    del summary["wall_seconds"]
    metrics = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    for line in metrics:
        del line["wall_seconds"]
    return {"summary": summary, "metrics": metrics, "ledger": (out / "ledger.jsonl").read_text()}


@pytest.mark.parametrize("kill_when", ["metrics lines == 1", "metrics lines == 3", "random"])
def test_sigkill_and_resume_equal_the_unbroken_run(
    tmp_path: Path, unbroken: dict[str, Any], kill_when: str
) -> None:
    out = tmp_path / "killed"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(run_command(out), stdout=subprocess.DEVNULL, env=environment)
    if kill_when == "random":
        while not (out / "checkpoints").exists():
            time.sleep(0.01)
            assert process.poll() is None, "the run must not have ended yet"
        time.sleep(float(np.random.default_rng(0).uniform(0.2, 1.0)))
    else:
        wanted = int(kill_when[-1])
        while (
            not (out / "metrics.jsonl").exists() or (out / "metrics.jsonl").read_text().count("\n") < wanted
        ):
            time.sleep(0.01)
            assert process.poll() is None, "the run must not have ended yet"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (out / "summary.json").exists()
    subprocess.run(
        command("resume", str(out), "--json"), check=True, stdout=subprocess.DEVNULL, env=environment
    )
    assert comparable(out) == unbroken


def test_sigkill_and_resume_give_the_same_personal_parts(tmp_path: Path) -> None:
    """UDec, killed in its last round: summary, logs and every client's own model are those of the unbroken run."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run(run_command(whole, PERSONAL), check=True, stdout=subprocess.DEVNULL, env=environment)
    process = subprocess.Popen(run_command(killed, PERSONAL), stdout=subprocess.DEVNULL, env=environment)
    log = killed / "metrics.jsonl"
    while not log.exists() or log.read_text().count("\n") < 2:
        time.sleep(0.01)
        assert process.poll() is None, "the run must not have ended yet"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (killed / "summary.json").exists()
    subprocess.run(
        command("resume", str(killed), "--json"), check=True, stdout=subprocess.DEVNULL, env=environment
    )
    assert comparable(killed) == comparable(whole)
    models = sorted(p.relative_to(whole) for p in whole.glob("model/*/unet/*.safetensors"))
    assert len(models) == 3, "one pipeline per client"
    assert all((whole / m).read_bytes() == (killed / m).read_bytes() for m in models)
    assert len({(whole / m).read_bytes() for m in models}) == 3


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("unbroken") / "run"
    subprocess.run(
        run_command(out), check=True, stdout=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    return comparable(out)


def test_ctrl_c_leaves_a_checkpoint_and_says_how_to_go_on(tmp_path: Path, unbroken: dict[str, Any]) -> None:
    out = tmp_path / "stopped"
    process = subprocess.Popen(run_command(out), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while not list((out / "checkpoints").glob("*.safetensors")):
        time.sleep(0.01)
        assert process.poll() is None, "the run must not have ended yet"
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130
    assert told.strip() == f"osmotic: stopped; go on with: osmotic resume {out}"
    subprocess.run(command("resume", str(out), "--json"), check=True, stdout=subprocess.DEVNULL)
    assert comparable(out) == unbroken


def test_a_torn_newest_checkpoint_is_passed_over(make_server: Any) -> None:
    server = make_server("training.rounds=2", name="whole")
    server.run()
    expected = final(server)
    newest = max(server.run_dir.checkpoints.glob("*.safetensors"))
    newest.write_bytes(newest.read_bytes()[:-100])
    with pytest.warns(UserWarning, match="damaged"):
        resumed = make_server("training.rounds=2", name="whole", resume=True)
    assert resumed.state.step == 1
    resumed.run()
    assert final(resumed) == expected


def test_a_digest_depends_on_names_types_and_values() -> None:
    base = {"a": np.zeros(2, np.float32)}
    others = [
        {"b": np.zeros(2, np.float32)},
        {"a": np.zeros(2, np.float64)},
        {"a": np.zeros((2, 1), np.float32)},
        {"a": np.array([0, -0.0], np.float32)},
    ]
    assert len({digest(t) for t in [base, *others]}) == 5
