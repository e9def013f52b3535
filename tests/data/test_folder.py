"""Image folders: what comes out, and every bad folder by its message."""

from __future__ import annotations

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


def save(path: Path, pixels: np.ndarray, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


def class_folder(root: Path, **counts: int) -> Path:
    for name, count in counts.items():
        for i in range(count):
            save(root / name / f"{i}.png", np.full((4, 4), 10 * i, np.uint8))
    return root


def test_sub_folders_are_classes_and_split_by_class(load: Load, tmp_path: Path) -> None:
    class_folder(tmp_path, cat=10, dog=5)
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / ".cache").mkdir()
    data = load(f"folder:{tmp_path}")
    assert data.class_names == ("cat", "dog") and data.name == tmp_path.name
    assert np.bincount(data.train.labels).tolist() == [8, 4]
    assert np.bincount(data.test.labels).tolist() == [2, 1]
    assert data.train.images.shape == (12, 4, 4, 1) and data.train.images.dtype == np.uint8


def test_train_and_test_folders_are_the_splits(load: Load, tmp_path: Path) -> None:
    class_folder(tmp_path / "train", cat=3, dog=2)
    class_folder(tmp_path / "test", dog=1)
    data = load(f"folder:{tmp_path}")
    assert data.train.labels.tolist() == [0, 0, 0, 1, 1] and data.test.labels.tolist() == [1]


def test_a_train_folder_alone_is_split_and_flat_splits_are_unlabelled(load: Load, tmp_path: Path) -> None:
    class_folder(tmp_path / "a" / "train", cat=5, dog=5)
    assert len(load(f"folder:{tmp_path / 'a'}").train) == 8
    class_folder(tmp_path / "b", train=4, test=2)
    data = load(f"folder:{tmp_path / 'b'}")
    assert data.train.labels is None and (len(data.train), len(data.test)) == (4, 2)


def test_a_flat_folder_is_unlabelled(load: Load, tmp_path: Path) -> None:
    for i in range(5):
        save(tmp_path / f"{i}.JPG", np.zeros((4, 4, 3), np.uint8))
    data = load(f"folder:{tmp_path}")
    assert data.train.labels is None and data.class_names == () and data.train.images.shape == (4, 4, 4, 3)


@pytest.mark.parametrize("suffix", ["png", "tif", "tiff"])
def test_16_bit_grey_files_keep_their_depth(load: Load, tmp_path: Path, suffix: str) -> None:
    for i in range(5):
        save(tmp_path / f"{i}.{suffix}", np.array([[0, 1], [256, 65535]], np.uint16))
    data = load(f"folder:{tmp_path}")
    assert data.train.images.dtype == np.float32
    # a difference of 1 in 65535 would vanish in 8 bits
    assert data.train.images[0, ..., 0].ravel().tolist() == pytest.approx([0, 1 / 65535, 256 / 65535, 1])


@pytest.mark.parametrize("suffix", ["bmp", "webp", "png", "tif"])
def test_colour_files_of_every_lossless_kind_come_back_as_written(
    load: Load, tmp_path: Path, suffix: str
) -> None:
    pixels = RNG.integers(0, 256, (4, 4, 3), np.uint8)
    for i in range(2):
        save(tmp_path / f"{i}.{suffix}", pixels, **({"lossless": True} if suffix == "webp" else {}))
    assert (load(f"folder:{tmp_path}").train.images[0] == pixels).all()


def test_mixed_sizes_and_channels_are_taken_once_the_user_sets_them(load: Load, tmp_path: Path) -> None:
    save(tmp_path / "0.png", np.full((8, 8), 100, np.uint8))
    save(tmp_path / "1.png", np.full((4, 4, 3), 100, np.uint8))
    data = load(f"folder:{tmp_path}", image_size=4, channels=3)
    assert data.train.images.shape == (1, 4, 4, 3) and (data.train.images == 100).all()


def broken(folder: Path) -> None:
    content = (folder / "cat" / "0.png").read_bytes()
    (folder / "cat" / "1.png").write_bytes(content[:40] + b"\0" * 20)


