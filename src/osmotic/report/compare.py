"""Several runs side by side; runs that were scored differently are shown but never ranked.

Where no global model exists, the mean over the clients' own models stands for it, and says so: each of them, like a
global model, draws the same number of images in the label mix of all, and is set against the images of all clients.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from osmotic.errors import ConfigError
from osmotic.report import curves, formatting, learning_rule, narrative, templates
from osmotic.report.reading import Run, read

if TYPE_CHECKING:
    from rich.table import Table


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

    @property
    def fd_ranked(self) -> float | None:
        """FD of the global model, else the mean over the clients' own ones."""
        return self.fd if self.own_models is None else self.fd_clients


@dataclass(frozen=True)
class Comparison:
    """Runs in the order given; `differences` says why they cannot be ranked, and is empty if they can."""

    runs: tuple[Run, ...]
    rows: tuple[Row, ...]
    differences: tuple[str, ...]
    cautions: tuple[str, ...]

    @property
    def comparable(self) -> bool:
        """Whether these runs may be ranked."""
        return not self.differences

    @property
    def fd_name(self) -> str:
        """FID only if every scored run used Inception-v3."""
        encoders = {row.encoder for row in self.rows if row.encoder}
        return "FID" if encoders and all(formatting.fd_name(e) == "FID" for e in encoders) else "FD"

    def ranked(self) -> list[Row]:
        """The rows, lowest FD first, runs without one last.

        Raises: ConfigError if the runs were scored in different ways.
        """
        if self.differences:
            raise ConfigError(
                "compare", None, "cannot rank runs that were scored differently: " + self.differences[0]
            )
        # A run without a score is no 0, which would win, but comes after all others.
        return sorted(
            self.rows,
            key=lambda row: (row.fd_ranked is None, row.fd_ranked if row.fd_ranked is not None else 0.0),
        )

    def shown(self) -> list[Row]:
        """Ranked rows where that is honest, else rows as given."""
        return self.ranked() if self.comparable else list(self.rows)

    def notes(self) -> list[str]:
        """What must be read with the table, one sentence each."""
        out = [f"Not comparable: {difference}." for difference in self.differences]
        if any(row.own_models for row in self.rows):
            out.append(
                "“Mean” is over the clients' own models of a run without a global one, each against the images of all "
                "clients and without the last average; it is the score of no single model."
            )
        return out + [f"Mind: {caution}." for caution in self.cautions]

    def as_dicts(self) -> dict[str, Any]:
        """For `--json`: the rows as shown, whether they may be ranked, and why not."""
        return {
            "comparable": self.comparable,
            "differences": list(self.differences),
            "cautions": list(self.cautions),
            "runs": [dataclasses.asdict(row) for row in self.shown()],
        }

    @property
    def conditions(self) -> str:
        """What the scores of comparable runs were measured with; empty if nothing was scored or they differ."""
        scored = [row for row in self.rows if row.encoder]
        if not scored or not self.comparable:
            return ""
        return (
            f"Scored with encoder {scored[0].encoder} on {formatting.count(scored[0].num_samples)} samples."
        )

    def columns(self) -> list[tuple[str, Any]]:
        """(heading, Row -> text) of every column; how a run was scored is one only where runs differ in it."""
        hidden = {"encoder", "samples"} if self.conditions else set()
        if not any(row.own_models for row in self.rows):
            hidden |= {"models scored", f"{self.fd_name}, worst model"}
        # A column that says nothing of any run only makes the table wider than a terminal.
        if not any(row.pieces for row in self.rows):
            hidden.add("pieces")
        if all(row.fd_merged is None for row in self.rows):
            hidden.add(f"{self.fd_name} after merging")
        return [c for c in headings(self.fd_name) if c[0] not in hidden]

    def table(self) -> Table:
        """The comparison as a table for a terminal, a column per run: a few runs fit into 80 characters."""
        from rich.markup import escape
        from rich.table import Table

        title = "Runs, best first" if self.comparable else "Runs, not comparable"
        caption = escape(" ".join(part for part in (self.conditions, *self.notes()) if part))
        # Escaped, as names in square brackets would be taken for colours.
        table = Table(title=title, caption=caption or None, caption_justify="left")
        rows, (first, *columns) = self.shown(), self.columns()
        table.add_column(first[0])
        for row in rows:
            table.add_column(escape(first[1](row)), justify="right", overflow="fold")
        for heading, cell in columns:
            table.add_row(heading, *(escape(cell(row)) for row in rows))
        return table

    def write_html(self, path: Path | str) -> Path:
        """Writes the comparison as one self-contained page, atomically, and returns its path."""
        from osmotic.storage.atomic import write_text

        template = templates.html().get_template("compare.html.jinja")
        columns = self.columns()
        page = template.render(
            comparison=self,
            headings=[heading for heading, _ in columns],
            cells=[[cell(row) for _, cell in columns] for row in self.shown()],
            drawings=self.drawings(),
        )
        write_text(Path(path), page)
        return Path(path)

    def drawings(self) -> list[str]:
        """FD of every run against images seen, bytes and rounds; none if the runs cannot be ranked."""
        if not self.comparable:
            return []
        # One floor or none: a dashed line that holds for some of the runs would be read as that of all.
        floors = {row.fd_floor for row in self.rows if row.own_models is None}
        floor = floors.pop() if len(floors) == 1 else None
        named = [
            (row.name + (f", mean of {row.own_models} models" if row.own_models else ""), run)
            for row, run in zip(self.rows, self.runs, strict=True)
        ]
        axes = (("images", "images seen"), ("bytes", "bytes up and down"), ("rounds", "rounds"))
        made = [
            curves.overlay(
                [(n, *curve(r, axis)) for n, r in named], label, self.fd_name, floor, axis == "bytes"
            )
            for axis, label in axes
        ]
        return [drawing for drawing in made if drawing]


