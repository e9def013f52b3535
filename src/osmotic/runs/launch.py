"""From a study to a run: the only place where clients, engine, server and scorer are put together."""

from __future__ import annotations

import dataclasses
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from osmotic import methods, models, pieces, plugins
from osmotic.config import toml
from osmotic.config.schema import Config, to_dict
from osmotic.data.dataset import Dataset
from osmotic.diffusion import compatibility
from osmotic.engines import WHERE
from osmotic.engines.inprocess import InProcess
from osmotic.engines.nursery import Nursery
from osmotic.engines.processes import Processes
from osmotic.errors import ConfigError
from osmotic.federation import extension
from osmotic.federation.client import Site, Worker
from osmotic.federation.interfaces import Engine, Observer, Work
from osmotic.federation.server import Server
from osmotic.federation.team import Team
from osmotic.flat import Flat
from osmotic.metrics import encoder as encoders
from osmotic.metrics.weights import PREFIX
from osmotic.protocol.messages import contract_hash
from osmotic.runs import apart, gains, quicker, resolve, timing, workplace
from osmotic.runs.announce import LONG, Start
from osmotic.runs.callbacks import Callback, RunObserver
from osmotic.runs.estimate import SCORING, Estimate
from osmotic.runs.scoring import Scoring
from osmotic.runs.site_scoring import SiteScoring
from osmotic.runs.sites import Sites, make_site
from osmotic.runs.study import Study, describe_partition, make_deterministic, prepare
from osmotic.runs.summary import write_summary
from osmotic.storage import checkpoint, strict_json
from osmotic.storage.atomic import write_text
from osmotic.storage.folder import RunDir
from osmotic.tensors import Tensors
from osmotic.training.images import Images
from osmotic.training.loop import fit
from osmotic.training.network import FlatNetwork
from osmotic.training.stack import Stack


def start(
    config: Config,
    out: Path,
    observer: Callable[[RunDir, Config], RunObserver],
    dataset: Dataset | None = None,
    read: Callable[[int, int], object] = lambda done, count: None,
    nursery: Nursery | None = None,
) -> RunDir:
    """Trains from the beginning into a new folder. Raises ConfigError before any work if something is wrong.

    Args:
        nursery: of workers that are processes; None where clients are threads.
    """
    study = _studied(config, dataset, read)
    _refuse(study)
    _tell_unwatched(study)
    run = RunDir.new(out)
    with run.held():
        RunDir.refuse_used(out)  # again: somebody may have begun here while the images were read
        command = " ".join(["osmotic run config.toml", *(f"--plugin {path.name}" for path in plugins.FILES)])
        repeats = f"`{command}` repeats this run" if dataset is None else "its images came from Python"
        version = metadata.version("osmotic")
        write_text(run.config, f"# osmotic {version}; {repeats}\n" + toml.to_toml(study.config))
        write_text(run.partition, strict_json.dumps(describe_partition(study)))
        return _run(study, run, observer(run, study.config), resume=False, nursery=nursery)


def resume(
    path: Path,
    observer: Callable[[RunDir, Config], RunObserver],
    dataset: Dataset | None = None,
    sets: Sequence[str] = (),
    keys: Mapping[str, Any] | None = None,
    read: Callable[[int, int], object] = lambda done, count: None,
) -> RunDir:
    """Goes on from the newest whole checkpoint; a finished run is only summed up again, unless it is given more rounds.

    Args:
        dataset: where the run was begun with images of the caller's own, the same ones.
        sets, keys: what is to change from here on, as `resolve.load` takes them.
    Raises: ConfigError for a change that would not leave the bits of a run begun with it (`federation/extension.py`).
    """
    run = RunDir.existing(path)
    with run.held():
        own = dataset is not None
        config = resolve.load(run.config, sets=sets, keys=keys, own_data=own)
        method = methods.make(config.method.name, dict(config.method.options))
        before = to_dict(resolve.load(run.config, own_data=own))
        extension.check(before, config, method, pieces.make(config))
        begun = strict_json.read_table(run.partition) if run.partition.exists() else {}
        study = _studied(config, dataset, read, begun.get("clients", ()))
        _refuse(study)
        if not run.partition.exists():  # stopped between the two files
            write_text(run.partition, strict_json.dumps(describe_partition(study)))
        refuse_other_images(run, study)

        def record() -> None:
            # Before anything else changes: killed after this, a plain `resume` goes on as it was told here.
            if to_dict(study.config) != before:
                told = run.config.read_text(encoding="utf-8").splitlines(keepends=True)
                notes = "".join(line for line in told if line.startswith("#"))
                write_text(run.config, notes + toml.to_toml(study.config))

        with apart.started(study.config, sum(len(h.train) for h in study.holdings)) as nursery:
            return _run(study, run, observer(run, study.config), True, nursery, agreed=record)


