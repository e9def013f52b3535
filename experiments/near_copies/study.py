"""Are copies of training images found, and fresh images left alone? See README.md beside this file.

python experiments/near_copies/study.py planted digits
python experiments/near_copies/study.py planted npz:PATH/fashion-mnist.npz 10000
python experiments/near_copies/study.py models
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from osmotic.config.schema import DataConfig
from osmotic.data import sources, strata
from osmotic.data.dataset import Dataset, Split
from osmotic.metrics import encoder as encoders
from osmotic.metrics.near_copies import CopyFinder
from osmotic.metrics.score import Yardstick

sys.path.insert(0, str(Path(__file__).parents[1]))
from study import run_all

HERE = Path(__file__).parent
SAMPLES = 1_000
# Equal optimiser steps on fewer and fewer images: 1,600 of 16 images.
STEPS, BATCH = 1_600, 16
TRAINED_ON = (20, 100, 400, 1_437)


def planted(source: str, max_images: int) -> Iterator[dict[str, Any]]:
    """Pools whose copies are known: real images that nobody trained on, with copies of training images among them."""
    data = sources.load(DataConfig(source=source, max_images=max_images))
    encoder = encoders.get(data)
    rng = np.random.default_rng(0)
    half = strata.draw(data.test.labels, len(data.test), len(data.test) // 2, rng)
    held_out, fresh = part(data.test, half), part(data.test, np.setdiff1d(np.arange(len(data.test)), half))
    fresh = part(fresh, strata.draw(fresh.labels, len(fresh), min(SAMPLES, len(fresh)), rng))
    for name, pool in pools(data, fresh, rng):
        yardstick = Yardstick(data.train, held_out, encoder, pool.labels, len(pool))
        made = encoder.features(pool.images)
        finder = CopyFinder(data.train, yardstick.real, held_out, yardstick.unseen, encoder)
        share, _ = finder.look(pool.images, made, pool.labels)
        quality = yardstick.score(made)
        assert share is not None and quality.held_out is not None
        yield {
            "source": data.name,
            "train": len(data.train),
            "pool": name,
            "images": share.images,
            "held_out": share.held_out,
            "features": share.features,
            "pixels": share.pixels,
            "expected": share.expected,
            "fd": quality.fd,
            "fd_at_floor": quality.fd_at_floor,
            "fd_floor": quality.fd_floor,
            "precision": quality.precision,
            "recall": quality.recall,
            "held_out_fd": quality.held_out.fd,
            "held_out_floor": quality.held_out.floor,
        }


def pools(data: Dataset, fresh: Split, rng: np.random.Generator) -> Iterator[tuple[str, Split]]:
    """Pools by name, each of as many images as there are fresh ones."""
    count, train = len(fresh), data.train
    seen = part(train, strata.draw(train.labels, len(train), min(count, len(train)), rng))
    yield "fresh", fresh
    yield "training images", seen
    yield (
        "20 training images, again and again",
        part(train, np.resize(rng.permutation(len(train))[:20], count)),
    )
    for percent in (5, 20, 50):
        few = part(seen, np.arange(len(seen) * percent // 100))
        rest = part(fresh, np.arange(count - len(few)))
        yield f"fresh, {percent} % copies", joined(rest, few)
    for sigma in (5, 10, 20):
        noise = rng.normal(0, sigma, seen.images.shape)
        yield f"copies with noise of {sigma} / 255", altered(seen, seen.images + noise)
    yield "copies, darker", altered(seen, 255 * (seen.images / 255) ** 1.25)
    yield "copies, mirrored", altered(seen, seen.images[:, :, ::-1])
    yield "copies, one pixel to the side", altered(seen, np.roll(seen.images, 1, axis=2))
    yield "fresh with noise of 20 / 255", altered(fresh, fresh.images + rng.normal(0, 20, fresh.images.shape))
    around = [np.roll(fresh.images.astype(float), shift, axis) for shift in (-1, 0, 1) for axis in (1, 2)]
    yield "fresh, blurred", altered(fresh, np.mean(around, axis=0))
    yield "fresh, the typical third of each class", typical(data, fresh)


def typical(data: Dataset, fresh: Split) -> Split:
    """Of each class the third nearest to the class's mean training image, three times."""
    assert fresh.labels is not None and data.train.labels is not None
    picked = []
    for label in np.unique(fresh.labels):
        mean = data.train.images[data.train.labels == label].mean(axis=0)
        of_class = np.flatnonzero(fresh.labels == label)
        far = np.square(fresh.images[of_class] - mean).sum(axis=(1, 2, 3))
        picked.append(np.resize(of_class[np.argsort(far)][: -(-len(of_class) // 3)], len(of_class)))
    return part(fresh, np.concatenate(picked))


def part(split: Split, rows: np.ndarray) -> Split:
    return Split(split.images[rows], None if split.labels is None else split.labels[rows])


def joined(a: Split, b: Split) -> Split:
    assert a.labels is not None and b.labels is not None
    return Split(np.concatenate([a.images, b.images]), np.concatenate([a.labels, b.labels]))


def altered(split: Split, images: np.ndarray) -> Split:
    return Split(np.clip(np.rint(images), 0, 255).astype(np.uint8), split.labels)


def models() -> None:
    """Diffusion models with equal steps on 20 to 1,437 digits."""
    cases = {}
    for count in TRAINED_ON:
        steps_per_epoch = -(-count // BATCH)
        keys = {
            "data.max_images": count,
            "data.clients": 2,
            "data.partition": "iid",
            "training.rounds": 1,
            "training.batch_size": BATCH,
            "training.local_epochs": STEPS / steps_per_epoch,
            "score.samples": SAMPLES,
            "track.backends": "[]",
        }
        sets = [word for key, value in keys.items() for word in ("--set", f"{key}={value}")]
        cases[f"central-{count}"] = ["--preset", "central", *sets]
    run_all(HERE, cases, more=scores_of, results="models.jsonl")


def scores_of(run: Path) -> dict[str, Any]:
    """What the study is about, from a run's summary."""
    quality = json.loads((run / "summary.json").read_text())["quality"]
    return {"near_copies": quality["near_copies"], "held_out": quality["held_out"]}


if __name__ == "__main__":
    what, *rest = sys.argv[1:]
    if what == "models":
        models()
    else:
        source, *most = rest
        with open(HERE / "planted.jsonl", "a") as file:
            for row in planted(source, int(most[0]) if most else 0):
                print(json.dumps(row), file=file, flush=True)
                print(
                    f"{row['pool']:40} features {row['features']:.3f} pixels {row['pixels']:.3f} fd {row['fd']:.3f}"
                )
