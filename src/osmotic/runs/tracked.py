"""What trackers are told of a phase: the curves of its line of metrics.jsonl by name, and nothing that never changes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from osmotic.report import crowds
from osmotic.report.formatting import is_number

# Of a line: no curves. Bytes and losses have names of their own below.
NO_CURVES = {"round", "bytes_up", "bytes_down"}
# Of the scores: the same in every round, so that each would be a flat chart between those that tell something.
CONDITIONS = {
    *("encoder_accuracy", "num_samples", "guidance", "nfe", "images", "samples"),
    *("fd_floor", "floor", "floor_samples", "expected", "held_out", "clients", "clients_own"),
}


def curves(
    line: Mapping[str, Any], before: Mapping[str, Any] | None = None, clients: int = 0
) -> dict[str, float]:
    """The figures of one phase by name, of which a tracker makes a curve each; what was not measured is left out.

    Names of a group share what stands before the slash: `client_loss/NAME`, `bytes_up/round`, `bytes_up/total`,
    `quality/SCORE`, `quality/mean/SCORE`. Of more than a hundred clients, `client_loss/quantile_0.25` and its like: thousands
    of curves with a point now and then tell nobody anything.

    Args:
        line: of metrics.jsonl.
        before: the line of the phase before, from which the bytes of this one are counted; None where there is none.
        clients: of the run.
    """
    found = {k: v for k, v in line.items() if k not in NO_CURVES}
    losses = line.get("client_loss") or {}
    if clients > crowds.MOST:
        names = [f"quantile_{share:g}" for share in crowds.SHARES]
        losses = dict(zip(names, crowds.quantiles(losses.values()), strict=False))
    found["client_loss"] = losses
    for way in ("bytes_up", "bytes_down"):
        total, earlier = line.get(way), 0 if before is None else before.get(way)
        if total is not None:
            found[way] = {"total": total, "round": None if earlier is None else total - earlier}
    return flat(found)


def flat(entry: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """The numbers of nested mappings, names joined by slashes; conditions of the scores are left out."""
    out: dict[str, float] = {}
    for name, value in entry.items():
        if isinstance(value, Mapping):
            out |= flat(value, f"{prefix}{name}/")
        elif is_number(value) and not (prefix.startswith("quality/") and name in CONDITIONS):
            out[prefix + name] = float(value)
    return out


def last_line(metrics: Path) -> dict[str, Any] | None:
    """The last line of metrics.jsonl; None where there is none. A resumed run has cut it back to its checkpoint before."""
    lines = metrics.read_text(encoding="utf-8").splitlines() if metrics.is_file() else []
    return json.loads(lines[-1]) if lines else None
