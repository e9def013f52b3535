"""The split on disk: one `.npz` file per client, which `npz:` reads again on the client's own machine."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from osmotic.data.dataset import Dataset
from osmotic.errors import ConfigError
from osmotic.storage import atomic


def write(
    dataset: Dataset, parts: Sequence[np.ndarray], holdouts: Sequence[np.ndarray], out_dir: Path
) -> list[Path]:
    """The files `client-000.npz`, ... in `out_dir`, each complete or absent.

    Arrays: `train_images`, `train_labels`, columns as `train_COLUMN`, `class_names`, and the client's own
    held-out images as `test_images`, `test_labels`; grey images are [N, H, W]. What the client does not have
    is left out.

    Args:
        dataset: images [N, H, W, C]; its test split is not written, as it belongs to no client.
        parts: per client, positions of its training images in `dataset.train`, int64 [n].
        holdouts: per client, positions of its held-out images in `dataset.train`, int64 [k], may be empty.
        out_dir: is made if absent.
    Returns: the files, in the order of the clients.
    Raises: ConfigError if `out_dir` is a file or holds anything; OSError as the file system gives it.
    """
    # Files of an earlier split with more clients would stand beside the new ones and look like part of it.
    if out_dir.is_dir() and any(out_dir.iterdir()):
        raise ConfigError("--out", str(out_dir), "must be empty or absent")
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError("--out", str(out_dir), f"cannot be made a folder ({error.strerror})") from None
    paths = []
    for i, (part, holdout) in enumerate(zip(parts, holdouts, strict=True)):
        arrays = _arrays(dataset, "train", part)
        if len(holdout):
            arrays |= _arrays(dataset, "test", holdout)
        if dataset.class_names:
            arrays["class_names"] = np.array(dataset.class_names)
        # In memory first: zip writes its directory last, and the atomic writer takes a file from front to
        # back.
        packed = io.BytesIO()
        np.savez_compressed(packed, allow_pickle=False, **arrays)
        path = out_dir / f"client-{i:03d}.npz"
        atomic.write_chunks(path, [packed.getbuffer()])
        paths.append(path)
    return paths


def _arrays(dataset: Dataset, prefix: str, rows: np.ndarray) -> dict[str, np.ndarray]:
    """The arrays "PREFIX_..." of the training images at positions `rows`, int64 [n]."""
    split = dataset.train
    images = split.images[rows]
    arrays = {f"{prefix}_images": images[..., 0] if images.shape[3] == 1 else images}
    if split.labels is not None:
        arrays[f"{prefix}_labels"] = split.labels[rows]
    return arrays | {f"{prefix}_{name}": column[rows] for name, column in split.columns.items()}
