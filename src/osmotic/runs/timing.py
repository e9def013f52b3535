"""A run's time measured beforehand: a few steps of its network and encoder on this machine, at the run's own settings.

Nothing of the run is touched: networks of its own are built and thrown away, and all noise comes from generators of its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import torch

from osmotic.data.dataset import Dataset, Split
from osmotic.diffusion.sampler import CHUNK_SIZE
from osmotic.federation.interfaces import Work
from osmotic.metrics import encoder as encoders
from osmotic.protocol.view import View
from osmotic.runs import apart, estimate
from osmotic.runs.scoring import Scoring
from osmotic.runs.study import Study
from osmotic.training.images import Images
from osmotic.training.loop import fit
from osmotic.training.network import FlatNetwork

PATIENCE = (
    1.0  # seconds that a single timing may take, about: large batches of large networks are scaled up to
)
LEAST = 8  # images that the share of the weights in a step is told apart with, however long that takes
FEW = 64  # images that an encoder is tried on


def workload(study: Study) -> list[dict[Work, float]]:
    """The work of every phase of a study's run (`estimate.workload`)."""
    blueprint, config = study.blueprint, study.config
    clients = tuple(sorted((h.client for h in study.holdings), key=lambda client: client.name))
    view = View(config, blueprint.layout, blueprint.part_names, clients)
    steps = Scoring(study, None).encoder_steps
    watched = {h.client.name: len(h.watched) for h in study.holdings}
    return estimate.workload(config, blueprint.method(), blueprint.chain(), view, steps, watched)


def measure(study: Study) -> dict[Work, tuple[float, float]]:
    """Seconds and units of each kind of work, timed now; takes some seconds.

    Raises: ConfigError for an encoder whose weights are not there.
    """
    return {**network(study), **encoder(study)}


def network(study: Study) -> dict[Work, tuple[float, float]]:
    """Seconds and units of training, of watching and of drawing, by all workers side by side. Raises: ConfigError as `apart.wanted`."""
    config, blueprint, workers = study.config, study.blueprint, study.workers
    models = [study.model() for _ in range(workers)]
    sizes = sorted(len(h.train) for h in study.holdings)
    batch = min(config.training.batch_size, sizes[len(sizes) // 2])
    # Processes do not wait for each other, so each takes as long as one alone; threads wait for Python's lock.
    processes = study.device.type == "cpu" and apart.wanted(config, sum(sizes))
    training = side_by_side(
        study, lambda size: Trial(study, size).train, models[:1] if processes else models, batch
    ) / (workers if processes else 1)
    # Where the network is evaluated with and without label, both go through it as one batch.
    twice = 1 if blueprint.guidance == 1 or blueprint.spec.num_classes == 0 else 2
    samples = int(config.score.samples)
    chunk = min(CHUNK_SIZE, samples)
    drawing = side_by_side(study, lambda size: Trial(study, size).draw, models, twice * chunk)
    # The last chunks keep only some of the workers busy.
    turns = -(-samples // chunk)
    uneven = -(-turns // workers) * workers / turns
    return {
        "train": (training, 1),
        "watch": (training / 3, batch),  # a forward pass alone
        "draw": (drawing * config.score.steps * uneven, chunk),
    }


class Trial:
    """Steps of the run's network on a batch of its images, as often as asked."""

    def __init__(self, study: Study, size: int) -> None:
        self.study, self.size = study, size
        split = study.dataset.train
        rows = np.arange(size) % len(split)
        labels = split.labels[rows] if split.labels is not None and study.spec.num_classes else None
        space = study.blueprint.space
        self.images = Images.of(space.prepare(split.images[rows]), labels, study.device, space)
        self._flat: dict[int, FlatNetwork] = {}

    def train(self, model: torch.nn.Module) -> None:
        """One optimiser step."""
        config = self.study.config.training
        # Once per network: it takes as long as a step.
        network = self._flat.get(id(model)) or FlatNetwork(model)
        self._flat[id(model)] = network
        fit(
            network,
            self.images,
            self.study.blueprint.process,
            replace(config, batch_size=self.size),
            steps=1,
            learning_rate=config.learning_rate,
            rng=np.random.default_rng(0),
        )

    def draw(self, model: torch.nn.Module) -> None:
        """One evaluation."""
        x, labels = self.images.batch(torch.arange(self.size, device=self.study.device))
        with torch.no_grad():
            timesteps = torch.ones(self.size, device=x.device)
            model.eval()(x, timesteps, class_labels=labels, return_dict=False)[
                0
            ].sum().item()  # waits for a GPU


def side_by_side(
    study: Study,
    trial: Callable[[int], Callable[[torch.nn.Module], None]],
    models: Sequence[torch.nn.Module],
    size: int,
) -> float:
    """Seconds of one step on `size` images, where all workers step at once; the wall's, so divided by their number.

    A step costs a part for the weights and a part for each image: where the whole batch would take long, both follow from
    one image and some.
    """
    threads, before = study.config.engine.threads, torch.get_num_threads()

    def timed(images: int) -> float:
        step = trial(images)

        def work(model: torch.nn.Module) -> None:
            torch.set_num_threads(threads)  # the setting is per thread
            step(model)

        begun = time.perf_counter()
        with ThreadPoolExecutor(len(models)) as pool:
            list(pool.map(work, models))
        return (time.perf_counter() - begun) / len(models)

    try:
        timed(1)  # the first step of a network prepares much
        one = min(timed(1), timed(1))  # the decision below should not hang on a moment of a busy machine
        # No image of a batch takes longer than one alone, so they take no longer than that, but for the least.
        fitting = min(size, max(LEAST, int(PATIENCE / (one * len(models)))))
        few = min(timed(fitting), timed(fitting))  # the first step of a size prepares again
        each = (few - one) / (fitting - 1) if fitting > 1 and few > one else few / fitting
        return few + each * (size - fitting)
    finally:
        # A thread's setting is also the default of threads that start later.
        torch.set_num_threads(before)


def encoder(study: Study) -> dict[Work, tuple[float, float]]:
    """Seconds and units of training the encoder, and of looking at images with it."""
    train = study.dataset.train
    images = np.ascontiguousarray(train.images[:FEW])
    scoring = Scoring(study, None)
    if scoring.encoder_steps == 0 and study.config.score.encoder == "classifier":
        return {"score": _looked(scoring.encoder, images)}
    few = Split(images, None if train.labels is None else train.labels[:FEW])
    none = Split(images[:0], None if few.labels is None else few.labels[:0])
    steps = 0

    def stepped() -> None:
        nonlocal steps
        steps += 1

    begun = time.perf_counter()
    tried = encoders.get(
        Dataset(study.dataset.name, few, none, study.dataset.class_names),
        study.config.score.encoder,
        cache=False,
        device=str(study.device),
        stepped=stepped,
    )
    trained = time.perf_counter() - begun
    # A pretrained one takes long for each.
    found: dict[Work, tuple[float, float]] = {"score": _looked(tried, images[: FEW if steps else 2])}
    return found | ({"encoder": (trained, steps)} if steps else {})


def _looked(tried: encoders.Encoder, images: np.ndarray) -> tuple[float, float]:
    """Seconds in which an encoder looks at these images [N, H, W, C], and their number."""
    begun = time.perf_counter()
    tried.features(images)
    return time.perf_counter() - begun, len(images)
