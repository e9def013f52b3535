"""From a configuration to a run: the only place where objects are made from names."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from osmotic import __version__, methods, models, seeds
from osmotic.config import schema
from osmotic.runs import resolve
from osmotic.storage.atomic import write_text
from osmotic.federation.client import Images, Site, Trainer, fit, to_uint8
from osmotic.config.schema import Config
from osmotic.data import partition, sources
from osmotic.data.dataset import Dataset
from osmotic.diffusion.process import Process
from osmotic.engines.inprocess import InProcess
from osmotic.errors import ConfigError
from osmotic.protocol.messages import Client, Tensors, contract_hash
from osmotic.models import norms
from osmotic.models.dropout import make_seeded
from osmotic.federation.interfaces import Observer
from osmotic.storage.folder import RunDir
from osmotic.runs.scoring import Scoring
from osmotic.federation.server import Server
from osmotic.storage.store import Store
from osmotic.runs.summary import write_summary


@dataclass(frozen=True)
class Holding:
    """What one simulated client holds: positions in the training split, its own held-out part apart."""

    client: Client
    train: np.ndarray
    own_test: np.ndarray


@dataclass(frozen=True)
class Study:
    """Everything a run is made of, before anything runs."""

    config: Config
    dataset: Dataset
    holdings: list[Holding]
    spec: models.NetworkSpec
    process: Process
    method: methods.Method
    device: torch.device

    @property
    def workers(self) -> int:
        """Clients side by side: as asked, or one per core; one on a GPU, which a single client fills."""
        asked = self.config.engine.workers
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return min(asked or (1 if self.device.type == "cuda" else cores), len(self.holdings))

    @property
    def guidance(self) -> float:
        """Classifier-free guidance scale; "auto" is 1.5 where the network is told the class and saw dropped labels."""
        asked = self.config.score.guidance
        if asked != "auto":
            return asked
        return 1.5 if self.spec.num_classes and self.config.recipe.label_dropout > 0 else 1.0

    def contract(self) -> dict[str, Any]:
        """What server and clients must agree on before round 1."""
        return {
            "parameters": {n: list(s) for n, s in models.layout(self.spec).items()},
            "dtype": "float32",
            "norm_groups": models.norm_groups(self.spec),
            "process": self.process.contract(),
            "latent_scale": None,  # pixels; a latent model puts its factor here
            "image": [self.spec.image_size, self.spec.image_size, self.spec.channels],
            "classes": self.spec.num_classes,
            "encoder": self.config.score.encoder,
        }


def prepare(cfg: Config) -> Study:
    """Loads the data and makes the objects. Raises ConfigError for data that do not fit the configuration."""
    dataset = sources.load(cfg.data)
    conditional = is_conditional(cfg, len(dataset.class_names))
    num_classes = len(dataset.class_names) if conditional else 0
    size, channels = dataset.train.images.shape[1], dataset.train.images.shape[3]
    spec = models.resolve(cfg.model.network, size, channels, num_classes, cfg.recipe.dropout)
    method = methods.make(cfg.method.name, dict(cfg.method.options))
    if num_classes == 0 and cfg.score.guidance not in (1.0, "auto"):
        raise ConfigError(
            "score.guidance", cfg.score.guidance, f"needs labels, and {cfg.data.source} has none"
        )
    return Study(
        cfg,
        dataset,
        _holdings(cfg, dataset, method),
        spec,
        Process.from_config(cfg.model, cfg.recipe, num_classes),
        method,
        choose_device(cfg.engine.device),
    )


def is_conditional(cfg: Config, num_classes: int) -> bool:
    """Whether the network is told the class. Raises ConfigError if it should be and there are no labels."""
    if cfg.model.conditional is True and num_classes == 0:
        raise ConfigError("model.conditional", True, f"needs labels, and {cfg.data.source} has none")
    return num_classes > 0 if cfg.model.conditional == "auto" else bool(cfg.model.conditional)


def _holdings(cfg: Config, dataset: Dataset, method: methods.Method) -> list[Holding]:
    split = partition.divide(cfg.data, dataset.train)
    if method.pools_data:
        union = np.sort(np.concatenate([train for train, _ in split]))
        own = np.sort(np.concatenate([own for _, own in split]))
        return [Holding(Client(0, "central", len(union)), union, own)]
    return [
        Holding(Client(i, f"client-{i:03d}", len(train)), train, own) for i, (train, own) in enumerate(split)
    ]


def choose_device(name: str) -> torch.device:
    """The torch device of a name. Raises ConfigError if it is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):
        raise ConfigError("engine.device", name, "is not available on this machine") from None
    return device


