"""NumPy archives: what comes out, and every bad archive by its message."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from osmotic.config.schema import DataConfig
from osmotic.data import sources
from osmotic.errors import ConfigError

Load = Callable[..., Any]  # the fixture of conftest.py


RNG = np.random.default_rng(0)


def grey(count: int, side: int = 4) -> np.ndarray:
    return RNG.integers(0, 256, (count, side, side), np.uint8)


def test_npz_gives_images_labels_names_and_columns(load: Load, tmp_path: Path) -> None:
    images, hospital = grey(6), np.array(["a", "b"] * 3)
    path = tmp_path / "own.npz"
    np.savez(path, train_images=images, train_labels=np.array([0, 1] * 3, np.uint8), train_hospital=hospital,
             test_images=images[:2], test_labels=np.array([[1], [0]]), class_names=np.array(["cat", "dog"]))  # fmt: skip
    data = load(f"npz:{path}")
    assert (data.train.images[..., 0] == images).all() and data.train.images.dtype == np.uint8
    assert data.train.labels.tolist() == [0, 1] * 3 and data.test.labels.tolist() == [1, 0]
    assert data.class_names == ("cat", "dog") and data.train.columns["hospital"].tolist() == ["a", "b"] * 3
    assert data.name == "own"


def test_npz_without_test_images_gives_a_fifth_of_each_class(load: Load, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", train_images=grey(50), train_labels=np.repeat([0, 1], [40, 10]),
             train_site=np.arange(50))  # fmt: skip
    data = load(f"npz:{tmp_path / 'a.npz'}")
    assert np.bincount(data.test.labels).tolist() == [8, 2]
    assert sorted([*data.train.columns["site"], *data.test.columns["site"]]) == list(range(50))


def test_npz_of_16_bits_keeps_them_as_float(load: Load, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", train_images=np.full((5, 2, 2), 257, np.uint16))
    data = load(f"npz:{tmp_path / 'a.npz'}")
    assert data.train.images.dtype == np.float32 and data.train.labels is None and data.class_names == ()
    assert data.train.images == pytest.approx(1 / 255)  # 257 / 65535


def both(arrays: dict[str, Any]) -> dict[str, Any]:
    return {f"{split}_{name}": array for name, array in arrays.items() for split in ("train", "test")}


def test_npz_of_jpeg_files_is_decoded(load: Load, tmp_path: Path) -> None:
    files = []
    for level in (0, 100, 200):
        buffer = io.BytesIO()
        Image.fromarray(np.full((8, 8, 3), level, np.uint8)).save(buffer, "JPEG")
        files.append(buffer.getvalue())
    arrays: dict[str, Any] = {
        "jpeg": np.frombuffer(b"".join(files), np.uint8),
        "offsets": np.cumsum([0, *map(len, files)]),
        "labels": np.arange(3),
    }
    np.savez(tmp_path / "j.npz", **both(arrays))
    data = load(f"npz:{tmp_path / 'j.npz'}")
    assert data.train.images.mean(axis=(1, 2, 3)).tolist() == pytest.approx([0, 100, 200], abs=1)

    arrays["jpeg"] = np.where(np.arange(len(arrays["jpeg"])) < len(files[0]), arrays["jpeg"], 0)
    np.savez(tmp_path / "j.npz", **both(arrays))
    with pytest.raises(ConfigError, match=r"j.npz\[train_jpeg\] image 1: broken image"):
        load(f"npz:{tmp_path / 'j.npz'}")


OK: dict[str, Any] = {"train_images": np.zeros((6, 4, 4), np.uint8), "train_labels": np.zeros(6, np.int64)}


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"train_labels": OK["train_labels"]}, r"a.npz\[train_images\]: missing array"),
        ({"train_image": OK["train_images"]}, r"\[train_images\]: missing array \(nearest array found: train_image\)"),
        ({"train_label": np.zeros(6)} | OK, r"\[train_label\]: unknown array .nearest valid key: train_labels"),
        ({"train_jpeg": np.zeros(4, np.uint8)}, r"\[train_offsets\]: missing array, though there is train_jpeg"),
        ({"train_jpeg": np.zeros(4, np.uint8), "train_offsets": np.array([0, 5])}, "must rise from 0 to the 4 bytes"),
        (OK | {"train_images": np.zeros((6, 4, 4))}, "= 'float64': must be uint8, uint16, or float32"),
        (OK | {"train_images": np.full((6, 4, 4), 2, np.float32)}, r"float32 images must lie in \[0, 1\]"),
        (OK | {"train_images": np.full((6, 4, 4), np.nan, np.float32)}, r"float32 images must lie in \[0, 1\]"),
        (OK | {"train_images": np.zeros((6, 16), np.uint8)}, r"\[6, 16\]: must be \[N, H, W\]"),
        (OK | {"train_images": np.zeros((0, 4, 4), np.uint8)}, "with N >= 1"),
        (OK | {"train_images": np.zeros((6, 4, 5), np.uint8)}, "= '5x4': images must be square .data.fit = crop or pad"),
        (OK | {"train_images": np.zeros((6, 4, 4, 4), np.uint8)}, "'4 channels': images must have 1 or 3 channels"),
        (OK | {"train_labels": np.zeros(5, int)}, r"\[train_labels\] = 5: there must be one label for each of the 6"),
        (OK | {"train_labels": np.zeros(6)}, "'float64 .6.': labels must be whole numbers"),
        (OK | {"train_labels": np.full(6, -1)}, r"= -1: labels must be 0 to 65535 \(image 0\)"),
        (OK | {"train_labels": np.array([0, 1, 2, 0, 0, 0]), "class_names": np.array(["a", "b"])},
         r"\[train_labels\] = 2: labels must be 0 to 1 \(image 2\)"),
        (OK | {"class_names": np.array([1, 2])}, r"\[class_names\] = 'int64 .2.': must be a list of texts"),
        ({"train_images": OK["train_images"], "class_names": np.array(["a"])}, r"\[train_labels\]: missing array, th"),
        (OK | {"test_images": OK["train_images"]}, r"\[test_labels\]: missing array: both splits must have labels"),
        (OK | {"test_labels": OK["train_labels"]}, r"\[test_images\]: missing array, though there are test_labels"),
        (OK | {"train_site": np.arange(4)}, r"\[train_site\] = .4,.: a column must have one row for each of the 6"),
        (OK | {"train_site": np.array([None] * 6)}, r"\[train_site\]: holds pickled objects, which are never loaded"),
        (OK | {"test_images": np.zeros((2, 5, 5), np.uint8), "test_labels": np.zeros(2, int)},
         "test_images\\] = '5x5': all images must have the same size .*train_images\\] is 4x4"),
    ],
)  # fmt: skip
def test_bad_archives_are_told_in_one_line(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, **arrays)
    with pytest.raises(ConfigError, match=message) as caught:
        sources.load(DataConfig(source=f"npz:{path}", fit="refuse"))
    assert "a.npz" in str(caught.value) and "\n" not in str(caught.value)


def test_missing_and_torn_archives_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone.npz: no such file"):
        sources.describe(DataConfig(source=f"npz:{tmp_path / 'gone.npz'}"))
    path = tmp_path / "torn.npz"
    np.savez(path, **OK)
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(ConfigError, match=r"torn.npz: is not a readable .npz file"):
        sources.describe(DataConfig(source=f"npz:{path}"))
