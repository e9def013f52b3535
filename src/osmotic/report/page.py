"""report.html: one self-contained page that tells a run, opened from disk, without network and without scripts."""

from __future__ import annotations

import base64
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from osmotic.report import formatting, narrative, plots
from osmotic.report.reading import Run, read

if TYPE_CHECKING:
    from jinja2 import Environment

MAX_PICTURES = 12  # sample grids on the page; more would only repeat each other
MAX_CLIENT_GRIDS = 6  # clients whose own grids are shown, each with up to two
# Fields of the scores that the first screen already tells.
IN_TILES = {
    "num_samples",
    "nfe",
    "fd",
    "kid",
    "precision",
    "recall",
    "fd_floor",
    "fd_at_floor",
    "floor_samples",
}


REALS = {"all": "all clients' images", "own": "own images"}  # what a score of a client compares with


@dataclass(frozen=True)
class Tile:
    """One key figure: its name, the figure, and what it must be read with."""

    name: str
    value: str
    detail: str = ""
    beside: str = ""
    wide: bool = False


@dataclass(frozen=True)
class LedgerRow:
    """Totals of one phase and direction; `bytes` holds refused and lost replies too."""

    phase: str
    direction: str
    messages: int
    parameters: int
    bytes: int
    bytes_refused: int


@dataclass(frozen=True)
class ClientRow:
    """What the folder knows of one client; None is not measured."""

    name: str
    size: int | None
    holdout: int | None
    rounds: int
    images: int
    bytes_up: int
    bytes_down: int
    loss: float | None
    failures: int
    scores: Mapping[str, float | None]


def write(run_dir: Path | str) -> Path:
    """Writes report.html into a run folder, atomically, and returns its path.

    Raises: ConfigError if the folder is no finished run or one of its files cannot be read.
    """
    from osmotic.storage.atomic import write_text

    run = read(run_dir)
    path = run.path / "report.html"
    write_text(path, render(run))
    return path


def render(run: Run) -> str:
    """The page of a run as HTML; the same folder gives the same bytes."""
    q, summary = run.quality, run.summary
    fd_name = formatting.fd_name(q.get("encoder"))
    clients = client_rows(run)
    return (
        environment()
        .get_template("page.html.jinja")
        .render(
            run=run,
            summary=summary,
            quality=q,
            fd_name=fd_name,
            sentence=narrative.sentence(run),
            conditions=narrative.score_conditions(run),
            tiles=tiles(run),
            last=picture(run.samples[-1]) if run.samples else None,
            strip=[picture(s) for s in evenly(run.samples, MAX_PICTURES)] if len(run.samples) > 1 else [],
            own=own_pictures(run),
            personal=narrative.is_personal(q),
            before=narrative.before_merging(q),
            shared=narrative.shared_parts(run),
            drawings=drawings(run, fd_name),
            partition_plot=run.partition and plots.partition(run.partition),
            max_clients=plots.MAX_CLIENTS,
            client_plot=plots.client_scores(q.get("per_client") or [], fd_name, narrative.stage_words(q)),
            further=further_scores(q),
            over_clients=over_clients(q, fd_name),
            clients=clients,
            score_columns=[(key, score_heading(key, q)) for key in score_keys(clients)],
            ledger=ledger_rows(run),
            failures=[(failed_client(run, f), f) for f in run.failures],
            kept=[r.number for r in run.training_rounds if r.kept_old_weights],
            snippet=narrative.load_snippet(run),
            folders=narrative.model_folders(run),
        )
    )