def make_deterministic(study: Study) -> None:
    """Same bits every time: fixed op threads, and on CUDA deterministic kernels."""
    torch.set_num_threads(study.config.engine.threads)
    if study.device.type == "cuda" and study.config.engine.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False


def start(cfg: Config, out: Path, observer: Callable[[RunDir, Config], Observer]) -> RunDir:
    """Trains from the beginning into a new folder. Raises ConfigError before any work if something is wrong."""
    study = prepare(cfg)
    run = RunDir.new(out)
    write_text(
        run.config,
        f"# osmotic {__version__}; `osmotic run config.toml` repeats this run\n" + schema.to_toml(cfg),
    )
    write_text(run.partition, json.dumps(describe_partition(study)))
    return _finish(study, run, observer(run, cfg), resume=False)


def resume(path: Path, observer: Callable[[RunDir, Config], Observer]) -> RunDir:
    """Goes on from the newest whole checkpoint; a finished run is only summed up again."""
    run = RunDir.existing(path)
    study = prepare(resolve.load(run.config))
    described = describe_partition(study)
    if not run.partition.exists():  # stopped between the two files
        write_text(run.partition, json.dumps(described))
    elif json.loads(run.partition.read_text())["sha256"] != described["sha256"]:
        raise ConfigError(
            "data.source",
            study.config.data.source,
            f"holds other images, or others at other clients, than when {path} began",
        )
    return _finish(study, run, observer(run, study.config), resume=True)


def _finish(study: Study, run: RunDir, observer: Observer, resume: bool) -> RunDir:
    make_deterministic(study)
    server, scoring = make_server(study, run, observer)
    if resume:
        server.restore()
    server.run()
    write_summary(study, server, scoring, run)
    return run


def make_server(study: Study, run: RunDir, observer: Observer) -> tuple[Server, Scoring]:
    """The server with its engine, clients and scorer."""
    stop = threading.Event()
    initial = models.initial(study.spec, seeds.integer(study.config.seed, seeds.WEIGHTS))
    contract = contract_hash(study.contract())
    make_trainer = trainer_factory(study, initial, contract, stop)
    engine = InProcess(
        make_sites(study, run.path / "clients"),
        make_trainer,
        study.workers,
        study.config.engine.threads,
        stop,
    )
    scoring = Scoring(study, run)
    server = Server(
        study.config,
        study.method,
        engine,
        run,
        layout=models.layout(study.spec),
        initial=initial,
        contract=contract,
        flops_per_image=flops_per_image(study),
        scorer=scoring,
        lab=ServerLab(study, make_trainer),
        observer=observer,
    )
    return server, scoring


def make_sites(study: Study, folder: Path) -> list[Site]:
    """The clients of a simulation: each with its images on the device and a store of its own."""
    images, labels = study.dataset.train.images, study.dataset.train.labels
    conditional = study.spec.num_classes > 0
    return [
        Site(
            h.client,
            Images.of(
                images[h.train], labels[h.train] if conditional and labels is not None else None, study.device
            ),
            Store(folder / h.client.name),
        )
        for h in study.holdings
    ]