def _studied(
    config: Config,
    dataset: Dataset | None,
    read: Callable[[int, int], object],
    names: Sequence[str] = (),
) -> Study:
    """The run before anything runs: with images where they are here, of what sites say where these have them.

    Args:
        names: of the sites of a run that has begun; none of one that has not.
    """
    if config.engine.name != "sites":
        return prepare(config, dataset, read)
    from osmotic.engines.flower import loan  # flwr, which only this needs

    if (lent := loan()) is None or lent.study_of is None:
        raise ConfigError(
            "engine.name", "sites", "is for a hub, which sites connect to: osmotic hub run CONFIG"
        )
    study: Study = lent.study_of(lent.grid, config, names)
    return study


def _refuse(study: Study) -> None:
    """Raises ConfigError for what would be found out after much work: an encoder that is none, and a phase before the rounds that too
    few clients can go through.
    """
    config, clients = study.config, [h.client for h in study.holdings]
    if (name := config.score.encoder).startswith(PREFIX):
        encoders.get(study.dataset, name)
    whole, training = sum(c.num_examples for c in clients), config.training
    for name, piece in study.blueprint.chain().pieces.items():
        able = [c.num_examples for c in clients if c.num_examples >= piece.least_images]
        if piece.least_images and (
            len(able) < min(training.quorum_clients, len(clients))
            or sum(able) < training.quorum_weight * whole
            or not able
        ):
            rule = f"needs clients of at least {piece.least_images} images, and {len(able)} of {len(clients)} are, too few for training.quorum_clients and training.quorum_weight"
            raise ConfigError(f"{piece.section}.{name}", None, rule)


def _tell_unwatched(study: Study) -> None:
    """Warns where a piece would choose the best pass by images that are held out, and clients hold out none."""
    share, clients = study.config.data.holdout, len(study.holdings)
    unwatched = sum(not len(h.watched) for h in study.holdings)
    # A site may have a test split of its own, and only the site knows how many images it holds out.
    if not unwatched or (study.at_sites and share):
        return
    if study.at_sites:
        who = "sites without a test split of their own have no image"
    elif share:
        who = f"{unwatched} of {clients} clients are too small to hold an image out"
    else:
        who = f"{unwatched} of {clients} clients have no image"
    mend = "data.holdout = 0.2 sets a fifth aside"
    if share:
        mend = f"a data.holdout above {share:g} sets more aside, and fewer data.clients have more images each"
    for name, piece in study.blueprint.chain().pieces.items():
        if piece.watches:
            warnings.warn(
                f"{piece.section}.{name}: {who} to watch, so they keep the mean of the last pass, and a client of few images overfits: {mend}",
                stacklevel=3,
            )


def refuse_other_images(run: RunDir, study: Study) -> None:
    """Raises ConfigError unless the study's images, and who holds them, are those of the run's beginning."""
    described, before = describe_partition(study), strict_json.read_table(run.partition)
    # A run of an earlier version has not written down all of them.
    if any(described[key] != before.get(key, described[key]) for key in ("sha256", "test_sha256")):
        raise ConfigError(
            "data.source",
            study.config.data.source,
            f"holds other images, or others at other clients, than when {run.path} began",
        )


def _run(
    study: Study,
    run: RunDir,
    observer: RunObserver,
    resume: bool,
    nursery: Nursery | None,
    agreed: Callable[[], None] = lambda: None,
) -> RunDir:
    make_deterministic(study)
    server, _ = make_server(study, run, observer, nursery)
    try:
        if resume:
            server.restore(agreed)
        run.identify(server.run_id)
        observer.run_started(described(study, server))
        server.run()
        write_summary(study, server, run)
    finally:
        server.engine.close()
    return run