def compare(run_dirs: Sequence[Path | str]) -> Comparison:
    """The runs in `run_dirs`, at least one.

    Raises: ConfigError if none is given, or one is no finished run folder.
    """
    if not run_dirs:
        raise ConfigError("compare", None, "needs at least one run folder")
    runs = tuple(read(path) for path in run_dirs)
    # Folders of one name in different places are told apart by the whole path, the others by their name.
    names = [run.name for run in runs]
    rows = [row(run, run.name if names.count(run.name) == 1 else str(run.path)) for run in runs]
    return Comparison(runs, tuple(rows), differences(runs), cautions(runs))


def row(run: Run, name: str) -> Row:
    """The row of one run, called `name`."""
    s, q = run.summary, run.quality
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
    )


def differences(runs: Sequence[Run]) -> tuple[str, ...]:
    """Why the scores of these runs cannot be set against each other; empty if they can."""
    # An unscored run differs from none: it is listed last, and hinders nobody.
    scored = [run for run in runs if run.quality]
    looks = (
        ("the encoders differ", lambda r: r.quality.get("encoder")),
        ("the encoders have one name but other weights", lambda r: r.quality.get("encoder_sha256")),
        ("the sample counts differ", lambda r: r.quality.get("num_samples")),
        ("the data differ", lambda r: r.setting("data.source")),
    )
    out: list[str] = []
    for text, look in looks:
        values = list(dict.fromkeys(look(run) for run in scored))
        # Other encoders have other weights: that needs no second sentence.
        if len(values) > 1 and not (text.endswith("other weights") and out):
            shown = (str(v)[:12] if "weights" in text else str(v) for v in values)
            out.append(f"{text} ({', '.join(shown)})")
    return tuple(out)


def cautions(runs: Sequence[Run]) -> tuple[str, ...]:
    """What differs between the runs and moves the score without being the learning rule; one phrase each."""
    looks = (
        (
            "samplers differ",
            lambda r: r.quality and f"{r.quality.get('sampler')}, {r.quality.get('nfe')} evaluations",
        ),
        (
            "guidance scales differ",
            lambda r: r.quality and r.quality.get("guidance") is not None and f"{r.quality['guidance']:g}",
        ),
        ("images seen differ", lambda r: formatting.count(r.summary.get("images_seen"))),
        ("networks differ in size", lambda r: formatting.count(r.summary.get("parameters"))),
        ("splits differ", lambda r: f"{r.setting('data.partition')}, {r.summary.get('num_clients')} clients"),
    )
    out: list[str] = []
    for text, look in looks:
        values = list(dict.fromkeys(v for v in map(look, runs) if v))
        if len(values) > 1:
            out.append(f"{text} ({'; '.join(values)})")
    return tuple(out)


def headings(fd_name: str) -> list[tuple[str, Any]]:
    """(heading, Row -> text) of every column there can be; `Comparison.columns` leaves out what tells nothing."""

    def text(value: Any) -> str:
        return formatting.DASH if value is None or value == "" else str(value)

    def of_models(r: Row, whole: float | None, mean: float | None) -> str:
        shown = formatting.figure(mean if r.own_models else whole)
        return f"{shown} mean" if r.own_models and mean is not None else shown

    return [
        ("run", lambda r: r.name),
        ("preset", lambda r: text(r.preset or r.method)),
        ("pieces", lambda r: text(" + ".join(r.pieces))),
        ("codec", lambda r: r.codec),
        ("seed", lambda r: text(r.seed)),
        ("rounds", lambda r: formatting.count(r.rounds)),
        ("models scored", lambda r: f"{r.own_models} own" if r.own_models else text(r.encoder and "global")),
        (fd_name, lambda r: of_models(r, r.fd, r.fd_clients)),
        (f"{fd_name} after merging", lambda r: of_models(r, None, r.fd_merged)),
        (f"{fd_name}, worst model", lambda r: formatting.figure(r.fd_worst if r.own_models else r.fd)),
        (f"{fd_name} on own images", lambda r: formatting.figure(r.fd_own)),
        ("floor", lambda r: formatting.figure(r.fd_floor)),
        ("KID", lambda r: of_models(r, r.kid, r.kid_clients)),
        ("up", lambda r: formatting.size(r.bytes_up)),
        ("down", lambda r: formatting.size(r.bytes_down)),
        ("images seen", lambda r: formatting.count(r.images_seen)),
        ("time", lambda r: formatting.duration(r.wall_seconds)),
        ("encoder", lambda r: text(r.encoder)),
        ("samples", lambda r: formatting.count(r.num_samples)),
    ]


def curve(run: Run, axis: str) -> tuple[list[float], list[float]]:
    """(x [points], FD [points]) of the scored rounds.

    x is `rounds`, `images` seen or training `bytes`, up and down together.

    Where no global model exists, y is the mean over the clients' own ones.
    """
    x: list[float] = []
    y: list[float] = []
    for r in run.scored_rounds:
        if not r.quality:
            continue
        fd = r.quality.get("fd")
        # Asked of the run, not of the round: a curve must not change its meaning on the way.
        if narrative.is_personal(run.quality):
            fd = (r.quality.get("mean") or {}).get("fd_all")
        if fd is None:
            continue
        # From the ledger: the summary has the total of all rounds alone.
        if axis == "bytes":
            at: float | None = sum(e.bytes for e in run.ledger if e.phase == "train" and e.round <= r.number)
        else:
            at = r.number if axis == "rounds" else r.images_seen
        if at is not None:
            x.append(at)
            y.append(fd)
    return x, y
