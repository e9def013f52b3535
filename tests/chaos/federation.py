"""A hub and sites on this machine, for tests: made, started, run and killed as their operators would."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from process_tree import command, descendants

OSMOTIC = [sys.executable, "-m", "osmotic"]
# What stands in the command of each kind of process, and whose it is.
KINDS = {
    "superlink": ("flower-superlink", "hub"),
    "hub-superexec": ("flower-superexec", "hub"),
    "server": ("flwr-serverapp", "hub"),
    "supernode": ("osmotic.sites.node", "site"),
    "site-superexec": ("flower-superexec", "site"),
    "client": ("osmotic.sites.task", "site"),
}


class Federation:
    """A hub and its sites, each with a folder under `folder`; data lie in `folder/parts/NAME.npz`.

    Args:
        folder: empty.
        config: tables of the runs.
        names: of the sites.
        policy: lines in every site's [policy] that are not as `site init` writes them.
    """

    def __init__(
        self, folder: Path, config: str, names: Sequence[str], policy: Sequence[tuple[str, str]] = ()
    ) -> None:
        self.folder, self.names = folder, list(names)
        self.env = {**os.environ, "OMP_NUM_THREADS": "1"}
        (folder / "run.toml").write_text(config)
        self.call("split", folder / "run.toml", "--out", folder / "parts")
        self.port = port = free_port()  # the hub's
        self.call("hub", "init", folder / "hub", "--port", port)
        for name in self.names:
            data, hub = f"npz:{folder / 'parts' / name}.npz", f"localhost:{port}"
            keys = ("--name", name, "--data", data, "--hub", hub, "--ca", folder / "hub/ca.crt")
            self.call("site", "init", folder / name, *keys, "--port", free_port())
            file = folder / name / "site.toml"
            text = file.read_text()
            for before, after in policy:
                assert before in text
                text = text.replace(before, after)
            file.write_text(text)
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def call(self, *words: Any, code: int = 0) -> str:
        """A command to its end; its output."""
        done = subprocess.run(
            [*OSMOTIC, *map(str, words)],
            env=self.env,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
        )
        assert done.returncode == code, (words, done.returncode, done.stdout, done.stderr)
        return done.stdout + done.stderr

    @contextmanager
    def started(self) -> Iterator[Federation]:
        """Hub and sites up inside the block; every process is gone after it."""
        try:
            self.start("hub")
            self.registered()
            for name in self.names:
                self.start(name)
            yield self
        finally:
            for name in list(self.processes):
                self.end(name)

    def start(self, name: str) -> None:
        """Starts the hub, or a site."""
        kind = "hub" if name == "hub" else "site"
        with open(self.folder / f"{name}.log", "ab") as log:
            self.processes[name] = subprocess.Popen(
                [*OSMOTIC, kind, "start", str(self.folder / name)],
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def program(self, name: str) -> Path:
        """The program of a site's tasks, which a site that starts writes."""
        found, end = self.folder / name / "bin/flwr-clientapp", time.monotonic() + 60
        while not found.exists():
            assert time.monotonic() < end
            time.sleep(0.1)
        return found

    def tasks_by(self, name: str, module: str, **environment: str) -> None:
        """From now until it is started again, a site's tasks are done by a module of these tests."""
        program = self.program(name)
        tests = Path(__file__).parents[1]
        path = os.pathsep.join(filter(None, (str(tests.parent), str(tests), self.env.get("PYTHONPATH"))))
        given = {"OSMOTIC_ANSWERS": str(self.folder / name / "answers"), "PYTHONPATH": path, **environment}
        # By its path: a site's processes find one program, and no other.
        words = [
            shutil.which("env") or "env",
            *(f"{key}={value}" for key, value in given.items()),
            sys.executable,
            "-m",
            module,
        ]
        program.write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')

    def end(self, name: str) -> None:
        """Ends a hub or a site as Ctrl-C does."""
        process = self.processes.pop(name)
        process.send_signal(signal.SIGINT)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def registered(self) -> None:
        """Registers all sites, once the hub is up."""
        end = time.monotonic() + 120
        for name in self.names:
            while True:
                words = ["hub", "add-site", name, str(self.folder / name / "site.key.pub")]
                done = subprocess.run(
                    [*OSMOTIC, *words, "--hub", str(self.folder / "hub")],
                    env=self.env,
                    capture_output=True,
                    text=True,
                )
                if done.returncode == 0:
                    break
                assert time.monotonic() < end, done.stderr
                time.sleep(1)

    def run(self, name: str, *sets: str) -> subprocess.Popen[str]:
        """Begins a run at the sites."""
        words = [
            "hub",
            "run",
            str(self.folder / "run.toml"),
            "--hub",
            str(self.folder / "hub"),
            "--name",
            name,
        ]
        return subprocess.Popen(
            [*OSMOTIC, *words, *(word for one in sets for word in ("--set", one))],
            env=self.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def out(self, name: str) -> Path:
        """Folder of a run."""
        return self.folder / "hub/runs" / name

    def summary(self, name: str) -> dict[str, Any]:
        """Of a run that has ended."""
        return dict(json.loads((self.out(name) / "summary.json").read_text()))

    def simulated(self, name: str, *sets: str) -> dict[str, Any]:
        """The summary of the same run as a simulation."""
        out = self.folder / "simulated" / name
        self.call("run", self.folder / "run.toml", "--out", out, *(w for one in sets for w in ("--set", one)))
        return dict(json.loads((out / "summary.json").read_text()))

    def pids(self, kind: str, site: str | None = None) -> list[int]:
        """Processes of a kind, of the hub, of one site or of all."""
        word, owner = KINDS[kind]
        owners = ["hub"] if owner == "hub" else [site] if site else self.names
        found = []
        for name in owners:
            for pid in descendants(self.processes[name].pid):
                if word in command(pid):
                    found.append(pid)
        return found


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
