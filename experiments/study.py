"""Runs a list of configurations, skips what is finished, resumes what was cut off, and tabulates.

A study is a script beside its README that calls `run_all(folder, cases)`; its results are rows of results.jsonl.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

SHOWN = (
    "method",
    "seed",
    "rounds",
    "images_seen",
    "client_steps",
    "bytes_up",
    "bytes_down",
    "wall_seconds",
    "weights_sha256",
)
SCORES = (
    "encoder",
    "num_samples",
    "sampler",
    "nfe",
    "fd",
    "kid",
    "precision",
    "recall",
    "fd_floor",
    "fd_at_floor",
)


def run_all(
    folder: Path,
    cases: Mapping[str, Sequence[str]],
    runs: Path | None = None,
    jobs: int = 1,
    more: Callable[[Path], Mapping[str, Any]] = lambda out: {},
    results: str = "results.jsonl",
) -> list[dict[str, Any]]:
    """Every case as `osmotic run` with these arguments; returns their rows.

    Args:
        folder: of the study; the file `results` is written there after every case.
        cases: name -> arguments of `osmotic run`.
        runs: where run folders go; default runs/STUDY under the current folder.
        jobs: runs side by side; give each `engine.workers=1` then.
        more: further entries of a row, from its run folder.
    """
    runs = runs or Path("runs") / folder.name
    path = folder / results
    rows = {r["case"]: r for r in map(json.loads, path.read_text().splitlines())} if path.exists() else {}
    writing = threading.Lock()

    def one(case: str) -> None:
        arguments = cases[case]
        out = runs / case
        if (out / "config.toml").exists():
            command = ["resume", str(out)]
        else:
            command = ["run", *arguments, "--out", str(out)]
        print(f"{case}: osmotic {' '.join(command)}", file=sys.stderr, flush=True)
        subprocess.run(
            [sys.executable, "-m", "osmotic.cli", *command, "--json"], check=True, stdout=subprocess.DEVNULL
        )
        found = row(case, arguments, json.loads((out / "summary.json").read_text())) | dict(more(out))
        with writing:
            rows[case] = found
            path.write_text("".join(json.dumps(r) + "\n" for r in rows.values()))

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(one, [case for case in cases if case not in rows]))
    return [rows[case] for case in cases]


def row(case: str, arguments: Sequence[str], summary: Mapping[str, Any]) -> dict[str, Any]:
    """One line of results.jsonl."""
    quality = summary["quality"] or {}
    own = {f"mean_{k}": v for k, v in (quality.get("mean") or {}).items()}
    shown = {k: summary[k] for k in SHOWN} | {k: quality.get(k) for k in SCORES} | own
    return {"case": case, "arguments": list(arguments), **shown}


def machine() -> str:
    """Processor, cores, Python and torch, for a study's README."""
    import torch

    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        name = next(
            (line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line),
            name,
        )
    return f"{name}, {os.cpu_count()} cores, Python {platform.python_version()}, torch {torch.__version__}"
