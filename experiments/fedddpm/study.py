"""Does server training on synthetic images help under label skew? See README.md.

python experiments/fedddpm/study.py pilot      # settings are chosen on seed 100 alone: pilot.jsonl
python experiments/fedddpm/study.py main       # Dirichlet 0.1, three seeds: results.jsonl
python experiments/fedddpm/study.py cells      # other kinds of skew, one seed
python experiments/fedddpm/study.py sizes      # size of the set, one seed

Each skips what is finished and goes on with what was cut off; a case is done when its line is in the file.
"""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import cases  # noqa: E402
import numpy as np  # noqa: E402
from features import made  # noqa: E402
from paired import read  # noqa: E402
from sets import costs  # noqa: E402
from study import one, run_all  # noqa: E402

import osmotic  # noqa: E402

SETS = HERE / "sets.py"


def figures(out: Path) -> dict[str, Any]:
    """Further entries of a row: server work, near-copies, and the set of synthetic images held against the data.

    The FD of the set is that of the mixture of the local models: it is what they draw, by client size.
    """
    from osmotic.metrics import encoder as encoders
    from osmotic.metrics.score import Yardstick
    from osmotic.runs.scoring import Scoring
    from osmotic.runs.study import prepare
    from osmotic.storage.store import read_checked

    run = osmotic.load(out)
    summary = run.summary
    quality = summary["quality"] or {}
    found: dict[str, Any] = {
        "server_steps": summary["server_steps"],
        "server_flops": summary["server_flops"],
        "flops": summary["flops"],
        "held_out_fd": (quality.get("held_out") or {}).get("fd"),
        "near_copies": quality.get("near_copies"),
        "class_histogram": quality.get("class_histogram"),
        "auxiliary": summary["auxiliary"],
        "failures": len(summary["failures"]),
    }
    if summary["auxiliary"] is None:
        return found
    server = tomllib.loads((out / "config.toml").read_text())["server"]
    if drawn := server.get("drawn-set"):  # its phase 0 was another run's
        found |= {k: summary[k] + v for k, v in costs(Path(drawn["run"]), drawn["share"]).items()}
    held = read_checked(out / "auxiliary" / f"{summary['auxiliary']['sha256']}.safetensors")
    scoring = Scoring(prepare(run.config), None)
    encoder = encoders.get(scoring.seen, run.config.score.encoder, device="cpu")
    labels = held.get("labels")
    yardstick = Yardstick(scoring.reference, scoring.held_out, encoder, labels, len(held["images"]))
    score = yardstick.score(encoder.features(held["images"]))
    found["set"] = {
        "images": len(held["images"]),
        "fd": score.fd,
        "floor": score.fd_floor,
        "classes": None if labels is None else np.bincount(labels, minlength=10).tolist(),
    }
    return found


def with_sets(stage: cases.Stage, results: str) -> None:
    """Runs a stage; before it again those runs whose images it takes, if their folders are gone: with the same bits."""
    missing = [words for name, words in stage.items() if name not in read(HERE / results)]
    folders = {
        w.partition(".run=")[2] for words in missing for w in words if w.startswith("server.drawn-set.run=")
    }
    for folder in sorted(map(Path, folders)):
        if not (folder / "summary.json").exists():
            one(every(folder.name), folder)
    run_all(HERE, stage, cases.RUNS, jobs=2, more=figures, results=results, plugins=[SETS])


def every(name: str) -> list[str]:
    """The arguments of a run, of whatever study."""
    return next(stage[name] for study in STUDIES.values() for stage in study() if name in stage)


STUDIES = {"pilot": cases.pilot, "main": cases.main, "cells": cases.cells, "sizes": cases.sizes}

if __name__ == "__main__":
    [which] = sys.argv[1:] or ["main"]
    if which == "cells":
        for kind in cases.KINDS:
            made(kind, cases.FEATURES)
    for stage in STUDIES[which]():
        with_sets(stage, "results.jsonl" if which == "main" else f"{which}.jsonl")
