"""Bars and the heat map of a report as inline SVG: clients, classes and failures; nothing is drawn of what is not known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from osmotic.report import formatting, svg
from osmotic.report.reading import PartitionTable
from osmotic.report.svg import COLOURS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_CLIENTS = 100  # columns that can still be told apart in the width of a page


def client_scores(
    per_client: Sequence[Mapping[str, Any]], name: str = "FD", stage_words: Mapping[str, str] | None = None
) -> str | None:
    """Bars of every client's FD and KID, against the union of data and its own, as an <svg>; None if nothing was measured.

    Of two stages, each panel sets the one beside the other; else it sets the two kinds of images side by side.

    Args:
        per_client: entries of the summary's `quality.per_client`; the first 100 clients by name are shown.
        name: what the Fréchet distance is called.
        stage_words: what the stages are called, where there are two.
    """
    clients = sorted({str(c.get("name")) for c in per_client})[:MAX_CLIENTS]
    stages = [s for s in ("before", "after") if any((c.get("stage") or "before") == s for c in per_client)]
    panels: dict[str, list[tuple[str, dict[str, float]]]] = {}
    for metric, title in (("fd", name), ("kid", "KID")):
        for scope, meaning in (("all", "all clients' images"), ("own", "its own images")):
            for stage in stages:
                values = {
                    str(c.get("name")): float(c[f"{metric}_{scope}"])
                    for c in per_client
                    if (c.get("stage") or "before") == stage and c.get(f"{metric}_{scope}") is not None
                }
                # A client without a value has no bar; a bar of height 0 would be the best score of all.
                if values and len(stages) > 1:
                    when = (stage_words or {}).get(stage) or stage
                    panels.setdefault(f"{title} by client against {meaning}", []).append((when, values))
                elif values:
                    panels.setdefault(f"{title} by client", []).append((f"against {meaning}", values))
    if not panels:
        return None

    def draw(fig: Figure) -> None:
        axes = fig.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
        for ax, (title, series) in zip(axes, panels.items(), strict=True):
            width = 0.8 / len(series)
            for i, (label, values) in enumerate(series):
                x = [k for k, client in enumerate(clients) if client in values]
                left = [k - 0.4 + (i + 0.5) * width for k in x]
                heights = [values[clients[k]] for k in x]
                ax.bar(left, heights, width * 0.92, color=COLOURS[i], label=label)
            ax.set_title(f"{title}, lower is better")
            if len(series) > 1:
                svg.legend(ax)
        _client_axis(axes[-1], clients)

    told = dict.fromkeys(title.partition(" by client")[0] for title in panels)
    return svg.element(
        draw, f"{' and '.join(told)} of every client", "clients", (11, 2.3 * len(panels) + 0.4)
    )


def partition(table: PartitionTable) -> str | None:
    """Images per client over a heat map [classes, clients], the first 100 clients; None without clients.

    Images without labels have no heat map.
    """
    import numpy as np

    shown = len(table.clients[:MAX_CLIENTS])
    if not shown:
        return None
    sizes = list(table.sizes[:shown])
    held = np.array(table.counts[:shown], dtype=float) if table.counts else np.zeros((shown, 0))
    counts = (
        held.T
    )  # [clients, classes] -> [classes, clients]: clients stand in columns, as in the bars above
    classes = len(counts)

    def draw(fig: Figure) -> None:
        heights = [1.0, max(1.0, 0.24 * classes)] if classes else [1.0]
        axes = fig.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
        axes[0].bar(range(shown), sizes, 0.82, color=COLOURS[0])
        axes[0].set_title("Images per client")
        if shown <= 20:
            axes[0].margins(y=0.25)  # room for the figures
            for k, n in enumerate(sizes):
                axes[0].annotate(
                    formatting.count(n), (k, n), (0, 2), textcoords="offset points", ha="center", fontsize=9
                )
        axes[0].yaxis.set_major_locator(svg.ticks(3))
        if classes:
            _heat(axes[1], counts, table.class_names)
        _client_axis(axes[-1], table.clients[:shown])
        for ax in axes[:-1]:
            ax.tick_params(labelbottom=False, bottom=False)

    tall = 1.5 + (0.7 + min(9.0, 0.26 * classes) if classes else 0)
    return svg.element(draw, "Images per client and class", "partition", (11, tall))


def _heat(ax: Axes, counts: Any, class_names: Sequence[str]) -> None:
    """Draws a cell per class and client, the more images the more opaque; figures are written where there is room.

    Args:
        ax: drawn on.
        counts: images, [classes, clients], float.
        class_names: one per class.
    """
    import numpy as np
    from matplotlib.colors import to_rgb

    classes, clients = counts.shape
    cells = np.empty((classes, clients, 4))
    # Opacity, not a colour map: the page shines through, light or dark.
    cells[..., :3] = to_rgb(COLOURS[0])
    # The square root keeps small counts apart from none at all.
    cells[..., 3] = 0.72 * np.sqrt(counts / max(1.0, counts.max()))
    ax.imshow(cells, interpolation="none", aspect="auto")
    if clients <= 12 and classes <= 30:
        for (row, column), n in np.ndenumerate(counts):
            if n:
                ax.text(column, row, f"{int(n)}", ha="center", va="center", fontsize=8.5)
    ax.set_title("Images per class and client")
    ax.grid(False)
    if classes <= 30:
        ax.set_yticks(range(classes), [svg.short(c) for c in class_names[:classes]])


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
            slanted = max(map(len, names)) > 3 and len(names) > 5
            tilt: dict[str, Any] = (
                {"rotation": 40, "ha": "right", "rotation_mode": "anchor"} if slanted else {}
            )
            ax.set_xticks(range(len(names)), [svg.short(n) for n in names], **tilt)
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


def _client_axis(ax: Axes, clients: Sequence[str]) -> None:
    """Labels the x axis with the clients: all where they fit, else every fifth or tenth."""
    ax.set_xlim(-0.6, len(clients) - 0.4)
    names = [svg.short(c.removeprefix("client-")) for c in clients]
    step = 1 if len(names) <= 26 else 5 if len(names) <= 60 else 10
    ax.set_xticks(range(0, len(names), step), names[::step])
    ax.set_xlabel("client")
    ax.tick_params(axis="x", length=0)
