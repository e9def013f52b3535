"""The tables of README.md, from the rows of study.py.

python experiments/latent/tables.py             # markdown on stdout
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from paired import interval, read  # noqa: E402


def table(rows: Mapping[str, Mapping[str, Any]], autoencoders: Mapping[str, Mapping[str, Any]]) -> str:
    """A line for each seed and space; time and bytes of latents hold those of the autoencoder."""
    lines = [
        "| seed | space | FD | real held-out images | given back by the autoencoder | KID | precision | recall | MB up | MB down | minutes | images seen |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in sorted(rows.items(), key=lambda one: one[0].rpartition("-s")[::-1]):
        kind, _, seed = name.rpartition("-s")
        parts = [row] + ([autoencoders[f"autoencoder-s{seed}"]] if kind == "latent" else [])
        up, down, seconds, seen = (
            sum(part[k] for part in parts) for k in ("bytes_up", "bytes_down", "wall_seconds", "images_seen")
        )
        given_back = "-" if row["fd_given_back"] is None else f"{row['fd_given_back']:.2f}"
        lines.append(
            f"| {seed} | {kind} | {row['fd']:.2f} | {row['fd_real']:.2f} | {given_back} | {row['kid']:.4f} | {row['precision']:.2f} | {row['recall']:.2f} "
            f"| {up / 1e6:.0f} | {down / 1e6:.0f} | {seconds / 60:.0f} | {seen} |"
        )
    seeds = [
        n.rpartition("-s")[2]
        for n in rows
        if n.startswith("latent") and n.replace("latent", "pixels") in rows
    ]
    if seeds:
        logs = [math.log(rows[f"latent-s{s}"]["fd"] / rows[f"pixels-s{s}"]["fd"]) for s in seeds]
        middle, low, high = interval(logs)
        bounds = f" ({low:.2f} to {high:.2f})" if len(logs) > 1 else ""
        lines += ["", f"FD in latents over FD in pixels, {len(logs)} seeds: {middle:.2f}{bounds}."]
    return "\n".join(lines)


if __name__ == "__main__":
    for which, file in (("pilot", "pilot.jsonl"), ("main", "results.jsonl")):
        if found := read(HERE / file):
            print(f"\n### {file}\n\n{table(found, read(HERE / f'autoencoders-{which}.jsonl'))}\n")
