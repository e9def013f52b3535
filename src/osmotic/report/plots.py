"""The curves and bars of a report as inline SVG: same run, same bytes; colours follow the page's light or dark theme.

Palette: Okabe and Ito's colour-blind-safe set (Wong, Nature Methods 8:441, 2011).
"""

from __future__ import annotations

import html
import io
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from osmotic.report import formatting
from osmotic.report.reading import PartitionTable, Round, Traffic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f")
# Colours that the page overrides as CSS variables; the fallback is the colour itself.
INK, SOFT, RULE = "#1c2126", "#5b6570", "#d9dee3"
VARIABLES = {INK: "--ink", SOFT: "--soft", RULE: "--rule"} | {c: f"--c{i}" for i, c in enumerate(COLOURS)}
MAX_CLIENTS = 100  # columns that can still be told apart in the width of a page

RC: dict[str, Any] = {
    "svg.hashsalt": "osmotic",
    "svg.fonttype": "none",
    "text.parse_math": False,  # class names may hold dollar signs
    "axes.formatter.useoffset": False,
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": SOFT,
    "axes.edgecolor": RULE,
    "axes.titlecolor": INK,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": RULE,
    "grid.linewidth": 0.8,
    "xtick.color": RULE,
    "ytick.color": RULE,
    "xtick.labelcolor": SOFT,
    "ytick.labelcolor": SOFT,
    "ytick.major.size": 0,
    "lines.linewidth": 2,
    "lines.solid_capstyle": "round",
    "legend.frameon": False,
    "legend.fontsize": 9.5,
}


def loss(rounds: Sequence[Round]) -> str | None:
    """Mean training loss per round, with the range over clients as a band; None without any loss."""
    points = [(r, r.loss) for r in rounds if r.loss is not None]
    if not points:
        return None

    def draw(fig: Figure) -> None:
        ax = fig.subplots()
        x = [r.number for r, _ in points]
        spread = [[v for v in r.client_loss.values() if v is not None] or [mean] for r, mean in points]
        if any(len(s) > 1 for s in spread):
            low, high = [min(s) for s in spread], [max(s) for s in spread]
            ax.fill_between(
                x, low, high, color=COLOURS[0], alpha=0.16, linewidth=0, label="range over clients"
            )
        ax.plot(
            x, [mean for _, mean in points], color=COLOURS[0], label="mean", marker=_marker(x), markersize=4
        )
        kept = [(r.number, mean) for r, mean in points if r.kept_old_weights]
        if kept:
            at, heights = zip(*kept, strict=True)
            cross: dict[str, Any] = {"color": COLOURS[1], "markersize": 8, "markeredgewidth": 2}
            ax.plot(at, heights, "x", label="old weights kept", **cross)
        ax.set_title("Training loss")
        _round_axis(ax, x)
        _legend(ax)

    return _svg(draw, "Training loss by round", "loss", (6, 3.1))


def score(rounds: Sequence[Round], key: str, name: str, floor: float | None = None) -> str | None:
    """One score of every scored round, the floor dashed; None with fewer than two points.

    Args:
        rounds: rounds, of which those with a `quality` entry count.
        key: the score's key, such as `fd` or `kid`; lower is better.
        name: what the score is called, such as FD, or FID where the encoder is Inception-v3.
        floor: the score of held-out real images, if known.
    """
    points = [(r.number, r.quality[key]) for r in rounds if r.quality and r.quality.get(key) is not None]
    if len(points) < 2:
        return None
    x, y = [n for n, _ in points], [v for _, v in points]

    def draw(fig: Figure) -> None:
        ax = fig.subplots()
        ax.plot(x, y, color=COLOURS[0 if key == "fd" else 2], marker="o", markersize=5)
        ax.annotate(
            formatting.figure(y[-1], 3), (x[-1], y[-1]), (8, 4), textcoords="offset points", fontweight="bold"
        )
        ax.set_title(f"{name}, lower is better")
        if floor is not None:
            ax.axhline(floor, color=SOFT, linestyle=(0, (4, 3)), linewidth=1.4)
            ax.annotate(
                f"floor {formatting.figure(floor, 3)}",
                (0, floor),
                (2, 4),
                xycoords=("axes fraction", "data"),
                textcoords="offset points",
                color=SOFT,
            )
        ax.set_ylim(bottom=min(0.0, *y))
        _round_axis(ax, x)
        left, right = ax.get_xlim()
        ax.set_xlim(left, right + 0.09 * (right - left))  # room for the last figure

    return _svg(draw, f"{name} by round" + (", with the floor" if floor is not None else ""), key, (6, 3.1))


