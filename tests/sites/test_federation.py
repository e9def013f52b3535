"""A hub and three sites with real processes, TLS and keys on this machine: minutes, so only `make test-all` runs it."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("flwr", reason="flwr is not installed: pip install 'osmotic[flower]'")
sys.path.insert(0, str(Path(__file__).parents[2]))

from process_tree import alive, descendants
from tests.chaos.federation import KINDS, Federation, free_port
from tests.chaos.sites import killed_once

from osmotic.sites.flwr_command import environment, program

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

CONFIG = """
[data]
source = "digits"
clients = 3
[training]
rounds = 2
[engine]
deadline_seconds = 300
"""


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    names = ["client-000", "client-001", "client-002"]
    policy = [("synthetic_images = false", "synthetic_images = true")]
    made = Federation(tmp_path_factory.mktemp("federation"), CONFIG, names, policy)
    with made.started():
        yield made
        known = {pid for process in made.processes.values() for pid in descendants(process.pid)}
    assert not [pid for pid in known if alive(pid)], "no process outlives hub and sites"


def test_sites_end_in_the_weights_of_the_simulation(federation: Federation) -> None:
    expected = federation.simulated("plain")
    run = federation.run("plain")
    told, _ = run.communicate()
    assert run.returncode == 0, told
    found = federation.summary("plain")
    assert found["weights_sha256"] == expected["weights_sha256"] and found["failures"] == []
    assert "a federation: every client is a site of its own" in told and "train 2  loss" in told

    home = federation.folder / "hub/flower"
    listed = subprocess.run(
        [program("flwr"), "list", "hub", "--format", "json"],
        env=environment(home),
        capture_output=True,
        text=True,
    )
    traffic = json.loads(listed.stdout)["runs"][0]["network-traffic"]
    for ours, theirs in (("bytes_up", "inbound-bytes"), ("bytes_down", "outbound-bytes")):
        assert abs(found[ours] - traffic[theirs]) < 0.02 * found[ours], "Flower's own counters agree"


# Of each paper a preset's rules, and a combination of pieces that no paper has.
RULES = {
    "feddiffuse": ("method.name=usplit",),
    "feddm": ("codec.up=int8", "codec.error_feedback=true", "codec.first_contact=seed"),
    "fedddpm": (
        "server.pieces=correction",
        "server.correction.size=0.5",
        "server.correction.local_epochs=1",
        "server.correction.drop_outliers=0.0",
    ),
    "combination": ('local.pieces=["scaffold", "prox"]', "server.pieces=adam", "codec.up=sparse"),
}


@pytest.mark.parametrize("name", RULES)
def test_one_study_has_the_same_weights_on_all_three_engines(federation: Federation, name: str) -> None:
    sets = ("score.every=0", "score.samples=20", *RULES[name])
    threads = federation.simulated(name, *sets)
    flower = federation.simulated(f"{name}-flower", *sets, "engine.name=flower")
    run = federation.run(name, *sets)
    told, _ = run.communicate()
    assert run.returncode == 0, told
    sites = federation.summary(name)
    assert [one["engine"] for one in (flower, sites)] == ["flower", "sites"]
    for one in (flower, sites):
        assert one["weights_sha256"] == threads["weights_sha256"] and one["failures"] == []
        assert (one["bytes_up"], one["bytes_down"]) == (threads["bytes_up"], threads["bytes_down"])


def test_a_task_that_dies_while_it_hands_over_its_answer_costs_nothing(
    federation: Federation, tmp_path: Path
) -> None:
    """Flower's SuperNode would wait for the rest of that answer for ever."""
    program = federation.program("client-001")
    kept = program.read_text()
    federation.tasks_by("client-001", "tests.chaos.dying_task", DIED=str(tmp_path / "died"))
    sets = ("score.samples=20",)
    try:
        expected = federation.simulated("handed", *sets)
        run = federation.run("handed", *sets)
        told, _ = run.communicate()
    finally:
        program.write_text(kept)  # what says that it has died goes with this test's folder
    assert run.returncode == 0, told
    assert (tmp_path / "died").exists()
    found = federation.summary("handed")
    assert found["weights_sha256"] == expected["weights_sha256"] and found["failures"] == []


