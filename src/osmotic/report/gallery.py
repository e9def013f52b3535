"""The sample grids that a report shows: which of them, under which caption, and as data URIs, so that the page is one file."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from osmotic.report import narrative
from osmotic.report.reading import Run

MAX_PICTURES = 12  # sample grids on the page; more would only repeat each other
MAX_CLIENT_GRIDS = 6  # clients whose own grids are shown, each with up to two


def real(run: Run) -> str | None:
    """The grid of real training images as a data URI; None where the run has none."""
    return source(run.real_samples) if run.real_samples else None


def nearest(run: Run) -> str | None:
    """Generated images over their nearest training images as a data URI; None where the run has none."""
    return source(run.nearest_samples) if run.nearest_samples else None


def own_nearest(run: Run) -> list[tuple[str, str]]:
    """(client, data URI) of the same of clients' own models beside a global one."""
    return [(client, source(path)) for client, path in evenly(run.own_nearest, MAX_CLIENT_GRIDS)]


def source(path: Path) -> str:
    """A PNG file as a data URI. Raises: OSError if it cannot be read."""
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode("ascii")


def picture(sample: tuple[int, Path]) -> tuple[int, str]:
    """(round, the PNG as a data URI), from (round, path of the PNG).

    Raises: OSError if the file cannot be read.
    """
    number, path = sample
    return number, source(path)


def last(run: Run) -> str | None:
    """The last grid of the global model, else of the first client's own one, as a data URI; None without any."""
    if run.samples:
        return source(run.samples[-1][1])
    return source(run.own_grids[0][0].path) if run.own_grids else None


def strip(run: Run) -> list[tuple[int, str]]:
    """The global model's grids over the rounds, as `picture`; empty with fewer than two, as the first screen has the last."""
    return [picture(s) for s in evenly(run.samples, MAX_PICTURES)] if len(run.samples) > 1 else []


def own_pictures(run: Run) -> list[list[tuple[str, str]]]:
    """A row per client with a model of its own: (caption, data URI) of the last scored round, then of after merging.

    Of many clients some are shown, evenly by name.
    """
    rows = []
    # Personal models may have been made after the rounds: their number is then no round of the run.
    for grid, merged in evenly(run.own_grids, MAX_CLIENT_GRIDS):
        stage = ", before merging" if narrative.before_merging(run.quality) else ""
        when = "after the rounds" if run.is_after(grid.round) else f"round {grid.round}"
        row = [(f"{grid.client}, {when}{stage}", picture((grid.round, grid.path))[1])]
        if merged:
            row.append((f"{grid.client}, after merging", picture((merged.round, merged.path))[1]))
        rows.append(row)
    return rows


def evenly(items: Sequence[Any], most: int) -> list[Any]:
    """At most `most` items, spread evenly, the first and the last among them; `most` >= 2."""
    if len(items) <= most:
        return list(items)
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]
