"""What every benchmark needs: the machine in a few fields, paired timings, and one way to print a result."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any


def cores() -> int:
    """Processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe() -> dict[str, Any]:
    """The machine a figure was measured on, load included: a busy machine explains a bad figure."""
    found: dict[str, Any] = {
        "cpu": proc("/proc/cpuinfo", "model name") or platform.processor() or platform.machine(),
        "cores": cores(),
        "memory_gib": round(int((proc("/proc/meminfo", "MemTotal") or "0 kB").split()[0]) / 2**20, 1),
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }
    for package in ("numpy", "torch", "diffusers"):
        found[package] = metadata.version(package)
    return found


def proc(path: str, key: str) -> str | None:
    """Value of the first line `key : value` of a file in /proc, or None."""
    if Path(path).is_file():
        for line in Path(path).read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == key:
                return value.strip()
    return None


def seconds(work: Callable[[], Any]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def alternate(works: Sequence[Callable[[], float]], repeats: int) -> list[list[float]]:
    """Seconds of each of `works`, [len(works)][repeats], taken in turn: A B, B A, A B, ...

    Neighbours share whatever else the machine does at that moment, and a drift hits both sides alike.
    """
    taken: list[list[float]] = [[] for _ in works]
    for repeat in range(repeats):
        order = range(len(works)) if repeat % 2 == 0 else reversed(range(len(works)))
        for index in order:
            taken[index].append(works[index]())
    return taken


def median_ratio(numerators: Sequence[float], denominators: Sequence[float]) -> float:
    """Median of the ratios of pairs taken next to each other."""
    return statistics.median(a / b for a, b in zip(numerators, denominators, strict=True))


def spread(numerators: Sequence[float], denominators: Sequence[float]) -> list[float]:
    """[smallest, largest] ratio of a pair, rounded."""
    ratios = [a / b for a, b in zip(numerators, denominators, strict=True)]
    return [round(min(ratios), 4), round(max(ratios), 4)]


def emit(record: dict[str, Any], readable: str) -> None:
    """Prints the result twice: one JSON line that carries the machine, then one line for people."""
    print(json.dumps({**record, "machine": describe()}), flush=True)
    print(readable, flush=True)
