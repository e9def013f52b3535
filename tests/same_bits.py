"""A fixed list of runs whose results a change of structure must not move: every summary field but the time, and every file of weights.

    python tests/same_bits.py record before.json              # with the code as it was
    python tests/same_bits.py check before.json               # with the code as it is: exit code 1 and the difference
    python tests/same_bits.py check before.json --python OTHER/.venv/bin/python

Bits depend on the processor and on torch, so both are to run on one machine. Fields that a later version adds are
passed over; fields that are gone or differ are not.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SMALL = (
    "data.max_images=240",
    "data.clients=4",
    "training.rounds=3",
    "training.local_epochs=1",
    "score.samples=60",
    "score.steps=5",
    "score.every=2",
    "track.backends=[]",
)
INT8 = ("codec.up=int8", "codec.down=int8", "codec.error_feedback=true")
RUNS: dict[str, tuple[str, ...]] = {
    "fedavg": (),
    "fedavg int8 both ways with error feedback": INT8,
    "usplit": ("method.name=usplit", "data.clients=5"),
    "ulatdec": ("method.name=ulatdec",),
    "udec with encoder_every": ("method.name=udec", "method.encoder_every=2", "data.partition=q-skew"),
    "central": ("method.name=central",),
    "local": ("method.name=local",),
    "half participation": ("training.fraction_train=0.5", *INT8, "seed=3"),
    "udec int8 at half participation": ("method.name=udec", "training.fraction_train=0.5", *INT8),
    "kept moments, holdout, dropout": (
        "training.optimizer_state=keep",
        "data.holdout=0.2",
        "recipe.dropout=0.1",
    ),
    "edm, unconditional": ("model.target=edm", "model.conditional=false", "score.sampler=edm-euler"),
    "the network and recipe of FedDiffuse": ("recipe.name=feddiffuse", "method.name=ulatdec"),
    "killed and resumed": (*INT8, "training.rounds=4"),
    "udec killed and resumed": ("method.name=udec", *INT8, "checkpoint.every=2", "training.rounds=4"),
}


def results(python: str, only: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(name, result) of every run, in a folder that is thrown away."""
    for name, sets in RUNS.items():
        if only not in name:
            continue
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "run"
            command = [python, "-m", "osmotic.cli"]
            run = [*command, "run", "--json", "--out", str(out)]
            for setting in (*SMALL, *sets):
                run += ["--set", setting]
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            if "killed" in name:
                _kill_after(run, out / "metrics.jsonl", lines=2, environment=environment)
                run = [*command, "resume", "--json", str(out)]
            subprocess.run(run, check=True, stdout=subprocess.DEVNULL, env=environment)
            yield name, result(out)


def _kill_after(run: list[str], log: Path, lines: int, environment: dict[str, str]) -> None:
    process = subprocess.Popen(run, stdout=subprocess.DEVNULL, env=environment)
    while not log.exists() or log.read_text().count("\n") < lines:
        time.sleep(0.005)
        if process.poll() is not None:
            raise RuntimeError("the run ended before it was to be killed")
    process.send_signal(signal.SIGKILL)
    process.wait()


def result(out: Path) -> dict[str, Any]:
    """What a run left, but for the time: the summary's fields, the metrics, the ledger's lines sorted, hashes of all weights."""
    summary = json.loads((out / "summary.json").read_text())
    metrics = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    for line in (summary, *metrics):
        del line["wall_seconds"]
    weights = {
        str(p.relative_to(out)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(out.glob("model/**/*.safetensors"))
    }
    lines = sorted((out / "ledger.jsonl").read_text().splitlines())
    # Fetching personal models at the end was not booked at first.
    ledger = [line for line in lines if json.loads(line)["phase"] != "models"]
    return {"summary": summary, "metrics": metrics, "ledger": ledger, "weights": weights}


def differences(before: Any, now: Any, where: str = "") -> Iterator[str]:
    """What is gone or differs, a line each; what is new is passed over."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key, value in before.items():
            if key in now:
                yield from differences(value, now[key], f"{where}.{key}")
            else:
                yield f"{where}.{key} is gone"
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        for i, (old, new) in enumerate(zip(before, now, strict=True)):
            yield from differences(old, new, f"{where}[{i}]")
    elif before != now:
        yield f"{where}: was {str(before)[:100]}, is {str(now)[:100]}"


def main() -> None:
    """Records, or checks against what was recorded."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("action", choices=["record", "check"])
    parser.add_argument("file", type=Path)
    parser.add_argument("--python", default=sys.executable, help="interpreter whose osmotic is run")
    parser.add_argument("--only", default="", help="runs whose name holds this")
    asked = parser.parse_args()
    if asked.action == "record":
        asked.file.write_text(json.dumps(dict(results(asked.python, asked.only))))
        return
    recorded, failed = json.loads(asked.file.read_text()), False
    for name, found in results(asked.python, asked.only):
        found = json.loads(json.dumps(found))
        told = list(differences(recorded[name], found))
        failed = failed or bool(told)
        print(f"{name}: " + ("the same" if not told else "DIFFERS\n  " + "\n  ".join(told[:12])), flush=True)
    raise SystemExit(failed)


if __name__ == "__main__":
    main()