def described(study: Study, server: Server) -> Start:
    """The run as it is about to begin, or to go on."""

    def estimate() -> Estimate | None:
        if study.at_sites:
            return None  # nobody here knows how fast they are
        phases, step = timing.workload(study), server.state.step
        todo = phases[step:]
        if server.state.pending is not None:  # stopped while it was being scored
            todo.insert(0, {work: amount for work, amount in phases[step - 1].items() if work in SCORING})
        return Estimate(todo, timing.measure(study))

    config, spec = study.config, study.spec
    return Start(
        where=WHERE[config.engine.name],
        device=str(study.device),
        network=spec.name,
        parameters=models.count(study.blueprint.layout),
        parameters_whole=models.count(models.layout(spec.whole)) if spec.adapter else None,
        image_size=study.blueprint.image_size,
        channels=study.blueprint.channels,
        num_images=sum(h.client.num_examples for h in study.holdings),
        num_classes=spec.num_classes,
        num_clients=len(study.holdings),
        rounds=config.training.rounds,
        samples=0 if study.at_sites and config.score.encoder == "classifier" else int(config.score.samples),
        every=int(config.score.every),
        estimate=estimate,
        quicker=lambda estimate: quicker.quicker(study, *estimate.todo(), enough=LONG),
    )


def personal_models(study: Study, run: RunDir) -> tuple[dict[str, Tensors], dict[str, dict[str, Any]]]:
    """The clients' own models of a finished run, float32 by client name, and what they gained (`gains.GAINS`) where there is a global one.

    The run's files stay as they are.

    Raises: ConfigError if the run has no undamaged checkpoint.
    """
    server, _ = make_server(study, run, Callback())
    step, tensors, notes = checkpoint.load_latest(run.checkpoints, mark_damaged=False, run_id=run.run_id)
    server.state.from_checkpoint(step, tensors, notes)
    server.clients = server.engine.clients(1, 0.0)
    try:
        own = server.personal_models(book=False)
        if not server.method.global_model:
            return own, {}
        return own, gains.of_run(study, server.state.scored_weights(), own, server.kept_passes)
    finally:
        server.engine.close()


def make_server(
    study: Study, run: RunDir, observer: Observer, nursery: Nursery | None = None
) -> tuple[Server, Scoring | None]:
    """The server with its engine, clients and scorer, which is None where images are at sites; the nursery's workers serve the clients, where there is one."""
    initial, contract = study.blueprint.initial(), contract_hash(study.blueprint.contract())
    make_worker, stop = worker_factory(study, initial, contract, observer.worked)
    scoring = make_scoring(study, run, observer)
    stores = run.path / "clients"
    clients = [h.client for h in study.holdings]
    engine: Engine
    if study.sites is not None:
        engine = study.sites
    elif study.config.engine.name == "flower":
        engine = on_flower(study, initial, contract, stores, observer)
    elif nursery is not None and apart.prepare(nursery, study, initial, contract, stores):
        engine = Processes(clients, nursery, study.workers, observer.worked)
    else:
        engine = in_process(study, stores, make_worker, stop)
    server = Server(
        study.blueprint,
        engine,
        run,
        initial=initial,
        contract=contract,
        flops_per_image=flops_per_image(study),
        scorer=scoring,
        trainer=ServerTrainer(study, make_worker, scoring),
        observer=observer,
    )
    # Known beforehand: else their first round would be lost to finding it out.
    server.state.down.draws_otherwise |= study.lacks
    server.withheld = study.withheld
    return server, scoring


def make_scoring(study: Study, run: RunDir, observer: Observer) -> Scoring | None:
    """The run's scorer; None where images are at sites and the encoder would have to be trained on them."""
    if not study.at_sites:
        return Scoring(study, run, observer.worked)
    return None if study.config.score.encoder == "classifier" else SiteScoring(study, run, observer.worked)


def on_flower(study: Study, initial: Flat, contract: str, stores: Path, observer: Observer) -> Engine:
    """Flower's simulation of the study's clients. Raises: ConfigError for images that other processes cannot be given."""
    from osmotic.engines.flower import Simulation  # flwr and Ray, which only this needs

    try:
        shown = workplace.Shown(*workplace.tell(study, initial, contract, stores))
    except workplace.Mapped as error:
        raise ConfigError("engine.name", "flower", f"{error}: hand over arrays in memory") from None
    gpus = 1 / study.workers if study.device.type == "cuda" else 0.0
    clients = [h.client for h in study.holdings]
    return Simulation(clients, study.workers, gpus, shown.path, observer.worked, keep=shown)


