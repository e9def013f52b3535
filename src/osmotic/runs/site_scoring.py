"""Scores of a run whose images are at their sites: the union's FD from sums that these send, and no image moves.

KID to a site's own images is computed there, from the drawn images' features. KID to the union, precision and recall need
images of all sites side by side and stay null; so do held-out scores and floors.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np

from osmotic.data.strata import apportion
from osmotic.diffusion import compatibility
from osmotic.federation import feature_sums
from osmotic.federation.feature_sums import Sums, Wanted
from osmotic.federation.interfaces import Stage, Unscored
from osmotic.metrics import federated
from osmotic.metrics.frechet import frechet_to
from osmotic.protocol.messages import Client
from osmotic.runs import grids
from osmotic.runs.scoring import NOT_WITHOUT_GLOBAL_MODEL, Scoring


class SiteScoring(Scoring):
    """Draws as `Scoring` does, and compares with what sites have told; arguments as there."""

    _sums: Mapping[str, Sums] = {}  # of the sites that told before this score
    _held_out: Mapping[str, Sums] = {}  # the same of the images that sites hold out
    _made: dict[
        str, np.ndarray
    ]  # features [M, D] of what was drawn in each site's own mix of classes, in the score under way

    def sums_wanted(self) -> Wanted:
        """What sites are asked, and which: those that have said of themselves that they may tell."""
        width, encoder = self._width, self.encoder.sha256
        asked = [client for client in self._clients() if encoder in self.study.tells.get(client.name, ())]
        # Fewer have no own scores, or tell no sums.
        enough = max(federated.MIN_OWN, feature_sums.least(width))
        held_out = {name: n for name, n in self.study.holds_out.items() if n >= enough}
        return Wanted(encoder, width, self.study.spec.num_classes, asked, held_out)

    @cached_property
    def _width(self) -> int:
        blank = np.zeros((1, *self.study.dataset.train.images.shape[1:]), np.uint8)
        return int(self.encoder.features(blank).shape[1])

    def take_sums(self, found: Mapping[str, Sums], held_out: Mapping[str, Sums]) -> None:
        """What sites told before this score."""
        self._sums, self._held_out, self._made = dict(found), dict(held_out), {}

    def distances_wanted(self) -> Mapping[str, np.ndarray]:
        """What was drawn for each site that has own scores, in its own mix of classes."""
        return self._made

    def with_distances(self, quality: dict[str, Any], found: Mapping[str, float]) -> dict[str, Any]:
        """`kid_own` of those that told, in every place where it stands."""
        entries = [{**e, "kid_own": found.get(e["name"])} for e in quality["per_client"]]
        return {**quality, **federated.aggregate(entries), "per_client": entries}

    @property
    def _known(self) -> Sums:
        """Those of all sites that told. Raises: Unscored where none did."""
        if not self._sums:
            raise Unscored("no site lets sums of its images' features leave: policy.encoders")
        return feature_sums.together(self._sums)

    def labels(self) -> np.ndarray | None:
        """Labels of the pool, int64 [samples], in the proportions of the sites that told; None where none are told."""
        if self.study.spec.num_classes == 0:
            return None
        counts = self._known.classes
        return None if counts is None else apportion(counts, self.samples)

    def score_global(self, weights: Mapping[str, np.ndarray], server_round: int) -> dict[str, Any]:
        """FD of the global model, name -> float32 [...], to the union of the sites' images and to each site's own."""
        union, labels = self._known, self.labels()
        images, nfe = self.draw(weights, labels, self.samples)
        self.save_grid(images, labels, f"round-{server_round:04d}")
        made = self.encoder.features(images)
        fd = frechet_to(union.statistics, made)
        entries = [self._entry(client, made, labels, fd, "after") for client in self._clients()]
        empty = dict.fromkeys(NOT_WITHOUT_GLOBAL_MODEL)
        found = {**self._described(nfe), **empty, "fd": fd, **feature_sums.described(self._sums)}
        if union.classes is not None:
            found["class_histogram_data"] = union.classes.tolist()
        return {**found, **federated.aggregate(entries), "after": None, "per_client": entries}

    def score_personal(
        self, pools: Mapping[str, np.ndarray], stage: Stage, server_round: int
    ) -> dict[str, Any]:
        """FD of what each site's own model drew, uint8 [samples, H, W, C], to the union and to the site's own images."""
        union, labels = self._known, self.labels()
        nfe = compatibility.nfe(self.study.config.score.steps, self.study.blueprint.guidance)
        entries = []
        for client in self._clients():
            if client.name in pools:
                made = self.encoder.features(pools[client.name])
                entries.append(self._entry(client, made, labels, frechet_to(union.statistics, made), stage))
                self.save_grid(pools[client.name], labels, f"round-{server_round:04d}-{client.name}")
        found = {**self._described(nfe), **dict.fromkeys(NOT_WITHOUT_GLOBAL_MODEL)}
        found |= feature_sums.described(self._sums)
        return {
            **found,
            **federated.aggregate(entries),
            "after": None,
            "mixture": None,
            "per_client": entries,
        }

    def _clients(self) -> list[Client]:
        return [h.client for h in self.study.holdings]

    def _entry(
        self, client: Client, made: np.ndarray, labels: np.ndarray | None, fd_all: float, stage: Stage
    ) -> dict[str, Any]:
        """One site's entry of `summary.quality.per_client`, as `federated.OwnYardstick` gives it."""
        told, fd_own, rows = self._sums.get(client.name), None, np.arange(len(made))
        # Against the images that it holds out, where it holds any out: a model that repeats its training images is best against these.
        own = self._held_out.get(client.name) if client.name in self.study.holds_out else told
        count = 0 if told is None else self.study.holds_out.get(client.name, told.statistics.count)
        if told is not None:
            if labels is not None and told.classes is not None:
                rows = federated.matching(labels, np.repeat(np.arange(len(told.classes)), told.classes))
            if own is not None and min(count, len(rows)) >= federated.MIN_OWN:
                fd_own = frechet_to(own.statistics, made[rows])
                if client.name in self.study.compares and len(rows) <= feature_sums.MOST_MADE:
                    self._made[client.name] = made[rows]
        return {
            "client_id": client.client_id,
            "name": client.name,
            "num_examples": client.num_examples,
            "stage": stage,
            "fd_all": fd_all,
            "fd_own": fd_own,
            "kid_all": None,
            "kid_own": None,
            "fd_own_floor": None,
            "own_images": count,
            "own_samples": len(rows) if told is not None else 0,
            "held_out": None,
            "near_copies": None,
        }

    def save_grid(self, images: np.ndarray, labels: np.ndarray | None, name: str) -> None:
        """PNG grid of drawn images, uint8 [N, H, W, C]; of real ones there are none here."""
        if self.run is not None:
            grids.save_grid(self.run, images, labels, list(self.study.dataset.class_names), name)