def test_a_site_whose_tasks_cannot_be_started_is_late_and_costs_the_others_nothing(
    federation: Federation,
) -> None:
    """Flower has no word for it: the deadline is all that ends the wait."""
    # Longer than a minute: a site whose SuperNode was started anew just before is let in again only then.
    run = federation.run("unstarted", "score.samples=20", "engine.deadline_seconds=90")
    lines = federation.out("unstarted") / "metrics.jsonl"
    program = federation.program("client-002")
    kept = program.read_text()
    end = time.monotonic() + 400
    try:
        while not lines.exists():  # it says hello, and does not come to its first task
            assert time.monotonic() < end and run.poll() is None
            if (federation.out("unstarted") / "config.toml").exists():
                program.write_text("#!/bin/sh\nexit 1\n")
            time.sleep(0.1)
    finally:
        told, _ = run.communicate()
        program.write_text(kept)
    assert run.returncode == 0, told
    failures = federation.summary("unstarted")["failures"]
    assert {(f["client_id"], f["kind"]) for f in failures} <= {(2, "late"), (2, "lost")} and failures


@pytest.mark.parametrize("kind", KINDS)
def test_whatever_dies_the_run_ends_unaided_in_the_weights_of_the_simulation(
    federation: Federation, kind: str
) -> None:
    """SIGKILL, a random time into the run; with the processes of a real federation."""
    expected = federation.simulated(f"kill-{kind}", "training.rounds=4")["weights_sha256"]
    row = killed_once(federation, f"kill-{kind}", kind, random.Random(kind), expected, "training.rounds=4")
    assert row["killed"] and row["code"] == 0 and row["equal"], row


def test_a_task_that_sleeps_past_the_deadline_is_late_once_and_its_site_takes_part_again(
    federation: Federation,
) -> None:
    """SIGSTOP in the middle of a round, SIGCONT once that round is over: what it answers then is nobody's."""
    run = federation.run("asleep", "training.rounds=4", "score.samples=20", "engine.deadline_seconds=120")
    lines, end = federation.out("asleep") / "metrics.jsonl", time.monotonic() + 600

    def rounds() -> list[dict[str, Any]]:
        return [json.loads(line) for line in lines.read_text().splitlines()] if lines.exists() else []

    def wait(until: Callable[[], Any]) -> None:
        while not until():
            assert time.monotonic() < end and run.poll() is None
            time.sleep(0.05)

    wait(rounds)
    wait(lambda: federation.pids("client", "client-001"))
    [asleep, *_] = federation.pids("client", "client-001")
    os.kill(asleep, signal.SIGSTOP)
    try:
        before = len(rounds())
        wait(lambda: len(rounds()) > before)
    finally:
        os.kill(asleep, signal.SIGCONT)
        told, _ = run.communicate()
    assert run.returncode == 0, told
    failures = federation.summary("asleep")["failures"]
    assert [(f["client_id"], f["round"]) for f in failures] in ([], [(1, before + 1)]), failures
    assert rounds()[-1]["num_counted"] == 3


def test_a_run_that_fails_has_an_exit_code_and_a_reason(federation: Federation) -> None:
    run = federation.run("alone", "data.clients=4", "engine.deadline_seconds=20")
    told, _ = run.communicate()
    assert (
        run.returncode == 1 and "3 of 4 sites are here after 20 s: client-000, client-001, client-002" in told
    )


REFUSED = "Failed to activate SuperNode"  # flwr's words