def environment() -> Environment:
    """Templates of this folder with everything escaped; filters write figures the same way everywhere."""
    from jinja2 import ChainableUndefined, Environment, PackageLoader, Undefined
    from markupsafe import Markup, escape

    null = Markup('<span class="null" title="not measured">—<span class="sr"> not measured</span></span>')

    def told(text: str) -> Markup:
        return null if text == formatting.DASH else escape(text)

    env = Environment(
        loader=PackageLoader("osmotic", "report"),
        autoescape=True,
        undefined=ChainableUndefined,  # a field that is missing reads like one that is null
        trim_blocks=True,
        lstrip_blocks=True,
    )

    def text_of(write: Callable[[Any], str]) -> Callable[[Any], Markup]:
        return lambda v: null if v is None or isinstance(v, Undefined) or v == "" else told(write(v))

    env.filters |= {
        "count": text_of(formatting.count),
        "figure": text_of(formatting.figure),
        "bytesize": text_of(formatting.size),
        "told": text_of(str),
    }
    env.globals["css"] = Markup((Path(__file__).parent / "style.css").read_text(encoding="utf-8"))
    env.globals["svg"] = Markup  # only ever called on drawings of plots.py, which escapes what it is given
    return env


def tiles(run: Run) -> list[Tile]:
    """The key figures of the first screen, the score first and never without its conditions."""
    return (own_tiles(run) if narrative.is_personal(run.quality) else global_tiles(run)) + cost_tiles(run)


def own_tiles(run: Run) -> list[Tile]:
    """Scores of the clients' own models, where no global one exists."""
    q = run.quality
    name, models = formatting.fd_name(q.get("encoder")), narrative.own_models(q)
    mean, weighted, worst = ({**(q.get(group) or {})} for group in ("mean", "weighted", "worst"))
    merged = q.get("after") or {}

    def after(key: str) -> str:
        means, worsts = merged.get("mean") or {}, merged.get("worst") or {}
        return f"after merging: mean {formatting.figure(means.get(key))}, worst {formatting.figure(worsts.get(key))}"

    stage = ", before the last average is merged" if narrative.before_merging(q) else ""
    parts = [f"Mean over {models}{stage}, each against all clients' images"]
    parts += [after("fd_all")] if merged else []
    beside = f"worst {formatting.figure(worst.get('fd_all'))} · weighted by images {formatting.figure(weighted.get('fd_all'))}"
    conditions = " · ".join([*parts, narrative.score_conditions(run)])
    out = [
        Tile(f"{name}, lower is better", formatting.figure(mean.get("fd_all")), conditions, beside, wide=True)
    ]
    for key, label in (("fd_own", f"{name} against own images"), ("kid_all", "KID, lower is better")):
        detail = f"mean; worst {formatting.figure(worst.get(key))}"
        out.append(
            Tile(label, formatting.figure(mean.get(key)), f"{detail} · {after(key)}" if merged else detail)
        )
    return out


def global_tiles(run: Run) -> list[Tile]:
    """Scores of the global model."""
    q = run.quality
    name = formatting.fd_name(q.get("encoder"))
    fd, floor = q.get("fd"), q.get("fd_floor")
    conditions = narrative.score_conditions(run) if q else "not measured"
    if q and fd is None:
        conditions = "not measured: no global model was scored · " + conditions
    beside = f"floor of held-out real images {formatting.figure(floor)}" if q else ""
    if q.get("fd_at_floor") is not None and q.get("floor_samples") is not None:
        # An FD depends on the number of images, so only this one may be set against the floor.
        conditions += f" · at the floor's {formatting.count(q['floor_samples'])} images: {formatting.figure(q['fd_at_floor'])}"
    out = [Tile(f"{name}, lower is better", formatting.figure(fd), conditions, beside, wide=True)]
    if q.get("kid") is not None or fd is not None:
        out.append(Tile("KID, lower is better", formatting.figure(q.get("kid"))))
    precision, recall = formatting.figure(q.get("precision"), 3), formatting.figure(q.get("recall"), 3)
    out.append(Tile("Precision / recall", f"{precision} / {recall}"))
    return out


