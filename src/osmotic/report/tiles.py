"""The key figures on the first screen of a report: the scores with what they must be read with, and what the run took."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from osmotic.report import evidence, formatting, narrative, traffic
from osmotic.report.reading import Run


@dataclass(frozen=True)
class Tile:
    """One key figure, all of it ready to be read."""

    name: str
    value: str
    detail: str = ""  # what it must be read with, below it
    beside: str = ""  # what it must be compared with, on its own line
    wide: bool = False


def tiles(run: Run) -> list[Tile]:
    """The key figures of the first screen, the score first and never without its conditions."""
    # A mean over clients' models is no score of a global model: the two kinds of run never share a tile.
    return (own_tiles(run) if narrative.is_personal(run.quality) else global_tiles(run)) + cost_tiles(run)


def own_tiles(run: Run) -> list[Tile]:
    """Mean, weighted and worst scores of the clients' own models, where no global one exists."""
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
    basis = evidence.own_basis(q)
    over = {"fd_own": f" over {basis.words}" if basis else ""}
    for key, label in (("fd_own", f"{name} against own images"), ("kid_all", "KID, lower is better")):
        detail = f"mean{over.get(key, '')}; worst {formatting.figure(worst.get(key))}"
        out.append(
            Tile(label, formatting.figure(mean.get(key)), f"{detail} · {after(key)}" if merged else detail)
        )
    return out


def global_tiles(run: Run) -> list[Tile]:
    """FD with its floor, KID, precision and recall of the global model; a dash where one was not measured."""
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
    if held := q.get("held_out"):
        # Beside the first score, as that one is best for a model that repeats what it was trained on.
        told = f"{formatting.count(held.get('images'))} real images that nobody trained on"
        floor = f"floor {formatting.figure(held.get('floor'))}"
        out.append(
            Tile(f"{name} against held-out images", formatting.figure(held.get("fd")), f"{told} · {floor}")
        )
    if copied := evidence.copies(q):
        told = f"by features; {copied.pixels} by pixels · expected {copied.expected}"
        out.append(Tile("Near-copies of training images", copied.features, told))
    precision, recall = formatting.figure(q.get("precision"), 3), formatting.figure(q.get("recall"), 3)
    out.append(Tile("Precision / recall", f"{precision} / {recall}"))
    return out


def cost_tiles(run: Run) -> list[Tile]:
    """What the run took, in bytes, seconds, images and steps, and how it was set."""
    s, out = run.summary, []
    for way, label in (("up", "Sent up in training"), ("down", "Sent down in training")):
        total = s.get(f"bytes_{way}")
        # Exact too, as comparisons are made of it; rounded figures of two runs may hide a difference.
        exact = (
            "not measured"
            if total is None
            else f"{formatting.count(total)} bytes, codec {s.get(f'codec_{way}')}"
        )
        # The totals leave out what went for scores and models, which matters to whoever asks what left a client.
        beside = sum(e.bytes for e in run.ledger if e.direction == way) - (total or 0)
        more = (
            f" · {formatting.size(beside)} more beside training" if total is not None and beside > 0 else ""
        )
        out.append(Tile(label, formatting.size(total), exact + more))
    # Absent where nothing travelled, and in runs of earlier versions.
    if (found := s.get("traffic")) and traffic.words(found):
        told = [traffic.against_fedavg(found), traffic.against_images(found)]
        out.append(
            Tile("Traffic in training", formatting.size(found["bytes"]), " · ".join(filter(None, told)))
        )
    out += [
        Tile("Parameters", formatting.count(narrative.whole_parameters(run)), network_words(run)),
        Tile(
            "Wall time",
            formatting.duration(s.get("wall_seconds")),
            f"engine {s.get('engine') or formatting.DASH}{', a simulation' if 'simulation' in narrative.where(run) else ''}",
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


def network_words(run: Run) -> str:
    """The network's name, and how much of it was trained where that was an adapter."""
    name = f"network {narrative.network_name(run)}"
    trained = formatting.count(run.summary.get("parameters"))
    return f"{name}; trained were {trained} of an adapter" if narrative.has_adapter(run) else name


def participation(summary: Mapping[str, Any]) -> str:
    """Who was asked each round, such as `10 clients, all asked`."""
    clients, fraction = summary.get("num_clients"), summary.get("fraction_train")
    if clients is None:
        return ""
    asked = "" if fraction is None else ", all asked" if fraction == 1 else f", {100 * fraction:g} % asked"
    return formatting.plural(clients, "client") + asked
