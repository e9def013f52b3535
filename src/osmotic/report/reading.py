"""A run folder as typed objects (design.md section 7): the only reader of its files, tolerant of what was not measured."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from osmotic.errors import ConfigError
from osmotic.protocol.messages import MERGE
from osmotic.report.formatting import is_number
from osmotic.storage import strict_json

Json = Mapping[str, Any]


@dataclass(frozen=True)
class Round:
    """One line of metrics.jsonl; None is what was not measured."""

    number: int  # 1 to R in training; negative before the rounds, above R after them
    phase: str
    loss: float | None  # mean over the counted clients, by number of images
    client_loss: Json  # by client name
    images_seen: int | None  # since the run began, as the two after it of this phase alone
    num_counted: int | None
    num_failed: int | None
    update_norm: float | None  # Euclidean length of the change of the global weights
    wall_seconds: float | None
    kept_old_weights: bool
    quality: Json | None
    metrics: Mapping[str, float]  # what exchange and pieces told beside these, by their own names


# Keys of a line of metrics.jsonl that every phase has. A number under any other key is a figure of the exchange, a piece
# or a plugin, of which nothing is known here but the name.
STANDARD = {
    *("round", "phase", "loss", "client_loss", "images_seen", "client_steps", "num_counted", "num_failed"),
    *("update_norm", "wall_seconds", "kept_old_weights", "quality"),
    *("bytes_up", "bytes_down", "learning_rate", "unscored"),
}


@dataclass(frozen=True)
class Traffic:
    """One line of ledger.jsonl: what one client got or sent in one round."""

    round: int
    phase: str
    client: str
    direction: str  # "up" or "down"
    parameters: int  # weights conveyed, one per weight whatever the codec
    bytes: int  # as encoded
    status: str  # "counted", or why it was not
    images: int  # seen in training, repeats counted; of upward lines, as the two after it
    steps: int
    flops: int


@dataclass(frozen=True)
class PartitionTable:
    """partition.json: who held how many images of which class, counts [clients, classes].

    What the folder does not say is empty: classes of unlabelled images, images held out.
    """

    clients: tuple[str, ...]
    class_names: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]  # [clients, classes], may be empty for unlabelled images
    sizes: tuple[int, ...]  # training images, [clients]
    holdout_sizes: tuple[int, ...]  # images held out, [clients]; may be empty


@dataclass(frozen=True)
class Grid:
    """A grid of images that one client's own model drew."""

    round: int
    client: str
    path: Path


@dataclass(frozen=True)
class Run:
    """Everything a report needs from a run folder."""

    path: Path
    summary: Json
    config: Json
    config_toml: str
    rounds: tuple[Round, ...]
    ledger: tuple[Traffic, ...]
    partition: PartitionTable | None
    samples: tuple[tuple[int, Path], ...] = field(default=())  # (round, PNG) of the global model, by round
    own_samples: tuple[Grid, ...] = field(default=())  # where models are personal, by round and client

    @property
    def name(self) -> str:
        """What the folder is called; the run itself has no name."""
        return self.path.resolve().name  # resolved, as `.` and `..` are names of no run

    @property
    def quality(self) -> Json:
        """The summary's scores; empty where nothing was scored."""
        return self.summary.get("quality") or {}

    @property
    def training_rounds(self) -> tuple[Round, ...]:
        """The phases in which clients trained, in order."""
        return tuple(r for r in self.rounds if r.phase == "train")

    @property
    def scored_rounds(self) -> tuple[Round, ...]:
        """Rounds of training with scores; what merging or a piece makes of the models afterwards is no further round."""
        return tuple(r for r in self.rounds if r.quality and r.phase != MERGE and not self.is_after(r.number))

    def is_after(self, number: int) -> bool:
        """Whether this is the number of a phase after the rounds, as those have numbers above the last one's."""
        rounds = self.summary.get("rounds")
        return rounds is not None and number > rounds

    @property
    def merge_round(self) -> int | None:
        """The number under which personal models were scored with the last average merged."""
        return next((r.number for r in self.rounds if r.phase == MERGE), None)

    @property
    def own_grids(self) -> tuple[tuple[Grid, Grid | None], ...]:
        """Per client of the last scored round: its grid, and that of the same model after merging."""
        merged = {g.client: g for g in self.own_samples if g.round == self.merge_round}
        trained = [g for g in self.own_samples if g.round != self.merge_round]
        last = max((g.round for g in trained), default=0)
        return tuple((g, merged.get(g.client)) for g in trained if g.round == last)

    @property
    def real_samples(self) -> Path | None:
        """A grid of real training images, with the rows of the sample grids; None in older runs."""
        path = self.path / "samples" / "real.png"
        return path if path.is_file() else None

    @property
    def nearest_samples(self) -> Path | None:
        """Generated images over their nearest training images, by features and by pixels; None in older runs."""
        path = self.path / "samples" / "nearest.png"
        return path if path.is_file() else None

    @property
    def own_nearest(self) -> tuple[tuple[str, Path], ...]:
        """(client, PNG) of the same of a client's own model beside a global one, by client."""
        found = sorted((self.path / "samples").glob("nearest-*.png"))
        return tuple((path.stem.removeprefix("nearest-"), path) for path in found if path.is_file())

    @property
    def failures(self) -> tuple[Json, ...]:
        """`round`, `client_id`, `kind` and `reason` of every answer that did not count."""
        return tuple(self.summary.get("failures") or ())

    def setting(self, key: str, default: Any = None) -> Any:
        """A resolved configuration key, such as `data.source`."""
        section, _, leaf = key.partition(".")
        value = self.config.get(section, default)
        return value.get(leaf, default) if leaf and isinstance(value, Mapping) else value


