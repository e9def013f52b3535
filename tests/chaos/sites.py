"""Kills of every process of a federation, at random moments: the run must end unaided, with the weights of the unbroken one.

python -m tests.chaos.sites [--kills N] [--seed S] [--only KIND]      # make chaos-sites; writes figures to stdout as JSON
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.chaos.federation import KINDS, Federation

CONFIG = """
[data]
source = "digits"
clients = 3
max_images = 300
[training]
rounds = 4
[codec]
up = "int8"
error_feedback = true
[engine]
deadline_seconds = 600
"""
NAMES = ["client-000", "client-001", "client-002"]
PATIENCE = 900.0  # seconds for one run


def main() -> int:
    """Runs the schedule; 1 if any run differs from the unbroken one."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=sorted(KINDS))
    args = parser.parse_args()
    rng = random.Random(args.seed)
    kinds = [args.only] if args.only else list(KINDS)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        made = Federation(Path(folder), CONFIG, NAMES)
        expected = made.simulated("unbroken")["weights_sha256"]
        with made.started():
            for number in range(args.kills):
                row = killed_once(made, f"kill-{number}", kinds[number % len(kinds)], rng, expected)
                rows.append(row)
                print(json.dumps(row), flush=True)
    equal = sum(row["equal"] for row in rows)
    print(json.dumps({"kills": len(rows), "equal": equal, "seed": args.seed}))
    return 0 if equal == len(rows) else 1


def killed_once(
    made: Federation, name: str, kind: str, rng: random.Random, expected: str, *sets: str
) -> dict[str, Any]:
    """One run in which one process of a kind is killed, a random time after its first round has begun."""
    begun = time.monotonic()
    run = made.run(name, *sets)
    lines = made.out(name) / "metrics.jsonl"
    while not lines.exists() and run.poll() is None:
        time.sleep(0.1)
    time.sleep(rng.uniform(0, 25))
    killed = None
    while run.poll() is None and killed is None:
        if pids := made.pids(kind):
            killed = rng.choice(pids)
            os.kill(killed, signal.SIGKILL)
        else:
            time.sleep(0.05)
    at = lines.read_bytes().count(b"\n") if lines.exists() else 0
    try:
        told, _ = run.communicate(timeout=PATIENCE)
    except Exception:
        run.kill()
        told, _ = run.communicate()
    found = made.summary(name) if (made.out(name) / "summary.json").exists() else {}
    return {
        "kind": kind,
        "killed": killed is not None,
        "phases_before": at,
        "code": run.returncode,
        "equal": found.get("weights_sha256") == expected and found.get("failures") == [],
        "failures": found.get("failures"),
        "seconds": round(time.monotonic() - begun, 1),
        "told": [] if run.returncode == 0 else told.splitlines()[-3:],
    }


if __name__ == "__main__":
    sys.exit(main())
