"""What does each engine cost: the same study in this machine's processes, on Flower's simulation, and across sites?

Question: how long do a round and a whole command take, and how much memory at most, on `inprocess`, on `flower`, and on
Flower's own FedAvg with the same steps (`flower_by_hand.py`)? And beside them on three sites with TLS and keys?

Method. The study of `rounds.py`: 20 clients x 89 images in batches of 64, and 200 x 8 in batches of 8. Each side is a fresh
command; sides take turns, A B C, C B A, ...; the figures of a round are the medians of the ratios of turns that are neighbours,
the first round of a command apart. `seconds_command` is the whole command, imports, start and end included. Memory
is the proportional set size of all its processes together, looked at twice a second; `server` is the peak of the
process of the server alone, above what it had after its imports.

Sites cannot be so many on one machine: three hold the images of the first shape, 593 each, and every round waits for processes
that Flower starts anew, so they are a figure of their own and no ratio.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import machine
import rounds as rounds_benchmark
from rounds import SHAPES, Shape

HERE = Path(__file__).parent
SIDES = ("inprocess", "flower", "flower_by_hand")
LOOK = 0.5  # seconds between two looks at memory


def main() -> None:
    """Runs all sides and prints the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3, help="per turn, after one that is told apart")
    parser.add_argument("--turns", type=int, default=3, help="of every side")
    parser.add_argument("--shape", type=int, nargs=3, metavar=("CLIENTS", "IMAGES", "BATCH"))
    parser.add_argument("--without-sites", action="store_true", help="no hub and sites are started")
    parser.add_argument("--quick", action="store_true", help="a tiny round, to see that everything works")
    parser.add_argument("--side", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        print(json.dumps(ours(args.side[0], Path(args.side[1]), args.rounds)))
        return
    shapes = (Shape(*args.shape),) if args.shape else SHAPES
    if args.quick:
        shapes, args.rounds, args.turns, args.without_sites = (Shape(4, 5, 4),), 1, 1, True
    load_before = os.getloadavg()
    results = []
    for shape in shapes:
        with tempfile.TemporaryDirectory() as folder:
            rounds_benchmark.write_case(shape, Path(folder))
            results.append({**asdict(shape), **measure(Path(folder), args.rounds, args.turns)})
    record: dict[str, Any] = {
        "benchmark": "engines",
        "rounds": args.rounds,
        "turns": args.turns,
        "load_average_before": [round(load, 2) for load in load_before],
        "results": results,
    }
    told = "; ".join(readable(row) for row in results)
    if not args.without_sites:
        record["sites"] = across_sites(args.rounds)
        told += f"; three sites {record['sites']['seconds']:.1f} s a round, the first {record['sites']['first']:.1f}"
    machine.emit(record, told)


# --- the sides ---


def ours(engine: str, folder: Path, rounds: int) -> dict[str, Any]:
    """As `rounds_benchmark.run_osmotic` on an engine, and how far the server's memory rose."""
    import osmotic.runs.commands
    import osmotic.runs.launch  # noqa: F401 - their memory is no run's

    before = _kilobytes("VmRSS")
    found = rounds_benchmark.run_osmotic(folder, rounds, [f"engine.name={engine}"])
    return {**found, "server_mib": round((_kilobytes("VmHWM") - before) / 1024, 1)}


def _kilobytes(key: str) -> int:
    return int((machine.proc("/proc/self/status", key) or "0 kB").split()[0])


def turn(folder: Path, side: str, rounds: int) -> dict[str, Any]:
    """One command: seconds of its rounds, of all of it, and the most memory of its processes together."""
    command = [str(HERE / "engines.py"), "--side", side, str(folder), "--rounds", str(rounds)]
    if side == "flower_by_hand":
        command = [str(HERE / "flower_by_hand.py"), str(folder), str(rounds)]
    begin = time.perf_counter()
    process = subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, text=True)
    peak = Peak(process.pid)
    told, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"{side} ended with exit code {process.returncode}")
    found: dict[str, Any] = json.loads(told.splitlines()[-1])
    found |= {"command": time.perf_counter() - begin, "mib": peak.end() / 1024}
    median = statistics.median(found["seconds"][1:])
    print(f"{side} {median:.3f} s a round, {found['command']:.1f} s in all", file=sys.stderr, flush=True)
    return found


class Peak:
    """The most memory, in kB, of a process and all below it, until `end`."""

    def __init__(self, pid: int) -> None:
        self.most, self._pid, self._over = 0, pid, threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def end(self) -> int:
        """Stops looking; the peak."""
        self._over.set()
        self._thread.join()
        return self.most

    def _look(self) -> None:
        while not self._over.wait(LOOK):
            self.most = max(self.most, sum(_proportional(pid) for pid in _tree(self._pid)))


