"""Grids: where every pixel goes, worked out by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from osmotic.report import pictures


def test_grid_places_pixels_in_scaled_squares_with_gaps() -> None:
    # Three 2x1 images, 2 columns, scale 2, gap 1: rows = 2, height = 2 * (2*2+1) + 1 = 11, width = 2 * (1*2+1) + 1 = 7.
    images = np.array([[[[10]], [[20]]], [[[30]], [[40]]], [[[50]], [[60]]]], np.uint8)
    page = pictures.grid(images, columns=2, scale=2, gap=1)
    assert page.shape == (11, 7, 1)
    # First image at y 1..4, x 1..2: its two pixels are 2x2 squares.
    assert page[1:5, 1:3, 0].tolist() == [[10, 10], [10, 10], [20, 20], [20, 20]]
    assert page[1, 4, 0] == 30 and page[4, 5, 0] == 40  # second image, x 4..5
    assert page[6, 1, 0] == 50 and page[9, 2, 0] == 60  # third image, y 6..9
    assert (page[6:10, 4:6] == 255).all()  # no fourth image: white
    assert (page[0] == 255).all() and (page[5] == 255).all() and (page[:, 3] == 255).all()  # gaps


def test_scale_one_without_gap_is_the_images_themselves() -> None:
    images = np.arange(2 * 3 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3, 3)
    assert (pictures.grid(images, columns=2, scale=1, gap=0) == np.concatenate(list(images), axis=1)).all()


def test_row_labels_add_a_margin_and_leave_the_images_where_they_were() -> None:
    images = np.zeros((4, 8, 8, 3), np.uint8)
    plain = pictures.grid(images, columns=2, scale=4)
    labelled = pictures.grid(images, columns=2, scale=4, row_labels=["zero", "one"])
    margin = labelled.shape[1] - plain.shape[1]
    assert margin > 0 and labelled.shape[0] == plain.shape[0]
    assert (labelled[:, margin:] == plain).all()
    # Ink in both rows of the margin, each 34 pixels high.
    assert (labelled[:34, :margin] < 128).any() and (labelled[34:, :margin] < 128).any()


@pytest.mark.parametrize(
    ("images", "options", "word"),
    [
        (np.zeros((1, 2, 2, 1), np.float32), {"columns": 1}, "uint8"),
        (np.zeros((0, 2, 2, 1), np.uint8), {"columns": 1}, "N >= 1"),
        (np.zeros((1, 2, 2, 4), np.uint8), {"columns": 1}, "1 or 3"),
        (np.zeros((1, 2, 2, 1), np.uint8), {"columns": 0}, "columns"),
        (np.zeros((3, 2, 2, 1), np.uint8), {"columns": 1, "row_labels": ["a"]}, "3 rows"),
    ],
)
def test_what_is_no_grid_is_refused(images: np.ndarray, options: dict, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        pictures.grid(images, **options)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_saved_png_reads_back_the_same(tmp_path: Path, channels: int) -> None:
    array = np.random.default_rng(0).integers(0, 256, (5, 7, channels), dtype=np.uint8)
    path = tmp_path / "samples" / "round-0001.png"
    pictures.save_png(path, array)
    read = np.asarray(Image.open(path))
    assert (read.reshape(array.shape) == array).all()
    assert [p.name for p in path.parent.iterdir()] == ["round-0001.png"]  # no temporary file is left
