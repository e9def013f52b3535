"""One run as a row of a comparison: what its folder says of it, and how each column is written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from osmotic.errors import plain
from osmotic.report import evidence, formatting, learning_rule, narrative
from osmotic.report.reading import Run

# Columns of clients' own models beside a global one.
BESIDE = ("{fd} of own models beside, mean", "{fd} of own models beside on own images, mean")


@dataclass(frozen=True)
class Row:
    """One run in a comparison; None is what was not measured."""

    name: str
    preset: str | None
    method: str | None
    pieces: tuple[str, ...]  # of the learning rule, in the order of their chain
    codec: str
    seed: int | None
    rounds: int | None
    clients: int | None
    parameters: int | None
    fd: float | None  # of the global model
    own_models: int | None  # scored clients' own models; None where there is a global one
    fd_clients: float | None  # mean, as the next three
    fd_worst: float | None
    fd_own: float | None
    fd_merged: float | None  # of own models with the last average merged
    kid_clients: float | None
    fd_floor: float | None  # of held-out real images
    kid: float | None
    bytes_up: int | None  # of the rounds, as the next two
    bytes_down: int | None
    images_seen: int | None
    wall_seconds: float | None
    encoder: str | None
    num_samples: int | None
    sampler: str | None
    nfe: int | None  # network evaluations per image
    data: str | None
    partition_seed: int | None = None
    fd_held_out: float | None = None  # against real images that nobody trained on
    clients_own: int | None = None  # clients that `fd_own` is over, of `clients_scored`
    clients_scored: int | None = None
    fd_own_floor: float | None = None  # mean over the same clients
    traffic_factor: float | None = None  # times fewer bytes than fp32 FedAvg
    traffic_to_images: float | None = None  # bytes up and down, over those of the compressed training images
    near_copies: float | None = None  # share of generated images, by features
    own_beside: int | None = (
        None  # scored clients' own models beside a global one; the next three are over these
    )
    fd_personal: float | None = None  # mean, against the images of all
    fd_personal_own: float | None = None  # mean, against own images
    personal_basis: str = ""  # how many clients and images are behind it
    metrics: Mapping[str, float] = field(default_factory=dict)  # the user's own, by name

    def figure(self, key: str) -> float | None:
        """The figure under an attribute's name, or one of the user's own metrics under `metrics.NAME`."""
        if key.startswith("metrics."):
            return self.metrics.get(key.removeprefix("metrics."))
        value: float | None = getattr(self, key)
        return value

    @property
    def fd_ranked(self) -> float | None:
        """FD of the global model, else the mean over the clients' own ones."""
        return self.fd if self.own_models is None else self.fd_clients

    @property
    def kid_ranked(self) -> float | None:
        """KID of the same models."""
        return self.kid if self.own_models is None else self.kid_clients


def metric_names(rows: Iterable[Row]) -> list[str]:
    """The user's own metrics that any of the rows has, in order of appearance."""
    return list(dict.fromkeys(name for row in rows for name in row.metrics))


def row_of(run: Run, name: str) -> Row:
    """The row of one run, called `name`."""
    s, q = run.summary, run.quality
    basis, personal = evidence.own_basis(q), q.get("personal") or {}
    personal_basis = evidence.own_basis(personal)
    up, down = s.get("codec_up") or formatting.DASH, s.get("codec_down") or formatting.DASH
    return Row(
        name=name,
        preset=s.get("preset"),
        method=s.get("method"),
        pieces=tuple(learning_rule.piece_names(run)),
        codec=up if up == down else f"{up} up, {down} down",
        seed=s.get("seed"),
        rounds=s.get("rounds"),
        clients=s.get("num_clients"),
        parameters=s.get("parameters"),
        fd=q.get("fd"),
        own_models=narrative.own_count(q) if narrative.is_personal(q) else None,
        fd_clients=(q.get("mean") or {}).get("fd_all"),
        fd_worst=(q.get("worst") or {}).get("fd_all"),
        fd_own=(q.get("mean") or {}).get("fd_own"),
        fd_merged=((q.get("after") or {}).get("mean") or {}).get("fd_all"),
        kid_clients=(q.get("mean") or {}).get("kid_all"),
        fd_floor=q.get("fd_floor"),
        kid=q.get("kid"),
        bytes_up=s.get("bytes_up"),
        bytes_down=s.get("bytes_down"),
        images_seen=s.get("images_seen"),
        wall_seconds=s.get("wall_seconds"),
        encoder=q.get("encoder"),
        num_samples=q.get("num_samples"),
        sampler=q.get("sampler"),
        nfe=q.get("nfe"),
        data=run.setting("data.source"),
        partition_seed=run.setting("data.partition_seed"),
        fd_held_out=(q.get("held_out") or {}).get("fd"),
        clients_own=basis.clients if basis else None,
        clients_scored=basis.of if basis else None,
        fd_own_floor=basis.floor if basis else None,
        traffic_factor=(s.get("traffic") or {}).get("factor"),
        traffic_to_images=(s.get("traffic") or {}).get("to_images"),
        near_copies=(q.get("near_copies") or {}).get("features"),
        own_beside=narrative.own_count(personal) if personal else None,
        fd_personal=(personal.get("mean") or {}).get("fd_all"),
        fd_personal_own=(personal.get("mean") or {}).get("fd_own"),
        personal_basis=personal_basis.words if personal_basis else "",
        metrics=_own_metrics(q),
    )


