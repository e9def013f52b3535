"""Curves over the rounds of a run, and over several runs, as inline SVG; nothing is drawn of what is not known."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from osmotic.report import formatting, narrative, svg
from osmotic.report.reading import Round, Traffic
from osmotic.report.svg import COLOURS, SOFT

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def loss(rounds: Sequence[Round]) -> str | None:
    """Mean training loss per round, with the range over clients as a band, as an <svg>; None without any loss."""
    points = [(r, r.loss) for r in rounds if r.loss is not None]
    if not points:
        return None

    def draw(fig: Figure) -> None:
        ax = fig.subplots()
        x = [r.number for r, _ in points]
        # A round may know its mean and no client's loss: the band is then as thin as the line.
        spread = [[v for v in r.client_loss.values() if v is not None] or [mean] for r, mean in points]
        if any(len(s) > 1 for s in spread):
            low, high = [min(s) for s in spread], [max(s) for s in spread]
            ax.fill_between(
                x, low, high, color=COLOURS[0], alpha=0.16, linewidth=0, label="range over clients"
            )
        ax.plot(
            x,
            [mean for _, mean in points],
            color=COLOURS[0],
            label="mean",
            marker=svg.marker(x),
            markersize=4,
        )
        kept = [(r.number, mean) for r, mean in points if r.kept_old_weights]
        if kept:
            at, heights = zip(*kept, strict=True)
            cross: dict[str, Any] = {"color": COLOURS[1], "markersize": 8, "markeredgewidth": 2}
            ax.plot(at, heights, "x", label="old weights kept", **cross)
        ax.set_title("Training loss")
        svg.round_axis(ax, x)
        svg.legend(ax)

    return svg.element(draw, "Training loss by round", "loss", svg.SIZE)


MAX_LOSSES = 24  # clients whose losses are drawn each for itself


def client_losses(rounds: Sequence[Round]) -> tuple[list[str], int]:
    """Small charts of each client's loss by round, all on the same axes, by name: (<svg> elements, clients with a loss).

    Of many clients the first 24 by name are drawn; behind each line the mean over the clients, in grey.
    """
    found = points_by_name(rounds, lambda r: r.client_loss)
    lines = {
        name: kept
        for name, points in sorted(found.items())
        if (kept := [(n, v) for n, v in points if math.isfinite(v)])
    }
    if len(lines) < 2:
        return [], len(lines)  # one client is the mean, which has a chart
    mean = [(r.number, r.loss) for r in rounds if r.loss is not None and math.isfinite(r.loss)]
    shown = dict(list(lines.items())[:MAX_LOSSES])
    values = [v for points in [*shown.values(), mean] for _, v in points]
    numbers = [n for points in shown.values() for n, _ in points]
    pad = 0.06 * (max(values) - min(values)) or 0.5
    limits = (min(numbers) - 0.5, max(numbers) + 0.5), (min(values) - pad, max(values) + pad)
    return [
        _client_loss(points, mean, name, limits, place) for place, (name, points) in enumerate(shown.items())
    ], len(lines)


def _client_loss(
    points: Sequence[tuple[int, float]],
    mean: Sequence[tuple[int, float]],
    name: str,
    limits: tuple[tuple[float, float], tuple[float, float]],
    place: int,
) -> str:
    def draw(fig: Figure) -> None:
        ax = fig.subplots()
        if mean:
            ax.plot(*zip(*mean, strict=True), color=SOFT, linewidth=1, alpha=0.6)
        x, y = zip(*points, strict=True)
        ax.plot(x, y, color=COLOURS[0], linewidth=1.6, marker="o" if len(x) <= 12 else "", markersize=3)
        ax.set_title(svg.short(name, 22), fontsize=8.5)
        ax.set_xlim(*limits[0])
        ax.set_ylim(*limits[1])
        ax.xaxis.set_major_locator(svg.ticks(4))
        ax.locator_params(axis="y", nbins=3)
        ax.yaxis.set_major_formatter(lambda value, _: formatting.figure(value, 2))
        ax.tick_params(labelsize=8)

    return svg.element(draw, f"Training loss of {name} by round", f"client-loss-{place}", svg.TINY)


def score(rounds: Sequence[Round], key: str, name: str, floor: float | None = None) -> str | None:
    """One score of the global model in every scored round, the floor dashed; None with fewer than two points.

    A single point makes no curve, and the first screen of the page tells it already.

    Args:
        rounds: rounds, of which those with a `quality` entry count.
        key: the score's key, such as `fd` or `kid`; lower is better.
        name: what the score is called, such as FD, or FID where the encoder is Inception-v3.
        floor: the score of held-out real images, if known.
    """
    # A score that was not measured is left out: drawn as 0 it would be the best of all.
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
            # Dashed and grey: it is the score of real images, and no round of this run.
            ax.axhline(floor, color=SOFT, linestyle=(0, (4, 3)), linewidth=1.4)
            ax.annotate(
                f"floor {formatting.figure(floor, 3)}",
                (0, floor),
                (2, 4),
                xycoords=("axes fraction", "data"),
                textcoords="offset points",
                color=SOFT,
            )
        ax.set_ylim(bottom=min(0.0, *y))  # an unbiased KID may fall below 0
        svg.round_axis(ax, x)
        left, right = ax.get_xlim()
        ax.set_xlim(left, right + 0.09 * (right - left))  # room for the last figure

    return svg.element(
        draw, f"{name} by round" + (", with the floor" if floor is not None else ""), key, svg.SIZE
    )


def own_scores(
    rounds: Sequence[Round], key: str, name: str, after: Mapping[str, Any] | None = None
) -> str | None:
    """Mean and worst score of the clients' own models by round; None with fewer than two points.

    Args:
        rounds: rounds, of which those with scores of own models count, whether or not a global model exists beside.
        key: a score over clients, such as `fd_all`; lower is better.
        name: what the score is called.
        after: the same groups with the last average merged; drawn as marks of their own beyond the last round.
    """
    lines: dict[str, list[tuple[int, float]]] = {}
    for group in ("mean", "worst"):
        over = [
            (r.number, (narrative.own_quality(r.quality).get(group) or {}).get(key))
            for r in rounds
            if r.quality
        ]
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
        svg.round_axis(ax, x)
        left, right = ax.get_xlim()
        ax.set_xlim(left, right + 0.09 * (right - left))
        svg.legend(ax)

    return svg.element(draw, f"{name} over the clients' own models by round", key.replace("_", "-"), svg.SIZE)


def traffic(ledger: Iterable[Traffic]) -> str | None:
    """Cumulative bytes of the training rounds, up and down, as an <svg>; None where nothing was sent in training."""
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
        # Up and down are often equal: the thick line shows on both sides of the thin, dashed one.
        looks = (("down", COLOURS[1], "-", 3.4), ("up", COLOURS[0], (0, (3, 1.5)), 2.0))
        for direction, colour, line, width in looks:
            total, y = 0, []
            for number in x:
                total += totals[direction].get(number, 0)
                y.append(total)
            label = f"{direction} {formatting.size(total)}"
            ax.plot(
                x,
                y,
                color=colour,
                label=label,
                linestyle=line,
                linewidth=width,
                marker=svg.marker(x),
                markersize=5,
            )
        ax.set_title("Bytes sent so far")
        ax.set_ylim(bottom=0)
        ax.yaxis.set_major_formatter(lambda value, _: formatting.size(value))
        svg.round_axis(ax, x)
        svg.legend(ax)

    return svg.element(draw, "Cumulative bytes up and down by round", "traffic", svg.SIZE)


def metric(
    points: Sequence[tuple[int, float]], name: str, number: int, marked: Sequence[int] = ()
) -> str | None:
    """A figure of which nothing is known but its name, by round and small, as an <svg>; None without a finite value.

    Neither a unit nor which way is better is told, and the axis need not begin at 0.

    Args:
        points: (round, value) pairs, [points], in order; one alone is a dot. What is not finite is left out.
        name: what the figure is called in metrics.jsonl or in the scores.
        number: its place among the metrics of the page.
        marked: rounds with an upright line.
    """
    points = [(n, value) for n, value in points if math.isfinite(value)]
    if not points:
        return None
    x, y = [n for n, _ in points], [value for _, value in points]

    def draw(fig: Figure) -> None:
        ax = fig.subplots()
        for place in marked:
            ax.axvline(place, color=SOFT, linestyle=(0, (3, 2)), linewidth=1)
        ax.plot(x, y, color=COLOURS[0], marker=svg.marker(x), markersize=4)
        last: dict[str, Any] = {"textcoords": "offset points", "fontweight": "bold", "fontsize": 9}
        ax.annotate(formatting.figure(y[-1], 3), (x[-1], y[-1]), (5, 4), **last)
        ax.set_title(svg.short(name, 34), fontsize=9.5)
        ax.locator_params(axis="y", nbins=4)
        # matplotlib would take a power of ten out of the labels and write it over the title.
        ax.yaxis.set_major_formatter(lambda value, _: formatting.figure(value, 3))
        ax.margins(y=0.15)  # room for the last figure
        svg.round_axis(ax, x)
        left, right = ax.get_xlim()
        ax.set_xlim(left, right + 0.12 * (right - left))

    # Ids by place, not by name: two names may differ in nothing but marks that an id cannot hold.
    return svg.element(draw, f"{name} by round", f"metric-{number}", svg.SMALL)


def points_by_name(
    rounds: Iterable[Round], figures: Callable[[Round], Mapping[str, Any]]
) -> dict[str, list[tuple[int, float]]]:
    """(round, value) of every figure of the rounds, name -> [points], names in the order of their first one.

    Args:
        rounds: of a run, in order.
        figures: those of one round by name; what is no number is left out.
    """
    points: dict[str, list[tuple[int, float]]] = {}
    for r in rounds:
        for name, value in figures(r).items():
            if formatting.is_number(value):
                points.setdefault(str(name), []).append((r.number, float(value)))
    return points


def overlay(
    curves: Sequence[tuple[str, Sequence[float], Sequence[float], int]],
    x_label: str,
    y_label: str,
    floor: float | None = None,
    x_bytes: bool = False,
) -> str | None:
    """One line per run as an <svg>; None if no run has a point.

    Args:
        curves: (label, x [points], y [points], group) per run; a run without points is left out. Runs of one group look
            alike, and the empty label is no entry of its own.
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
        # Seven of each: from the eighth run on colours come again, with another mark.
        for label, x, y, i in curves:
            colour, marker = COLOURS[i % len(COLOURS)], markers[(i + i // len(COLOURS)) % len(markers)]
            ax.plot(x, y, color=colour, marker=marker, markersize=5, label=label or "_")
        if floor is not None:
            ax.axhline(floor, color=SOFT, linestyle=(0, (4, 3)), linewidth=1.4, label="floor")
        ax.set_title(f"{y_label} against {x_label}")
        ax.set_ylim(bottom=min(0.0, *(v for _, _, y, _ in curves for v in y)))
        ax.xaxis.set_major_locator(svg.ticks(6))
        ax.xaxis.set_major_formatter(lambda v, _: formatting.size(v) if x_bytes else formatting.count(v))
        ax.legend(loc="upper left", bbox_to_anchor=(0, -0.14), ncols=1, borderaxespad=0, handlelength=1.8)

    return svg.element(draw, f"{y_label} against {x_label}", "by-" + re.sub(r"\W+", "-", x_label), svg.SIZE)
