"""What tables of studies share: the rows of a file, and paired ratios over seeds with their intervals."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Rows = dict[str, dict[str, Any]]
# Half-width of a 95 % interval of a mean, in standard errors, by number of values (Student's t).
T95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571}


def read(path: Path) -> Rows:
    """Rows by case; none where the study has not begun."""
    lines = path.read_text().splitlines() if path.exists() else []
    return {row["case"]: row for row in map(json.loads, lines)}


def interval(logs: Sequence[float]) -> tuple[float, float, float]:
    """Geometric mean of paired ratios and its 95 % interval, given their logarithms; without bounds for one alone."""
    mean = statistics.fmean(logs)
    half = math.inf if len(logs) < 2 else T95[len(logs)] * statistics.stdev(logs) / math.sqrt(len(logs))
    return math.exp(mean), math.exp(mean - half), math.exp(mean + half) if half < math.inf else math.inf
