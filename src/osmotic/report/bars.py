"""Bars and the heat map of a report as inline SVG: clients, classes and failures; nothing is drawn of what is not known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import TYPE_CHECKING, Any

from osmotic.report import formatting, svg
from osmotic.report.reading import PartitionTable
from osmotic.report.svg import COLOURS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def client_scores(
    per_client: Sequence[Mapping[str, Any]],
    name: str = "FD",
    stage_words: Mapping[str, str] | None = None,
    scopes: Sequence[str] = ("all", "own"),
) -> str | None:
    """A row of bars for every client: FD and KID beside each other, against all clients' images over against its own.

    As an <svg>; None if nothing was measured. A short line on a bar is the floor: what real images score there.

    Args:
        per_client: entries of the summary's `quality.per_client`, of so few clients that each has a row (`crowds.MOST`).
        name: what the Fréchet distance is called.
        stage_words: what the stages are called, where there are two.
        scopes: which scores to draw. Those against all are one figure where all clients share one model.
    """
    clients = sorted({str(c.get("name")) for c in per_client})
    stages = [s for s in ("before", "after") if any((c.get("stage") or "before") == s for c in per_client)]

    def values(stage: str, key: str) -> dict[str, float]:
        # A client without a value has no bar; a bar of length 0 would be the best score of all.
        return {
            str(c.get("name")): float(c[key])
            for c in per_client
            if (c.get("stage") or "before") == stage and c.get(key) is not None
        }

    found = {
        (metric, scope): {stage: values(stage, f"{metric}_{scope}") for stage in stages}
        for metric in ("fd", "kid")
        for scope in scopes
    }
    metrics = [m for m in ("fd", "kid") if any(any(found[m, scope].values()) for scope in scopes)]
    scopes = [scope for scope in scopes if any(any(found[m, scope].values()) for m in metrics)]
    if not metrics:
        return None
    titles = {"fd": name, "kid": "KID"}
    meanings = {"all": "all clients' images", "own": "its own images"}

    def draw(fig: Figure) -> None:
        grid = fig.subplots(len(scopes), len(metrics), sharey=True, sharex="col", squeeze=False)
        for (row, scope), (column, metric) in product(enumerate(scopes), enumerate(metrics)):
            ax, height = grid[row, column], 0.8 / len(stages)
            for i, stage in enumerate(stages):
                scored = found[metric, scope][stage]
                at = [k for k, client in enumerate(clients) if client in scored]
                label = (stage_words or {}).get(stage) or stage
                offset = (i + 0.5) * height - 0.4
                lengths = [scored[clients[k]] for k in at]
                ax.barh([k + offset for k in at], lengths, height * 0.92, color=COLOURS[i], label=label)
            floors = values(stages[0], f"{metric}_{scope}_floor")
            at = [k for k, client in enumerate(clients) if client in floors]
            ax.vlines(
                [floors[clients[k]] for k in at], [k - 0.4 for k in at], [k + 0.4 for k in at], color=svg.INK
            )
            ax.set_title(f"{titles[metric]}, {meanings[scope]}" if column == 0 else titles[metric])
            ax.locator_params(axis="x", nbins=4)
            _client_axis(ax, clients)
        for ax in grid[0]:  # once all rows of a column are drawn: limits that are set do not grow
            ax.set_xlim(left=min(0.0, ax.get_xlim()[0]))  # an unbiased KID may fall below 0
        if len(stages) > 1:
            fig.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2)

    told = " and ".join(titles[metric] for metric in metrics)
    height = len(scopes) * (_rows(len(clients), len(stages)) + 0.65) + 0.3 * (len(stages) > 1)
    return svg.element(draw, f"{told} of every client", "clients", (svg.SIZE[0], height))


def partition(table: PartitionTable) -> str | None:
    """A row for every client: its images of each class as a heat map, beside its number of images; None without clients.

    Images without labels have no heat map. Many clients are for `crowds.partition`.
    """
    import numpy as np

    clients = table.clients
    if not clients:
        return None
    sizes = list(table.sizes[: len(clients)])
    held = table.counts[: len(clients)]
    counts = np.array(held, dtype=float) if held else np.zeros((len(clients), 0))  # [clients, classes]
    classes = counts.shape[1]

    def draw(fig: Figure) -> None:
        widths = [3.0, 1.0] if classes else [1.0]
        axes = fig.subplots(1, len(widths), sharey=True, squeeze=False, width_ratios=widths)[0]
        if classes:
            _heat(axes[0], counts, table.class_names)
        ax = axes[-1]
        ax.barh(range(len(sizes)), sizes, 0.82, color=COLOURS[0])
        ax.set_title("Images")
        ax.margins(x=0.4)  # room for the figures
        if len(clients) <= 40:
            for k, n in enumerate(sizes):
                ax.annotate(
                    formatting.count(n), (n, k), (3, 0), textcoords="offset points", va="center", fontsize=8
                )
        ax.xaxis.set_major_locator(svg.ticks(2))
        for ax in axes:
            _client_axis(ax, clients)

    height = _rows(len(clients)) + 0.7
    return svg.element(draw, "Images per client and class", "partition", (svg.SIZE[0], height))


def _heat(ax: Axes, counts: Any, class_names: Sequence[str]) -> None:
    """Draws a cell per client and class, the more images the more opaque; figures are written where there is room.

    Args:
        ax: drawn on.
        counts: images, [clients, classes], float.
        class_names: one per class.
    """
    import numpy as np
    from matplotlib.colors import to_rgb

    clients, classes = counts.shape
    cells = np.empty((clients, classes, 4))
    # Opacity, not a colour map: the page shines through, light or dark.
    cells[..., :3] = to_rgb(COLOURS[0])
    # The square root keeps small counts apart from none at all.
    cells[..., 3] = 0.72 * np.sqrt(counts / max(1.0, counts.max()))
    ax.imshow(cells, interpolation="none", aspect="auto")
    if clients <= 40 and classes <= 10 and counts.max() < 10_000:
        for (row, column), n in np.ndenumerate(counts):
            if n:
                ax.text(column, row, f"{int(n)}", ha="center", va="center", fontsize=7)
    ax.set_title("Images of each class")
    if classes <= 30:
        names = [svg.short(c, 12) for c in class_names[:classes]]
        ax.set_xticks(range(classes), names, fontsize=8, **svg.tilt(names, 40))


def class_histogram(
    generated: Sequence[float], data: Sequence[float], class_names: Sequence[str] = ()
) -> str | None:
    """Shares in percent of each class among generated and real images, side by side; None if either is empty.

    Args:
        generated: count or share of each class, [classes].
        data: the same of the training images, same length.
        class_names: labels of the classes; numbers where missing.
    """
    if not generated or len(generated) != len(data) or not sum(generated) or not sum(data):
        return None

    def draw(fig: Figure) -> None:
        ax = fig.subplots()
        for i, (label, values) in enumerate((("real", data), ("generated", generated))):
            # Shares, as there are seldom as many generated images as real ones.
            share = [100 * v / sum(values) for v in values]
            ax.bar(
                [k - 0.2 + 0.4 * i for k in range(len(share))],
                share,
                0.38,
                color=(COLOURS[6], COLOURS[0])[i],
                label=label,
            )
        names = [class_names[k] if k < len(class_names) else str(k) for k in range(len(data))]
        if len(names) <= 40:
            ax.set_xticks(range(len(names)), [svg.short(n) for n in names], **svg.tilt(names, 50))
        ax.yaxis.set_major_formatter(lambda value, _: f"{value:g} %")
        ax.set_title("Share of each class")
        svg.legend(ax)

    return svg.element(draw, "Share of each class among generated and real images", "classes", svg.SIZE)


def failures(entries: Sequence[Mapping[str, Any]], rounds: int) -> str | None:
    """Failed replies by round, stacked by kind, as an <svg>; None without failures.

    Args:
        entries: the summary's `failures`.
        rounds: rounds of the run; those without a failure are on the axis too.
    """
    if not entries:
        return None
    kinds = sorted({str(e.get("kind")) for e in entries})

    def draw(fig: Figure) -> None:
        ax = fig.subplots()
        x = list(range(1, max(rounds, *(int(e.get("round") or 0) for e in entries)) + 1))
        bottom = [0] * len(x)
        for i, kind in enumerate(kinds):
            y = [sum(1 for e in entries if e.get("kind") == kind and e.get("round") == n) for n in x]
            # Not the first colour: on this page it stands for what went well.
            ax.bar(x, y, 0.8, bottom=bottom, color=COLOURS[(i + 1) % len(COLOURS)], label=kind)
            bottom = [a + b for a, b in zip(bottom, y, strict=True)]
        ax.set_title("Client failures")
        ax.set_xlim(0, len(x) + 1)
        ax.yaxis.set_major_locator(svg.ticks(4))
        svg.round_axis(ax, x)
        svg.legend(ax)

    return svg.element(draw, "Client failures by round", "failures", svg.SIZE)


def _rows(clients: int, bars: int = 1) -> float:
    """Inches that the rows of so many clients take, with so many bars each."""
    return clients * (0.19 if clients <= 12 else 0.14 if clients <= 40 else 0.085) * (1 + 0.5 * (bars - 1))


def _client_axis(ax: Axes, clients: Sequence[str]) -> None:
    """Labels the y axis with the clients, the first on top: all where they fit, else every fifth or tenth."""
    ax.set_ylim(len(clients) - 0.4, -0.6)
    names = [svg.short(c.removeprefix("client-"), 12) for c in clients]
    step = 1 if len(names) <= 40 else 5
    ax.set_yticks(range(0, len(names), step), names[::step], fontsize=8)
    ax.tick_params(axis="both", length=0)
    ax.grid(False, axis="y")
