"""Names and files from outside: what a class may not be called, what in a folder is not touched."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from osmotic.config.schema import DataConfig
from osmotic.data import own, sources
from osmotic.errors import ConfigError

PIXELS = np.zeros((6, 4, 4), np.uint8)
LABELS = np.array([0, 1] * 3)


def refuse(source: str, message: str) -> None:
    """Both a plan and a run refuse it, in one line that any terminal and file can take."""
    for look in (sources.describe, sources.load):
        with pytest.raises(ConfigError, match=message) as caught:
            look(DataConfig(source=source))
        assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "names, message",
    [
        (["cat", "cat"], "class_names. = 'cat': class names must differ"),
        (["cat", " "], "class_names. = ' ': class names must not be empty"),
        (["cat", "a\0b"], "must hold printable characters only"),
        (["cat", "\x1b[31mred"], "must hold printable characters only"),
        (["cat", "\u202egnp.exe"], "must hold printable characters only"),
        (["cat", "\ud800"], "must hold printable characters only"),
        (["cat", "x" * 201], "must have at most 200 characters"),
        ([b"cat", b"\xff\xfe"], "class_names. = b'.xff.xfe': must be texts in UTF-8"),
    ],
    ids=["twice", "empty", "nul", "escape", "direction", "surrogate", "long", "bytes"],
)
def test_class_names_of_an_archive_are_printable_and_differ(
    tmp_path: Path, names: list, message: str
) -> None:
    np.savez(tmp_path / "a.npz", train_images=PIXELS, train_labels=LABELS, class_names=np.array(names))
    refuse(f"npz:{tmp_path / 'a.npz'}", message)


def test_names_in_any_script_are_taken(tmp_path: Path) -> None:
    names = ["猫", "été", "گربه\u200cها", "a b"]  # with the joiner that Persian is written with
    labels = np.arange(6) % 4
    np.savez(tmp_path / "a.npz", train_images=PIXELS, train_labels=labels, class_names=np.array(names))
    assert sources.load(DataConfig(source=f"npz:{tmp_path / 'a.npz'}")).class_names == tuple(names)


@pytest.mark.parametrize("name", [b"\x1b[2J", b"\xff", b"\xe2\x80\xae"], ids=["escape", "bytes", "direction"])
def test_class_folders_are_called_what_can_be_printed(tmp_path: Path, name: bytes) -> None:
    for folder in (b"cat", name):
        path = tmp_path / os.fsdecode(folder)
        path.mkdir()
        Image.fromarray(PIXELS[0]).save(path / "0.png")
    refuse(f"folder:{tmp_path}", "class names must hold printable characters only")


def test_names_of_a_torch_data_set_that_are_no_names_become_numbers() -> None:
    class Cranes(list):
        classes = ("crane", "crane")  # as two of ImageNet's

    assert own.from_python(Cranes(zip(PIXELS, LABELS.tolist(), strict=True))).class_names == ("0", "1")


def pictures(folder: Path, count: int = 3) -> Path:
    folder.mkdir(parents=True)
    for i in range(count):
        Image.fromarray(PIXELS[0]).save(folder / f"{i}.png")
    return folder


@pytest.mark.timeout(20)
def test_a_pipe_among_the_images_is_refused_instead_of_waited_for(tmp_path: Path) -> None:
    os.mkfifo(pictures(tmp_path / "a") / "zz.png")
    refuse(f"folder:{tmp_path / 'a'}", r"zz.png: is no regular file")


def test_links_out_of_the_folder_are_not_followed_and_those_inside_are(tmp_path: Path) -> None:
    outside = pictures(tmp_path / "outside")
    inside = pictures(tmp_path / "a")
    (inside / "x.png").symlink_to(outside / "0.png")
    refuse(f"folder:{inside}", r"x.png: is a link that leads out of the folder, which is not followed")
    (inside / "x.png").unlink()
    (inside / "x.png").symlink_to("0.png")
    assert sources.describe(DataConfig(source=f"folder:{inside}")).num_train == 3  # of four, one for testing
    (inside / "x.png").unlink()
    (inside / "x.png").symlink_to("x.png")
    refuse(f"folder:{inside}", r"x.png: is a link that leads nowhere")
    classes = pictures(tmp_path / "b" / "cat").parent
    (classes / "dog").symlink_to(outside)
    refuse(f"folder:{classes}", r"dog: is a link that leads out of the folder")
    # The folder itself may be one: it is what the user named.
    (tmp_path / "link").symlink_to(outside)
    assert sources.describe(DataConfig(source=f"folder:{tmp_path / 'link'}")).num_train == 2


@pytest.mark.parametrize("source", ["folder:", "npz:", "hf:/", "folder:~nobody-of-this-name/", ""])
def test_paths_that_cannot_be_are_refused(source: str) -> None:
    long = source + "x" * 5000
    with pytest.raises(ConfigError):
        sources.load(DataConfig(source=long))
    with pytest.raises(ConfigError):
        sources.load(DataConfig(source=source + "a\0b"))


def test_a_data_folder_that_cannot_be_is_as_one_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("/" + "x" * 5000, "~nobody-of-this-name"):
        monkeypatch.setenv("OSMOTIC_DATA", folder)
        assert sources.describe(DataConfig(source="mnist")) == sources.NAMED["mnist"]


def test_an_array_shorter_than_its_header_says_is_refused_before_memory_is_taken(tmp_path: Path) -> None:
    import io
    import zipfile

    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "|u1", "fortran_order": False, "shape": (10**9, 64, 64)}
    )
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("train_images.npy", header.getvalue() + bytes(1000))
    refuse(f"npz:{tmp_path / 'a.npz'}", r"\[train_images\]: broken array \(shorter than its shape")
