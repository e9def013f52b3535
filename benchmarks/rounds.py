"""What does a round cost, against the same round written by hand in plain torch?

Question: how long does a round of federated averaging take with osmotic as it comes, against three loops that take the
same steps and have nothing else to do (`by_hand.py`), and are the weights and losses the same?

Method. The shapes are 20 clients x 89 images in batches of 64, and 200 clients x 8 images in batches of 8: one local
epoch, `unet-8` without classes (0.70 million weights), target epsilon, plain squared error, AdamW, clipping at 1.
osmotic is `osmotic.run` with every engine key at its default: packets encoded, decoded, checked, gated, summed exactly
and booked, averages over rounds kept. A round is timed from "phase started" to "phase done"; its checkpoint lies
outside. Each side runs in a fresh process, its workers started before the clock, its first round not counted, the
next ones back to back. Sides take turns, A B C D, D C B A, ...; the figure is the median of the ratios of turns that
are neighbours.

The weights after the first round: float32 rounds every product, and no two orders of summation round alike. So both
are held against the loop by hand in float64: osmotic is as near to it as the loops by hand are, in root mean square
over all weights; at most twice the farthest of them passes. How little passes is measured too: `slip` is the distance of the
loop in float64 with a learning rate 0.1 % higher.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import machine
import numpy as np

HERE = Path(__file__).parent
OURS, BY_HAND = "osmotic", ("two_processes", "two_threads", "plain")
SEED = 0
RUN = 100  # rounds of the run that is broken off: what "auto" chooses may depend on how long it would be

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Shape:
    """Clients, images of each, images per step."""

    clients: int
    images: int
    batch: int


SHAPES = (Shape(20, 89, 64), Shape(200, 8, 8))


def main() -> None:
    """Runs all sides and prints the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--shape", type=int, nargs=3, metavar=("CLIENTS", "IMAGES", "BATCH"), help="only this one"
    )
    parser.add_argument("--rounds", type=int, default=5, help="per turn, after one that is not counted")
    parser.add_argument("--turns", type=int, default=4, help="of every side")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a key of osmotic's")
    parser.add_argument("--quick", action="store_true", help="a tiny round, to see that everything works")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        print(json.dumps(run_osmotic(Path(args.side), args.rounds, args.set)))
        return
    shapes = (Shape(*args.shape),) if args.shape else SHAPES
    if args.quick:
        shapes, args.rounds, args.turns = (Shape(4, 5, 4),), 1, 1
    load_before = os.getloadavg()
    results = []
    for shape in shapes:
        with tempfile.TemporaryDirectory() as folder:
            write_case(shape, Path(folder))
            results.append({**asdict(shape), **measure(Path(folder), args.rounds, args.turns, args.set)})
    record = {
        "benchmark": "rounds",
        "rounds": args.rounds,
        "turns": args.turns,
        "set": args.set,
        "load_average_before": [round(load, 2) for load in load_before],
        "results": results,
    }
    machine.emit(record, "; ".join(readable(row) for row in results))
    if not all(row["weights_agree"] for row in results):
        raise SystemExit("osmotic's weights are farther from float64 than rounding explains")


# --- the case ---


def write_case(shape: Shape, folder: Path) -> None:
    """Random 8x8 images by client, the weights to start from, and what the loops by hand need to know."""
    pixels = np.random.default_rng(0).integers(0, 256, (shape.clients * shape.images, 8, 8), dtype=np.uint8)
    np.save(folder / "images.npy", pixels)
    study = prepared(folder, shape)
    held = [h.train for h in study.holdings]
    assert all(len(rows) == shape.images for rows in held), "the split is not even"
    np.save(folder / "pixels.npy", np.stack([pixels[rows] for rows in held]))
    np.savez(folder / "initial.npz", **study.blueprint.initial())
    (folder / "case.json").write_text(json.dumps({**asdict(shape), "seed": SEED}))


def keys(shape: Mapping[str, Any], rounds: int = 1) -> dict[str, Any]:
    """What makes osmotic take the steps of the loops by hand; all other keys keep their defaults."""
    return {
        "seed": SEED,
        "data.clients": shape["clients"],
        "data.partition": "iid",
        "model.network": "unet-8",
        "model.conditional": False,
        "model.target": "epsilon",
        "recipe.min_snr": 0.0,
        "training.batch_size": shape["batch"],
        "training.local_epochs": 1.0,
        "training.rounds": max(RUN, rounds),
        "score.every": 0,
        "checkpoint.keep": rounds + 1,
    }


def own_data(folder: Path) -> dict[str, np.ndarray]:
    """The images as osmotic takes them; those for testing are never looked at."""
    images = np.load(folder / "images.npy")
    return {"train_images": images, "test_images": images[:2]}


def prepared(folder: Path, shape: Shape) -> Any:
    """The study of the run: who holds what."""
    from osmotic.data.own import from_python
    from osmotic.runs import resolve, study

    config = resolve.load(keys=keys(asdict(shape)), own_data=True)
    return study.prepare(config, from_python(own_data(folder)))


# --- the side of osmotic ---


class Finished(Exception):
    """All rounds that count are done."""


