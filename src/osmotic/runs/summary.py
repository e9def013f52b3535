"""What a finished run leaves: the model folder, summary.json (design section 7) and the report."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from osmotic import models
from osmotic.storage.atomic import write_text
from osmotic.protocol.messages import Tensors
from osmotic.storage.folder import RunDir

if TYPE_CHECKING:
    from osmotic.runs.scoring import Scoring
    from osmotic.federation.server import Server
    from osmotic.runs.study import Study


def write_summary(study: Study, server: Server, scoring: Scoring, run: RunDir) -> dict[str, Any]:
    """Writes model/ and summary.json; returns the summary."""
    scored = save_models(study, server, run)
    summary = summarise(study, server, scored)
    write_text(run.summary, json.dumps(summary, indent=1) + "\n")
    return summary


def summarise(study: Study, server: Server, scored_hash: str) -> dict[str, Any]:
    """The fields of summary.json; what was not measured is None."""
    cfg, totals = study.config, server.totals
    quality = server.last_quality
    if quality is not None:
        quality = {k: quality.get(k) for k in QUALITY}
    return {
        "schema": 1,
        "preset": cfg.preset,
        "method": cfg.method.name,
        "codec_up": cfg.codec.up,
        "codec_down": cfg.codec.down,
        "engine": cfg.engine.name,
        "seed": cfg.seed,
        "deterministic": study.device.type == "cpu" or cfg.engine.deterministic,
        "rounds": cfg.training.rounds,
        "num_clients": len(study.holdings),
        "fraction_train": cfg.training.fraction_train,
        "local_epochs": cfg.training.local_epochs,
        "client_sizes": [h.client.num_examples for h in study.holdings],
        "parameters": models.count(models.layout(study.spec)),
        "parameters_up": totals.parameters_up,
        "parameters_down": totals.parameters_down,
        "bytes_up": totals.bytes_up,
        "bytes_down": totals.bytes_down,
        "images_seen": totals.images_seen,
        "client_steps": totals.client_steps,
        "server_steps": server.server_steps,
        "flops": totals.flops,
        "wall_seconds": round(server.wall_seconds, 3),
        "weights_sha256": weights_sha256(server.weights, server.state_hashes),
        "scored_weights_sha256": scored_hash,
        "auxiliary": study.method.auxiliary(),
        "quality": quality,
        "failures": server.failures,
    }


QUALITY = (
    "encoder",
    "encoder_sha256",
    "encoder_accuracy",
    "num_samples",
    "sampler",
    "guidance",
    "nfe",
    "fd",
    "kid",
    "precision",
    "recall",
    "fd_floor",
    "fd_at_floor",
    "floor_samples",
    "class_histogram",
    "class_histogram_data",
    "mean",
    "weighted",
    "worst",
    "after",
    "per_client",
)


def weights_sha256(weights: Tensors, state_hashes: dict[str, str] | None = None) -> str:
    """SHA-256 of weights (sorted names, fp32 little-endian), then of each client's state hash by client name."""
    total = hashlib.sha256()
    for name in sorted(weights):
        total.update(np.ascontiguousarray(weights[name], "<f4").data)
    for client in sorted(state_hashes or {}):
        total.update(bytes.fromhex((state_hashes or {})[client]))
    return total.hexdigest()


def save_models(study: Study, server: Server, run: RunDir) -> str:
    """Saves the scored weights as pipeline folders; returns their SHA-256 (over all clients' where each has its own)."""
    from osmotic.models import pipeline

    names = study.dataset.class_names if study.spec.num_classes else ()
    contract, score = study.process.contract(), study.config.score

    def save(folder: Any, weights: Tensors) -> None:
        pipeline.save(
            folder, study.spec, weights, contract, names, steps=score.steps, guidance=study.guidance
        )

    if study.method.global_model:
        weights = server.scored_weights()
        save(run.model, weights)
        return weights_sha256(weights)
    total = hashlib.sha256()
    for name, weights in personal_weights(study, server.counted, run).items():
        save(run.model / name, weights)
        total.update(bytes.fromhex(weights_sha256(weights)))
    return total.hexdigest()


def personal_weights(study: Study, counted: Mapping[str, int], run: RunDir) -> dict[str, Tensors]:
    """The scored model of every client that trained, by name: its average, or its weights where there is none."""
    from osmotic.federation.client import under
    from osmotic.storage.store import StateLost, Store

    found: dict[str, Tensors] = {}
    for holding in study.holdings:
        name = holding.client.name
        if name not in counted:
            continue
        with contextlib.suppress(StateLost):  # its loss was told as a failure when the client was next asked
            state = Store(run.client(name)).load(counted[name])
            found[name] = under(state, "average") or under(state, "personal")
    return found
