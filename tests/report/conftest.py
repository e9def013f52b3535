"""A run folder as a real run would leave it: digits, ten clients, Dirichlet 0.5, FedAvg, twenty rounds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from osmotic.config import schema, toml
from osmotic.methods import METHODS
from osmotic.report import pictures
from osmotic.runs.settle import settle

PARAMETERS = 702_753
PACKET = PARAMETERS * 4 + 312  # fp32 weights and a header


def make_run(path: Path, *, clients: int = 10, classes: int = 10, rounds: int = 20, **summary: Any) -> Path:
    """A run folder at `path`; further keyword arguments overwrite fields of the summary."""
    rng = np.random.default_rng(7)
    names = [f"client-{i:03d}" for i in range(clients)]
    counts = np.floor(
        rng.dirichlet(np.full(classes, 0.5), clients) * rng.integers(60, 240, (clients, 1))
    ).astype(int)
    sizes = counts.sum(1).tolist()
    given = {"preset": "fedavg", "data.clients": clients, "training.rounds": rounds}
    resolved = settle(schema.build(given), 1437, classes)
    path.mkdir(parents=True)
    (path / "config.toml").write_text(toml.to_toml(resolved))
    partition = {
        "clients": names,
        "class_names": [str(k) for k in range(classes)],
        "counts": counts.tolist(),
        "sizes": sizes,
        "holdout_sizes": [0] * clients,
    }
    (path / "partition.json").write_text(json.dumps(partition))
    failures = (
        [{"round": 4, "client_id": 2, "kind": "late", "reason": "no answer within 600 s"}]
        if clients > 2
        else []
    )
    metrics, ledger = [], []
    for number in range(1, rounds + 1):
        quality = scores(number / rounds, rng, classes) if number % 5 == 0 or number == rounds else None
        if quality:
            write_grid(path / "samples" / f"round-{number:04d}.png", number / rounds, rng)
        loss = 0.11 + 0.5 * np.exp(-number / 4)
        metrics.append(
            {
                "round": number,
                "phase": "train",
                "loss": loss,
                "client_loss": {n: loss * (0.85 + 0.3 * rng.random()) for n in names},
                "images_seen": number * 2 * sum(sizes),
                "client_steps": number * 180,
                "num_counted": clients,
                "num_failed": 0,
                "update_norm": 3 / number,
                "wall_seconds": 6.4,
                "kept_old_weights": False,
                "quality": quality,
            }
        )
        for name, n in zip(names, sizes, strict=True):
            for direction in ("down", "up"):
                late = direction == "up" and number == 4 and name == "client-002"
                ledger.append(
                    {
                        "round": number,
                        "phase": "train",
                        "client": name,
                        "direction": direction,
                        "parameters": PARAMETERS,
                        "bytes": PACKET,
                        "status": "lost" if late else "counted",
                        "images": 2 * n if direction == "up" else 0,
                        "steps": 18 if direction == "up" else 0,
                        "flops": 10**9,
                    }
                )
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in metrics))
    (path / "ledger.jsonl").write_text("".join(json.dumps(line) + "\n" for line in ledger))
    final = dict(metrics[-1]["quality"])
    per_client = [
        {
            "client_id": i,
            "name": name,
            "num_examples": n,
            "stage": "before",
            "fd_all": 6.3,
            "fd_own": None if n < 50 else 9 + 8 * rng.random(),
            "kid_all": 0.021,
            "kid_own": None if n < 50 else 0.03 + 0.05 * rng.random(),
        }
        for i, (name, n) in enumerate(zip(names, sizes, strict=True))
    ]
    known = [c["fd_own"] for c in per_client if c["fd_own"] is not None]
    final |= {
        "mean": {"fd_own": float(np.mean(known)) if known else None},
        "weighted": {"fd_own": float(np.mean(known)) if known else None},
        "worst": {"fd_own": max(known) if known else None},
        "per_client": per_client,
    }
    told = {
        "schema": 1,
        "preset": "fedavg",
        "method": "fedavg",
        "codec_up": "fp32",
        "codec_down": "fp32",
        "engine": "inprocess",
        "seed": 0,
        "deterministic": True,
        "rounds": rounds,
        "num_clients": clients,
        "fraction_train": 1.0,
        "local_epochs": 2.0,
        "client_sizes": sizes,
        "parameters": PARAMETERS,
        "parameters_up": PARAMETERS * clients * rounds,
        "parameters_down": PARAMETERS * clients * rounds,
        "bytes_up": PACKET * clients * rounds,
        "bytes_down": PACKET * clients * rounds,
        "images_seen": rounds * 2 * sum(sizes),
        "client_steps": rounds * 180,
        "server_steps": 0,
        "wall_seconds": 128.4,
        "weights_sha256": "3f" * 32,
        "scored_weights_sha256": "a7" * 32,
        "auxiliary": None,
        "quality": final,
        "failures": failures,
    }
    exchange = METHODS[summary.get("method", "fedavg")]
    told |= {
        "pieces": [],
        "shared": list(exchange.shared),
        "travels": exchange.travels,
        "personal": not exchange.global_model,
        "global_model": exchange.global_model,
    }
    (path / "summary.json").write_text(json.dumps(told | summary))
    (path / "model").mkdir()
    (path / "model" / "model_index.json").write_text(
        json.dumps({"_class_name": ["pipeline", "ClassConditionalPipeline"], "_diffusers_version": "0.42.1"})
    )
    return path


def scores(progress: float, rng: np.random.Generator, classes: int) -> dict[str, Any]:
    data = rng.integers(90, 110, classes)
    return {
        "encoder": "classifier-digits",
        "encoder_sha256": "c0" * 32,
        "num_samples": 1000,
        "sampler": "dpm-solver++",
        "nfe": 20,
        "fd": 6.3 + 80 * (1 - progress),
        "kid": 0.021 + 0.3 * (1 - progress),
        "precision": 0.61 + 0.2 * progress,
        "recall": 0.2 + 0.5 * progress,
        "fd_floor": 2.87,
        "class_histogram": (data + rng.integers(-15, 15, classes)).tolist(),
        "class_histogram_data": data.tolist(),
    }


def write_grid(path: Path, progress: float, rng: np.random.Generator) -> None:
    """Ten real digits a class, the noisier the earlier."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    chosen = np.concatenate([np.flatnonzero(digits.target == k)[:10] for k in range(10)])
    images = digits.images[chosen] / 16 * 255
    noisy = images * progress + rng.uniform(0, 255, images.shape) * (1 - progress)
    labels = [str(k) for k in range(10)]
    pictures.save_png(path, pictures.grid(noisy.astype(np.uint8)[..., None], 10, 5, 4, labels))