def own_scores(
    rounds: Sequence[Round], key: str, name: str, after: Mapping[str, Any] | None = None
) -> str | None:
    """Mean and worst score of the clients' own models by round; None with fewer than two points.

    Args:
        rounds: rounds, of which those with a `quality` entry count.
        key: a score over clients, such as `fd_all`; lower is better.
        name: what the score is called.
        after: the same groups with the last average merged; drawn as marks of their own beyond the last round.
    """
    lines: dict[str, list[tuple[int, float]]] = {}
    for group in ("mean", "worst"):
        over = [(r.number, (r.quality.get(group) or {}).get(key)) for r in rounds if r.quality]
        lines[group] = [(n, value) for n, value in over if value is not None]
    if len(lines["mean"]) < 2:
        return None

    def draw(fig: Figure) -> None:
        ax = fig.subplots()
        x = [n for n, _ in lines["mean"]]
        beyond = x[-1] + max(0.3, 0.05 * (x[-1] - x[0]))  # between the rounds, as it is none
        looks = (("mean", COLOURS[0], "-"), ("worst", COLOURS[1], (0, (3, 1.5))))
        for group, colour, dashes in looks:
            at, y = zip(*lines[group], strict=True)
            ax.plot(at, y, color=colour, linestyle=dashes, marker="o", markersize=5, label=group)
        for group, colour, _ in looks:
            value = ((after or {}).get(group) or {}).get(key)
            if value is not None:
                mark: dict[str, Any] = {"linestyle": "", "markerfacecolor": "none", "markeredgewidth": 1.8}
                named = "after merging" if group == "mean" else ""  # the colour says which of the two
                ax.plot([beyond], [value], marker="D", markersize=7, color=colour, label=named, **mark)
        # Figures of the mean alone: those of the worst would lie over them.
        told: dict[str, Any] = {"textcoords": "offset points", "fontweight": "bold"}
        ax.annotate(
            formatting.figure(lines["mean"][-1][1], 3), lines["mean"][-1], (-6, -14), ha="right", **told
        )
        merged = ((after or {}).get("mean") or {}).get(key)
        if merged is not None:
            ax.annotate(formatting.figure(merged, 3), (beyond, merged), (9, -8), **told)
        ax.set_title(f"{name}, lower is better")
        ax.set_ylim(bottom=min(0.0, *(v for line in lines.values() for _, v in line)))
        _round_axis(ax, x)
        left, right = ax.get_xlim()
        ax.set_xlim(left, right + 0.09 * (right - left))
        _legend(ax)

    return _svg(draw, f"{name} over the clients' own models by round", key.replace("_", "-"), (6, 3.1))


def traffic(ledger: Iterable[Traffic]) -> str | None:
    """Cumulative bytes of the training rounds, up and down; None for an empty ledger."""
    totals: dict[str, dict[int, int]] = {"up": {}, "down": {}}
    for entry in ledger:
        if entry.phase == "train" and entry.direction in totals:
            by_round = totals[entry.direction]
            by_round[entry.round] = by_round.get(entry.round, 0) + entry.bytes
    if not any(sum(t.values()) for t in totals.values()):
        return None

    def draw(fig: Figure) -> None:
        ax = fig.subplots()
        x = sorted(totals["up"] | totals["down"])
        looks = (("down", COLOURS[1], "-", 3.4), ("up", COLOURS[0], (0, (3, 1.5)), 2.0))
        for direction, colour, line, width in looks:
            total, y = 0, []
            for number in x:
                total += totals[direction].get(number, 0)
                y.append(total)
            label = f"{direction}: {formatting.size(total)}"
            ax.plot(
                x,
                y,
                color=colour,
                label=label,
                linestyle=line,
                linewidth=width,
                marker=_marker(x),
                markersize=5,
            )
        ax.set_title("Bytes since the first round")
        ax.set_ylim(bottom=0)
        ax.yaxis.set_major_formatter(lambda value, _: formatting.size(value))
        _round_axis(ax, x)
        _legend(ax)

    return _svg(draw, "Cumulative bytes up and down by round", "traffic", (6, 3.1))


