"""The tables of a report as rows: clients, ledger, failures, and the scores that the first screen does not tell."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from osmotic.report import formatting, narrative
from osmotic.report.reading import Run, Traffic

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


# What a client's entry of the scores holds, and what heads its column.
SCORES = {
    "fd_all": "{fd} all",
    "fd_own": "{fd} own",
    "fd_own_floor": "floor of {fd} own",
    "own_images": "own images",
    "kid_all": "KID all",
    "kid_own": "KID own",
    "fd_held_out": "{fd} held-out",
    "near_copies": "near-copies",
    "loss_published": "Loss on held-out images, global model",
    "loss_own": "own model",
    "kept_pass": "Pass kept",  # 0: the global model was the best
}
OF_REAL_IMAGES = ("fd_own_floor", "own_images")
COUNTS = ("own_images", "kept_pass")
# Of `held_out` in an entry, and what it is called.
HELD_OUT = {
    "fd": "{fd} against held-out images, lower is better",
    "floor": "{fd} of real images against these (floor)",
    "kid": "KID against held-out images, lower is better",
    "precision": "precision against held-out images, higher is better",
    "recall": "recall against held-out images, higher is better",
}


@dataclass(frozen=True)
class LedgerRow:
    """Totals of one phase and direction."""

    phase: str
    direction: str
    messages: int
    parameters: int  # weights conveyed, one per weight whatever the codec
    bytes: int  # as encoded, refused and lost replies among them
    bytes_refused: int  # those alone


@dataclass(frozen=True)
class ClientRow:
    """What the folder knows of one client; None is not measured."""

    name: str
    size: int | None  # training images
    holdout: int | None  # images held out
    rounds: int  # whose answer counted
    images: int  # seen in those, repeats counted
    bytes_up: int  # of training, lost and refused ones too
    bytes_down: int
    loss: float | None  # of the last round it answered
    failures: int
    scores: Mapping[str, float | None]  # by score and stage, as `fd_own after`


def ledger_rows(run: Run) -> list[LedgerRow]:
    """One row per phase and direction, phases in the order in which they first appear."""
    groups: dict[tuple[str, str], list[Traffic]] = defaultdict(list)
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
    """One row per client known to the partition, the ledger, the losses or the scores, sorted by name."""
    table = run.partition
    sizes = dict(zip(table.clients, table.sizes, strict=False)) if table else {}
    holdouts = dict(zip(table.clients, table.holdout_sizes, strict=False)) if table else {}
    moved: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for e in run.ledger:
        if e.direction == "server":
            continue  # the server's own work is nobody's
        mine = moved[e.client]
        if e.phase == "train":
            # Bytes were spent whatever became of the answer; only an answer that counted is work done.
            mine[e.direction] += e.bytes
            if e.direction == "up" and e.status == "counted":
                mine["rounds"] += 1
                mine["images"] += e.images
    scores: dict[str, dict[str, float | None]] = defaultdict(dict)
    for c in run.quality.get("per_client") or ():
        name = str(c.get("name"))
        sizes.setdefault(name, c.get("num_examples"))
        for key in SCORES:
            scores[name][f"{key} {c.get('stage') or 'before'}"] = narrative.score_of(c, key)
    for c in (run.quality.get("personal") or {}).get("per_client") or ():
        for key in SCORES:
            scores[str(c.get("name"))][f"{key} personal"] = narrative.score_of(c, key)
    # Later rounds over earlier ones: a client that was not asked in the last round keeps its last loss.
    losses: dict[str, float | None] = {}
    for r in run.training_rounds:
        losses |= r.client_loss
    names = sorted(set(sizes) | set(moved) | set(scores) | set(losses))
    failed = Counter(failed_client(run, f) for f in run.failures)
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
            failures=failed[name],
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


def score_keys(
    clients: Sequence[ClientRow], quality: Mapping[str, Any], stages: Sequence[str] = ("before", "after")
) -> list[str]:
    """Per-client scores that were measured for at least one client, in a fixed order.

    Where all share one model those against all clients' images are left out: they are one figure for all clients.
    What is said of the real images alone stands once, as it is the same of every model.

    Args:
        stages: whose scores; `personal` are those of the client's own model beside a global one.
    """
    keys: list[str] = []
    for stage in stages:
        for key in SCORES:
            one_for_all = quality.get("fd") is not None and key.endswith("_all") and stage != "personal"
            told = key in OF_REAL_IMAGES and f"{key} before" in keys
            known = any(c.scores.get(f"{key} {stage}") is not None for c in clients)
            if known and not one_for_all and not told:
                keys.append(f"{key} {stage}")
    return keys


def score_heading(key: str, quality: Mapping[str, Any]) -> str:
    """`fd_own after` as `FD own, after merging`, or `FD own` where the clients have scores of one stage alone."""
    score, stage = key.split(" ")
    name = formatting.fd_name(quality.get("encoder"))
    when = "" if score in OF_REAL_IMAGES else narrative.stage_words(quality).get(stage)
    return SCORES[score].format(fd=name) + (f", {when}" if when else "")


@dataclass(frozen=True)
class Column:
    """One figure of every client, and how it is written; `measured` ones are outcomes, others follow from the set-up."""

    heading: str
    values: Sequence[float | None]
    write: Callable[[float | None], str]
    measured: bool = False


def columns(clients: Sequence[ClientRow], quality: Mapping[str, Any]) -> list[Column]:
    """What is told of every client; a figure that tells nothing of any client is left out."""
    count, size = formatting.count, formatting.size
    found = [
        Column("Images", [c.size for c in clients], count),
        Column("Rounds counted", [c.rounds for c in clients], count),
        Column("Images seen", [c.images for c in clients], count),
        Column("Sent up", [c.bytes_up for c in clients], size),
        Column("Sent down", [c.bytes_down for c in clients], size),
        Column("Last loss", [c.loss for c in clients], formatting.figure, measured=True),
    ]
    if any(c.holdout for c in clients):
        found.insert(1, Column("Held out", [c.holdout for c in clients], count))
    found += _scored(clients, quality, score_keys(clients, quality))
    if any(c.failures for c in clients):
        found.append(Column("Failures", [c.failures for c in clients], count))
    return found


def own_columns(
    clients: Sequence[ClientRow], quality: Mapping[str, Any]
) -> tuple[list[ClientRow], list[Column]]:
    """The clients that have a model of their own beside a global one, and what is told of these; empty without any."""
    mine = [c for c in clients if any(key.endswith(" personal") for key in c.scores)]
    return mine, _scored(mine, quality, score_keys(mine, quality, ("personal",)))


def _scored(clients: Sequence[ClientRow], quality: Mapping[str, Any], keys: Sequence[str]) -> list[Column]:
    """The columns of these scores."""
    found = []
    for key in keys:
        score = key.split(" ")[0]
        values = [c.scores.get(key) for c in clients]
        write = formatting.count if score in COUNTS else narrative.score_writer(score)
        found.append(Column(score_heading(key, quality), values, write, measured=score not in OF_REAL_IMAGES))
    return found


def client_table(
    clients: Sequence[ClientRow], told: Sequence[Column]
) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """(headings, (client, cells) by name) of a table of clients."""
    rows = [(c.name, [column.write(column.values[k]) for column in told]) for k, c in enumerate(clients)]
    return [column.heading for column in told], rows


def further_scores(quality: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(name, figure) of the single scores that no tile tells."""
    return [
        (key, formatting.figure(value))
        for key, value in quality.items()
        if key not in IN_TILES and formatting.is_number(value)
    ]