def cost_tiles(run: Run) -> list[Tile]:
    """What the run took, and how it was set."""
    s, out = run.summary, []
    for way, label in (("up", "Sent up"), ("down", "Sent down")):
        total = s.get(f"bytes_{way}")
        exact = (
            "not measured"
            if total is None
            else f"{formatting.count(total)} bytes, codec {s.get(f'codec_{way}')}"
        )
        out.append(Tile(label, formatting.size(total), exact))
    out += [
        Tile("Parameters", formatting.count(s.get("parameters"))),
        Tile(
            "Wall time",
            formatting.duration(s.get("wall_seconds")),
            f"engine {s.get('engine') or formatting.DASH}",
        ),
        Tile(
            "Images seen",
            formatting.count(s.get("images_seen")),
            f"{formatting.count(s.get('client_steps'))} client steps",
        ),
        Tile("Rounds", formatting.count(s.get("rounds")), participation(s)),
        Tile(
            "Seed",
            str(s.get("seed", formatting.DASH)),
            f"deterministic: {formatting.truth(s.get('deterministic'))}",
        ),
    ]
    return out


def participation(summary: Mapping[str, Any]) -> str:
    """Who was asked each round, such as `10 clients, all asked`."""
    clients, fraction = summary.get("num_clients"), summary.get("fraction_train")
    if clients is None:
        return ""
    asked = "" if fraction is None else ", all asked" if fraction == 1 else f", {100 * fraction:g} % asked"
    return formatting.plural(clients, "client") + asked


def picture(sample: tuple[int, Path]) -> tuple[int, str]:
    """(round, the PNG as a data URI)."""
    number, path = sample
    return number, "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode("ascii")


def own_pictures(run: Run) -> list[list[tuple[str, str]]]:
    """For some clients with models of their own: (caption, data URI) of the last scored round, then of after merging."""
    rows = []
    for grid, merged in evenly(run.own_grids, MAX_CLIENT_GRIDS):
        stage = ", before merging" if narrative.before_merging(run.quality) else ""
        row = [(f"{grid.client}, round {grid.round}{stage}", picture((grid.round, grid.path))[1])]
        if merged:
            row.append((f"{grid.client}, after merging", picture((merged.round, merged.path))[1]))
        rows.append(row)
    return rows


def evenly(items: Sequence[Any], most: int) -> list[Any]:
    """At most `most` items, spread evenly, the first and the last among them."""
    if len(items) <= most:
        return list(items)
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]


def drawings(run: Run, fd_name: str) -> list[str]:
    """The curves that the run has figures for."""
    scored = [r.quality for r in run.scored_rounds if r.quality]
    last: Mapping[str, Any] = {
        **(scored[-1] if scored else {}),
        **{k: v for k, v in run.quality.items() if v is not None},
    }
    personal = narrative.is_personal(run.quality)
    scores = (
        [
            plots.own_scores(run.scored_rounds, key, name, run.quality.get("after"))
            for key, name in (("fd_all", fd_name), ("kid_all", "KID"))
        ]
        if personal
        else [
            plots.score(run.scored_rounds, "fd", fd_name, last.get("fd_floor")),
            plots.score(run.scored_rounds, "kid", "KID"),
        ]
    )
    made = [
        *scores,
        plots.loss(run.training_rounds),
        plots.traffic(run.ledger),
        plots.class_histogram(
            last.get("class_histogram") or [],
            last.get("class_histogram_data") or [],
            run.partition.class_names if run.partition else (),
        ),
        plots.failures(run.failures, int(run.summary.get("rounds") or 0)),
    ]
    return [drawing for drawing in made if drawing]


