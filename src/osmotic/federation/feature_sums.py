"""Scores of images that do not move: every site is asked for sums of its images' features, which add up to those of all.

FD needs a mean and a covariance, and these follow from sums (arXiv 1706.08500, eq. 6); the union's are exact. KID is a mean of
kernels of pairs, so a site that may is sent the drawn images' features, and tells the one figure (arXiv 1801.01401) that pooled
scoring has for it; the union's needs pairs of images of two sites, and is not had. Each such figure is an equation in the features of
the site's images, and who asks with features of his own choosing can solve them: it takes a leave of its own. Tasks beside the phases, as drawing for a score is, so a policy may
refuse them, and their bytes stand in the ledger.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from osmotic.errors import plain
from osmotic.metrics.frechet import FeatureStatistics
from osmotic.protocol.messages import Client, Phase, Reply, Spec, Task
from osmotic.tensors import Tensors

log = logging.getLogger("osmotic.score")

ACTION, DISTANCE = "feature-sums", "kernel-distance"
HELD_OUT = "held_out"  # in the control of a task: of the images that a site holds out for scores
MADE, KID = "features/made", "features/kid"
MOST_MADE = 100_000  # drawn images whose features a site takes
# What the server learns from them, for a site that decides whether to join.
REVEALS = (
    "sums of features, and of their products, over all images of one site: they tell how its images are spread as the feature network "
    "sees them, and how many of each class there are, and the same of the images that it holds out; of single images the less, the more there are; and, with a further leave, KID to features that the server names: from many such figures it can work out features of single images"
)
Ask = Callable[[Phase, Sequence[Task], Callable[[Reply], None], Mapping[str, np.ndarray] | None], None]


@dataclass(frozen=True)
class Wanted:
    """What sites are asked for.

    Args:
        encoder: hash of the feature network.
        width: features of an image, D.
        num_classes: of the run; 0 where no classes are told.
        clients: whom to ask.
        held_out: images that sites hold out for scores, by the names of those to be asked for sums over them, too.
    """

    encoder: str
    width: int
    num_classes: int
    clients: Sequence[Client] = ()
    held_out: Mapping[str, int] = field(default_factory=dict)

    def specs(self) -> dict[str, Spec]:
        """What must come back: sums float64 [D], products float64 [D (D + 1) / 2], images of each class int64 [num_classes]."""
        found = {
            "features/sum": Spec((self.width,), "float64", max_abs=np.inf),
            "features/products": Spec((self.width * (self.width + 1) // 2,), "float64", max_abs=np.inf),
        }
        if self.num_classes:
            found["features/classes"] = Spec((self.num_classes,), "int64")
        return found

    def task(self, client: Client, held_out: bool = False) -> Task:
        """The task of one site: sums over the images that it trains on, or over those that it holds out."""
        control = {"encoder": self.encoder} | ({HELD_OUT: True} if held_out else {})
        return Task(client, ACTION, control=control, expects=self.specs())


@dataclass(frozen=True)
class Sums:
    """Of one site, or of several.

    Args:
        statistics: of its images' features.
        classes: images of each class, int64 [num_classes]; None where no classes are told.
    """

    statistics: FeatureStatistics
    classes: np.ndarray | None

    @classmethod
    def of(cls, features: np.ndarray, labels: np.ndarray | None, num_classes: int) -> Sums:
        """Sums of images with these features [N, D] and labels int64 [N]."""
        counts = np.bincount(labels, minlength=num_classes) if labels is not None and num_classes else None
        return cls(FeatureStatistics.of(features), counts)

    def tensors(self) -> Tensors:
        """As they travel; of the products, which are symmetric, one half."""
        upper = np.triu_indices(len(self.statistics.sum))
        found = {"features/sum": self.statistics.sum, "features/products": self.statistics.outer[upper]}
        if self.classes is not None:
            found["features/classes"] = self.classes.astype(np.int64)
        return found

    @classmethod
    def read(cls, tensors: Mapping[str, np.ndarray], count: int) -> Sums:
        """Sums of `count` images as a site sent them, in the shapes of `Wanted.specs`.

        Raises: ValueError for what no images can have: negative variances, other numbers of images than `count`.
        """
        total, width = tensors["features/sum"].astype(np.float64), len(tensors["features/sum"])
        outer = np.zeros((width, width))
        outer[np.triu_indices(width)] = tensors["features/products"]
        outer += np.triu(outer, 1).T
        statistics = FeatureStatistics(count, total, outer)
        # n sum x^2 >= (sum x)^2 for every feature, but for rounding.
        squares = count * np.diag(outer)
        if np.any(squares < np.square(total) * (1 - 1e-9) - 1e-9):
            raise ValueError("sums of features that no images have: a variance below 0")
        classes = tensors.get("features/classes")
        if classes is not None and (classes.min(initial=0) < 0 or int(classes.sum()) != count):
            raise ValueError("sums of features whose classes do not add up to its images")
        return cls(statistics, None if classes is None else classes.copy())


def least(width: int) -> int:
    """Images over which sums of `width` features may be told, at least: those of fewer show in which directions the images lie."""
    return width


def gather(ask: Ask, wanted: Wanted, phase: Phase, held_out: bool = False) -> dict[str, Sums]:
    """Sums of those who gave them, by name; who answers with nonsense is left out, and the log says so.

    Args:
        phase: that is being scored.
        held_out: over the images that sites hold out, and not over those that they train on.
    """
    found: dict[str, Sums] = {}

    def keep(reply: Reply) -> None:
        name = reply.task.client.name
        try:
            found[name] = Sums.read(reply.tensors, wanted.held_out[name] if held_out else reply.weight)
        except ValueError as error:
            log.warning("%s is left out of the scores: %s", plain(name), plain(error))

    asking = Phase("score", phase.server_round, totals=False, everybody=True)
    asked = [c for c in wanted.clients if c.name in wanted.held_out or not held_out]
    ask(asking, [wanted.task(client, held_out) for client in asked], keep, None)
    return found


def distances(
    ask: Ask, encoder: str, made: Mapping[str, np.ndarray], clients: Sequence[Client], phase: Phase
) -> dict[str, float]:
    """KID of each site's own images to drawn ones, as the site says; who does not answer is left out.

    Args:
        encoder: hash of the feature network.
        made: features of the images that a site is to compare its own with, float32 [M, D], by name; who is not in it is not asked.
        clients: the sites.
        phase: that is being scored.
    """
    found: dict[str, float] = {}

    def keep(reply: Reply) -> None:
        found[reply.task.client.name] = float(reply.tensors[KID][0])

    expects = {KID: Spec((1,), "float64", max_abs=np.inf)}
    tasks = [
        Task(c, DISTANCE, control={"encoder": encoder}, extras={MADE: made[c.name]}, expects=expects)
        for c in clients
        if c.name in made
    ]
    if tasks:
        ask(Phase("score", phase.server_round, totals=False, everybody=True), tasks, keep, None)
    return found


def together(sums: Mapping[str, Sums]) -> Sums:
    """Those of all, in the order of the names: float sums hang on it in their last bits."""
    first, *rest = (sums[name] for name in sorted(sums))
    statistics, classes = first.statistics, first.classes
    for one in rest:
        statistics = statistics + one.statistics
        classes = None if classes is None or one.classes is None else classes + one.classes
    return Sums(statistics, classes)


def described(sums: Mapping[str, Sums]) -> dict[str, Any]:
    """How many sites and images stand behind a score, for the summary."""
    return {
        "reference_sites": sorted(sums),
        "reference_images": sum(one.statistics.count for one in sums.values()),
    }
