"""A comparison as CSV: a row per run, and beside it a file with a row per group."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from osmotic.report.compare import Comparison
from osmotic.report.groups import Mean
from osmotic.report.rows import Row, metric_names


def write(comparison: Comparison, path: Path | str) -> tuple[Path, Path]:
    """Writes PATH, a row per run with its group, and PATH with `-groups` before its ending, a row per group; atomically.

    What was not measured is an empty cell. Numbers are written in full, bytes as bytes.
    Returns: the two paths.
    """
    from osmotic.storage.atomic import write_text

    path = Path(path)
    beside = path.with_name(f"{path.stem}-groups{path.suffix}")
    write_text(path, text(runs(comparison)))
    write_text(beside, text(groups(comparison)))
    return path, beside


def runs(comparison: Comparison) -> list[dict[str, Any]]:
    """A row per run, in the order given, the name of its group first."""
    own = metric_names(comparison.rows)
    of = {id(row): group.name for group in comparison.groups for row in group.rows}
    return [
        {"group": of[id(row)], **_flat(row), **{f"metrics.{name}": row.metrics.get(name) for name in own}}
        for row in comparison.rows
    ]


def _flat(row: Row) -> dict[str, Any]:
    told = dataclasses.asdict(row) | {"pieces": " + ".join(row.pieces)}
    del told["metrics"]  # a column each
    return told


def groups(comparison: Comparison) -> list[dict[str, Any]]:
    """A row per group: of each figure its mean, both ends of its 95 % interval and the number of runs.

    Then the same of the paired differences against the first group, where the runs may be compared.
    """
    first, rows = comparison.groups[0], []
    for group in comparison.groups:
        row: dict[str, Any] = {"group": group.name, "runs": len(group.runs), "num_samples": group.samples}
        for key in comparison.figures:
            row |= _cells(key, group.mean(key))
        for key in comparison.figures:
            pairs = comparison.comparable and group is not first
            row |= _cells(f"{key}_minus_first", group.paired(first, key) if pairs else None)
        rows.append(row)
    return rows


def _cells(name: str, found: Mean | None) -> dict[str, Any]:
    low = high = None
    if found is not None and found.half is not None:
        low, high = found.mean - found.half, found.mean + found.half
    n = 0 if found is None else found.n
    return {f"{name}_mean": found and found.mean, f"{name}_low": low, f"{name}_high": high, f"{name}_n": n}


def text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as CSV, by RFC 4180 but for its line ends; null is an empty cell."""
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()