def further_scores(quality: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Scalar scores beside the tiles, and the means over clients, as (name, figure)."""
    out: list[tuple[str, float | None]] = [
        (key, value) for key, value in quality.items() if key not in IN_TILES and is_figure(value)
    ]
    for group in () if quality.get("after") else ("mean", "weighted", "worst"):
        over = (quality.get(group) or {}).items()
        out += [
            (f"{group} over clients, {key}", value)
            for key, value in over
            if value is None or is_figure(value)
        ]
    return [(name, formatting.figure(value)) for name, value in out]


def over_clients(quality: Mapping[str, Any], fd_name: str) -> list[tuple[str, str, str]]:
    """(score, before, after merging) over the clients' own models; empty where nothing was merged for a score."""
    after = quality.get("after") or {}
    meanings = {"mean": "mean", "weighted": "mean weighted by images", "worst": "worst"}

    def told(stage: Mapping[str, Any], group: str, key: str) -> str:
        return formatting.figure((stage.get(group) or {}).get(key))

    return [
        (
            f"{fd_name if key.startswith('fd') else 'KID'} against {REALS[key.partition('_')[2]]}, {meaning}",
            told(quality, group, key),
            told(after, group, key),
        )
        for key in ("fd_all", "fd_own", "kid_all", "kid_own")
        for group, meaning in meanings.items()
        if after
    ]


def is_figure(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def ledger_rows(run: Run) -> list[LedgerRow]:
    """One row per phase and direction, phases in the order in which they first appear."""
    groups: dict[tuple[str, str], list[Any]] = defaultdict(list)
    for entry in run.ledger:
        groups[entry.phase, entry.direction].append(entry)
    return [
        LedgerRow(
            phase=phase,
            direction=direction,
            messages=len(entries),
            parameters=sum(e.parameters for e in entries),
            bytes=sum(e.bytes for e in entries),
            bytes_refused=sum(e.bytes for e in entries if e.status != "counted"),
        )
        for (phase, direction), entries in groups.items()
    ]


def client_rows(run: Run) -> list[ClientRow]:
    """One row per client known to the partition, the ledger or the scores, sorted by name."""
    table = run.partition
    sizes = dict(zip(table.clients, table.sizes, strict=False)) if table else {}
    holdouts = dict(zip(table.clients, table.holdout_sizes, strict=False)) if table else {}
    moved: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for e in run.ledger:
        mine = moved[e.client]
        if e.phase == "train":
            mine[e.direction] += e.bytes
            if e.direction == "up" and e.status == "counted":
                mine["rounds"] += 1
                mine["images"] += e.images
    scores: dict[str, dict[str, float | None]] = defaultdict(dict)
    for c in run.quality.get("per_client") or ():
        name = str(c.get("name"))
        sizes.setdefault(name, c.get("num_examples"))
        for key in ("fd_all", "fd_own", "kid_all", "kid_own"):
            scores[name][f"{key} {c.get('stage') or 'before'}"] = c.get(key)
    losses: dict[str, float | None] = {}
    for r in run.training_rounds:
        losses |= r.client_loss
    names = sorted(set(sizes) | set(moved) | set(scores) | set(losses))
    failed = [failed_client(run, f) for f in run.failures]
    return [
        ClientRow(
            name=name,
            size=sizes.get(name),
            holdout=holdouts.get(name),
            rounds=moved[name]["rounds"],
            images=moved[name]["images"],
            bytes_up=moved[name]["up"],
            bytes_down=moved[name]["down"],
            loss=losses.get(name),
            failures=failed.count(name),
            scores=scores.get(name, {}),
        )
        for name in names
    ]


def failed_client(run: Run, failure: Mapping[str, Any]) -> str:
    """The name of the client in a failure entry, which may hold only its number."""
    number = failure.get("client_id")
    if failure.get("name") or number is None:
        return str(failure.get("name") or formatting.DASH)
    names = run.partition.clients if run.partition else ()
    return names[number] if 0 <= number < len(names) else f"client-{number:03d}"


def score_keys(clients: Sequence[ClientRow]) -> list[str]:
    """Per-client scores that were measured for at least one client, in a fixed order."""
    order = [
        f"{m}_{scope} {stage}"
        for stage in ("before", "after")
        for m in ("fd", "kid")
        for scope in ("all", "own")
    ]
    return [key for key in order if any(c.scores.get(key) is not None for c in clients)]


def score_heading(key: str, quality: Mapping[str, Any]) -> str:
    """`fd_own after` as `FD own, after merging`, or `FD own` where the clients have scores of one stage alone."""
    metric, stage = key.split(" ")
    kind, scope = metric.split("_")
    name = formatting.fd_name(quality.get("encoder")) if kind == "fd" else "KID"
    when = narrative.stage_words(quality)[stage]
    return f"{name} {scope}" + (f", {when}" if when else "")
