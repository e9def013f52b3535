"""Beginning and going on with a folder: one writer, no leftovers, and one line for a file that is broken."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
from small_runs import SMALL

from osmotic.errors import ConfigError
from osmotic.runs import launch, resolve
from osmotic.runs.callbacks import Callback
from osmotic.runs.run import Run
from osmotic.storage.folder import RunDir


def observe(run: RunDir, config: Any) -> Callback:
    return Callback()


@pytest.fixture
def begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as it stands just before the first checkpoint; nothing is trained in these tests."""

    def nothing(study: Any, run: RunDir, *rest: Any, **more: Any) -> RunDir:
        run.identify("0123456789abcdef")
        return run

    monkeypatch.setattr(launch, "_run", nothing)
    return begin(tmp_path / "run")


def begin(folder: Path, *sets: str) -> Path:
    return launch.start(resolve.load(sets=[*SMALL, *sets]), folder, observe).path


def test_a_second_start_or_resume_is_told_while_the_first_one_runs(begun: Path) -> None:
    before = {p.name: p.read_bytes() for p in begun.iterdir()}
    with RunDir(begun).held(), pytest.raises(ConfigError, match="another process is writing to this run"):
        launch.resume(begun, observe)
    assert {p.name: p.read_bytes() for p in begun.iterdir()} == before
    fresh = RunDir.new(begun.parent / "fresh")
    with fresh.held(), pytest.raises(ConfigError, match="another process is writing to this run"):
        begin(fresh.path)
    launch.resume(begun, observe)


def test_a_folder_in_which_a_run_was_killed_before_its_first_file_is_taken_again(begun: Path) -> None:
    folder = begun.parent / "killed"
    folder.mkdir()
    (folder / ".config.toml.ab_c1234.tmp").write_bytes(b"# osm")
    (folder / "run.lock").touch()
    begin(folder)
    assert sorted(p.name for p in folder.iterdir()) == ["config.toml", "partition.json", "run.lock"]


def test_going_on_clears_what_killed_writers_left(begun: Path) -> None:
    for name in (".summary.json.ab_c1234.tmp", "samples/.round-0001.png.ab_c1234.tmp"):
        (begun / name).parent.mkdir(exist_ok=True)
        (begun / name).write_bytes(b"half")
    launch.resume(begun, observe)
    assert not list(begun.rglob(".*"))


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "7", "\x1b[31m", "[" * 100_000])
def test_a_broken_partition_is_one_line(begun: Path, text: str) -> None:
    (begun / "partition.json").write_text(text)
    for read in (lambda: launch.resume(begun, observe), lambda: Run(begun).partition):
        with pytest.raises(ConfigError) as caught:
            read()
        assert caught.value.key == str(begun / "partition.json") and str(caught.value).isprintable()


@pytest.mark.parametrize("text", ['{"clients": 3}', '{"clients": [1], "counts": [7]}', "{}"])
def test_a_partition_that_says_nothing_is_one_line_for_readers(begun: Path, text: str) -> None:
    (begun / "partition.json").write_text(text)
    with pytest.raises(ConfigError, match="does not say who holds how many images"):
        Run(begun).partition  # noqa: B018


def test_a_partition_of_an_earlier_version_or_none_goes_on(begun: Path) -> None:
    path = begun / "partition.json"
    described = json.loads(path.read_text())
    for old in ("sha256", "test_sha256"):
        del described[old]
        path.write_text(json.dumps(described))
        launch.resume(begun, observe)
    path.unlink()
    launch.resume(begun, observe)
    assert json.loads(path.read_text())["sha256"]


@pytest.mark.parametrize("text", [b"", b"\xff\xfe", b"x = ", b"[training]\nrounds = 'a'", b"unknown = 1"])
def test_a_broken_configuration_is_one_line(begun: Path, text: bytes) -> None:
    (begun / "config.toml").write_bytes(text)
    if text == b"":  # every key has a default: of other data then
        with pytest.raises(ConfigError, match=r"data\.source"):
            launch.resume(begun, observe)
        return
    with pytest.raises(ConfigError) as caught:
        launch.resume(begun, observe)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("sets", "told"),
    [
        ((), "3 of 3 clients have no image to watch, .* overfits: data.holdout = 0.2 sets a fifth aside"),
        (
            ("data.holdout=0.2", "data.max_images=3"),
            "3 of 3 clients are too small to hold an image out to watch, .* fewer data.clients have more images",
        ),
        # Shares of 1 and 2: 8 and 18 images, of which 4 % are 0.32 and 0.72, so none and one.
        (
            ("data.holdout=0.04", "data.max_images=26", "data.clients=2", "data.partition=linear"),
            "1 of 2 clients",
        ),
        (("data.holdout=0.2",), None),
        (("after.personalise.when=rounds",), None),
    ],
)
def test_before_any_work_it_says_how_many_clients_have_nothing_to_watch(
    begun: Path, sets: tuple[str, ...], told: str | None
) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        begin(begun.parent / "own", "preset=feddm-personal", "data.partition=iid", *sets)
    lines = [text for w in caught if "watch" in (text := str(w.message))]
    assert len(lines) == (told is not None) and all("\n" not in line for line in lines)
    if told is not None:
        assert re.match(f"after.personalise: {told}", lines[0])