def read(path: Path | str) -> Run:
    """The run in folder `path`.

    Raises: ConfigError if there is no such folder, it is no run, or a file of it cannot be read; the file is named.
    """
    path = Path(path)
    if not path.is_dir():
        raise ConfigError(str(path), None, "is no run folder: there is no such folder")
    # The summary is written last: without it the other files are those of a run that may still go on.
    if not (path / "summary.json").is_file():
        started = (path / "config.toml").is_file()
        hint = (
            "this run has not ended; `osmotic resume` goes on with it"
            if started
            else "it holds no summary.json"
        )
        raise ConfigError(str(path), None, f"is no finished run folder: {hint}")
    summary = _json(path / "summary.json")
    if not isinstance(summary, dict) or summary.get("schema") != 1:
        found = summary.get("schema") if isinstance(summary, dict) else None
        raise ConfigError(str(path / "summary.json"), found, "must be a run summary with schema 1")
    toml, config = _config(path / "config.toml")
    return Run(
        path=path,
        summary=summary,
        config=config,
        config_toml=toml,
        rounds=tuple(_round(line) for line in _lines(path / "metrics.jsonl")),
        ledger=tuple(_traffic(line) for line in _lines(path / "ledger.jsonl")),
        partition=_partition(path / "partition.json"),
        samples=_samples(path / "samples"),
        own_samples=_own_samples(path / "samples"),
    )


def _text(path: Path) -> str:
    """The text of a file. Raises: ConfigError, naming the file, if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(str(path), None, f"cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise ConfigError(str(path), None, "must be a UTF-8 text file") from None


def _json(path: Path) -> Any:
    try:
        return json.loads(_text(path))
    except json.JSONDecodeError as error:
        raise ConfigError(str(path), None, f"is not valid JSON: {error}") from None


def _config(path: Path) -> tuple[str, dict[str, Any]]:
    """(text, table) of config.toml; both empty if it is missing, as a summary alone is a run."""
    from osmotic.config.toml import read_toml

    return (_text(path), read_toml(path)) if path.is_file() else ("", {})


def _lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file; none if the file is missing."""
    if not path.is_file():
        return []
    out = []
    for number, line in enumerate(_text(path).splitlines(), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except json.JSONDecodeError as error:
            raise ConfigError(str(path), None, f"line {number} is not valid JSON: {error}") from None
        if not isinstance(entry, dict):
            raise ConfigError(str(path), None, f"line {number} must be a JSON object")
        out.append(entry)
    return out


def _round(line: Json) -> Round:
    # `or`, not a default: a key may be there and null.
    return Round(
        number=int(line.get("round") or 0),
        phase=str(line.get("phase") or "train"),
        loss=line.get("loss"),
        client_loss=line.get("client_loss") or {},
        images_seen=line.get("images_seen"),
        num_counted=line.get("num_counted"),
        num_failed=line.get("num_failed"),
        update_norm=line.get("update_norm"),
        wall_seconds=line.get("wall_seconds"),
        kept_old_weights=bool(line.get("kept_old_weights")),
        quality=line.get("quality") or None,
        metrics={k: float(v) for k, v in line.items() if k not in STANDARD and is_number(v)},
    )


def _traffic(line: Json) -> Traffic:
    return Traffic(
        round=int(line.get("round") or 0),
        phase=str(line.get("phase") or "train"),
        client=str(line.get("client") or ""),
        direction=str(line.get("direction") or ""),
        parameters=int(line.get("parameters") or 0),
        bytes=int(line.get("bytes") or 0),
        status=str(line.get("status") or "counted"),
        images=int(line.get("images") or 0),
        steps=int(line.get("steps") or 0),
        flops=int(line.get("flops") or 0),
    )


def _partition(path: Path) -> PartitionTable | None:
    if not path.is_file():
        return None
    table = strict_json.read_table(path)
    try:
        return _table(table)
    except (TypeError, ValueError, OverflowError):
        raise ConfigError(str(path), None, "does not say who holds how many images") from None


def _table(table: Mapping[str, Any]) -> PartitionTable:
    clients = tuple(str(c) for c in table.get("clients") or ())
    counts = tuple(tuple(int(n) for n in row) for row in table.get("counts") or ())
    # Classes without a name go by their number, so that every row of the heat map has a label.
    classes = max((len(row) for row in counts), default=0)
    names = [str(n) for n in table.get("class_names") or ()]
    names += [str(k) for k in range(len(names), classes)]
    sizes = tuple(int(n) for n in table.get("sizes") or [sum(row) for row in counts])
    return PartitionTable(clients, tuple(names), counts, sizes, tuple(table.get("holdout_sizes") or ()))


def _samples(folder: Path) -> tuple[tuple[int, Path], ...]:
    """(round, path) of the global model's grids, by round; a number of more than four digits sorts as a number."""
    found = []
    for path in folder.glob("round-*.png") if folder.is_dir() else ():
        match = re.fullmatch(r"round-(\d+)\.png", path.name)
        if match:
            found.append((int(match.group(1)), path))
    return tuple(sorted(found))


def _own_samples(folder: Path) -> tuple[Grid, ...]:
    """Grids of clients' own models, by round and client; a client's name may hold hyphens, a round may not."""
    found = []
    for path in folder.glob("round-*-*.png") if folder.is_dir() else ():
        match = re.fullmatch(r"round-(\d+)-(.+)\.png", path.name)
        if match:
            found.append(Grid(int(match.group(1)), match.group(2), path))
    return tuple(sorted(found, key=lambda g: (g.round, g.client)))
