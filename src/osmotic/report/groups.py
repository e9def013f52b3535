"""Runs that differ in nothing but their seeds, as one group: mean, interval, and differences between groups seed by seed.

Intervals are 95 % intervals of a mean by Student's t. Whether two groups differ is for the paired differences to say:
runs of one seed share their split and their noise, and that part of the spread cancels out in the difference. Two
intervals that overlap say nothing of the kind.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from osmotic.report import formatting
from osmotic.report.reading import Run

if TYPE_CHECKING:
    from osmotic.report.rows import Row

# What may differ within a group: the seeds, and what no score can depend on.
SEEDS = ("seed", "data.partition_seed")
WITHOUT_EFFECT = ("track.", "checkpoint.")
# Figures of a run, in the order of the tables: key -> what it is called; {fd} is FD or FID.
FIGURES = {
    "fd_ranked": "{fd}",
    "fd_held_out": "{fd} against held-out images",
    "fd_own": "{fd} on own images",
    "fd_personal": "{fd} of own models beside",
    "fd_personal_own": "{fd} of own models beside on own images",
    "kid_ranked": "KID",
    "bytes_up": "up",
    "bytes_down": "down",
}


@dataclass(frozen=True)
class Mean:
    """A mean over runs, or over differences of runs; `half` is the half width of its 95 % interval, None of one value."""

    mean: float
    half: float | None
    n: int

    def told(self, bytes_: bool = False, sign: bool = False) -> str:
        """`6.300 ± 0.21` or `6.300` of one; bytes in their units, and differences with their sign."""
        write = formatting.size if bytes_ else formatting.figure
        text = ("+" if sign and self.mean > 0 else "") + write(self.mean)
        half = formatting.size(self.half) if bytes_ else formatting.figure(self.half, 2)
        return text if self.half is None else f"{text} ± {half}"


@dataclass(frozen=True)
class Group:
    """Runs of one configuration, in the order given."""

    name: str
    runs: tuple[Run, ...]
    rows: tuple[Row, ...]

    @property
    def seeds(self) -> tuple[tuple[Any, Any], ...]:
        """(seed, seed of the split) of each run."""
        return tuple(seeds_of(run) for run in self.runs)

    @property
    def samples(self) -> int | None:
        """Generated images that each run was scored on; None where they differ, or nothing was scored."""
        counts = {row.num_samples for row in self.rows}
        return counts.pop() if len(counts) == 1 else None

    def mean(self, key: str) -> Mean | None:
        """Of one of FIGURES or of `metrics.NAME`, over the seeds that have it; None where none has.

        Of runs that repeat their seeds the first counts: a repetition is no further draw.
        """
        return mean_of(list(self._by_seeds(key).values()))

    def paired(self, other: Group, key: str) -> Mean | None:
        """Mean of this group's figure minus the other's, over the seeds that both have; None where there are none.

        Of runs that repeat their seeds the first counts.
        """
        mine, theirs = self._by_seeds(key), other._by_seeds(key)
        return mean_of([mine[s] - theirs[s] for s in mine if s in theirs])

    def _by_seeds(self, key: str) -> dict[tuple[Any, Any], float]:
        found: dict[tuple[Any, Any], float] = {}
        for seeds, row in zip(self.seeds, self.rows, strict=True):
            if (value := row.figure(key)) is not None:
                found.setdefault(seeds, value)
        return found

    def as_dict(self, first: Group | None, figures: Collection[str] = tuple(FIGURES)) -> dict[str, Any]:
        """For `--json`: means of `figures`, and paired differences against the first group where they may be made."""

        def told(found: Mean | None) -> dict[str, Any] | None:
            return None if found is None else {"mean": found.mean, "half_width": found.half, "n": found.n}

        return {
            "name": self.name,
            "runs": [row.name for row in self.rows],
            "seeds": [seed for seed, _ in self.seeds],
            "n": len(self.runs),
            "num_samples": self.samples,
            **{key: told(self.mean(key)) for key in figures},
            "minus_first": None
            if first is None or first is self
            else {key: told(self.paired(first, key)) for key in figures},
        }


def mean_of(values: Sequence[float]) -> Mean | None:
    """Mean and half width of its 95 % interval, t(0.975, n - 1) s / sqrt(n); no interval of one value, None of none."""
    n = len(values)
    if n == 0:
        return None
    # Of exact fractions: equal figures then have a spread of 0, and not of a rounding.
    mean = statistics.mean(map(float, values))
    if n == 1:
        return Mean(mean, None, 1)
    from scipy.stats import t

    deviation = statistics.stdev(map(float, values))
    return Mean(mean, float(t.ppf(0.975, n - 1)) * deviation / math.sqrt(n), n)


def seeds_of(run: Run) -> tuple[Any, Any]:
    """(seed of the run, seed of the split)."""
    return run.summary.get("seed"), run.setting("data.partition_seed")


def group(runs: Sequence[Run], rows: Sequence[Row]) -> tuple[Group, ...]:
    """The runs by configuration, groups and runs in the order given.

    A folder without a configuration is a group of its own: it cannot be known what it differs in.
    """
    settings = [flat(run.config) for run in runs]
    members: dict[str, list[int]] = {}
    for place, found in enumerate(settings):
        same = {k: v for k, v in found.items() if k not in SEEDS and not k.startswith(WITHOUT_EFFECT)}
        kind = [rows[place].preset, rows[place].method, same or place]
        members.setdefault(json.dumps(kind, sort_keys=True, default=str), []).append(place)
    firsts = [places[0] for places in members.values()]
    names = _names([settings[k] for k in firsts], [rows[k] for k in firsts])
    return tuple(
        Group(name, tuple(runs[k] for k in places), tuple(rows[k] for k in places))
        for name, places in zip(names, members.values(), strict=True)
    )


def _names(settings: Sequence[Mapping[str, Any]], rows: Sequence[Row]) -> list[str]:
    """A name per group: its preset, or with the keys that it differs in from others of that preset, else its first run."""
    presets = [str(row.preset or row.method or row.name) for row in rows]
    names = []
    for preset, found, row in zip(presets, settings, rows, strict=True):
        alike = [s for p, s in zip(presets, settings, strict=True) if p == preset]
        keys = sorted({k for s in alike for k in s if any(s.get(k) != o.get(k) for o in alike)})
        keys = [k for k in keys if k not in SEEDS and not k.startswith(WITHOUT_EFFECT)]
        told = ", ".join(f"{k.rpartition('.')[2]} {found.get(k)}" for k in keys[:3])
        names.append(f"{preset}, {told}" if told else preset if len(alike) == 1 else row.name)
    return [name if names.count(name) == 1 else row.name for name, row in zip(names, rows, strict=True)]


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"data": {"clients": 3}}` as `{"data.clients": 3}`."""
    out: dict[str, Any] = {}
    for key, value in config.items():
        out |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return out
