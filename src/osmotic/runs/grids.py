"""The pictures of a score: a grid of what was drawn, one of real images in the same rows, and nearest training images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from osmotic.data.dataset import Split
from osmotic.metrics.near_copies import Neighbours
from osmotic.report import pictures
from osmotic.storage.folder import RunDir

GRID_ROWS, GRID_COLUMNS = 10, 10
FEWEST = 4  # images of a class that make a row: fewer say little, and all rows are as long as the shortest
NEAREST = 10  # generated images that are shown beside their neighbours


def save_grid(
    run: RunDir, images: np.ndarray, labels: np.ndarray | None, class_names: list[str], name: str
) -> None:
    """The first images of each class, or the first hundred, as `samples/NAME.png`.

    Args:
        images: uint8 [N, H, W, C].
        labels: int64 [N], or None.
    """
    picked, rows = pick_for_grid(labels, len(images), class_names)
    _save(run, name, images[picked], _columns(picked, rows), rows)


def save_real(
    run: RunDir, reference: Split, labels: np.ndarray | None, count: int, class_names: list[str]
) -> None:
    """Real training images at random, in the rows that a grid of the pool has, as `samples/real.png`; once per run.

    Args:
        reference: the training images, [N, H, W, C].
        labels: of the pool, int64 [count], or None.
        count: images of the pool.
    """
    if (run.samples / "real.png").exists():
        return
    rng = np.random.default_rng(0)
    picked, rows = pick_for_grid(labels, count, class_names)
    if rows is None or reference.labels is None:
        shown = min(len(reference), GRID_ROWS * GRID_COLUMNS)
        picked = rng.permutation(len(reference))[:shown]
        return _save(run, "real", as_uint8(reference.images[picked]), GRID_COLUMNS, None)
    columns = _columns(picked, rows)
    page = np.full((len(rows), columns, *reference.images.shape[1:]), pictures.PAPER, np.uint8)
    for row, name in zip(page, rows, strict=True):
        of_class = rng.permutation(np.flatnonzero(reference.labels == class_names.index(name)))
        # A class of few images leaves the rest of its row white.
        found = as_uint8(reference.images[of_class[:columns]])
        row[: len(found)] = found
    _save(run, "real", page.reshape(-1, *page.shape[2:]), columns, rows)


def save_nearest(
    run: RunDir, images: np.ndarray, found: Neighbours, reference: Split, name: str = "nearest"
) -> None:
    """The generated images closest to a training image, above that by features and that by pixels: `samples/NAME.png`.

    The ten most suspicious ones, not ten at random: a single copy is to be seen.
    Args:
        images: the pool, uint8 [N, H, W, C].
        found: the nearest training images of some of them.
        reference: the training images, [M, H, W, C].
    """
    worst = np.argsort(found.closeness["pixels"], kind="stable")[:NEAREST]
    real = (as_uint8(reference.images[found.nearest[view][worst]]) for view in ("features", "pixels"))
    page = np.concatenate([images[found.generated[worst]], *real])
    _save(run, name, page, len(worst), ["sample", "nearest by features", "nearest by pixels"])


def _save(run: RunDir, name: str, images: np.ndarray, columns: int, row_labels: Sequence[str] | None) -> None:
    # Small images larger: 8 x 8 is drawn as 64 x 64, from 17 x 17 on a pixel is one pixel.
    scale = max(1, 32 // images.shape[1]) * (2 if images.shape[1] <= 16 else 1)
    page = pictures.grid(images, columns, scale=scale, row_labels=row_labels)
    pictures.save_png(run.samples / f"{name}.png", page)


def as_uint8(images: np.ndarray) -> np.ndarray:
    """Images [N, H, W, C] as uint8, as own metrics are promised; 16-bit sources hold floats in [0, 1]."""
    return images if images.dtype == np.uint8 else np.rint(images * 255).astype(np.uint8)


def pick_for_grid(
    labels: np.ndarray | None, count: int, class_names: list[str]
) -> tuple[np.ndarray, list[str] | None]:
    """Positions [shown] of the images to show, row by row, and the rows' names: a row per class, or None.

    The first GRID_ROWS classes that have FEWEST images or more, GRID_COLUMNS of each, or fewer where one has fewer.
    Args:
        labels: int64 [count], or None.
    """
    if labels is None:
        return np.arange(min(count, GRID_ROWS * GRID_COLUMNS)), None
    there = {c: n for c in range(len(class_names)) if (n := int((labels == c).sum())) >= FEWEST}
    shown = list(there)[:GRID_ROWS]
    if not shown:
        return np.arange(min(count, GRID_ROWS * GRID_COLUMNS)), None
    # Rows of one length: a row with gaps would read as a class that the model cannot draw.
    columns = min(GRID_COLUMNS, *(there[c] for c in shown))
    rows = [np.flatnonzero(labels == c)[:columns] for c in shown]
    return np.concatenate(rows), [class_names[c] for c in shown]


def _columns(picked: np.ndarray, rows: Sequence[str] | None) -> int:
    return len(picked) // len(rows) if rows else GRID_COLUMNS