def in_process(
    study: Study, stores: Path, make_worker: Callable[..., Worker], stop: threading.Event
) -> InProcess:
    """Clients as threads of this process; their private states lie in `stores`."""
    engine, train = study.config.engine, study.dataset.train
    holdings, together = {h.client.name: h for h in study.holdings}, study.config.engine.batched_clients

    def site_of(name: str) -> Site:
        h = holdings[name]
        return make_site(
            study.blueprint, study.device, study.prepared, train.labels, h.client, h.train, stores, h.watched
        )

    sites = Sites(site_of, list(holdings))
    clients = [h.client for h in study.holdings]

    def make_team() -> Team:
        return Team(Stack(study.model, together, study.blueprint.flat), make_worker)

    make = make_worker if together == 1 else make_team
    return InProcess(clients, sites, make, study.workers, engine.threads, stop, together)


def worker_factory(
    study: Study,
    initial: Flat,
    contract: str,
    worked: Callable[[Work, float], object] = lambda work, amount: None,
) -> tuple[Callable[..., Worker], threading.Event]:
    """What makes one worker, with a network of its own or a given one; and the event that stops all of them."""
    stop = threading.Event()

    def make(network: FlatNetwork | None = None) -> Worker:
        return Worker(
            study.blueprint, network or study.model(), initial, contract, stop, worked, own_disk=False
        )

    return make, stop


class ServerTrainer:
    """Training and sampling on the server, through the same loop as the clients'."""

    def __init__(self, study: Study, make_worker: Callable[[], Worker], scoring: Scoring | None) -> None:
        self.study, self._make, self._scoring = study, make_worker, scoring
        self._worker: Worker | None = None

    def fit(
        self,
        weights: Tensors,
        images: np.ndarray,
        labels: np.ndarray | None,
        steps: int,
        learning_rate: float,
        seed: int,
        batch_size: int,
        moments: Tensors,
        cleanest: float,
    ) -> tuple[Tensors, Tensors]:
        """(weights after `steps` optimiser steps on images [N, H, W, C] from `weights`, moments then); labels int64 [N] or None."""
        worker, blueprint = self._loaded(weights), self.study.blueprint
        given = labels if blueprint.spec.num_classes else None
        fit(
            worker.network,
            Images.of(
                blueprint.space.prepare(images),
                given,
                self.study.device,
                blueprint.space,
                flip=blueprint.config.data.flip,
            ),
            dataclasses.replace(blueprint.process, cleanest=cleanest),
            dataclasses.replace(blueprint.config.training, batch_size=batch_size),
            steps=steps,
            learning_rate=learning_rate,
            rng=np.random.default_rng(seed),
            moments=(held := dict(moments)),
            stepped=partial(worker.worked, "train", 1),
        )
        return dict(worker.network.copy()), held

    def sample(self, weights: Tensors, labels: np.ndarray | None, samples: int, seed: int) -> np.ndarray:
        """Images of these weights, uint8 [samples, H, W, C], with the configuration's sampler."""
        given = labels if self.study.blueprint.spec.num_classes else None
        worker = self._loaded(weights)
        drawn = partial(worker.worked, "draw")
        return self.study.blueprint.draw(worker.model, given, samples, seed, drawn=drawn)[0]

    def features(self, images: np.ndarray) -> np.ndarray:
        """Features of images [N, H, W, C] by the encoder of the scores, float32 [N, D]."""
        if self._scoring is None:
            rule = "needs an encoder, and there are no images here to train one: server.correction.drop_outliers = 0"
            raise ConfigError("server.correction", None, rule)
        return self._scoring.encoder.features(images)

    @cached_property
    def flops_per_drawn(self) -> int:
        """Cost of drawing one image: evaluations of the network, each a third of a training step's."""
        blueprint = self.study.blueprint
        evaluations = compatibility.nfe(blueprint.config.score.steps, blueprint.guidance)
        return evaluations * flops_per_image(self.study) // 3

    def _loaded(self, weights: Tensors) -> Worker:
        self._worker = self._worker or self._make()
        self._worker.network.load(weights)
        return self._worker


def flops_per_image(study: Study) -> int:
    """Training cost of one image: forward pass as counted by torch, times three for forward and backward."""
    from torch.utils.flop_counter import FlopCounterMode

    model = study.model().eval()
    shape = (1, *study.blueprint.space.shape)
    labels = torch.zeros(1, dtype=torch.long, device=study.device) if study.spec.num_classes else None
    # It would be taken apart to be counted, for which torch imports an algebra system; nothing in it counts.
    enlarging = torch.ops.aten.upsample_nearest2d
    free: dict[Any, Any] = {op: lambda *shapes, **more: 0 for op in (enlarging.default, enlarging.vec)}
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=free) as counter:
        model(
            torch.zeros(shape, device=study.device), torch.zeros(1, device=study.device), class_labels=labels
        )
    return 3 * int(counter.get_total_flops())