def client_scores(
    per_client: Sequence[Mapping[str, Any]], name: str = "FD", stage_words: Mapping[str, str] | None = None
) -> str | None:
    """Bars of every client's FD and KID, against the union of data and its own; None if nothing was measured.

    Args:
        per_client: entries of the summary.
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
                _legend(ax)
        _client_axis(axes[-1], clients)

    told = dict.fromkeys(title.partition(" by client")[0] for title in panels)
    return _svg(draw, f"{' and '.join(told)} of every client", "clients", (11, 2.3 * len(panels) + 0.4))


def partition(table: PartitionTable) -> str | None:
    """Images per client over a heat map classes x clients, the first 100 clients; None without clients."""
    import numpy as np

    shown = len(table.clients[:MAX_CLIENTS])
    if not shown:
        return None
    sizes = list(table.sizes[:shown])
    counts = (
        np.array(table.counts[:shown], dtype=float).T if table.counts else np.zeros((0, shown))
    )  # [classes, clients]
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
        axes[0].yaxis.set_major_locator(_ticks(3))
        if classes:
            _heat(axes[1], counts, table.class_names)
        _client_axis(axes[-1], table.clients[:shown])
        for ax in axes[:-1]:
            ax.tick_params(labelbottom=False, bottom=False)

    tall = 1.5 + (0.7 + min(9.0, 0.26 * classes) if classes else 0)
    return _svg(draw, "Images per client and class", "partition", (11, tall))


def _heat(ax: Axes, counts: Any, class_names: Sequence[str]) -> None:
    """A cell per class and client, the more images the more opaque; figures written where there is room."""
    import numpy as np
    from matplotlib.colors import to_rgb

    classes, clients = counts.shape
    cells = np.empty((classes, clients, 4))
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
        ax.set_yticks(range(classes), [_short(c) for c in class_names[:classes]])


def class_histogram(
    generated: Sequence[float], data: Sequence[float], class_names: Sequence[str] = ()
) -> str | None:
    """Shares of each class among generated and real images, side by side; None if either is empty.

    Args:
        generated: count or share per class.
        data: the same of the training images, same length.
        class_names: labels of the classes; numbers where missing.
    """
    if not generated or len(generated) != len(data) or not sum(generated) or not sum(data):
        return None

    def draw(fig: Figure) -> None:
        ax = fig.subplots()
        for i, (label, values) in enumerate((("real", data), ("generated", generated))):
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
            ax.set_xticks(range(len(names)), [_short(n) for n in names], **tilt)
        ax.yaxis.set_major_formatter(lambda value, _: f"{value:g} %")
        ax.set_title("Share of each class")
        _legend(ax)

    return _svg(draw, "Share of each class among generated and real images", "classes", (6, 3.1))


def failures(entries: Sequence[Mapping[str, Any]], rounds: int) -> str | None:
    """Failed replies by round, stacked by kind; None without failures."""
    if not entries:
        return None
    kinds = sorted({str(e.get("kind")) for e in entries})

    def draw(fig: Figure) -> None:
        ax = fig.subplots()
        x = list(range(1, max(rounds, *(int(e.get("round") or 0) for e in entries)) + 1))
        bottom = [0] * len(x)
        for i, kind in enumerate(kinds):
            y = [sum(1 for e in entries if e.get("kind") == kind and e.get("round") == n) for n in x]
            ax.bar(x, y, 0.8, bottom=bottom, color=COLOURS[(i + 1) % len(COLOURS)], label=kind)
            bottom = [a + b for a, b in zip(bottom, y, strict=True)]
        ax.set_title("Client failures")
        ax.set_xlim(0, len(x) + 1)
        ax.yaxis.set_major_locator(_ticks(4))
        _round_axis(ax, x)
        _legend(ax)

    return _svg(draw, "Client failures by round", "failures", (6, 3.1))


def overlay(
    curves: Sequence[tuple[str, Sequence[float], Sequence[float]]],
    x_label: str,
    y_label: str,
    floor: float | None = None,
    x_bytes: bool = False,
) -> str | None:
    """One line per run; None if no run has a point.

    Args:
        curves: (label, x, y) per run.
        x_label: what x counts.
        y_label: the score.
        floor: dashed line shared by all, if any.
        x_bytes: write x as bytes.
    """
    curves = [curve for curve in curves if len(curve[1])]
    if not curves:
        return None

    def draw(fig: Figure) -> None:
        ax = fig.subplots()
        markers = "osD^vPX"
        for i, (label, x, y) in enumerate(curves):
            colour, marker = COLOURS[i % len(COLOURS)], markers[(i + i // len(COLOURS)) % len(markers)]
            ax.plot(x, y, color=colour, marker=marker, markersize=5, label=label)
        if floor is not None:
            ax.axhline(floor, color=SOFT, linestyle=(0, (4, 3)), linewidth=1.4, label="floor")
        ax.set_title(f"{y_label} against {x_label}")
        ax.set_ylim(bottom=min(0.0, *(v for _, _, y in curves for v in y)))
        ax.xaxis.set_major_locator(_ticks(6))
        ax.xaxis.set_major_formatter(lambda v, _: formatting.size(v) if x_bytes else formatting.count(v))
        ax.legend(loc="upper left", bbox_to_anchor=(0, -0.14), ncols=2, borderaxespad=0, handlelength=1.8)

    return _svg(draw, f"{y_label} against {x_label}", "by-" + re.sub(r"\W+", "-", x_label), (6, 3.4))


def _marker(x: Sequence[int]) -> str:
    return "o" if len(x) <= 25 else ""


def _ticks(most: int) -> Any:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(nbins=most, integer=True, steps=[1, 2, 5, 10])


def _round_axis(ax: Axes, x: Sequence[int]) -> None:
    ax.xaxis.set_major_locator(_ticks(8))
    ax.set_xlabel("round")
    if len(set(x)) == 1:
        ax.set_xlim(x[0] - 1, x[0] + 1)


def _client_axis(ax: Axes, clients: Sequence[str]) -> None:
    """Names where they fit, else every fifth or tenth number."""
    ax.set_xlim(-0.6, len(clients) - 0.4)
    names = [_short(c.removeprefix("client-")) for c in clients]
    step = 1 if len(names) <= 26 else 5 if len(names) <= 60 else 10
    ax.set_xticks(range(0, len(names), step), names[::step])
    ax.set_xlabel("client")
    ax.tick_params(axis="x", length=0)


def _legend(ax: Axes) -> None:
    """Beside the title, above the drawing, where it covers nothing."""
    handles, _ = ax.get_legend_handles_labels()
    if len(handles) > 1:
        ax.legend(
            loc="lower right",
            bbox_to_anchor=(1, 1),
            ncols=4,
            borderaxespad=0.2,
            handlelength=1.4,
            columnspacing=1.4,
        )


def _short(text: str, most: int = 16) -> str:
    text = "".join(c if c.isprintable() else " " for c in text)
    return text if len(text) <= most else text[: most - 1] + "…"


def _svg(draw: Any, title: str, prefix: str, size: tuple[float, float]) -> str:
    """An inline <svg>: titled, themed, with ids of its own and nothing that depends on the time."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    buffer = io.StringIO()
    with matplotlib.rc_context(RC), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the browser draws the text, in its own fonts
        fig = Figure(figsize=size, layout="constrained")
        FigureCanvasSVG(fig)
        draw(fig)
        none = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        fig.savefig(buffer, format="svg", transparent=True, metadata=none)
    return inline(buffer.getvalue(), title, prefix)


def inline(svg: str, title: str, prefix: str) -> str:
    """A matplotlib SVG file as an element for an HTML page: no prolog, no metadata, no link outside of it."""
    body = svg[svg.index("<svg") :]
    box = re.search(r'viewBox="([^"]*)"', body)
    assert box is not None
    body = body[body.index(">") + 1 :]
    body = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", body, flags=re.S)
    body = body.replace("xlink:href", "href")
    # Several drawings stand on one page, so their ids must differ.
    body = re.sub(r'\bid="([^"]*)"', rf'id="{prefix}-\1"', body)
    body = re.sub(r'url\(#|href="#', lambda m: m.group(0) + prefix + "-", body)
    body = re.sub(r"font-family: [^;\"]*(; )?", "", body)  # the page's own font
    for colour, variable in VARIABLES.items():
        body = body.replace(colour, f"var({variable}, {colour})")
    body = re.sub(r"\n\s*", "\n", body)
    width = float(box.group(1).split()[2])
    return (
        f'<svg class="plot" role="img" aria-labelledby="{prefix}-title" viewBox="{box.group(1)}" '
        f'style="max-width: {width * 4 / 3:.0f}px"><title id="{prefix}-title">{html.escape(title)}</title>{body.strip()}'
    )