@pytest.fixture
def run_folder(tmp_path: Path) -> Callable[..., Path]:
    """Makes run folders: `run_folder("name", clients=2, quality=None)`."""
    return lambda name="digits-fedavg", **options: make_run(tmp_path / name, **options)


def with_evidence(path: Path) -> Path:
    """Adds to a run folder what newer versions write: held-out scores, near-copies, floors of own scores, real images.

    Held-out FD 7.5 at a floor of 3.25, 1.2 % near-copies by features where 1 % are expected, own scores of clients with
    50 images or more, each at a floor of 450 / images.
    """
    edit = json.loads((path / "summary.json").read_text())
    quality = edit["quality"]
    quality["held_out"] = {
        **{"fd": 7.5, "kid": 0.031, "precision": 0.71, "recall": 0.62},
        **{"images": 360, "floor": 3.25, "samples": 1000},
    }
    quality["near_copies"] = {
        **{"features": 0.012, "pixels": 0.004, "expected": 0.01, "images": 1000, "held_out": 360}
    }
    for client in quality["per_client"]:
        n = client["num_examples"]
        client |= {"own_images": n, "own_samples": 900, "fd_own_floor": None if n < 50 else 450 / n}
    own = sum(c["fd_own"] is not None for c in quality["per_client"])
    for group in ("mean", "weighted", "worst"):
        quality[group] |= {"clients_own": own, "clients": len(quality["per_client"])}
    edit |= {"version": "0.2.0", "network": "unet-8", "image_shape": [8, 8, 1]}
    (path / "summary.json").write_text(json.dumps(edit))
    rng = np.random.default_rng(3)
    write_grid(path / "samples" / "real.png", 1.0, rng)
    images = rng.integers(0, 256, (30, 8, 8, 1), np.uint8)
    rows = ["generated", "by features", "by pixels"]
    pictures.save_png(path / "samples" / "nearest.png", pictures.grid(images, 10, 5, 4, rows))
    return path


