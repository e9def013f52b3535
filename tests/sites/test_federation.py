"""A hub and three sites with real processes, TLS and keys on this machine: minutes, so only `make test-all` runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("flwr", reason="flwr is not installed: pip install 'osmotic[flower]'")
sys.path.insert(0, str(Path(__file__).parents[2]))

from process_tree import alive, descendants
from tests.chaos.federation import Federation

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
    made = Federation(tmp_path_factory.mktemp("federation"), CONFIG, names)
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


def test_a_run_that_fails_has_an_exit_code_and_a_reason(federation: Federation) -> None:
    run = federation.run("alone", "data.clients=4", "engine.deadline_seconds=20")
    told, _ = run.communicate()
    assert (
        run.returncode == 1 and "3 of 4 sites are here after 20 s: client-000, client-001, client-002" in told
    )


def test_a_key_that_nobody_registered_does_not_connect(federation: Federation, tmp_path: Path) -> None:
    from osmotic.sites import certificates

    certificates.make_key(tmp_path / "stranger")
    port = (federation.folder / "client-000/site.toml").read_text().split('hub = "')[1].split('"')[0]
    command = [program("flower-supernode"), "--superlink", port, "--max-retries", "1"]
    command += ["--root-certificates", str(federation.folder / "hub/ca.crt"), "--port", "0"]
    command += ["--auth-supernode-private-key", str(tmp_path / "stranger")]
    try:
        done = subprocess.run(command, env=environment(tmp_path), capture_output=True, text=True, timeout=60)
    except subprocess.TimeoutExpired:
        done = None
    nodes = json.loads(
        subprocess.run(
            [program("flwr"), "supernode", "list", "hub", "--format", "json"],
            env=environment(federation.folder / "hub/flower"),
            capture_output=True,
            text=True,
        ).stdout
    )["nodes"]
    assert len(nodes) == 3 and (done is None or done.returncode != 0)
