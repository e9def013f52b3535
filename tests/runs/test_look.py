"""`osmotic look`: the grid has the pixels that are trained on, the figures are those of a run, and nothing is written over."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from osmotic.errors import ConfigError
from osmotic.runs import look as looking
from osmotic.runs import plan as planning
from osmotic.runs import resolve


def look(out: Path, source: str, *sets: str) -> dict[str, Any]:
    seen = looking.look(resolve.load(data=source, sets=list(sets)), out)
    json.dumps(seen)  # every figure can be printed as JSON
    return seen


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Ten pictures of several sizes, half of them transparent: red at the left, blue at the right."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(10):
        pixels = np.zeros((16, 20 + i, 4), np.uint8)
        pixels[:, : (20 + i) // 2, 0] = pixels[:, (20 + i) // 2 :, 2] = 255
        pixels[..., 3] = 255
        Image.fromarray(pixels if i % 2 else pixels[..., :3]).save(folder / f"{i}.png")
    return folder


def test_the_grid_shows_the_images_as_they_are_trained_on(tmp_path: Path, photos: Path) -> None:
    seen = look(tmp_path / "a.png", f"folder:{photos}", "data.clients=2")
    assert (seen["train"], seen["test"], seen["image_size"], seen["channels"]) == (8, 2, 16, 3)
    grid = np.asarray(Image.open(tmp_path / "a.png"))
    # One row of 8 images, each pixel a square of 4 (32 // 16 * 2), with 2 white pixels around: 8 * (16 * 4 + 2) + 2.
    assert grid.shape == (16 * 4 + 4, 8 * 66 + 2, 3)
    one = grid[2 : 2 + 64, 2 : 2 + 64]
    assert one[:, :20].reshape(-1, 3).tolist() == [[255, 0, 0]] * (64 * 20)
    assert one[:, 44:].reshape(-1, 3).tolist() == [[0, 0, 255]] * (64 * 20)
    # Mirrored, the second of two shows blue at the left.
    look(tmp_path / "b.png", f"folder:{photos}", "data.clients=2", "data.flip=true")
    mirrored = np.asarray(Image.open(tmp_path / "b.png"))
    assert (mirrored[2:66, 2:66] == one).all() and mirrored[10, 2 + 66].tolist() == [0, 0, 255]


def test_what_is_told_is_what_a_plan_tells_and_a_run_does(tmp_path: Path, photos: Path) -> None:
    seen = look(tmp_path / "a.png", f"folder:{photos}", "data.clients=4")
    config = resolve.load(data=f"folder:{photos}", sets=["data.clients=4"])
    assert set(seen["notes"]) <= set(planning.plan(config, 100.0)["notes"]) and len(seen["notes"]) == 2
    assert seen["settled"] == {"image_size": 16} and seen["bytes"] == 10 * 16 * 16 * 3
    assert seen["found"]["sizes"] == {f"{20 + i}x16": 1 for i in range(10)}
    assert seen["found"]["remarks"] == {"transparency": 5}
    assert seen["partition"] == "iid" and [c["images"] for c in seen["clients"]] == [2] * 4
    assert seen["classes"] == []
    told = looking.text(seen)
    assert "10 images of 10 sizes, 20x16 to 29x16: cut to the square in the middle, resized to 16x16" in told
    assert "5 of 10 images with transparency: laid on white (data.background)" in told
    assert "client-003       2" in told and "4 clients by iid" in told


def test_classes_values_and_clients_are_counted(tmp_path: Path) -> None:
    images = np.zeros((20, 8, 8), np.uint8)
    images[:, :4] = 255  # half of the values black, half white
    labels = np.arange(20) % 2
    np.savez(
        tmp_path / "a.npz", train_images=images, train_labels=labels, class_names=np.array(["cat", "dog"])
    )
    keys = ("data.clients=2", "data.partition=shards", "data.shards_per_client=1", "data.holdout=0.25")
    seen = look(tmp_path / "a.png", f"npz:{tmp_path / 'a.npz'}", *keys)
    # 16 of 20 are for training, 8 a class; a client holds one class, 2 of its 8 for its own test
    assert seen["classes"] == [{"name": "cat", "train": 8, "test": 2}, {"name": "dog", "train": 8, "test": 2}]
    assert seen["clients"] == [
        {"client": "client-000", "images": 6, "held_out": 2, "classes": [6, 0]},
        {"client": "client-001", "images": 6, "held_out": 2, "classes": [0, 6]},
    ]
    assert seen["values"] == {"low": 0, "high": 1, "histogram": [0.5, *[0] * 14, 0.5]}
    told = looking.text(seen).splitlines()
    assert told[-2].split() == ["client-001", "6", "2", "0", "6"] and told[-1].split() == [
        "grid",
        seen["grid"],
    ]


def test_what_cannot_be_divided_is_still_shown_with_the_reason(tmp_path: Path, photos: Path) -> None:
    seen = look(tmp_path / "a.png", f"folder:{photos}", "data.clients=50")
    assert seen[
        "clients"
    ] == [] and "data.clients = 50: must be at most the 8 training images" in looking.text(seen)
    assert (tmp_path / "a.png").is_file()


def test_nothing_is_written_over_nor_among_the_images(tmp_path: Path, photos: Path) -> None:
    (tmp_path / "a.png").write_text("mine")
    with pytest.raises(ConfigError, match=r"--out = .*a.png.*: is there already"):
        look(tmp_path / "a.png", f"folder:{photos}")
    with pytest.raises(ConfigError, match=r"--out = .*: must not lie in the folder of the images"):
        look(photos / "look.png", f"folder:{photos}")
    assert len(list(photos.iterdir())) == 10


def test_the_default_file_is_a_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert looking.fresh_file() == Path("look.png")
    Path("look.png").touch()
    assert looking.fresh_file() == Path("look-2.png")
