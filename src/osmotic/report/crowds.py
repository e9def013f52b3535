"""Many clients: above a hundred a page tells quantiles over them, and the names at both ends, in place of a row for each."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from typing import TYPE_CHECKING, Any

from osmotic.report import formatting, svg, tables
from osmotic.report.reading import PartitionTable, Round
from osmotic.report.svg import COLOURS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST = (
    100  # clients that are told one by one: rows that can still be told apart in a drawing of a page's length
)
SHARES = (0.05, 0.25, 0.5, 0.75, 0.95)
NAMED = 3  # clients at either end


def quantiles(values: Iterable[float | None], shares: Sequence[float] = SHARES) -> list[float]:
    """For each share the least value that at least so many have at most, of the finite ones; [] if there is none.

    So every figure is that of a client (the inverse of the empirical distribution function, without interpolation).

    Args:
        values: None was not measured.
        shares: in [0, 1].
    """
    known = sorted(v for v in values if v is not None and math.isfinite(v))
    return [known[max(0, math.ceil(share * len(known)) - 1)] for share in shares] if known else []


def quantile_table(
    clients: Sequence[tables.ClientRow], told: Sequence[tables.Column]
) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """(headings, (figure, cells) by figure): least, quantiles and greatest over the clients that have the figure.

    Empty where nothing is told.
    """
    if not told:
        return [], []
    rows = []
    for column in told:
        found = quantiles(column.values, (0.0, *SHARES, 1.0))
        known = sum(v is not None for v in column.values)
        rows.append((column.heading, [formatting.count(known), *map(column.write, found)]))
    return ["Clients", "least", *(f"{100 * s:g} %" for s in SHARES), "greatest"], rows


def ends(
    clients: Sequence[tables.ClientRow], quality: Mapping[str, Any]
) -> list[tuple[str, list[str], list[str]]]:
    """(figure, lowest, highest): the clients at either end of the loss and of each score, as `client-0007 0.1234`."""
    found = []
    for column in tables.columns(clients, quality):
        known = sorted(
            (value, client.name)
            for client, value in zip(clients, column.values, strict=True)
            if value is not None and math.isfinite(value)
        )
        if not column.measured or len(known) < 2 * NAMED or known[0][0] == known[-1][0]:
            continue
        told = [
            f"{name} {column.write(value)}" for value, name in (*known[:NAMED], *known[: -NAMED - 1 : -1])
        ]
        found.append((column.heading, told[:NAMED], told[NAMED:]))
    return found


# --- drawings ---


def partition(table: PartitionTable) -> str | None:
    """Images of each class over the clients, as boxes, and images per client from the fewest to the most; None without clients."""
    if not table.sizes:
        return None
    classes = len(table.counts[0]) if table.counts else 0
    shares = [k / 100 for k in range(101)]

    def draw(fig: Figure) -> None:
        panels = [3.0, 2.0] if 0 < classes <= 30 else [1.0]
        axes = fig.subplots(1, len(panels), squeeze=False, width_ratios=panels)[0]
        if len(panels) > 1:
            for k in range(classes):
                _box(axes[0], k, [row[k] for row in table.counts], COLOURS[0])
            names = [svg.short(c, 12) for c in table.class_names[:classes]]
            axes[0].set_xticks(range(classes), names, fontsize=8, **svg.tilt(names, 40))
            axes[0].yaxis.set_major_locator(svg.ticks(4))
            axes[0].set_title("Images of each class")
        axes[-1].plot([100 * s for s in shares], quantiles(table.sizes, shares), color=COLOURS[0])
        axes[-1].set_title("Images")
        axes[-1].set_ylim(bottom=0)
        axes[-1].yaxis.set_major_locator(svg.ticks(4))
        axes[-1].set_xlabel("% of the clients have at most")

    return svg.element(draw, "Images per client and class, over the clients", "partition", svg.SIZE)


def client_scores(
    per_client: Sequence[Mapping[str, Any]],
    name: str = "FD",
    stage_words: Mapping[str, str] | None = None,
    scopes: Sequence[str] = ("all", "own"),
) -> str | None:
    """Scores over the clients as boxes, a panel for each: FD and KID beside each other; None if nothing was measured.

    Args:
        per_client, name, stage_words, scopes: as `bars.client_scores` takes them.
    """
    stages = [s for s in ("before", "after") if any((c.get("stage") or "before") == s for c in per_client)]
    found = {
        (scope, metric, stage): [
            c.get(f"{metric}_{scope}") for c in per_client if (c.get("stage") or "before") == stage
        ]
        for scope, metric, stage in product(scopes, ("fd", "kid"), stages)
    }
    panels = [
        (scope, metric)
        for scope, metric in product(scopes, ("fd", "kid"))
        if any(quantiles(found[scope, metric, stage]) for stage in stages)
    ]
    if not panels:
        return None
    titles = {"fd": name, "kid": "KID"}
    meanings = {"all": "all images", "own": "own images"}

    def draw(fig: Figure) -> None:
        for ax, (scope, metric) in zip(fig.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            for k, stage in enumerate(stages):
                _box(ax, k, found[scope, metric, stage], COLOURS[k])
            labels = [svg.short((stage_words or {}).get(stage) or "", 14) for stage in stages]
            ax.set_xticks(range(len(stages)), labels, fontsize=8)
            ax.set_xlim(-0.8, len(stages) - 0.2)
            ax.locator_params(axis="y", nbins=4)
            ax.set_title(f"{titles[metric]}, {meanings[scope]}", fontsize=9)

    told = " and ".join(titles[m] for m in ("fd", "kid") if any(metric == m for _, metric in panels))
    return svg.element(draw, f"{told} over the clients", "clients", svg.SIZE)


def losses(rounds: Sequence[Round]) -> str | None:
    """Quantiles of the training loss over the clients of each round; None where no round had two clients with a loss."""
    points = [
        (r.number, quantiles(r.client_loss.values()))
        for r in rounds
        if len(quantiles(r.client_loss.values()))
    ]
    if not any(len(r.client_loss) > 1 for r in rounds):
        return None

    def draw(fig: Figure) -> None:
        ax = fig.subplots()
        x = [number for number, _ in points]
        low, lower, middle, upper, high = zip(*(found for _, found in points), strict=True)
        for a, b, opacity, label in ((low, high, 0.14, "5 to 95 %"), (lower, upper, 0.3, "25 to 75 %")):
            if len(x) > 1:
                ax.fill_between(x, a, b, color=COLOURS[0], alpha=opacity, linewidth=0, label=label)
            else:
                ax.vlines(x, a, b, color=COLOURS[0], alpha=opacity, linewidth=8, label=label)
        ax.plot(x, middle, color=COLOURS[0], marker=svg.marker(x), markersize=4, label="median")
        ax.set_title("Loss over clients")
        svg.round_axis(ax, x)
        svg.legend(ax)

    return svg.element(
        draw, "Quantiles of the training loss over the clients, by round", "client-loss", svg.SIZE
    )


def _box(ax: Axes, at: float, values: Iterable[float | None], colour: str) -> None:
    """A line from 5 to 95 %, a thick one from 25 to 75 %, and a dot at the median; nothing where nothing is known."""
    found = quantiles(values)
    if found:
        low, lower, middle, upper, high = found
        ax.vlines(at, low, high, color=colour, linewidth=1.4)
        ax.vlines(at, lower, upper, color=colour, linewidth=7, alpha=0.5)
        ax.plot([at], [middle], "o", color=colour, markersize=5)