def _tree(root: int) -> list[int]:
    """Process ids of a process and all below it."""
    found, waiting = [], [root]
    while waiting:
        pid = waiting.pop()
        found.append(pid)
        for task in Path(f"/proc/{pid}/task").glob("*/children"):
            try:
                waiting += map(int, task.read_text().split())
            except OSError:  # it has just ended
                continue
    return found


def _proportional(pid: int) -> int:
    """Proportional set size in kB: pages that several share count for each by its share."""
    try:
        told = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in told.splitlines() if line.startswith("Pss:")), 0)


# --- the comparison ---


def measure(folder: Path, rounds: int, turns: int) -> dict[str, Any]:
    """All figures of one shape."""
    found: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}

    def median_round(side: str) -> float:
        found[side].append(turn(folder, side, rounds + 1))
        return statistics.median(found[side][-1]["seconds"][1:])

    works = [lambda side=side: median_round(side) for side in SIDES]
    taken = dict(zip(SIDES, machine.alternate(works, turns), strict=True))

    def medians(pick: Any, digits: int = 2) -> dict[str, float]:
        return {s: round(statistics.median(pick(t) for t in found[s]), digits) for s in SIDES}

    def ratio(a: str, b: str) -> dict[str, Any]:
        return {
            "ratio": round(machine.median_ratio(taken[a], taken[b]), 3),
            "range": machine.spread(taken[a], taken[b]),
        }

    row: dict[str, Any] = {
        "seconds": {side: round(statistics.median(times), 3) for side, times in taken.items()},
        "first": medians(lambda t: t["seconds"][0]),
        "seconds_command": medians(lambda t: t["command"], 1),
        "mib": medians(lambda t: t["mib"], 0),
        "server_mib": {s: statistics.median(t["server_mib"] for t in found[s]) for s in SIDES[:2]},
        "flower_to_flower_by_hand": ratio("flower", "flower_by_hand"),
        "flower_by_hand_to_inprocess": ratio("flower_by_hand", "inprocess"),
        "flower_to_inprocess": ratio("flower", "inprocess"),
    }
    row["losses"] = {side: [round(loss, 5) for loss in found[side][0]["losses"]] for side in SIDES}
    return row


def readable(row: Mapping[str, Any]) -> str:
    """One clause for people."""
    s = row["seconds"]
    return (
        f"{row['clients']} clients x {row['images']} images, batch {row['batch']}: inprocess {s['inprocess']:.2f} s a round, flower "
        f"{s['flower']:.2f}, Flower's own {s['flower_by_hand']:.2f}; flower / Flower's own "
        f"{row['flower_to_flower_by_hand']['ratio']:.2f}, Flower's own / inprocess {row['flower_by_hand_to_inprocess']['ratio']:.2f}"
    )


# --- sites ---


def across_sites(rounds: int) -> dict[str, Any]:
    """Three sites on this machine, with TLS and keys, over the images of the first shape: seconds, and memory of all processes."""
    sys.path[:0] = [str(HERE.parent), str(HERE.parent / "tests")]
    from tests.chaos.federation import Federation

    shape = Shape(3, SHAPES[0].clients * SHAPES[0].images // 3, SHAPES[0].batch)
    with tempfile.TemporaryDirectory() as folder:
        rounds_benchmark.write_case(shape, Path(folder))
        made = Federation(
            Path(folder) / "federation",
            _toml(rounds_benchmark.keys(asdict(shape)) | {"training.rounds": rounds + 1}, Path(folder)),
            [f"client-{i:03d}" for i in range(3)],
        )
        peak = Peak(os.getpid())
        with made.started():
            begin = time.perf_counter()
            told, _ = (run := made.run("benchmark")).communicate()
            command = time.perf_counter() - begin
        if run.returncode:
            raise SystemExit(told)
        lines = (made.out("benchmark") / "metrics.jsonl").read_text().splitlines()
        seconds = [json.loads(line)["wall_seconds"] for line in lines]
    return {
        "seconds": round(statistics.median(seconds[1:]), 2),
        "first": round(seconds[0], 2),
        "seconds_command": round(command, 1),
        "mib": round(peak.end() / 1024),
    }


def _toml(keys: Mapping[str, Any], folder: Path) -> str:
    """Tables of a configuration, and its images as a file."""
    import numpy as np

    images = np.load(folder / "images.npy")
    np.savez(folder / "data.npz", train_images=images, test_images=images[:2])
    tables: dict[str, list[str]] = {}
    for key, value in (keys | {"data.source": f"npz:{folder / 'data.npz'}", "score.samples": 20}).items():
        table, _, name = key.rpartition(".")
        tables.setdefault(table, []).append(f"{name} = {json.dumps(value)}")
    (folder / "federation").mkdir()
    top = "\n".join(tables.pop("", []))
    return top + "".join(f"\n[{table}]\n" + "\n".join(lines) for table, lines in tables.items()) + "\n"


if __name__ == "__main__":
    main()
