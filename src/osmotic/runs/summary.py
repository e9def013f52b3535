"""What a finished run leaves: the model folder, summary.json (design section 7) and the report."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from osmotic import models
from osmotic.data.compressed import compress
from osmotic.federation.blueprint import Blueprint
from osmotic.federation.server import Server
from osmotic.models import pipeline
from osmotic.runs import gains, traffic
from osmotic.runs.study import Study
from osmotic.storage import strict_json
from osmotic.storage.atomic import write_bytes, write_text
from osmotic.storage.folder import RunDir
from osmotic.storage.store import safetensors_chunks
from osmotic.tensors import Tensors


def write_summary(study: Study, server: Server, run: RunDir) -> dict[str, Any]:
    """Writes model/, personal/ where there is both, and summary.json; returns the summary.

    Raises: OSError as the file system gives it.
    """
    own = server.personal_models()
    hashes = save_models(study, server, run, own)
    summary = summarise(study, server, hashes, traffic.asked(run.log("ledger")))
    if server.method.global_model and summary["quality"] and "personal" in summary["quality"]:
        found = gains.of_run(study, server.state.scored_weights(), own, server.kept_passes)
        summary["quality"]["personal"] = gains.beside(summary["quality"]["personal"], found)
    # Last of all: a folder with a summary is one of a finished run to every reader.
    write_text(run.summary, strict_json.dumps(summary, indent=1) + "\n")
    return summary


def summarise(study: Study, server: Server, hashes: tuple[str, str], asked: int) -> dict[str, Any]:
    """The fields of summary.json; what was not measured is None.

    Args:
        hashes: what `save_models` gave.
        asked: how often a client was asked to train.
    """
    cfg, state, method = study.config, server.state, server.method
    totals, quality = state.totals, _sorted(state.last_quality)
    if quality is not None:
        quality = {k: quality.get(k) for k in QUALITY} | {k: quality[k] for k in MORE if k in quality}
    parameters = models.count(study.blueprint.layout)
    whole = models.count(models.layout(study.spec.whole))  # more, where an adapter of it is trained
    # Where nothing travels there is nothing to set against the images; what is at sites cannot be measured here.
    known = method.travels and not study.at_sites
    images = compress(study.dataset.train.images, [h.train for h in study.holdings]) if known else None
    return {
        "schema": 1,
        "version": metadata.version("osmotic"),
        "preset": cfg.preset,
        "method": cfg.method.name,
        "pieces": list(server.chain.pieces),
        "shared": list(method.shared),
        "travels": method.travels,
        "global_model": method.global_model,
        "personal": server.chain.personal or not method.global_model,
        "codec_up": cfg.codec.up,
        "codec_down": cfg.codec.down,
        "engine": cfg.engine.name,
        "seed": cfg.seed,
        # On a GPU some kernels add in any order unless they are told not to.
        "batched_clients": cfg.engine.batched_clients,
        "deterministic": study.device.type == "cpu" or cfg.engine.deterministic,
        "rounds": cfg.training.rounds,
        "num_clients": len(study.holdings),
        "fraction_train": cfg.training.fraction_train,
        "local_epochs": cfg.training.local_epochs,
        "client_sizes": [h.client.num_examples for h in study.holdings],
        "network": study.spec.name,
        "image_shape": list(study.blueprint.image_shape),
        "parameters": parameters,
        "parameters_whole": whole,
        "parameters_up": totals.parameters_up,
        "parameters_down": totals.parameters_down,
        "bytes_up": totals.bytes_up,
        "bytes_down": totals.bytes_down,
        "traffic": traffic.figures(totals.bytes_up + totals.bytes_down, whole, asked, images),
        "images_seen": totals.images_seen,
        "client_steps": totals.client_steps,
        "server_steps": state.server_steps,
        "flops": totals.flops,
        "server_flops": totals.server_flops,
        "wall_seconds": round(state.wall_seconds, 3),
        "weights_sha256": weights_sha256(state.weights, state.state_hashes),
        "scored_weights_sha256": hashes[0],
        "model_weights_sha256": hashes[1],
        "auxiliary": server.chain.auxiliary(state.pieces),
        "quality": quality,
        "failures": _sorted(state.failures),
    }


def _sorted(value: Any) -> Any:
    """Tables inside by key, as a checkpoint has them: a resumed run then writes the file of an unbroken one to the byte."""
    return json.loads(strict_json.dumps(value, sort_keys=True))


# Fields of `quality` that every scored run has, null where they were not measured.
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
    "held_out",
    "near_copies",
    "class_histogram",
    "class_histogram_data",
    "mean",
    "weighted",
    "worst",
    "after",
    "per_client",
)


# Own metrics; scores of clients' own models beside a global one; these models as one that draws from each; whose images a
# score across sites is against.
MORE = ("metrics", "personal", "mixture", "reference_sites", "reference_images")


def weights_sha256(weights: Mapping[str, np.ndarray], state_hashes: dict[str, str] | None = None) -> str:
    """SHA-256, 64 hexadecimal digits, of weights, then of each client's state hash by client name.

    Args:
        weights: name -> float32 [...]; hashed by sorted name, little-endian: the same on every machine.
        state_hashes: client -> 64 hexadecimal digits.
    """
    total = hashlib.sha256()
    for name in sorted(weights):
        total.update(np.ascontiguousarray(weights[name], "<f4").data)
    for client in sorted(state_hashes or {}):
        total.update(bytes.fromhex((state_hashes or {})[client]))
    return total.hexdigest()


def save_models(study: Study, server: Server, run: RunDir, own: Mapping[str, Tensors]) -> tuple[str, str]:
    """Saves the scored weights, name -> float32 [...], as pipeline folders.

    Args:
        own: the clients' own, client -> name -> float32 [...].
    Returns: the SHA-256 of the scored weights, and of those in model/, which hold an adapter merged. Where each client has
        its own, both are over all of these.
    """
    adapted = study.spec.adapter is not None
    if server.method.global_model:
        weights = server.state.scored_weights()
        # What was scored is what is saved: the average over rounds where the recipe keeps one.
        save_pipeline(study.blueprint, study.dataset.class_names, run.model, weights)
        for name, mine in own.items():
            save_pipeline(study.blueprint, study.dataset.class_names, run.personal / name, mine)
        scored = weights_sha256(weights)
        return scored, weights_sha256(study.blueprint.whole(weights)) if adapted else scored
    total, whole = hashlib.sha256(), hashlib.sha256()
    for holding in study.holdings:
        # A site may refuse to give its model; the hash is then over those that came.
        if (name := holding.client.name) in own:
            save_pipeline(study.blueprint, study.dataset.class_names, run.model / name, own[name])
            total.update(bytes.fromhex(weights_sha256(own[name])))
            if adapted:
                whole.update(bytes.fromhex(weights_sha256(study.blueprint.whole(own[name]))))
    return total.hexdigest(), (whole if adapted else total).hexdigest()


def save_pipeline(
    blueprint: Blueprint, class_names: Sequence[str], folder: Path, weights: Mapping[str, np.ndarray]
) -> None:
    """One model, name -> float32 [...], as a folder that diffusers loads.

    Args:
        class_names: of the run's images, by label.
    Raises: ValueError or RuntimeError as `models.pipeline.save`.
    """
    spec = blueprint.spec
    pipeline.save(
        folder,
        spec.whole,
        blueprint.whole(weights),
        blueprint.process.contract(),
        class_names if spec.num_classes else (),
        steps=blueprint.config.score.steps,
        guidance=blueprint.guidance,
        autoencoder=blueprint.autoencoder,
    )
    if (adapter := spec.adapter) is not None:
        told = {"rank": str(adapter.rank), "alpha": str(adapter.alpha), "trains": adapter.trains}
        told |= {"pretrained_sha256": str(blueprint.contract()["pretrained"])}
        tables = {name: np.ascontiguousarray(w, np.float32) for name, w in weights.items()}
        # Not by the library, whose header has its notes in another order each time.
        write_bytes(folder / "adapter.safetensors", b"".join(safetensors_chunks(tables, told)))
