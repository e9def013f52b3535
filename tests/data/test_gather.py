"""Parts of splits put together, in memory and on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from osmotic.data import gather as room
from osmotic.data.dataset import Split
from osmotic.data.gather import gather

A = Split(np.arange(40, dtype=np.uint8).reshape(10, 2, 2, 1), np.arange(10))
B = Split(np.arange(100, 112, dtype=np.uint8).reshape(3, 2, 2, 1), np.array([7, 8, 9]))


def test_parts_follow_one_another_with_their_labels() -> None:
    found = gather([(B, np.array([2, 0])), (A, np.array([5]))])
    assert found.images[:, 0, 0, 0].tolist() == [108, 100, 20]
    assert found.labels is not None and found.labels.tolist() == [9, 7, 5]
    assert not isinstance(found.images, np.memmap)


def test_one_part_without_labels_leaves_all_without() -> None:
    assert gather([(A, np.arange(2)), (Split(B.images, None), np.arange(3))]).labels is None


def test_what_is_mapped_stays_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(tmp_path / "a.npy", A.images)
    monkeypatch.setattr(room, "_ROWS", 3)
    mapped = Split(np.load(tmp_path / "a.npy", mmap_mode="r"), A.labels)
    found = gather([(B, np.array([1])), (mapped, np.array([0, 9, 4, 6]))])
    assert isinstance(found.images, np.memmap)
    assert found.images[:, 0, 0, 0].tolist() == [104, 0, 36, 16, 24]


def test_no_images_are_no_file() -> None:
    assert gather([(A, np.arange(0))]).images.shape == (0, 2, 2, 1)