def trainer_factory(
    study: Study, initial: Tensors, contract: str, stop: threading.Event
) -> Callable[[], Trainer]:
    """Makes one worker's trainer; each has a network of its own."""

    def make() -> Trainer:
        return Trainer(
            study.config, study.spec, study.method, study.process, make_model(study), initial, contract, stop
        )

    return make


def make_model(study: Study) -> torch.nn.Module:
    """A network on the device, channels-last: 1.25 times as fast as the default layout on CPUs."""
    model = models.build(study.spec)
    make_seeded(model)
    norms.guard(model)
    return model.to(study.device, memory_format=torch.channels_last)


class ServerLab:
    """Training on the server, through the same loop as the clients'."""

    def __init__(self, study: Study, make_trainer: Callable[[], Trainer]) -> None:
        self.study, self._make = study, make_trainer
        self._trainer: Trainer | None = None

    def fit(
        self,
        weights: Tensors,
        images: np.ndarray,
        labels: np.ndarray | None,
        steps: int,
        learning_rate: float,
        seed: int,
    ) -> Tensors:
        """New weights after `steps` optimiser steps on images [N, H, W, C] from `weights`."""
        trainer = self._loaded(weights)
        data = Images.of(images, labels if self.study.spec.num_classes else None, self.study.device)
        fit(
            trainer.model,
            data,
            self.study.process,
            self.study.config.training,
            steps=steps,
            learning_rate=learning_rate,
            rng=np.random.default_rng(seed),
        )
        return trainer.weights()

    def sample(self, weights: Tensors, labels: np.ndarray | None, samples: int, seed: int) -> np.ndarray:
        """Images of these weights, uint8 [samples, H, W, C], with the configuration's sampler."""
        from osmotic.diffusion import sampler

        study, score = self.study, self.study.config.score
        images, _ = sampler.sample(
            self._loaded(weights).model,
            study.process,
            None if labels is None else torch.from_numpy(labels),
            (samples, study.spec.channels, study.spec.image_size, study.spec.image_size),
            score.sampler,
            score.steps,
            seed,
            study.guidance,
            device=study.device,
        )
        return to_uint8(images)

    def _loaded(self, weights: Tensors) -> Trainer:
        self._trainer = self._trainer or self._make()
        self._trainer.load(weights)
        return self._trainer


def flops_per_image(study: Study) -> int:
    """Training cost of one image: forward pass as counted by torch, times three for forward and backward."""
    from torch.utils.flop_counter import FlopCounterMode

    model = make_model(study).eval()
    shape = (1, study.spec.channels, study.spec.image_size, study.spec.image_size)
    labels = torch.zeros(1, dtype=torch.long, device=study.device) if study.spec.num_classes else None
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(
            torch.zeros(shape, device=study.device), torch.zeros(1, device=study.device), class_labels=labels
        )
    return 3 * int(counter.get_total_flops())


def data_sha256(study: Study) -> str:
    """Hash of all training images and labels, and of who holds which: what a resumed run must find again."""
    train, total = study.dataset.train, hashlib.sha256()
    total.update(np.ascontiguousarray(train.images).data)
    if train.labels is not None:
        total.update(np.ascontiguousarray(train.labels, "<i8").data)
    for holding in study.holdings:
        total.update(f"{holding.client.name}:".encode())
        total.update(np.ascontiguousarray(holding.train, "<i8").data)
    return total.hexdigest()


def describe_partition(study: Study) -> dict[str, Any]:
    """partition.json: who holds how many images of which class."""
    names = list(study.dataset.class_names)
    labels = study.dataset.train.labels
    counts: Sequence[Sequence[int]] | None = None
    if labels is not None:
        counts = partition.class_counts([h.train for h in study.holdings], labels, len(names)).tolist()
    return {
        "clients": [h.client.name for h in study.holdings],
        "class_names": names,
        "counts": counts,
        "sizes": [len(h.train) for h in study.holdings],
        "holdout_sizes": [len(h.own_test) for h in study.holdings],
        "sha256": data_sha256(study),
    }
