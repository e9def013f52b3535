"""Several runs side by side; runs that were scored differently are shown but never ranked.

Where no global model exists, the mean over the clients' own models stands for it, and says so: each of them, like a
global model, draws the same number of images in the label mix of all, and is set against the images of all clients.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from osmotic.errors import ConfigError
from osmotic.report import curves, formatting, gallery, narrative, templates
from osmotic.report.groups import FIGURES, Group, group
from osmotic.report.reading import Run, read
from osmotic.report.rows import BESIDE, Row, columns_of, metric_names, row_of

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class Comparison:
    """Runs in the order given; `differences` says why they cannot be ranked, and is empty if they can."""

    runs: tuple[Run, ...]
    rows: tuple[Row, ...]
    differences: tuple[str, ...]
    cautions: tuple[str, ...]

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """The runs in groups that differ in nothing but their seeds."""
        return group(self.runs, self.rows)

    @property
    def repeated(self) -> bool:
        """Whether any group has more than one run."""
        return any(len(g.runs) > 1 for g in self.groups)

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
            "groups": [
                g.as_dict(self.groups[0] if self.comparable else None, self.figures) for g in self.groups
            ],
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
            hidden.add(f"{self.fd_name}, worst model")
        if not any(row.own_models or row.own_beside for row in self.rows):
            hidden.add("models scored")
        if not any(row.own_beside for row in self.rows):
            hidden |= {heading.format(fd=self.fd_name) for heading in BESIDE}
        # A column that says nothing of any run only makes the table wider than a terminal.
        if not any(row.pieces for row in self.rows):
            hidden.add("pieces")
        if all(row.fd_merged is None for row in self.rows):
            hidden.add(f"{self.fd_name} after merging")
        if all(row.fd_held_out is None for row in self.rows):
            hidden.add(f"{self.fd_name}, held-out")
        if all(row.near_copies is None for row in self.rows):
            hidden.add("near-copies")
        if all(row.traffic_factor is None for row in self.rows):
            hidden.add("times less than fp32 FedAvg")
        if all(row.traffic_to_images is None for row in self.rows):
            hidden.add("traffic over compressed images")
        own = [
            (f"metric {name}", lambda row, name=name: formatting.figure(row.metrics.get(name)))
            for name in metric_names(self.rows)
        ]
        return [*(c for c in columns_of(self.fd_name) if c[0] not in hidden), *own]

    @property
    def figures(self) -> dict[str, str]:
        """What groups have a mean of: key -> what it is called, the user's own metrics last."""
        told = {key: name.format(fd=self.fd_name) for key, name in FIGURES.items()}
        return told | {f"metrics.{name}": f"metric {name}" for name in metric_names(self.rows)}

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
            table.add_row(escape(heading), *(escape(cell(row)) for row in rows))
        return table

    def group_tables(self) -> list[Table]:
        """Groups with their means, and paired differences, for a terminal, a column per group; none without repeated runs."""
        from rich.markup import escape
        from rich.table import Table

        notes = (
            ("Runs that differ in seeds alone", "± is a 95 % interval of the mean, by Student's t."),
            (
                f"Minus {self.groups[0].name}",
                "Mean difference over the seeds that both have, with its 95 % interval: what says whether two groups "
                "differ. Whether their own intervals overlap does not.",
            ),
        )
        tables = []
        for (title, caption), (headings, rows) in zip(
            notes, (self.group_table(), self.paired_table()), strict=True
        ):
            if not rows:
                continue
            table = Table(title=escape(title), caption=caption, caption_justify="left")
            table.add_column(headings[0])
            for row in rows:
                table.add_column(escape(row[0]), justify="right", overflow="fold")
            for place, heading in enumerate(headings[1:], 1):
                table.add_row(escape(heading), *(escape(row[place]) for row in rows))
            tables.append(table)
        return tables

    def write_html(self, path: Path | str) -> Path:
        """Writes the comparison as one self-contained page, atomically, and returns its path."""
        from osmotic.storage.atomic import write_text

        template = templates.html().get_template("compare.html.jinja")
        columns, shown = self.columns(), self.shown()
        cells = {heading: [cell(row) for row in shown] for heading, cell in columns}
        # What is the same of all runs is said once: the table would not fit a screen with it.
        same = {h for h, told in cells.items() if len(shown) > 1 and len(set(told)) == 1 and h != "run"}
        page = template.render(
            comparison=self,
            headings=[heading for heading in cells if heading not in same],
            cells=list(zip(*(told for heading, told in cells.items() if heading not in same), strict=True)),
            same=[(heading, told[0]) for heading, told in cells.items() if heading in same],
            groups=self.group_table(),
            paired=self.paired_table(),
            first=self.groups[0].name,
            pictures=[
                (g.name, g.rows[0].name, found) for g in self.groups if (found := gallery.last(g.runs[0]))
            ],
            drawings=self.drawings(),
        )
        write_text(Path(path), page)
        return Path(path)

    def group_table(self) -> tuple[list[str], list[list[str]]]:
        """(headings, cells) of the groups: runs, seeds, samples, and of each figure its mean with the 95 % interval.

        A figure that no run has is left out; both are empty where no group has more than one run.
        """
        if not self.repeated:
            return [], []
        figures = self.figures
        keys = [key for key in figures if any(g.mean(key) is not None for g in self.groups)]
        headings = ["group", "runs", "samples", *(figures[key] for key in keys)]
        return headings, [
            [
                g.name,
                str(len(g.runs)),
                formatting.count(g.samples),
                *(_told(g.mean(key), key) for key in keys),
            ]
            for g in self.groups
        ]

    def paired_table(self) -> tuple[list[str], list[list[str]]]:
        """(headings, cells) of the mean differences to the first group over the seeds that both have; scores alone.

        Both are empty with one group, with no group of several runs, and where the runs cannot be compared.
        """
        first, *others = self.groups
        if not others or not self.repeated or not self.comparable:
            return [], []
        figures = {key: told for key, told in self.figures.items() if not key.startswith("bytes_")}
        found = {g.name: {key: g.paired(first, key) for key in figures} for g in others}
        keys = [key for key in figures if any(of[key] is not None for of in found.values())]
        if not keys:
            return [], []
        headings = ["group", "pairs", *(figures[key] for key in keys)]
        return headings, [
            [
                name,
                str(max((m.n for m in of.values() if m), default=0)),
                *(_told(of[key], key, True) for key in keys),
            ]
            for name, of in found.items()
        ]

    def drawings(self) -> list[str]:
        """FD of every run against images seen, bytes and rounds; none if the runs cannot be ranked."""
        if not self.comparable:
            return []
        # One floor or none: a dashed line that holds for some of the runs would be read as that of all.
        floors = {row.fd_floor for row in self.rows if row.own_models is None}
        floor = floors.pop() if len(floors) == 1 else None
        # A colour per group, and one name: its runs are repetitions of each other.
        named = []
        for place, g in enumerate(self.groups):
            for row, run in zip(g.rows, g.runs, strict=True):
                label = row.name if len(g.runs) == 1 else f"{g.name}, {len(g.runs)} runs"
                label += f", mean of {row.own_models} models" if row.own_models else ""
                named.append((label if row is g.rows[0] else "", run, place))
        axes = (("images", "images seen"), ("bytes", "bytes up and down"), ("rounds", "rounds"))
        made = [
            curves.overlay(
                [(n, *curve(r, axis), place) for n, r, place in named],
                label,
                self.fd_name,
                floor,
                axis == "bytes",
            )
            for axis, label in axes
        ]
        return [drawing for drawing in made if drawing]


def _told(found: Any, key: str, sign: bool = False) -> str:
    return formatting.DASH if found is None else found.told(key.startswith("bytes_"), sign)


def compare(run_dirs: Sequence[Path | str]) -> Comparison:
    """The runs in `run_dirs`, at least one.

    Raises: ConfigError if none is given, or one is no finished run folder.
    """
    if not run_dirs:
        raise ConfigError("compare", None, "needs at least one run folder")
    runs = tuple(read(path) for path in run_dirs)
    # Folders of one name in different places are told apart by the whole path, the others by their name.
    names = [run.name for run in runs]
    rows = [row_of(run, run.name if names.count(run.name) == 1 else str(run.path)) for run in runs]
    return Comparison(runs, tuple(rows), differences(runs), cautions(runs))


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
        ("networks differ in size", lambda r: formatting.count(narrative.whole_parameters(r))),
        ("splits differ", lambda r: f"{r.setting('data.partition')}, {r.summary.get('num_clients')} clients"),
    )
    out: list[str] = []
    for text, look in looks:
        values = list(dict.fromkeys(v for v in map(look, runs) if v))
        if len(values) > 1:
            out.append(f"{text} ({'; '.join(values)})")
    return tuple(out)


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