def connecting(federation: Federation, key: Path, home: Path, seconds: float) -> str:
    """What a supernode with this key tells within so many seconds."""
    address = (federation.folder / "client-000/site.toml").read_text().split('hub = "')[1].split('"')[0]
    command = [
        program("flower-supernode"),
        "--superlink",
        address,
        "--max-retries",
        "1",
        "--isolation",
        "process",
    ]
    command += ["--root-certificates", str(federation.folder / "hub/ca.crt"), "--port", str(free_port())]
    command += ["--auth-supernode-private-key", str(key)]
    (home / "superexec.secret").write_text("0" * 64)
    (home / "superexec.secret").chmod(0o600)
    command += ["--superexec-auth-secret-file", str(home / "superexec.secret")]
    with open(home / "log", "w+") as log:
        process = subprocess.Popen(
            command, env=environment(home), stdout=log, stderr=log, stdin=subprocess.DEVNULL
        )
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        log.seek(0)
        return log.read()


def nodes(federation: Federation) -> list[dict[str, str]]:
    told = json.loads(federation.call("hub", "status", "--hub", federation.folder / "hub", "--json"))
    return list(told["sites"])


def test_only_a_registered_key_connects(federation: Federation, tmp_path: Path) -> None:
    from osmotic.sites import certificates

    certificates.make_key(tmp_path / "stranger")
    refused = connecting(federation, tmp_path / "stranger", tmp_path, 60)
    assert REFUSED in refused, refused
    hub = ("--hub", federation.folder / "hub")
    federation.call("hub", "add-site", "guest", tmp_path / "stranger.pub", *hub)
    assert "guest" in [one["name"] for one in nodes(federation)]
    let_in = connecting(federation, tmp_path / "stranger", tmp_path, 15)
    assert REFUSED not in let_in and "Uvicorn running" in let_in, let_in
    federation.call("hub", "remove-site", "guest", *hub)
    assert "guest" not in [one["name"] for one in nodes(federation)]
    again = connecting(federation, tmp_path / "stranger", tmp_path, 60)
    assert REFUSED in again, again


EVIL = {
    "pyproject.toml": """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[project]
name = "osmotic-hub"
version = "1.0.0"
dependencies = []
[tool.flwr.app]
publisher = "osmotic"
[tool.flwr.app.components]
serverapp = "evil.server:app"
clientapp = "evil.client:app"
""",
    "evil/__init__.py": "",
    "evil/client.py": """
from pathlib import Path
from flwr.clientapp import ClientApp
Path("MARK").write_text("code of the hub's ran at a site")
app = ClientApp()
@app.train()
def train(message, context):
    Path("MARK").write_text("code of the hub's ran at a site")
    return message
""",
    "evil/server.py": """
import json, time
from pathlib import Path
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import ServerApp
app = ServerApp()
@app.main()
def main(grid, context):
    while len(nodes := list(grid.get_node_ids())) < 3:
        time.sleep(0.5)
    asked = [Message(RecordDict({"a": ConfigRecord({"b": 1})}), node, kind) for node in nodes for kind in ("train", "query.hello")]
    replies = list(grid.send_and_receive(asked, timeout=60))
    Path("HEARD").write_text(json.dumps([str(r.error) if r.has_error() else sorted(r.content) for r in replies]))
""",
}


def test_a_hub_that_hands_out_an_app_of_its_own_runs_nothing_at_the_sites(
    federation: Federation, tmp_path: Path
) -> None:
    from osmotic.sites.flwr_command import ask

    mark, heard = tmp_path / "mark", tmp_path / "heard"
    for name, text in EVIL.items():
        file = tmp_path / "app" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text.replace("MARK", str(mark)).replace("HEARD", str(heard)))
    ask(federation.folder / "hub/flower", ["run", str(tmp_path / "app"), "hub"])
    end = time.monotonic() + 120
    while not heard.exists():
        assert time.monotonic() < end
        time.sleep(0.5)
    told = json.loads(heard.read_text())
    assert not mark.exists()
    assert len(told) == 6, told
    # The sites' own app has answered: it says that this is no run, and no more.
    assert all("/" not in json.dumps(one) for one in told), told
