"""Scores and sample grids of the models of a run: draws the images, then leaves the measuring to `metrics`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch

from osmotic import seeds
from osmotic.data import strata
from osmotic.data.dataset import Dataset, Split
from osmotic.data.gather import gather
from osmotic.data.strata import apportion
from osmotic.diffusion import compatibility
from osmotic.diffusion.reconstruction import Reconstruction
from osmotic.federation.feature_sums import Sums, Wanted
from osmotic.federation.interfaces import Stage, Work
from osmotic.metrics import encoder as encoders
from osmotic.metrics import federated
from osmotic.metrics.near_copies import CopyFinder
from osmotic.metrics.registry import measure
from osmotic.metrics.score import Yardstick
from osmotic.protocol.messages import Client
from osmotic.runs import grids
from osmotic.runs.study import Holding, Study
from osmotic.storage.folder import RunDir
from osmotic.training.weights import copy_weights

# Fields of the summary that are null where no global model exists.
NOT_WITHOUT_GLOBAL_MODEL = (
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
)


class Scoring:
    """Knows the images [N, H, W, C] of all, as the server does not; makes the encoder when first needed.

    The noise is the same in every round, so that grids and scores of different rounds differ by the weights alone.
    """

    def __init__(
        self,
        study: Study,
        run: RunDir | None,
        worked: Callable[[Work, float], object] = lambda work, amount: None,
    ) -> None:
        self.study, self.run, self.worked = study, run, worked
        self._models: list[torch.nn.Module] = []
        self._encoder: encoders.Encoder | None = None
        self._owns: dict[str, federated.OwnYardstick] = {}

    @property
    def encoder(self) -> encoders.Encoder:
        """The feature network the configuration names, trained or read once."""
        if self._encoder is None:
            self._encoder = encoders.get(
                self.seen,
                self.study.config.score.encoder,
                device=str(self.study.device),
                stepped=partial(self.worked, "encoder", 1),
            )
            self._encoder.looked = partial(self.worked, "score")
        return self._encoder

    @property
    def encoder_steps(self) -> int:
        """Optimiser steps until there is an encoder; 0 where it need not be trained."""
        if self._encoder is not None:
            return 0
        return encoders.steps_to_train(self.seen, self.study.config.score.encoder)

    @property
    def seen(self) -> Dataset:
        """What an encoder may learn from."""
        # Not images of `data.holdout`: their features would look familiar, and they are a yardstick.
        return dataclasses.replace(self.study.dataset, train=self.reference)

    @property
    def samples(self) -> int:
        """Generated images per score."""
        return int(self.study.config.score.samples)

    @property
    def seed(self) -> int:
        """Seed of the sampling noise."""
        return seeds.integer(self.study.config.seed, seeds.IMAGES)

    def labels(self) -> np.ndarray | None:
        """Labels of the pool, int64 [samples], sorted, in the proportions of all clients; None where none are told."""
        return self._pool_labels

    @cached_property
    def _pool_labels(self) -> np.ndarray | None:
        labels = self.study.dataset.train.labels
        if self.study.spec.num_classes == 0 or labels is None:
            return None
        # Of what clients train on, not of the whole data set: held-out images were never seen.
        counts = np.bincount(labels[self._train_rows], minlength=self.study.spec.num_classes)
        return apportion(counts, self.samples)

    def draw(
        self, weights: Mapping[str, np.ndarray], labels: np.ndarray | None, samples: int
    ) -> tuple[np.ndarray, int]:
        """Images of these weights, uint8 [samples, H, W, C], and network evaluations per image."""
        # Kept from round to round: they are built once, and only their weights change.
        while len(self._models) < self.study.workers:
            self._models.append(self.study.model())
        for model in self._models:
            copy_weights(dict(model.named_parameters()), weights)
        drawn = partial(self.worked, "draw")
        return self.study.blueprint.draw_chunks(self._models, labels, samples, self.seed, drawn)

    def score_global(self, weights: Mapping[str, np.ndarray], server_round: int) -> dict[str, Any]:
        """Quality of the global model, with one entry per client, and the round's sample grid.

        Args:
            weights: name -> float32 [...].
        """
        labels = self.labels()
        images, nfe = self.draw(weights, labels, self.samples)
        self.save_grid(images, labels, f"round-{server_round:04d}")
        made = self.encoder.features(images)
        quality = self._measure(images, made, nfe) | {"near_copies": self._near_copies(images, made)}
        # One pool for all clients: the same images, each time against the images of another.
        whole = {"held_out": None, "near_copies": None}  # of that pool they stand above
        per_client = [
            self._own(h).score(made, quality["fd"], quality["kid"], "after") | whole
            for h in self.study.holdings
        ]
        return {**quality, **federated.aggregate(per_client), "after": None, "per_client": per_client}

    def sums_wanted(self) -> Wanted | None:
        """Nothing: the images are here."""
        return None

    def take_sums(self, found: Mapping[str, Sums], held_out: Mapping[str, Sums]) -> None:
        """Nobody is asked."""

    def distances_wanted(self) -> Mapping[str, np.ndarray]:
        """None: the images are here."""
        return {}

    def with_distances(self, quality: dict[str, Any], found: Mapping[str, float]) -> dict[str, Any]:
        """Nobody is asked."""
        return quality

    def wanted(self, client: Client) -> Mapping[str, Any]:
        """What a client is told to sample, in JSON: samples, labels [samples], seed, guidance.

        The label mix of all, and the run's noise: own models differ by their weights alone.
        """
        labels = self.labels()
        return {
            "samples": self.samples,
            "labels": None if labels is None else labels.tolist(),
            "seed": self.seed,
            "guidance": self.study.blueprint.guidance,
        }

    def score_personal(
        self, pools: Mapping[str, np.ndarray], stage: Stage, server_round: int
    ) -> dict[str, Any]:
        """Quality of models of the clients' own, beside a global one or without: the global fields are null.

        Args:
            pools: client -> the images it drew, uint8 [samples, H, W, C]; who sent none is left out.
        """
        cfg, labels = self.study.config, self.labels()
        per_client: list[dict[str, Any]] = []
        features: dict[str, np.ndarray] = {}
        beside = self.study.blueprint.method().global_model
        for holding in self.study.holdings:
            name = holding.client.name
            if name in pools:
                made = features[name] = self.encoder.features(pools[name])
                entry = self._own(holding).score(made, *self.yardstick.distances(made), stage)
                entry["held_out"] = _fields(self.yardstick.against_held_out(made))
                # Of one client alone: a picture of each would fill the folder with training images.
                picture = "" if per_client else f"nearest-{name}" if beside else "nearest"
                entry["near_copies"] = self._near_copies(pools[name], made, picture)
                per_client.append(entry)
                self.save_grid(pools[name], labels, f"round-{server_round:04d}-{name}")
        # Null, not absent: every summary has the same fields.
        empty = dict.fromkeys(NOT_WITHOUT_GLOBAL_MODEL)
        described = self._described(compatibility.nfe(cfg.score.steps, self.study.blueprint.guidance))
        found = federated.aggregate(per_client)
        mixture = self._mixture(features)
        return {
            **described,
            **empty,
            **found,
            "after": None,
            "mixture": mixture,
            "per_client": per_client,
        }

    def _mixture(self, features: Mapping[str, np.ndarray]) -> dict[str, Any] | None:
        """Quality of all clients' models as one that draws from each by its number of images, in its own class mix.

        As many images as there are: the client whose pool is the first to be used up decides. None unless all have drawn.

        Args:
            features: of the pools, client -> [samples, D].
        """
        if set(features) != {h.client.name for h in self.study.holdings}:
            return None
        pool, known = self._pool_labels, self.study.dataset.train.labels
        rows: dict[str, np.ndarray] = {}
        for h in self.study.holdings:
            rows[h.client.name] = np.arange(self.samples)
            if pool is not None and known is not None:
                rows[h.client.name] = federated.matching(pool, known[h.train])
        per_image = min(len(rows[h.client.name]) / len(h.train) for h in self.study.holdings)
        parts = []
        for h in self.study.holdings:
            mine = rows[h.client.name]
            count = min(len(mine), round(per_image * len(h.train)))
            labels = None if pool is None else pool[mine]
            picked = strata.draw(labels, len(mine), count, np.random.default_rng(0))
            parts.append(features[h.client.name][mine[picked]])
        made = np.concatenate(parts)
        if len(made) < federated.MIN_OWN:
            return None
        fd, kid = self.yardstick.distances(made)
        return {"fd": fd, "kid": kid, "samples": len(made)}

    @staticmethod
    def with_after(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
        """The quality of personal models as trained, and beside it that of the same models with the last average merged."""
        merged = {key: after[key] for key in ("mean", "weighted", "worst")}
        return {**before, "after": merged, "per_client": [*before["per_client"], *after["per_client"]]}

    def _measure(self, images: np.ndarray, made: np.ndarray, nfe: int) -> dict[str, Any]:
        """Scores of one pool [samples, H, W, C] and its features [samples, D], under the summary's names."""
        measured = self.yardstick.score(made)
        found: dict[str, Any] = {
            "fd": measured.fd,
            "kid": measured.kid,
            "precision": measured.precision,
            "recall": measured.recall,
            "fd_floor": measured.fd_floor,
            "fd_at_floor": measured.fd_at_floor,
            "floor_samples": measured.m,
            "held_out": _fields(measured.held_out),
            "class_histogram": measured.class_histogram,
            "class_histogram_data": measured.class_histogram_data,
        }
        if names := self.study.config.score.metrics:
            found["metrics"] = measure(names, images, grids.as_uint8(self.reference.images))
        return self._described(nfe) | found

    def _described(self, nfe: int) -> dict[str, Any]:
        score_cfg, process = self.study.config.score, self.study.blueprint.process
        return {
            "encoder": self.encoder.name,
            "encoder_sha256": self.encoder.sha256,
            "encoder_accuracy": self.encoder.test_accuracy,
            "num_samples": self.samples,
            # An autoencoder has none: its decoder is given noise (`diffusion/reconstruction.py`).
            "sampler": "decoder" if isinstance(process, Reconstruction) else score_cfg.sampler,
            "guidance": self.study.blueprint.guidance,
            "nfe": nfe,
        }

    @cached_property
    def reference(self) -> Split:
        """All images that clients train on, [N, H, W, C]; a copy only where the data set has others too."""
        rows, train = self._train_rows, self.study.dataset.train
        return train if len(rows) == len(train) else gather([(train, rows)])

    @cached_property
    def held_out(self) -> Split:
        """Real images that nobody trains on, [K, H, W, C]: the test split, and what clients keep for their own test."""
        rows, test = self._own_test_rows, self.study.dataset.test
        if not len(rows):
            return test
        return gather([(test, np.arange(len(test))), (self.study.dataset.train, rows)])

    @cached_property
    def _train_rows(self) -> np.ndarray:
        """Positions in the training split of all images that clients train on, int64 [N]."""
        # In the order of the data set: the reference is then the same for any split of it.
        return np.sort(np.concatenate([h.train for h in self.study.holdings]))

    @cached_property
    def _own_test_rows(self) -> np.ndarray:
        """Positions in the training split of all images that clients keep for their own test, int64 [K]."""
        return np.sort(np.concatenate([h.own_test for h in self.study.holdings]))

    @cached_property
    def yardstick(self) -> Yardstick:
        """What all pools of this run are held against: they are drawn for the same labels."""
        return Yardstick(self.reference, self.held_out, self.encoder, self.labels(), self.samples)

    @cached_property
    def _copies(self) -> CopyFinder | None:
        if len(self.reference) < 2:
            return None
        return CopyFinder(
            self.reference,
            self.yardstick.real,
            self.held_out,
            self.yardstick.unseen,
            self.encoder,
            mirrored=self.study.config.data.flip,
        )

    def _near_copies(
        self, images: np.ndarray, made: np.ndarray, picture: str = "nearest"
    ) -> dict[str, Any] | None:
        """The share of near-copies in one pool [samples, H, W, C] with features [samples, D].

        Args:
            picture: name of the file of the most suspicious ones beside their nearest training images; empty for none.
        """
        if self._copies is None:
            return None
        share, neighbours = self._copies.look(images, made, self.labels())
        if picture and self.run is not None:
            grids.save_nearest(self.run, images, neighbours, self.reference, picture)
        return _fields(share)

    def _own(self, holding: Holding) -> federated.OwnYardstick:
        """What the models of one client are held against, made once, of features that are there already."""
        if (name := holding.client.name) in self._owns:
            return self._owns[name]
        rows = np.searchsorted(self._train_rows, holding.train)
        if self.study.config.data.holdout:
            # Held-out images alone, though a client may have none, or none that are not watched: means over clients would else
            # mix scores against what was trained on with others.
            before = len(self.reference) + len(self.study.dataset.test)
            rows = before + np.searchsorted(self._own_test_rows, holding.own_test)
        known, client = self.study.dataset.train.labels, holding.client
        labels = None if known is None else known[holding.train]
        mine = federated.ClientImages(name, client.client_id, len(holding.train), labels, rows)
        self._owns[name] = federated.OwnYardstick(mine, self._everybody, self._pool_labels, self.samples)
        return self._owns[name]

    @cached_property
    def _everybody(self) -> federated.RealImages:
        # First the images that clients train on, then the test split, then what clients keep.
        features = np.concatenate([self.yardstick.real, self.yardstick.unseen])
        return federated.RealImages(features, _labels(self.reference, self.held_out))

    def save_grid(self, images: np.ndarray, labels: np.ndarray | None, name: str) -> None:
        """PNG grid of the first images of each class, or of the first hundred, and beside it one of real images.

        Args:
            images: uint8 [N, H, W, C].
            labels: int64 [N], or None.
        """
        if self.run is not None:
            names = list(self.study.dataset.class_names)
            grids.save_grid(self.run, images, labels, names, name)
            grids.save_real(self.run, self.reference, labels, len(images), names)


def _fields(found: Any) -> dict[str, Any] | None:
    """A dataclass as a table; None stays None."""
    return None if found is None else dataclasses.asdict(found)


def _labels(a: Split, b: Split) -> np.ndarray | None:
    """The labels of both, one after the other; None where one has none."""
    return None if a.labels is None or b.labels is None else np.concatenate([a.labels, b.labels])