BAD_FOLDERS = {
    "broken": (broken, r"cat/1.png: broken image, cannot be decoded"),
    "text": (lambda d: (d / "cat" / "1.png").write_text("hello"), r"cat/1.png: broken image.*not an image"),
    "void": (lambda d: (d / "cat" / "1.png").write_bytes(b""), r"cat/1.png: broken image"),
    "empty class": (lambda d: (d / "eel").mkdir(), r"eel: class folder holds no images \(png, jpg"),
    "beside": (lambda d: save(d / "0.png", grey(1)[0]), r"0.png: images must lie inside class folders"),
    "deeper": (lambda d: class_folder(d / "cat", young=1), r"cat/young: a class folder must hold images"),
    "size": (lambda d: save(d / "dog" / "9.png", grey(1, 6)[0]),
             r"dog/9.png = '6x6': all images must have the same size .*image_size resizes.*cat/0.png is 4x4"),
    "square": (lambda d: save(d / "cat" / "1.png", np.zeros((4, 6), np.uint8)),
               r"cat/1.png = '6x4': images must be square"),
    "lab": (lambda d: Image.new("LAB", (4, 4)).save(d / "cat" / "1.tif"), r"1.tif = 'LAB': images must be grey, RGB, CM"),
    "float": (lambda d: Image.new("F", (4, 4)).save(d / "cat" / "1.tif"),
              r"1.tif: of 32-bit values it must be said which are black and white: data.value_range = \[low, high\]"),
    "frames": (lambda d: Image.new("L", (4, 4)).save(
        d / "cat" / "1.tif", save_all=True, append_images=[Image.new("L", (4, 4))]),
               r"cat/1.tif = '2 frames': a file must hold one image"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_FOLDERS)
def test_bad_folders_name_the_file_and_the_rule(tmp_path: Path, case: str) -> None:
    class_folder(tmp_path, cat=4, dog=4)
    spoil, message = BAD_FOLDERS[case]
    spoil(tmp_path)
    with pytest.raises(ConfigError, match=message) as caught:
        sources.load(DataConfig(source=f"folder:{tmp_path}", fit="refuse"))
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_images_that_are_not_square_are_refused_where_the_key_says_so_even_when_resized(
    tmp_path: Path,
) -> None:
    save(tmp_path / "0.png", np.zeros((4, 6), np.uint8))
    save(tmp_path / "1.png", np.zeros((4, 6), np.uint8))
    for look in (sources.load, sources.describe):
        with pytest.raises(
            ConfigError, match=r"0.png = '6x4': images must be square|1.png = '6x4': images must"
        ):
            look(DataConfig(source=f"folder:{tmp_path}", image_size=4, fit="refuse"))


def test_files_of_other_kinds_are_left_alone_and_told_of(tmp_path: Path) -> None:
    class_folder(tmp_path, cat=2, dog=2)
    for name in ("a.HEIC", "b.heic", "IM0001", "x.\x1b[31m", ".hidden.heic"):
        (tmp_path / "cat" / name).write_bytes(b"no image")
    cfg = DataConfig(source=f"folder:{tmp_path}")
    note = "left alone, as of no kind that is read: 2 of .heic, 2 of no ending"
    assert sources.load(cfg).notes == sources.describe(cfg).notes == (note,)


def test_slices_without_an_ending_are_told_of_where_a_folder_seems_empty(tmp_path: Path) -> None:
    (tmp_path / "IM0001").write_bytes(b"DICM")
    with pytest.raises(
        ConfigError, match=r"holds no images \(png.*dcm\); left alone, .* read: 1 of no ending"
    ):
        sources.load(DataConfig(source=f"folder:{tmp_path}"))


def test_missing_empty_and_tiny_folders_are_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="gone: no such folder"):
        sources.load(DataConfig(source=f"folder:{tmp_path / 'gone'}"))
    with pytest.raises(ConfigError, match="empty folder: holds no images"):
        sources.load(DataConfig(source=f"folder:{tmp_path}"))
    save(tmp_path / "0.png", np.zeros((4, 4), np.uint8))
    with pytest.raises(ConfigError, match=r"0.png: is not a folder"):
        sources.load(DataConfig(source=f"folder:{tmp_path / '0.png'}"))
    with pytest.raises(ConfigError, match="must hold 2 images or more"):
        sources.describe(DataConfig(source=f"folder:{tmp_path}"))


def test_test_folders_must_fit_the_training_classes(tmp_path: Path) -> None:
    class_folder(tmp_path / "train", cat=2, dog=2)
    class_folder(tmp_path / "test", dgo=1)
    with pytest.raises(ConfigError, match=r"test/dgo: is no class of the training .*nearest valid key: dog"):
        sources.load(DataConfig(source=f"folder:{tmp_path}"))
    (tmp_path / "test" / "dgo" / "0.png").rename(tmp_path / "test" / "0.png")
    (tmp_path / "test" / "dgo").rmdir()
    with pytest.raises(ConfigError, match=r"test: must hold class folders"):
        sources.load(DataConfig(source=f"folder:{tmp_path}"))
