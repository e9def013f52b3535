"""What scores must be read with: held-out images beside training ones, near-copies, and how many clients and images are behind own scores."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from osmotic.report import formatting, narrative
from osmotic.report.formatting import count, figure, percent
from osmotic.report.reading import Run


@dataclass(frozen=True)
class ScoreRow:
    """One score against the images that were trained on, and against real images that nobody trained on."""

    name: str
    training: str
    held_out: str


def score_rows(run: Run) -> list[ScoreRow]:
    """The global model's scores with their floors, beside those against held-out images; empty where these were not taken."""
    q, held = run.quality, run.quality.get("held_out")
    if not held:
        return []
    name, trained_on = formatting.fd_name(q.get("encoder")), sum(run.summary.get("client_sizes") or ())
    at_floor, floor_samples = q.get("fd_at_floor"), q.get("floor_samples")
    rows = [
        ScoreRow(f"{name}, lower is better", figure(q.get("fd")), figure(held.get("fd"))),
        # Each floor is of real images of the other side: of unseen ones here, of training images there.
        ScoreRow(
            f"{name} of other real images (floor)", figure(q.get("fd_floor")), figure(held.get("floor"))
        ),
        ScoreRow("KID, lower is better", figure(q.get("kid")), figure(held.get("kid"))),
        *(
            ScoreRow(f"{key}, higher is better", figure(q.get(key), 3), figure(held.get(key), 3))
            for key in ("precision", "recall")
        ),
        ScoreRow("generated images", count(q.get("num_samples")), count(held.get("samples"))),
        ScoreRow("real images", count(trained_on or None), count(held.get("images"))),
    ]
    if at_floor is not None and floor_samples:
        told = f"{name} of as many generated images as the floor has ({count(floor_samples)})"
        rows.insert(2, ScoreRow(told, figure(at_floor), formatting.DASH))
    return rows


@dataclass(frozen=True)
class Copies:
    """The share of near-copies of training images among the generated ones, in words."""

    features: str  # share, such as `1.2 %`
    pixels: str
    expected: str  # share where nothing was copied
    basis: str  # how many images stand behind these shares
    verdict: str  # one plain sentence
    many: bool  # far above what is expected


def copies(quality: Mapping[str, Any]) -> Copies | None:
    """Near-copies as the run measured them; None where it did not."""
    found = quality.get("near_copies")
    if not found:
        return None
    shares = [found[kind] for kind in ("features", "pixels") if found.get(kind) is not None]
    expected, images, held_out = found.get("expected"), found.get("images") or 0, found.get("held_out") or 0
    many = any(far_above(share, expected, images, held_out) for share in shares)
    if not shares:
        verdict = "There was too little to measure with."
    elif many:
        verdict = (
            "That is far more than expected: the model repeats training images. "
            "Look at the nearest real images before sharing what it draws."
        )
    else:
        verdict = "That is no more than chance shows among images that were copied from nowhere."
    return Copies(
        features=percent(found.get("features")),
        pixels=percent(found.get("pixels")),
        expected=percent(expected),
        basis=f"{count(images)} generated images, {count(held_out)} held-out real ones as the yardstick",
        verdict=verdict,
        many=many,
    )


def own_copies(quality: Mapping[str, Any]) -> str:
    """One plain sentence where clients' own models repeat training images; empty where none does, or none was looked at."""
    stage = "before" if narrative.before_merging(quality) else "after"
    entries = narrative.own_quality(quality).get("per_client") or ()
    found = [told for c in entries if c.get("stage") == stage and (told := copies(c)) is not None]
    many = sum(told.many for told in found)
    if not many:
        return ""
    return (
        f"{count(many)} of {formatting.plural(len(found), 'own model')} drew far more near-copies of training images than expected. "
        "Look at the nearest real images before sharing what they draw."
    )


def far_above(share: float, expected: float | None, images: int, held_out: int) -> bool:
    """Whether a share is more than twice what is expected, and more than chance makes of it.

    Chance: three standard deviations of a binomial share of the generated images, and of the held-out ones that set the
    limit; the expected share is taken as at least one image.
    """
    if expected is None or images < 1 or held_out < 1:
        return False
    likely = min(1.0, max(expected, 1 / images))
    chance = math.sqrt(likely * (1 - likely) * (1 / images + 1 / held_out))
    return share > max(2 * expected, likely + 3 * chance)


@dataclass(frozen=True)
class OwnBasis:
    """What stands behind scores against clients' own images."""

    clients: int  # that have such a score
    of: int  # clients scored at all
    images: tuple[int, int] | None  # fewest and most real images of one of them; None in older runs
    floor: float | None  # mean FD of real images at these numbers
    floors: int  # clients that this mean is over: some have no like real images to take it from

    @property
    def words(self) -> str:
        """`3 of 4 clients, 50 to 171 real images each, floor 4.500 (mean)`."""
        parts = [f"{count(self.clients)} of {formatting.plural(self.of, 'client')}"]
        if self.images is not None:
            low, high = self.images
            parts.append(
                f"{count(low)} to {count(high)} real images each"
                if low < high
                else f"{count(low)} real images each"
            )
        if self.floor is not None:
            over = "mean" if self.floors == self.clients else f"mean of {count(self.floors)}"
            parts.append(f"floor {figure(self.floor)} ({over})")
        return ", ".join(parts)


def own_basis(quality: Mapping[str, Any]) -> OwnBasis | None:
    """How many clients and images the own scores of these models are over; None where no client has one.

    Args:
        quality: of a run, or what stands under `personal` in it.
    """
    entries = quality.get("per_client") or ()
    stages = {c.get("stage") or "before" for c in entries}
    # Two entries per client where merging follows: one of them is enough.
    stage = "before" if "before" in stages else "after"
    mine = [c for c in entries if (c.get("stage") or "before") == stage]
    scored = [c for c in mine if c.get("fd_own") is not None]
    if not scored:
        return None
    images = [int(c["own_images"]) for c in scored if c.get("own_images") is not None]
    floors = [float(c["fd_own_floor"]) for c in scored if c.get("fd_own_floor") is not None]
    return OwnBasis(
        clients=len(scored),
        of=len(mine),
        images=(min(images), max(images)) if len(images) == len(scored) else None,
        floor=sum(floors) / len(floors) if floors else None,
        floors=len(floors),
    )


def means(quality: Mapping[str, Any], scope: str) -> list[tuple[str, str, str, str]]:
    """(score, mean, weighted by images, worst) over the clients of the scores of one scope; empty where none was taken.

    Args:
        quality: of a run.
        scope: `own`, or `all` for scores against all clients' images.
    """
    return narrative.rows_over(quality, quality, [key for key in narrative.OWN_SCORES if key.endswith(scope)])