def own_metrics(quality: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(name, figure) of the user's own metrics, a dash where one was not measured."""
    metrics = (quality.get("metrics") or {}).items()
    return [
        (str(name), formatting.figure(value))
        for name, value in metrics
        if value is None or formatting.is_number(value)
    ]


def over_clients(quality: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(score, before, after merging) over the clients' own models; empty where nothing was merged for a score."""
    after = quality.get("after") or {}
    if not after:
        return []
    entries = quality.get("per_client") or ()
    stages = [(quality, narrative.over(entries, "before")), (after, narrative.over(entries, "after"))]
    rows = []
    for key in (*narrative.OWN_SCORES, *narrative.OWN_EVIDENCE):
        for group, meaning in {
            "mean": "mean",
            "weighted": "mean weighted by images",
            "worst": "worst",
        }.items():
            values = [{**(told.get(group) or {}), **more[group]}.get(key) for told, more in stages]
            if key in narrative.OWN_SCORES or any(value is not None for value in values):
                was, became = map(narrative.score_writer(key), values)
                rows.append((f"{narrative.score_name(key, quality)}, {meaning}", was, became))
    return rows


def scores_of(quality: Mapping[str, Any], client: str) -> list[tuple[str, float | None, float | None]]:
    """(score, as its weights are saved, after merging) of this client's own model; empty where it has none.

    Args:
        quality: of the run, with or without a global model.
        client: its name; the empty name has no model.
    """
    saved, merged = own_entries(quality, client)
    if not saved and not merged:
        return []
    rows = [
        (f"{narrative.score_name(key, quality)}, lower is better", saved.get(key), merged.get(key))
        for key in narrative.OWN_SCORES
    ]
    was, became = saved.get("held_out") or {}, merged.get("held_out") or {}
    fd = formatting.fd_name(quality.get("encoder"))
    return rows + [
        (told.format(fd=fd), was.get(key), became.get(key))
        for key, told in HELD_OUT.items()
        if was.get(key) is not None or became.get(key) is not None
    ]


def own_entries(quality: Mapping[str, Any], client: str) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """The entries of this client's own model: (as its weights are saved, after merging); empty where there is none."""
    own = narrative.own_quality(quality)
    stages = {str(c.get("stage")): c for c in own.get("per_client") or () if c.get("name") == client}
    if not stages:
        return {}, {}
    merged = stages.get("after", {})
    # Saved are the weights as trained where merging comes after; else the last stage there is.
    return (
        stages.get("before", {}) if narrative.before_merging(quality) else merged or [*stages.values()][-1]
    ), merged