def _own_metrics(quality: Mapping[str, Any]) -> dict[str, float]:
    """The user's own metrics that were measured, by name: printable, as a run folder can come from anywhere."""
    found = (quality.get("metrics") or {}).items()
    return {plain(name): value for name, value in found if formatting.is_number(value)}


def columns_of(fd_name: str) -> list[tuple[str, Any]]:
    """(heading, Row -> text) of every column there can be; `Comparison.columns` leaves out what tells nothing."""

    def text(value: Any) -> str:
        return formatting.DASH if value is None or value == "" else str(value)

    def of_models(r: Row, whole: float | None, mean: float | None) -> str:
        shown = formatting.figure(mean if r.own_models else whole)
        return f"{shown} mean" if r.own_models and mean is not None else shown

    def own(r: Row) -> str:
        # Never without the number of clients: most may have had too few images to be scored.
        counted = f" ({r.clients_own} of {r.clients_scored} clients)" if r.clients_own is not None else ""
        floor = f", floor {formatting.figure(r.fd_own_floor)}" if r.fd_own_floor is not None else ""
        return formatting.figure(r.fd_own) + (counted + floor if r.fd_own is not None else "")

    def models(r: Row) -> str:
        if r.own_models:
            return f"{r.own_models} own"
        return text(r.encoder and (f"global, {r.own_beside} own beside" if r.own_beside else "global"))

    def beside(r: Row) -> str:
        shown = formatting.figure(r.fd_personal_own)
        return f"{shown} ({r.personal_basis})" if r.personal_basis else shown

    return [
        ("run", lambda r: r.name),
        ("preset", lambda r: text(r.preset or r.method)),
        ("pieces", lambda r: text(" + ".join(r.pieces))),
        ("codec", lambda r: r.codec),
        ("seed", lambda r: text(r.seed)),
        ("rounds", lambda r: formatting.count(r.rounds)),
        ("models scored", models),
        (fd_name, lambda r: of_models(r, r.fd, r.fd_clients)),
        (f"{fd_name} after merging", lambda r: of_models(r, None, r.fd_merged)),
        (f"{fd_name}, worst model", lambda r: formatting.figure(r.fd_worst if r.own_models else r.fd)),
        (f"{fd_name} on own images", own),
        (BESIDE[0].format(fd=fd_name), lambda r: formatting.figure(r.fd_personal)),
        (BESIDE[1].format(fd=fd_name), beside),
        (f"{fd_name}, held-out", lambda r: formatting.figure(r.fd_held_out)),
        ("near-copies", lambda r: formatting.percent(r.near_copies)),
        ("floor", lambda r: formatting.figure(r.fd_floor)),
        ("KID", lambda r: of_models(r, r.kid, r.kid_clients)),
        ("up", lambda r: formatting.size(r.bytes_up)),
        ("down", lambda r: formatting.size(r.bytes_down)),
        ("times less than fp32 FedAvg", lambda r: formatting.figure(r.traffic_factor, 3)),
        ("traffic over compressed images", lambda r: formatting.figure(r.traffic_to_images, 3)),
        ("images seen", lambda r: formatting.count(r.images_seen)),
        ("time", lambda r: formatting.duration(r.wall_seconds)),
        ("encoder", lambda r: text(r.encoder)),
        ("samples", lambda r: formatting.count(r.num_samples)),
    ]