def run_osmotic(folder: Path, rounds: int, sets: Sequence[str]) -> dict[str, Any]:
    """Seconds and losses of so many rounds in one run; leaves the weights after the first in FOLDER/osmotic.npz."""
    import osmotic
    from osmotic.runs import resolve
    from osmotic.storage import checkpoint
    from osmotic.tensors import group

    seconds: list[float] = []
    between: list[float] = []
    losses: list[float] = []

    class Clock(osmotic.Callback):
        begin = 0.0

        def phase_started(self, phase: Any, index: int, count: int) -> None:
            now = time.perf_counter()
            if index:
                between.append(now - self.begin)
            if index == rounds:
                raise Finished
            self.begin = time.perf_counter()

        def phase_done(self, line: Mapping[str, Any]) -> None:
            seconds.append(time.perf_counter() - self.begin)
            losses.append(line["loss"])
            if line["num_failed"]:
                raise SystemExit(f"{line['num_failed']} clients failed")

    shape = json.loads((folder / "case.json").read_text())
    with tempfile.TemporaryDirectory() as out:
        config = resolve.load(keys=keys(shape, rounds + 1), sets=sets, own_data=True)
        with contextlib.suppress(Finished):
            osmotic.run(config, data=own_data(folder), out=Path(out) / "run", callbacks=Clock())
        tensors, _ = checkpoint.load(Path(out) / "run" / "checkpoints", 1)
        np.savez(folder / f"{OURS}.npz", **group(tensors, "weights"))
    return {"seconds": seconds, "losses": losses, "with_checkpoint": between}


# --- the comparison ---


def turn(folder: Path, side: str, rounds: int, sets: Sequence[str]) -> dict[str, Any]:
    """One side in a fresh process: seconds and losses of its rounds, the first included."""
    command = [str(HERE / "by_hand.py"), str(folder), side, str(rounds)]
    if side == OURS:
        command = [str(HERE / "rounds.py"), "--side", str(folder), "--rounds", str(rounds)]
        command += [word for key in sets for word in ("--set", key)]
    done = subprocess.run([sys.executable, *command], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{side} ended with exit code {done.returncode}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(folder: Path, rounds: int, turns: int, sets: Sequence[str]) -> dict[str, Any]:
    """All figures of one shape."""
    sides = (OURS, *BY_HAND)
    found: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}

    def median_round(side: str) -> float:
        found[side].append(turn(folder, side, rounds + 1, sets))
        seconds = statistics.median(found[side][-1]["seconds"][1:])
        print(f"{side} {seconds:.3f} s a round", file=sys.stderr, flush=True)  # of minutes, a sign of life
        return seconds

    # Sides of one repeat are neighbours; so are the last of one and the first of the next.
    taken = dict(
        zip(sides, machine.alternate([lambda s=s: median_round(s) for s in sides], turns), strict=True)
    )
    exact = turn(folder, "float64", 1, ())
    turn(folder, "slip", 1, ())
    row: dict[str, Any] = {"seconds": {s: round(statistics.median(t), 4) for s, t in taken.items()}}
    for side in BY_HAND:
        row[f"ratio_to_{side}"] = round(machine.median_ratio(taken[OURS], taken[side]), 4)
        row[f"ratio_to_{side}_range"] = machine.spread(taken[OURS], taken[side])
    whole = [statistics.median(t["with_checkpoint"][1:]) for t in found[OURS]]
    row["seconds_with_checkpoint"] = round(statistics.median(whole), 4)
    weights = {side: read(folder / f"{side}.npz") for side in ("initial", "float64", "slip", *sides)}
    row |= agreement(weights)
    row["first_loss"] = {side: found[side][0]["losses"][0] for side in sides} | {
        "float64": exact["losses"][0]
    }
    row["losses"] = {side: [round(loss, 5) for loss in found[side][0]["losses"]] for side in sides}
    return row


def read(path: Path) -> dict[str, np.ndarray]:
    """Arrays of a file by name, float64."""
    with np.load(path) as file:
        return {name: file[name].astype(np.float64) for name in file.files}


def agreement(weights: Mapping[str, Arrays]) -> dict[str, Any]:
    """Distances of every side's weights to those of the loop in float64, as shares of how far a round moves them."""

    def distance(a: Arrays, b: Arrays) -> float:
        assert a.keys() == b.keys()
        return float(np.sqrt(sum(np.square(a[n] - b[n]).sum() for n in a)))

    exact = weights["float64"]
    moved = distance(exact, weights["initial"])
    off = {side: distance(weights[side], exact) / moved for side in (OURS, *BY_HAND, "slip")}
    return {
        "distance_to_float64": off,
        "weights_agree": off[OURS] <= 2 * max(off[side] for side in BY_HAND),
    }


def readable(row: Mapping[str, Any]) -> str:
    """One clause for people."""
    against = ", ".join(
        f"{row[f'ratio_to_{side}']:.2f} of {side.replace('_', ' ')} ({row['seconds'][side]:.2f} s)"
        for side in BY_HAND
    )
    far = row["distance_to_float64"]
    return (
        f"{row['clients']} clients x {row['images']} images, batch {row['batch']}: osmotic {row['seconds'][OURS]:.2f} s a round, "
        f"{against}; weights {'agree' if row['weights_agree'] else 'DIFFER'}: {far[OURS]:.1e} of a round's way off float64, "
        f"by hand {min(far[s] for s in BY_HAND):.1e} to {max(far[s] for s in BY_HAND):.1e}"
    )


if __name__ == "__main__":
    main()
