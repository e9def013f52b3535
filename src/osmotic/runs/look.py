"""What the network will see of a source, before anything runs: a grid of images as they are trained on, and their figures."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from osmotic.config.schema import Config
from osmotic.data import census, partition, sources
from osmotic.data.dataset import Dataset, Split
from osmotic.errors import ConfigError
from osmotic.runs.settle import settle

ROWS, COLUMNS = 12, 12  # of the grid
BINS = 16
SHOWN = 12  # sizes, classes and clients that the text names before it counts the others


def look(config: Config, out: Path) -> dict[str, Any]:
    """Draws the grid, a row per class, and counts what is in the source.

    Args:
        config: `[data]` is read; it need not be one that a network can be trained by.
        out: the PNG file, which must not be there yet.
    Returns: what was found, what becomes of it, its values, classes and clients; "refused" says why it cannot be
        divided, if it cannot.
    Raises: ConfigError for images that a run would refuse, and for an `out` that is taken or lies among the images.
    """
    _check_out(config, out)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the same lines stand in the figures
        dataset = sources.load(config.data)
        config = settle(config, len(dataset.train), len(dataset.class_names))
        held, refused = _divided(config, dataset)
    _draw(dataset, out, config.data.flip)
    train, test = dataset.train, dataset.test
    low, high = census.ends_used(train.images)
    return {
        "source": config.data.source,
        "name": dataset.name,
        "found": {kind: dict(counts) for kind, counts in dataset.found.items()},
        "notes": list(dataset.notes),
        "caution": dataset.caution,
        "settled": {k: list(v) if isinstance(v, tuple) else v for k, v in dataset.settled.items()},
        "train": len(train),
        "test": len(test),
        "image_size": train.images.shape[1],
        "channels": train.images.shape[3],
        "dtype": train.images.dtype.name,
        "bytes": train.images.nbytes + test.images.nbytes,
        "mapped": isinstance(train.images, np.memmap),
        "flip": config.data.flip,
        "values": {"low": low, "high": high, "histogram": _histogram(train.images)},
        "classes": _classes(dataset),
        "partition": config.data.partition,
        "clients": held,
        "refused": refused,
        "grid": str(out),
    }


def fresh_file() -> Path:
    """look.png in the folder one is in, with a number behind it if that is taken."""
    path, number = Path("look.png"), 2
    while os.path.lexists(path):
        path, number = Path(f"look-{number}.png"), number + 1
    return path


def _check_out(config: Config, out: Path) -> None:
    if os.path.lexists(out):
        raise ConfigError("--out", str(out), "is there already")
    kind, _, rest = config.data.source.partition(":")
    # There it would be an image of the next look, and of a run.
    if kind == "folder" and rest and out.resolve().is_relative_to(Path(os.path.expanduser(rest)).resolve()):
        raise ConfigError("--out", str(out), f"must not lie in the folder of the images, {rest}")


def _divided(config: Config, dataset: Dataset) -> tuple[list[dict[str, Any]], str]:
    """A row per client, and why there are none."""
    try:
        parts = partition.divide(config.data, dataset.train)
    except ConfigError as error:
        return [], str(error)
    labels, names = dataset.train.labels, dataset.class_names
    rows = []
    for i, (own, held_out) in enumerate(parts):
        row: dict[str, Any] = {"client": f"client-{i:03d}", "images": len(own), "held_out": len(held_out)}
        if labels is not None:
            row["classes"] = partition.class_counts([own], labels, len(names))[0].tolist()
        rows.append(row)
    return rows, ""


def _classes(dataset: Dataset) -> list[dict[str, Any]]:
    """A row per class: its name, training and test images."""

    def counts(split: Split) -> list[int]:
        assert split.labels is not None
        return np.bincount(split.labels, minlength=len(dataset.class_names)).tolist()

    if dataset.train.labels is None:
        return []
    rows = zip(dataset.class_names, counts(dataset.train), counts(dataset.test), strict=True)
    return [{"name": name, "train": train, "test": test} for name, train, test in rows]


def _histogram(images: np.ndarray) -> list[float]:
    """Shares of the values in BINS equal steps from black to white; they sum to 1."""
    step = max(1, images.size // census.SAMPLED_VALUES)
    some = images[::step]
    counts, _ = np.histogram(some, BINS, (0, 256 if some.dtype == np.uint8 else 1))
    return [round(float(c) / some.size, 6) for c in counts]


def _draw(dataset: Dataset, out: Path, flip: bool) -> None:
    """The grid of training images: a row per class, or rows of any; half of them mirrored where training mirrors."""
    from osmotic.report import pictures

    train, names, rows = dataset.train, None, []
    if train.labels is None:
        some = census.spread(len(train), ROWS * COLUMNS)
        rows = [some[i : i + COLUMNS] for i in range(0, len(some), COLUMNS)]
    else:
        present = [c for c in range(len(dataset.class_names)) if (train.labels == c).any()][:ROWS]
        for label in present:
            of_class = np.flatnonzero(train.labels == label)
            rows.append(of_class[census.spread(len(of_class), COLUMNS)])
        names = [dataset.class_names[c] for c in present]
    side, channels = train.images.shape[1], train.images.shape[3]
    page = np.full((len(rows), COLUMNS, side, side, channels), pictures.PAPER, np.uint8)
    for row, positions in enumerate(rows):
        shown = train.images[positions]
        page[row, : len(positions)] = (
            shown if shown.dtype == np.uint8 else np.rint(shown * 255).astype(np.uint8)
        )
    if flip:
        page[:, 1::2] = page[:, 1::2, :, ::-1]
    columns = COLUMNS if len(rows) > 1 else len(rows[0])
    flat = page[:, :columns].reshape(-1, side, side, channels)
    # As sample grids are drawn: 8 x 8 as 64 x 64, from 17 x 17 on at least 32.
    scale = max(1, 32 // side) * (2 if side <= 16 else 1)
    pictures.save_png(out, pictures.grid(flat, columns, scale=scale, row_labels=names))


# --- the text ---


def text(seen: Mapping[str, Any]) -> str:
    """The figures for a person, given what `look` gave."""
    from osmotic.report.formatting import count, plural, size

    kind = "colour" if seen["channels"] == 3 else "grey"
    depth = "8 bits" if seen["dtype"] == "uint8" else "32-bit floats"
    where = "mapped from a file" if seen["mapped"] else "in memory"
    values = seen["values"]
    lines = [
        f"{seen['name']}: {count(seen['train'])} images to train on, {count(seen['test'])} to test with",
        f"  in the files {_sizes(seen['found'].get('sizes', {}))}",
        f"  become       {seen['image_size']}x{seen['image_size']} {kind}, {depth}, {size(seen['bytes'])} {where}",
        *(f"  note         {note}" for note in seen["notes"]),
        *([f"  warning      {seen['caution']}"] if seen["caution"] else []),
        *(
            ["  note         every other column is drawn mirrored, as half of the images are in training"]
            if seen["flip"]
            else []
        ),
        f"  values       {100 * values['low']:.0f} % to {100 * values['high']:.0f} % of black to white  "
        f"{_bars(values['histogram'])}",
    ]
    if seen["classes"]:
        named = {c["name"]: c["train"] for c in seen["classes"]}
        lines.append(f"  classes      {_most(named, 'classes')}")
    else:
        lines.append("  classes      none: the model draws without being told what")
    if seen["refused"]:
        return "\n".join([*lines, f"  clients      {seen['refused']}", f"  grid         {seen['grid']}"])
    lines.append(f"  clients      {plural(len(seen['clients']), 'client')} by {seen['partition']}")
    lines += [f"    {row}" for row in _table(seen)]
    return "\n".join([*lines, f"  grid         {seen['grid']}"])


def _most(counts: Mapping[str, int], what: str) -> str:
    """ "cat (40), dog (3) and 5 more classes"."""
    shown = ", ".join(f"{name} ({n:,})" for name, n in list(counts.items())[:SHOWN])
    rest = len(counts) - SHOWN
    return f"{shown} and {rest:,} more {what}" if rest > 0 else shown


def _sizes(counts: Mapping[str, int]) -> str:
    """The sizes with their images, or, of many, the smallest and the largest."""
    if len(counts) <= SHOWN:
        return _most(counts, "sizes")
    ordered = sorted(counts, key=lambda size: math.prod(map(int, size.split("x"))))
    return f"{len(counts):,} sizes, {ordered[0]} to {ordered[-1]}"


def _bars(shares: list[float]) -> str:
    """A histogram in one word: black at the left, white at the right."""
    steps = " ▁▂▃▄▅▆▇█"
    most = max(shares) or 1.0
    return "".join(steps[math.ceil(8 * share / most)] for share in shares)


def _table(seen: Mapping[str, Any]) -> list[str]:
    """Clients in rows: images, held out ones where there are any, and images of every class where that fits."""
    clients, names = seen["clients"], [c["name"] for c in seen["classes"]]
    wide = 0 < len(names) <= SHOWN
    held = any(c["held_out"] for c in clients)
    head = ["", "images", *(["held out"] if held else []), *([n[:10] for n in names] if wide else [])]
    rows = [head]
    for c in clients[:SHOWN]:
        own = [c["client"], f"{c['images']:,}", *([f"{c['held_out']:,}"] if held else [])]
        rows.append([*own, *(f"{n:,}" for n in c["classes"])] if wide else own)
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    lines = ["  ".join(cell.rjust(w) for cell, w in zip(row, widths, strict=True)) for row in rows]
    rest = len(clients) - SHOWN
    return [*lines, f"and {rest:,} more"] if rest > 0 else lines
