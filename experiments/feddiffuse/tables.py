"""Figures in words: means with 95 % intervals, and the tables of README.md from results.jsonl.

python experiments/feddiffuse/tables.py
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from cases import METHODS, PARTITIONS, SEEDS
from scipy.stats import t as student
from scipy.stats import ttest_1samp

Rows = dict[str, dict[str, Any]]
# Table 2 of arXiv 2406.12575, K = 5: FID of another network, size and encoder, so only the order can be compared.
PAPER = {
    "fedavg": {"iid": "39 +- 4", "l-skew": "43 +- 4", "q-skew": "23 +- 5"},
    "usplit": {"iid": "41 +- 5", "l-skew": "61 +- 5", "q-skew": "39 +- 9"},
    "ulatdec": {"iid": "53 +- 15", "l-skew": "72 +- 30", "q-skew": "122 +- 138"},
    "udec": {"iid": "51 +- 15", "l-skew": "75 +- 31", "q-skew": "139 +- 135"},
}


def interval(values: Sequence[float]) -> str:
    """Mean and half-width of its 95 % interval (Student's t); "" without values, no interval for a single one."""
    if not values:
        return ""
    if len(values) == 1:
        return f"{values[0]:.2f}"
    half = student.ppf(0.975, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return f"{statistics.mean(values):.2f} +- {half:.2f}"


def read(path: Path) -> Rows:
    """Rows by case."""
    return {r["case"]: r for r in map(json.loads, path.read_text().splitlines())}


def of(rows: Rows, start: str) -> list[dict[str, Any]]:
    """The rows of all seeds of a case such as `udec-iid`."""
    return [rows[f"{start}-{seed}"] for seed in SEEDS if f"{start}-{seed}" in rows]


def fd(
    row: dict[str, Any], statistic: str = "mean", stage: str = "before", key: str = "fd_all"
) -> float | None:
    """FD of the global model, or over clients' own models; None where that stage was not scored."""
    scores = row["scores"] if stage == "before" else row["scores"]["after"]
    return None if scores is None else scores[statistic][key]


def cell(rows: Iterable[dict[str, Any]], *which: str) -> str:
    """Mean and interval over seeds; a dash where nothing was scored."""
    values = [v for v in (fd(r, *which) for r in rows) if v is not None]
    return interval(values) or "—"


def table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *lines)) + "\n"


def order(rows: Rows) -> str:
    """The main table: FD against all data, before the last average as in the paper, beside the paper's own."""
    lines = [
        [m, *(c for p in PARTITIONS for c in (cell(of(rows, f"{m}-{p}")), PAPER.get(m, {}).get(p, "—")))]
        for m in (*METHODS, "local")
    ]
    lines.append(["central", cell(of(rows, "central")), "—", *["as iid", "—"] * 2])
    head = ["method", *(c for p in PARTITIONS for c in (p, f"paper, {p}"))]
    return table(head, lines)


def falling(rows: Rows) -> str:
    """l-skew with a learning rate that falls to 0: before and after the last average, and each less that of fedavg."""
    lines = []
    for m in METHODS:
        own, base = of(rows, f"cosine+{m}-l-skew"), of(rows, "cosine+fedavg-l-skew")
        line = [m, *(cell(own, "mean", stage) for stage in ("before", "after"))]
        for stage in ("before", "after"):
            both = [(fd(a, "mean", stage), fd(b)) for a, b in zip(own, base, strict=False)]
            line.append(interval([a - b for a, b in both if a is not None and b is not None]) or "—")
        lines.append(line)
    return table(["method", "before", "after", "before, less fedavg", "after, less fedavg"], lines)


def personal(rows: Rows) -> str:
    """What the mean before the last average hides: after it, weighted by size, the worst client, against own data."""
    lines = []
    for p in PARTITIONS:
        for m in ("fedavg", "ulatdec", "udec", "udec+encoder5", "local"):
            found = of(rows, f"{m}-{p}")
            if not found:
                continue
            stages = ("before", "after") if found[0]["scores"]["after"] else ("before",)
            lines += [
                [
                    p,
                    m,
                    s if len(stages) > 1 else "—",
                    *(cell(found, w, s) for w in ("mean", "weighted", "worst")),
                    cell(found, "mean", s, "fd_own"),
                ]
                for s in stages
            ]
    head = ["split", "method", "last average", "mean", "by size", "worst", "mean, own data"]
    return table(head, lines)


def clients(rows: Rows) -> str:
    """Splits with a client of 13 images, client by client: FD against all data, as trained / after the last average."""
    lines = []
    for seed in SEEDS:
        own = {m: rows.get(f"tiny+{m}-{seed}") for m in ("fedavg", "local", "udec", "udec+encoder5")}
        done = {m: row for m, row in own.items() if row is not None}
        if len(done) < len(own):
            continue
        sizes = done["local"]["client_sizes"]
        for k in sorted(range(len(sizes)), key=lambda k: sizes[k]):
            cells = [
                " / ".join(f"{c['fd_all']:.1f}" for c in row["per_client"] if c["client_id"] == k)
                for row in done.values()
            ]
            lines.append([str(seed), str(sizes[k]), *cells])
    return table(["seed", "images", "fedavg, one model", "local", "udec", "udec, encoder every 5"], lines)


