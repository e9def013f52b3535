"""The split on disk loads again, and never overwrites."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from osmotic.config.schema import DataConfig
from osmotic.data import sources
from osmotic.data import split as split_files
from osmotic.errors import ConfigError

Load = Callable[..., Any]  # the fixture of conftest.py


RNG = np.random.default_rng(0)


def grey(count: int, side: int = 4) -> np.ndarray:
    return RNG.integers(0, 256, (count, side, side), np.uint8)


def test_a_written_split_loads_again_through_npz(load: Load, tmp_path: Path) -> None:
    path = tmp_path / "own.npz"
    np.savez(path, train_images=grey(12), train_labels=np.arange(12) % 3, train_site=np.arange(12),
             test_images=grey(3), test_labels=np.arange(3), class_names=np.array(["a", "b", "c"]))  # fmt: skip
    data = sources.load(DataConfig(source=f"npz:{path}"))
    parts = [np.arange(0, 4), np.arange(6, 11)]
    written = split_files.write(data, parts, [np.array([4, 5]), np.array([11])], tmp_path / "out")
    assert [f.name for f in written] == ["client-000.npz", "client-001.npz"]
    assert sorted((tmp_path / "out").iterdir()) == written  # nothing unfinished is left
    first = load(f"npz:{written[0]}")
    assert (first.train.images == data.train.images[:4]).all() and first.class_names == ("a", "b", "c")
    assert first.test.labels.tolist() == [1, 2] and first.train.columns["site"].tolist() == [0, 1, 2, 3]


def test_unlabelled_float_images_survive_the_split(load: Load, tmp_path: Path) -> None:
    np.savez(tmp_path / "own.npz", train_images=RNG.random((10, 4, 4, 3), np.float32))
    data = sources.load(DataConfig(source=f"npz:{tmp_path / 'own.npz'}"))
    (written,) = split_files.write(data, [np.arange(6)], [np.array([6, 7])], tmp_path / "out")
    again = load(f"npz:{written}")
    assert (again.train.images == data.train.images[:6]).all() and again.train.labels is None


def test_a_file_that_cannot_be_finished_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez(tmp_path / "own.npz", train_images=grey(6), train_labels=np.zeros(6, np.int64))
    data = sources.load(DataConfig(source=f"npz:{tmp_path / 'own.npz'}"))

    def full(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        split_files.write(data, [np.arange(2)], [np.arange(0)], tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_split_is_never_written_over_anything(tmp_path: Path) -> None:
    np.savez(tmp_path / "own.npz", train_images=grey(6), train_labels=np.zeros(6, np.int64))
    data = sources.load(DataConfig(source=f"npz:{tmp_path / 'own.npz'}"))
    with pytest.raises(ConfigError, match=r"--out = .*: must be empty or absent"):
        split_files.write(data, [np.arange(2)], [np.arange(0)], tmp_path)
    with pytest.raises(ConfigError, match=r"--out = .*own.npz': cannot be made a folder"):
        split_files.write(data, [np.arange(2)], [np.arange(0)], tmp_path / "own.npz")
