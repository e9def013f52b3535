"""Runs a list of configurations, skips what is finished, resumes what was cut off, and tabulates.

A study is a script beside its README that calls `run_all(folder, cases)`; its results are rows of results.jsonl.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import osmotic
from osmotic.plugins import load_file

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
    plugins: Sequence[Path] = (),
) -> list[dict[str, Any]]:
    """Every case as `osmotic run` with these arguments; returns their rows.

    Args:
        folder: of the study; the file `results` is written there after every case.
        cases: name -> arguments of `osmotic run`.
        runs: where run folders go; default runs/STUDY under the current folder.
        jobs: runs side by side; give each `engine.workers=1` then.
        more: further entries of a row, from its run folder.
        plugins: files as `--plugin` takes them.
    """
    runs = runs or Path("runs") / folder.name
    path = folder / results
    rows = {r["case"]: r for r in map(json.loads, path.read_text().splitlines())} if path.exists() else {}
    # Every case in a fresh process of its own: threads and settings of torch are then its own too.
    failed: list[str] = []
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=spawn, max_tasks_per_child=1) as pool:
        waiting = {
            pool.submit(one, list(arguments), runs / case, list(plugins)): case
            for case, arguments in cases.items()
            if case not in rows
        }
        for done in as_completed(waiting):
            case = waiting[done]
            try:
                rows[case] = row(case, cases[case], done.result()) | dict(more(runs / case))
            except Exception as error:  # told now: the others go on for hours
                print(f"{case}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
                failed.append(case)
                continue
            path.write_text("".join(json.dumps(r) + "\n" for r in rows.values()))
    if failed:
        sys.exit(f"{len(failed)} cases failed: {', '.join(failed)}")
    return [rows[case] for case in cases]


def one(arguments: list[str], out: Path, plugins: Sequence[Path] = ()) -> dict[str, Any]:
    """Runs one case, or goes on with it where it was cut off; returns its summary."""
    for path in plugins:
        load_file(path)
    begun = (out / "config.toml").exists()
    print(f"{out.name}: " + ("goes on" if begun else " ".join(arguments)), file=sys.stderr, flush=True)
    run = osmotic.load(out).resume() if begun else osmotic.run(**settings(arguments), out=out)
    return run.summary


def arguments(preset: str, *keys: Mapping[str, Any]) -> list[str]:
    """As a person would type them after `osmotic run`; later keys win."""
    merged: dict[str, Any] = {}
    for some in keys:
        merged |= some
    found = ["--preset", preset]
    for name, value in merged.items():
        found += ["--set", f"{name}={text(value)}"]
    return found


def text(value: Any) -> str:
    """A value as `--set` reads it."""
    if isinstance(value, bool):
        return str(value).lower()
    return "[" + ", ".join(f'"{v}"' for v in value) + "]" if isinstance(value, list) else str(value)


def on_accelerator(
    told: str,
    folder: Path,
    cases: Callable[[list[int], Mapping[str, Any]], Mapping[str, Sequence[str]]],
    trial: Mapping[str, Any],
) -> None:
    """The command of a study's gpu.py: runs what is missing, or with `--try` a few steps of every case, anywhere.

    Args:
        told: what `--help` says.
        folder: where gpu.jsonl goes; with `--try` a folder of its own.
        cases: given seeds and keys that win.
        trial: the keys of `--try`.
    """
    parser = argparse.ArgumentParser(description=told, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", default="", help="cases whose name begins so")
    parser.add_argument(
        "--try", dest="trial", action="store_true", help="a few steps of every case, anywhere"
    )
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp()) if args.trial else folder
    wanted = cases(args.seeds[:1] if args.trial else args.seeds, trial if args.trial else {})
    wanted = {name: words for name, words in wanted.items() if name.startswith(args.only)}
    rows = run_all(folder, wanted, runs=folder / "runs" if args.trial else None, results="gpu.jsonl")
    print(f"{len(rows)} cases in {folder / 'gpu.jsonl'}")


def settings(arguments: Sequence[str]) -> dict[str, Any]:
    """Arguments of `osmotic run` as those of `osmotic.run`; the rows of a study keep them as a person would type them."""
    from osmotic.runs.resolve import parse_set

    found: dict[str, Any] = {"keys": {}}
    for option, value in zip(arguments[::2], arguments[1::2], strict=True):
        if option == "--set":
            key, parsed = parse_set(value)
            found["keys"][key] = parsed
        else:
            found[{"--preset": "preset", "--data": "data"}[option]] = value
    return found


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