def differences(rows: Rows) -> str:
    """FD minus that of fedavg with the same seed, split and first weights: what is shared by all methods falls out."""
    lines = []
    for stage in ("before", "after"):
        for m in ("usplit", "ulatdec", "udec", "local"):
            line = [m, stage]
            for p in PARTITIONS:
                pairs = zip(of(rows, f"{m}-{p}"), of(rows, f"fedavg-{p}"), strict=False)
                both = [(fd(a, "mean", stage), fd(b)) for a, b in pairs]
                line.append(interval([a - b for a, b in both if a is not None and b is not None]))
            if any(line[2:]):
                lines.append(line)
    return table(["method", "last average", *PARTITIONS], lines)


def paired(rows: Rows) -> str:
    """What the sentences of README.md rest on: differences of runs of the same seed, with a paired t test."""
    found: dict[str, list[float]] = {
        f"{a} less {b}, all splits": [d for p in PARTITIONS for d in _less(rows, f"{a}-{p}", f"{b}-{p}")]
        for a, b in (("usplit", "fedavg"), ("udec", "ulatdec"))
    }
    for m in METHODS:
        found[f"{m}, q-skew less iid, 15 rounds"] = _less(rows, f"{m}-q-skew", f"{m}-iid")
        found[f"{m}, q-skew after 10 rounds less iid after 15"] = [
            _after(a, 10) - _after(b, 15)
            for a, b in zip(of(rows, f"{m}-q-skew"), of(rows, f"{m}-iid"), strict=True)
        ]
    for p in PARTITIONS:
        for stage in ("before", "after"):
            found[f"udec {stage} less local, own images, {p}"] = [
                own - alone
                for a, b in zip(of(rows, f"udec-{p}"), of(rows, f"local-{p}"), strict=True)
                if (own := fd(a, "mean", stage, "fd_own")) is not None
                and (alone := fd(b, "mean", "before", "fd_own")) is not None
            ]
    lines = [
        [what, interval(less), str(len(less)), f"{ttest_1samp(less, 0).pvalue:.3f}"]
        for what, less in found.items()
    ]
    return table(["difference in FD", "mean", "pairs", "p"], lines)


def _less(rows: Rows, one: str, other: str) -> list[float]:
    """FD against all data of one case less that of another, seed by seed."""
    pairs = ((fd(a), fd(b)) for a, b in zip(of(rows, one), of(rows, other), strict=True))
    return [a - b for a, b in pairs if a is not None and b is not None]


def _after(row: dict[str, Any], rounds: int) -> float:
    """FD against all data after so many rounds."""
    return next(float(c["mean_fd_all"]) for c in row["curve"] if c["round"] == rounds)


def variants(rows: Rows) -> str:
    """What goes beyond the paper, each below the method it starts from; "less" is the paired difference to that."""
    pairs = [
        ("usplit", "usplit+freeze", "l-skew"),
        ("udec", "udec+encoder5", "l-skew"),
        ("udec", "udec+encoder5", "q-skew"),
        ("udec", "udec+int8", "l-skew"),
    ]
    lines = []
    for plain, variant, p in pairs:
        base = of(rows, f"{plain}-{p}")
        for m in (plain, variant):
            own = of(rows, f"{m}-{p}")
            if not own:
                continue
            # Of all seeds, as the bytes: with USplit they depend on the draw.
            weights = statistics.mean(r["parameters_up"] + r["parameters_down"] for r in own) / 1e6
            size = statistics.mean(r["bytes_up"] + r["bytes_down"] for r in own) / 1e6
            line = [p, m]
            for stage in ("before", "after"):
                line.append(cell(own, "mean", stage))
                both = [(fd(a, "mean", stage), fd(b, "mean", stage)) for a, b in zip(own, base, strict=False)]
                less = [a - b for a, b in both if a is not None and b is not None]
                line.append(interval(less) if m != plain and less else "—")
            lines.append([*line, f"{weights:.2f}", f"{size:.1f}"])
    head = ["split", "method", "FD", "less", "FD after the last average", "less", "weights, millions", "MB"]
    return table(head, lines)


def hashes(rows: Rows) -> str:
    """Every run: score, steps and the hash of its weights."""
    lines = [
        [
            case,
            "—" if r["fd"] is None else f"{r['fd']:.2f}",
            f"{fd(r):.2f}",
            str(r["images_seen"]),
            str(r["client_steps"]),
            r["weights_sha256"][:12],
        ]
        for case, r in rows.items()
    ]
    return table(["run", "FD, global", "FD, mean over clients", "images seen", "steps", "weights"], lines)


def network(rows: Rows) -> str:
    """The paper's own network at 16x16, one seed."""
    lines = []
    for m in METHODS:
        row = rows.get(f"convnext16-{m}-l-skew-0")
        if row:
            after = fd(row, "mean", "after")
            millions = (row["parameters_up"] + row["parameters_down"]) / 1e6
            lines.append([m, f"{fd(row):.2f}", "—" if after is None else f"{after:.2f}", f"{millions:.2f}"])
    return table(["method", "FD", "FD after the last average", "weights, millions"], lines)


if __name__ == "__main__":
    found = read(Path(__file__).with_name("results.jsonl"))
    floors = [
        r["fd_floor"] for r in found.values() if r["fd_floor"] is not None and "convnext" not in r["case"]
    ]
    print(f"{len(found)} runs; floor of held-out real images {min(floors):.2f} to {max(floors):.2f}\n")
    for part in (
        order,
        differences,
        paired,
        falling,
        personal,
        clients,
        variants,
        network,
        hashes,
    ):
        print(f"{part.__doc__}\n\n{part(found)}")
