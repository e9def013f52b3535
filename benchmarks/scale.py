"""What do clients cost that are not asked: seconds and memory of a run over 100, 1,000 and 10,000 of them, 100 a round?

Every client has 8 random images of 8x8, ten classes; `unet-8`, batches of 8, one local epoch, every other key at its
default but for scores on 50 images, taken once, after the last round. So a round is the same work at any number of
clients, and what grows with them is overhead.

A fresh process per number of clients: seconds from `osmotic.run` to the first round; the median round after the first;
peak resident memory when the last round but one is done, before anything is scored, and at the end, above that after
imports (the scores hold features of all images, which are more where clients are more); the same of the largest worker
process; files in the run folder. Then, as commands of their own: `osmotic plan` and `osmotic report`, seconds of the wall
and of the processor, and bytes of report.html.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import machine
import numpy as np

IMAGES, CLASSES = 8, 10


def main() -> None:
    """Measures every number of clients, or one as a child process."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clients", type=int, nargs="+", default=[100, 1_000, 10_000])
    parser.add_argument("--asked", type=int, default=100, help="clients a round")
    parser.add_argument("--rounds", type=int, default=12, help="the first and the last are not counted")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a key of osmotic's")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that everything works")
    parser.add_argument("--child", metavar="FOLDER", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.quick:
        args.clients, args.asked, args.rounds = [20, 110], 2, 2
    if args.child:
        print(json.dumps(run(Path(args.child))))
        return
    load_before = [round(load, 2) for load in os.getloadavg()]
    rows = [measure(clients, args.asked, args.rounds, args.set) for clients in args.clients]
    first, last = rows[0], rows[-1]
    idle = (last["peak_training_bytes"] - first["peak_training_bytes"]) / (
        last["clients"] - first["clients"] or 1
    )
    record = {
        "benchmark": "scale",
        "asked": args.asked,
        "rounds": args.rounds,
        "set": args.set,
        "load_average_before": load_before,
        "rows": rows,
        "bytes_per_idle_client": round(idle),
        "round_ratio": round(last["round_seconds"] / first["round_seconds"], 3),
    }
    machine.emit(record, readable(record))


def measure(clients: int, asked: int, rounds: int, sets: list[str]) -> dict[str, Any]:
    """All figures of one number of clients."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_images(folder / "images.npz", clients)
        keys = {
            "data.source": f"npz:{folder / 'images.npz'}",
            "data.clients": clients,
            "data.partition": "iid",
            "training.fraction_train": asked / clients,
            "training.rounds": rounds,
            "training.batch_size": IMAGES,
            "training.local_epochs": 1,
            "score.every": 0,
            "score.samples": 50,
            "score.steps": 5,
            "model.network": "unet-8",
        }
        options = [f"{key}={value}" for key, value in keys.items()] + sets
        (folder / "keys.json").write_text(json.dumps(options))
        done = subprocess.run(
            [sys.executable, __file__, "--child", name], stdout=subprocess.PIPE, text=True, check=False
        )
        if done.returncode:
            raise SystemExit(f"the run of {clients} clients ended with exit code {done.returncode}")
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        plan = command("plan", *(word for option in options for word in ("--set", option)))
        report = command("report", str(folder / "run"))
        files = [path for path in (folder / "run").rglob("*") if path.is_file()]
        return {
            "clients": clients,
            **found,
            "plan_seconds": plan[0],
            "plan_cpu_seconds": plan[1],
            "report_seconds": report[0],
            "report_cpu_seconds": report[1],
            "report_bytes": (folder / "run" / "report.html").stat().st_size,
            "run_folder_files": len(files),
            "client_folders": len(list((folder / "run").glob("clients/*"))),
        }


def write_images(path: Path, clients: int) -> None:
    """Random images, as many as the clients hold together, and a hundred to test with."""
    rng = np.random.default_rng(0)
    arrays = {}
    for part, count in (("train", clients * IMAGES), ("test", 100)):
        arrays[f"{part}_images"] = rng.integers(0, 256, (count, 8, 8), dtype=np.uint8)
        arrays[f"{part}_labels"] = np.arange(count) % CLASSES
    np.savez(path, **arrays)


def command(*words: str) -> tuple[float, float]:
    """Seconds of the wall and of the processor that a command takes, imports included."""
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, "-m", "osmotic", *words], stdout=subprocess.DEVNULL, check=True)
    wall, after = time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return round(wall, 3), round(spent, 3)


# --- the child process ---


def run(folder: Path) -> dict[str, Any]:
    """Seconds and memory of a whole run into FOLDER/run."""
    import osmotic
    from osmotic.runs import launch, resolve  # with torch, so that imports are no part of what is measured

    assert launch
    base, begun = status("self", "VmRSS"), time.perf_counter()
    seconds: list[float] = []
    peaks: list[int] = []
    workers: list[int] = []

    class Clock(osmotic.Callback):
        begin = 0.0
        first = 0.0

        def phase_started(self, phase: Any, index: int, count: int) -> None:
            self.begin = time.perf_counter()
            self.first = self.first or self.begin

        def phase_done(self, line: Mapping[str, Any]) -> None:
            seconds.append(time.perf_counter() - self.begin)
            peaks.append(status("self", "VmHWM") - base)
            workers.append(max((status(pid, "VmHWM") for pid in descendants(os.getpid())), default=0))
            if line["num_failed"]:
                raise SystemExit(f"{line['num_failed']} clients failed")

    clock = Clock()
    config = resolve.load(sets=json.loads((folder / "keys.json").read_text()))
    osmotic.run(config, out=folder / "run", callbacks=clock)
    return {
        "start_seconds": round(clock.first - begun, 3),
        # neither the first round nor the last, which is scored
        "round_seconds": round(statistics.median(seconds[1:-1] or seconds[:1]), 3),
        "peak_training_bytes": peaks[-2],
        "peak_bytes": status("self", "VmHWM") - base,
        "peak_worker_bytes": max(workers),
    }


def status(pid: int | str, key: str) -> int:
    """Bytes that /proc/PID/status tells; 0 of a process that has ended. Not by getrusage, which starts from the parent's peak."""
    try:
        return 1024 * int((machine.proc(f"/proc/{pid}/status", key) or "0 kB").split()[0])
    except OSError:
        return 0


def descendants(root: int) -> list[int]:
    """Processes below `root`."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue  # it has ended meanwhile
    found = [root]
    for pid in found:
        found += [child for child, parent in parents.items() if parent == pid]
    return found[1:]


def readable(record: Mapping[str, Any]) -> str:
    """One line for people."""
    rows = "; ".join(
        f"{r['clients']:,} clients: {r['round_seconds']:.2f} s a round, {r['peak_training_bytes'] / 1e6:.0f} MB in training, "
        f"{r['peak_bytes'] / 1e6:.0f} MB with scores, plan {r['plan_seconds']:.2f} s, report {r['report_bytes'] / 1e3:.0f} kB"
        for r in record["rows"]
    )
    return (
        f"{rows}; {record['bytes_per_idle_client']:,} bytes in training for each client more, images included"
    )


if __name__ == "__main__":
    main()
