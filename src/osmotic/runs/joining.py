"""A model of one's own from a finished run, for whoever joins later: fine-tuned here, on images that nobody else sees.

What trains is the client of a run (`federation/client.py`) with the piece `personalise`, asked once by a packet made here.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from osmotic import codecs, seeds
from osmotic.config.keys import nearest
from osmotic.config.schema import Config, flatten, to_dict
from osmotic.data import partition, sources
from osmotic.data.dataset import Dataset, Split
from osmotic.errors import ConfigError, RunStopped
from osmotic.federation.blueprint import Blueprint
from osmotic.federation.client import Site, Worker
from osmotic.federation.downlink import DownLink
from osmotic.federation.memory import ClientState
from osmotic.flat import Flat
from osmotic.models import pipeline
from osmotic.models.parts import PARTS
from osmotic.pieces.personalise import KEPT_PASS, OF_ADAPTER, PERSONALISE
from osmotic.protocol.messages import Client, Packet, contract_hash
from osmotic.runs import gains, resolve, saved
from osmotic.runs.study import choose_device, set_aside
from osmotic.storage.folder import RunDir
from osmotic.storage.store import Store
from osmotic.training.images import Images

KEPT = ("model", "recipe", "training", "score", "seed")  # sections of the run that hold here, too
# And how images are read: a model that was trained on others would be shown what it does not know.
READ = ("data.fit", "data.background", "data.value_range", "data.flip")
HOLDOUT = 0.2  # share of the images that is held out, where nothing else is said
HERE = "here"  # the name of the only client
# What may be said otherwise than in the run; every other key is the run's own, or of no effect here.
SETTABLE = (
    *(f"after.{PERSONALISE}.{name}" for name in ("trains", "epochs", "rank", "rate")),
    *(f"training.{name}" for name in ("learning_rate", "batch_size", "optimizer", "grad_clip")),
    *(f"data.{name}" for name in ("holdout", "partition_seed", "flip")),
    *(f"engine.{name}" for name in ("device", "threads", "precision", "deterministic")),
    "seed",
)


def personalise(
    run: RunDir, data: str, out: Path, client: str | None = None, sets: Sequence[str] = ()
) -> dict[str, Any]:
    """Fine-tunes a run's model on other images, and saves it as a pipeline folder.

    Args:
        data: a source, as `data.source`; labels are those of the run by their names.
        out: new folder of the model.
        client: whose model to start from, where the run has no global one.
        sets: `section.key=value`, as `after.personalise.trains=adapter`.
    Returns: `model`, `images`, `watched`, `held_out` (numbers of images), and the denoising loss on the held-out images of the
        model as published and of the new one, `loss_published` and `loss_own`, null where none are held out; and `kept_pass`, the
        pass that was best on those that are watched, 0 for the model as published.
    Raises: ConfigError for images that do not fit the run's network, or a folder that is in use or cannot be made; RunStopped where
        training breaks.
    """
    with _beside(out) as beside:
        found = _trained(run, data, beside, client, sets)
        (beside / "model").rename(out)
    return {"model": str(out)} | found


@contextlib.contextmanager
def _beside(out: Path) -> Iterator[Path]:
    """A folder of its own beside `out`, which shows before any work that `out` can be made; it goes with what is left in it."""
    if os.path.lexists(out):
        raise ConfigError("--out", str(out), "is there already")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        beside = tempfile.TemporaryDirectory(prefix=".osmotic-", dir=out.parent)
    except OSError as error:
        raise ConfigError("--out", str(out), f"cannot be made in {out.parent} ({error.strerror})") from None
    with beside as folder:
        yield Path(folder)


def _trained(run: RunDir, data: str, beside: Path, client: str | None, sets: Sequence[str]) -> dict[str, Any]:
    """Leaves the model in `beside`, and returns what there is to say of it; arguments and errors as `personalise`."""
    given = saved.weights(run, client)
    config = _config(run, given.described, data, sets)
    names = tuple(saved.class_names(run)) if given.described.num_classes else ()
    dataset = sources.load(config.data, keep_all=True)
    blueprint = Blueprint.of(config, given.described.image_size, given.described.channels, len(names))
    train, own = _split(config, dataset, names)
    scored, watched = (
        Split(own.images[rows], _rows(own.labels, rows))
        for rows in set_aside(np.arange(len(own)), blueprint.chain())
    )
    torch.set_num_threads(config.engine.threads)
    device = choose_device(config.engine.device)

    def held(split: Split) -> Images:
        return Images.of(
            blueprint.space.prepare(split.images),
            split.labels,
            device,
            blueprint.space,
            flip=config.data.flip and split is train,
        )

    shapes = {name: tuple(tensor.shape) for name, tensor in given.tensors.items()}
    if shapes != dict(blueprint.layout):
        rule = f"does not hold the weights of network {blueprint.spec.name}"
        raise ConfigError(str(given.described.weights), None, rule)
    start = Flat.of(blueprint.flat, given.tensors)
    worker = Worker(blueprint, blueprint.model(device), start, contract_hash(blueprint.contract()))
    watch = held(watched) if len(watched) else None
    site = Site(Client(0, HERE, len(train)), held(train), Store(beside / "state"), watch)
    answer = worker.serve(site, _task(blueprint, worker.contract, start, site.client))
    if told := answer.header.get("failure"):
        raise RunStopped(f"could not train: {told[1]}")
    state = ClientState.of(site.store.load(1, answer.header["metrics"]["state_sha256"]))
    weights, kept = state.personal, state.pieces.get(f"{PERSONALISE}/{KEPT_PASS}")
    told = gains.losses(worker, HERE, held(scored) if len(scored) else None, start, weights)
    pipeline.save(
        beside / "model",
        blueprint.spec,
        weights,
        blueprint.process.contract(),
        names,
        steps=config.score.steps,
        guidance=blueprint.guidance,
        autoencoder=blueprint.autoencoder,
    )
    return {
        "images": len(train),
        "watched": len(watched),
        "held_out": len(scored),
        **told,
        "kept_pass": None if kept is None else int(kept[0]),
    }


def text(found: Mapping[str, Any]) -> str:
    """For a person, given what `personalise` gave."""
    from osmotic.report.formatting import count, plural

    lines = [
        f"trained on {plural(found['images'], 'image')}, {count(found['watched'])} more watched for the best pass",
        "no image was held out to say whether it is better"
        if found["loss_own"] is None
        else f"denoising loss on {plural(found['held_out'], 'image')} that neither was shown: {found['loss_published']:.5f} as published, {found['loss_own']:.5f} now",
        f"model   {found['model']}",
    ]
    return "\n".join(lines)


def _config(run: RunDir, described: saved.Described, data: str, sets: Sequence[str]) -> Config:
    """The run's own rules for one client with other images. Raises: ConfigError for a key that may not be set here."""
    told = dict(resolve.parse_set(text) for text in sets)
    for key, value in told.items():
        if key not in SETTABLE:
            rule = "is the run's own here, or of no effect; what can be set: " + ", ".join(SETTABLE)
            raise ConfigError(key, value, rule, nearest(key, SETTABLE))
    recorded = flatten(to_dict(resolve.recorded(run.config)))
    kept = {key: value for key, value in recorded.items() if key.partition(".")[0] in KEPT or key in READ}
    piece = {k: v for k, v in recorded.items() if k.startswith(f"after.{PERSONALISE}.")}
    trains = f"after.{PERSONALISE}.trains"
    if told.get(trains, "adapter") != "adapter":
        # Recorded with an adapter, which is not trained here.
        piece = {k: v for k, v in piece.items() if k.rpartition(".")[2] not in OF_ADAPTER}
    if told.get(trains, recorded.get(trains)) != recorded.get(trains):
        piece.pop(f"after.{PERSONALISE}.rate", None)  # it was chosen for what the run has trained
    keys = {
        **kept,
        **piece,
        "method.name": "fedavg",
        "training.rounds": 1,
        "training.fraction_train": 1.0,
        "training.quorum_clients": 1,
        "score.encoder": "classifier",
        "score.metrics": [],
        "after.pieces": [PERSONALISE],
        f"after.{PERSONALISE}.when": "after",
        "data.source": data,
        "data.clients": 1,
        "data.partition": "iid",
        "data.holdout": HOLDOUT,
        "data.image_size": described.image_size,
        "data.channels": described.channels,
        "model.pretrained": "",
        "model.pretrained_sha256": "",
        "model.autoencoder": "" if described.autoencoder is None else str(described.autoencoder),
    }
    return resolve.load(keys, sets=sets)