@pytest.fixture
def full_folder(run_folder: Callable[..., Path]) -> Callable[..., Path]:
    """Makes run folders with all that newer versions write: `full_folder("name", clients=3)`."""
    return lambda name="digits-full", **options: with_evidence(run_folder(name, **options))


@pytest.fixture
def personal_folder(run_folder: Callable[..., Path]) -> Callable[..., Path]:
    """Makes run folders without a global model: `personal_folder("name", method="local", clients=9)`.

    Client k of K, of 100 + k images, scores `fd_all` 10 + k and `kid_all` a hundredth of it, twice that in round 5
    of 10. Own scores are 1 higher, a hundredth for KID. Merging, which `local` does not do, takes 4 off an FD.
    """

    def make(name: str = "mine", method: str = "udec", clients: int = 3) -> Path:
        path = run_folder(name, clients=clients, rounds=10, method=method, preset=method)
        merges = method != "local"
        edit = json.loads((path / "summary.json").read_text())
        stage = "before" if merges else "after"
        entries = own_entries(clients, stage)
        merged = own_entries(clients, "after", fd=-4.0) if merges else []
        none = dict.fromkeys(("fd", "kid", "precision", "recall", "fd_floor", "class_histogram"))
        own = {**none, **over(entries), "after": over(merged) if merges else None}
        edit["quality"] |= {**own, "per_client": entries + merged}
        (path / "summary.json").write_text(json.dumps(edit))
        lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
        for line in lines:
            if line["quality"]:
                scale = 3 - line["round"] / 5  # 2 in round 5, 1 in round 10
                line["quality"] |= none | over(own_entries(clients, stage, scale)) | {"after": None}
        if merges:
            quality = {**lines[-1]["quality"], **over(merged)}
            lines.append({"round": 11, "phase": "merge", "loss": None, "quality": quality})
        (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        grid = (path / "samples" / "round-0005.png").read_bytes()
        for old in (path / "samples").iterdir():
            old.unlink()
        for number in (5, 10, 11) if merges else (5, 10):
            for k in range(clients):
                (path / "samples" / f"round-{number:04d}-client-{k:03d}.png").write_bytes(grid)
        index = path / "model" / "model_index.json"
        for k in range(clients):
            (path / "model" / f"client-{k:03d}").mkdir()
            (path / "model" / f"client-{k:03d}" / "model_index.json").write_bytes(index.read_bytes())
        index.unlink()
        return path

    return make


@pytest.fixture
def beside_folder(run_folder: Callable[..., Path]) -> Callable[..., Path]:
    """Makes run folders with a global model and, beside it, one of each client: `beside_folder("name", clients=3)`.

    Client k, of 100 + k images, scores `fd_all` 10 + k with its own model, as in `personal_folder`; the global model 6.3.
    """

    def make(name: str = "both", clients: int = 3) -> Path:
        path = run_folder(name, clients=clients, rounds=5, personal=True)
        edit = json.loads((path / "summary.json").read_text())
        entries = own_entries(clients, "after")
        edit["quality"]["personal"] = {**over(entries), "per_client": entries}
        (path / "summary.json").write_text(json.dumps(edit))
        for k in range(clients):
            folder = path / "personal" / f"client-{k:03d}"
            folder.mkdir(parents=True)
            (folder / "model_index.json").write_bytes((path / "model" / "model_index.json").read_bytes())
        return path

    return make


def own_entries(clients: int, stage: str, scale: float = 1.0, fd: float = 0.0) -> list[dict[str, Any]]:
    return [
        {
            "client_id": k,
            "name": f"client-{k:03d}",
            "num_examples": 100 + k,
            "stage": stage,
            "fd_all": scale * (10 + k) + fd,
            "fd_own": scale * (10 + k) + fd + 1,
            "kid_all": scale * (10 + k) / 100,
            "kid_own": scale * (10 + k) / 100 + 0.01,
        }
        for k in range(clients)
    ]


def over(entries: list[dict[str, Any]]) -> dict[str, Any]:
    keys, sizes = ("fd_all", "fd_own", "kid_all", "kid_own"), [e["num_examples"] for e in entries]
    values = {key: [e[key] for e in entries] for key in keys}
    return {
        "mean": {key: float(np.mean(values[key])) for key in keys},
        "weighted": {key: float(np.average(values[key], weights=sizes)) for key in keys},
        "worst": {key: max(values[key]) for key in keys},
    }
