"""Flower's own command, run for its answers in JSON."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from osmotic.engines.quiet import QUIET
from osmotic.errors import RunStopped, plain


def environment(home: Path) -> dict[str, str]:
    """Of Flower's programs: its folder, no calls home, and the programs of this Python first on the path."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return {**os.environ, **QUIET, "FLWR_HOME": str(home), "PATH": path, "NO_COLOR": "1"}


def program(name: str) -> str:
    """A program of this Python's environment, such as `flower-superlink`."""
    return str(Path(sys.executable).parent / name)


AWAY = "Connection to the SuperLink is unavailable"  # flwr's words


def ask(home: Path, words: Sequence[str], seconds: float = 60.0, patience: float = 0.0) -> dict[str, Any]:
    """The JSON that `flwr WORDS --format json` prints.

    Args:
        seconds: for one answer.
        patience: seconds for a hub that is only just starting.
    Raises: RunStopped with its message if it fails.
    """
    end = time.monotonic() + patience
    while True:
        try:
            return _asked(home, words, seconds)
        except HubAway:
            if time.monotonic() >= end:
                raise
            time.sleep(1)


class HubAway(RunStopped):
    """Nobody answers at the hub's address."""


def _asked(home: Path, words: Sequence[str], seconds: float) -> dict[str, Any]:
    command = [program("flwr"), *words, "--format", "json"]
    try:
        done = subprocess.run(
            command,
            env=environment(home),
            capture_output=True,
            text=True,
            timeout=seconds,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        raise RunStopped(f"flwr {words[0]} did not answer within {seconds:g} s") from None
    begin = done.stdout.find("{")
    try:
        found = json.loads(done.stdout[begin:]) if begin >= 0 else {}
    except ValueError:
        found = {}
    if done.returncode != 0 or not found or found.get("success") is False:
        told = found.get("error-message") or done.stderr.strip() or done.stdout.strip() or "no answer"
        if AWAY in str(told):
            raise HubAway("the hub does not answer: is osmotic hub start running?")
        raise RunStopped(f"flwr {words[0]}: {plain(str(told).strip().splitlines()[-1])}")
    return dict(found)