def _split(config: Config, dataset: Dataset, names: tuple[str, ...]) -> tuple[Split, Split]:
    """Images to train on and images held out; those of a test split, where the source has one."""
    labels = _renamed(dataset, dataset.train, names)
    if len(dataset.test):
        return dataclasses.replace(dataset.train, labels=labels), dataclasses.replace(
            dataset.test, labels=_renamed(dataset, dataset.test, names)
        )
    rows = np.arange(len(dataset.train))
    seed = seeds.integer(config.data.partition_seed, seeds.HOLDOUT, 0, HERE)
    train, own = partition.hold_out(rows, config.data.holdout, labels, seed)
    images = dataset.train.images
    return Split(images[train], _rows(labels, train)), Split(images[own], _rows(labels, own))


def _rows(labels: np.ndarray | None, rows: np.ndarray) -> np.ndarray | None:
    return None if labels is None else labels[rows]


def _renamed(dataset: Dataset, split: Split, names: tuple[str, ...]) -> np.ndarray | None:
    """Labels int64 [N] by the run's classes; None where its network is not told any."""
    if not names:
        return None
    if split.labels is None:
        raise ConfigError("--data", dataset.name, "has no labels, and the run's network is told the class")
    if unknown := [name for name in dataset.class_names if name not in names]:
        raise ConfigError(
            "--data", dataset.name, f"has the class {unknown[0]!r}, which the run does not have"
        )
    return np.array([names.index(name) for name in dataset.class_names], np.int64)[split.labels]


def _task(blueprint: Blueprint, contract: str, weights: Flat, client: Client) -> Packet:
    """What a server would ask in the phase of this piece."""
    config = blueprint.config
    options = config.after.options[PERSONALISE]
    entries, blobs = DownLink(codecs.EXACT, blueprint.flat).message(client.name, PARTS, 1, weights)
    header = {
        "contract": contract,
        "run": HERE,
        "client": client.name,
        "action": "train",
        "phase": PERSONALISE,
        "server_round": 1,
        "counted_round": None,
        "counted_state": None,
        "durable_round": None,
        "learning_rate": options["rate"] * config.training.learning_rate,
        "local_epochs": options["epochs"],
        "round_images": 0,
        "down": entries,
        "held": {},
        "extras": False,
        "returns": [],
        "keep": list(PARTS),
        "coded": [],
        "control": {},
    }
    return Packet(header, tuple(blobs))
