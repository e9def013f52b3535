"""What fine-tuning gained a client: its denoising loss on held-out images, by the published model and by its own.

A client of any size can have it, where distances of features need fifty images.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from osmotic.federation.client import Worker
from osmotic.flat import Flat
from osmotic.protocol.messages import contract_hash
from osmotic.runs.study import Study
from osmotic.training.images import Images

GAINS = ("loss_published", "loss_own", "kept_pass")  # of a client, beside its scores


def losses(
    worker: Worker,
    client: str,
    held_out: Images | None,
    published: Mapping[str, np.ndarray],
    own: Mapping[str, np.ndarray],
) -> dict[str, float | None]:
    """`loss_published` and `loss_own`, by the same noise, given both models, name -> float32 [...]; null without images.

    Args:
        client: whose images these are: the noise is of its name.
        held_out: images that neither model was trained on or chosen by.
    """
    found: dict[str, float | None] = {"loss_published": None, "loss_own": None}
    if held_out is not None and len(held_out):
        for name, weights in (("loss_published", published), ("loss_own", own)):
            worker.network.load(weights)
            found[name] = worker.watch(client, held_out)
    return found


def of_run(
    study: Study,
    published: Mapping[str, np.ndarray],
    own: Mapping[str, Mapping[str, np.ndarray]],
    kept: Mapping[str, int],
) -> dict[str, dict[str, Any]]:
    """GAINS of every client whose model is there; of images at sites the losses are null.

    Args:
        published: the global model, name -> float32 [...].
        own: client -> its own model.
        kept: client -> the pass whose model is its own, 0 for the published one; of those that watched images.
    """
    blueprint, train, found = study.blueprint, study.dataset.train, {}
    start = Flat.of(blueprint.flat, published)
    worker = Worker(blueprint, study.model(), start, contract_hash(blueprint.contract()))
    for holding in study.holdings:
        if (name := holding.client.name) not in own:
            continue
        rows, held_out = holding.own_test, None
        if len(rows):
            labels = None if train.labels is None or not blueprint.spec.num_classes else train.labels[rows]
            images = blueprint.space.prepare(train.images[rows])
            held_out = Images.of(images, labels, study.device, blueprint.space)
        found[name] = losses(worker, name, held_out, start, own[name]) | {"kept_pass": kept.get(name)}
    return found


def beside(quality: dict[str, Any], gains: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Scores of clients' own models with GAINS in every client's entry; null where there are none."""
    nothing: dict[str, Any] = dict.fromkeys(GAINS)
    entries = [{**entry, **nothing, **gains.get(entry["name"], {})} for entry in quality["per_client"]]
    return {**quality, "per_client": entries}
