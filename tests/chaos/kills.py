"""Real signals to the real command at moments nobody chose: while it starts, trains, scores, publishes, resumes."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from .runs import Ended, Farm, differences, left, settings

SEED = 20
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
PLUGIN = ("--plugin", str(Path(__file__).with_name("tiny_plugin.py")))


def osmotic(*arguments: str, after: float | None = None, number: int = 0) -> tuple[Ended, float]:
    """The command as a user has it, sent a signal after so many seconds; and how long it ran."""
    started = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "osmotic", *arguments, *PLUGIN],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    try:
        said = process.communicate(timeout=after)[1]
    except subprocess.TimeoutExpired:
        process.send_signal(number)
        said = process.communicate()[1]
    return Ended(process.returncode, said.splitlines()), time.monotonic() - started


def unbroken(farm: Farm, config: str) -> tuple[dict[str, Any], float]:
    """What the command leaves undisturbed, and its seconds."""
    farm.unbroken(config)  # trains the encoder
    folder = farm.folder / f"command-{config}"
    ended, seconds = osmotic("run", *settings(config), "--out", str(folder))
    assert ended.code == 0, ended.said
    return left(folder), seconds


def kill(
    farm: Farm, number: int, config: str, expected: dict[str, Any], seconds: float
) -> tuple[Counter[str], list[str]]:
    """One run, killed up to three times, brought to its end: what was sent, and what is wrong."""
    draw = random.Random(SEED * 1000 + number)
    folder, sent, wrong = farm.folder / f"killed-{number}", Counter[str](), list[str]()
    begin = ("run", *settings(config), "--out", str(folder))
    try:
        ended = Ended(-1, [])
        for kills_left in range(draw.randint(1, 3), -1, -1):
            command = ("resume", str(folder)) if (folder / "config.toml").is_file() else begin
            sign = draw.choice(SIGNALS)
            ended, _ = osmotic(
                *command, after=draw.uniform(0.02, 1) * seconds if kills_left else None, number=sign
            )
            if ended.code == 0:
                break
            if not kills_left:
                wrong.append(f"{command[0]} ended with {ended.code}: {' | '.join(ended.said[-3:])[-300:]}")
                continue
            sent[sign.name] += 1
            # Before Python hands signals to the program they end it as the system does.
            if ended.code not in (-sign, 130) or (ended.code == 130 and not _polite(ended)):
                wrong.append(f"{sign.name}: ended with {ended.code}: {' | '.join(ended.said[-3:])[-300:]}")
        return sent, wrong + (differences(expected, left(folder)) if ended.code == 0 else [])
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _polite(ended: Ended) -> bool:
    """No traceback."""
    return not any(line.startswith("Traceback") for line in ended.said)


def check(
    farm: Farm, numbers: range, config: str = "udec", workers: int = 2
) -> tuple[Counter[str], list[str]]:
    """Signals sent, by name; what went wrong, a line each."""
    expected, seconds = unbroken(farm, config)
    sent, told = Counter[str](), list[str]()
    with ThreadPoolExecutor(workers) as pool:
        results = list(pool.map(lambda n: kill(farm, n, config, expected, seconds), numbers))
    for number, (signals, wrong) in zip(numbers, results, strict=True):
        sent += signals
        told += [f"python -m tests.chaos kills --config {config} --number {number}: {line}" for line in wrong]
    return sent, told
