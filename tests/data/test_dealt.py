"""Splits in the cache folder: the same as dealt anew, and dealt anew wherever a file is not to be trusted."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from osmotic.config.schema import DataConfig
from osmotic.data import partition as p
from osmotic.data.dataset import Split
from osmotic.errors import ConfigError
from osmotic.storage.store import write_checked

LABELS = np.arange(300, dtype=np.int64) % 5
SPLIT = Split(np.zeros((300, 2, 2, 1), np.uint8), LABELS)
CFG = DataConfig(partition="dirichlet", clients=4, partition_seed=3)


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OSMOTIC_CACHE", str(tmp_path))
    return tmp_path / "splits"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The partitions that flwr-datasets was asked for."""
    names: list[str] = []
    make = p._partitioner

    def told(cfg: DataConfig, size: int, least: int) -> Any:
        names.append(cfg.partition)
        return make(cfg, size, least)

    monkeypatch.setattr(p, "_partitioner", told)
    return names


def same(a: list[Any], b: list[Any]) -> bool:
    return len(a) == len(b) and all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("name", ["dirichlet", "shards", "pathological", "linear", "exponential", "by:label"])
def test_a_split_is_dealt_once_and_read_to_the_same_positions(asked: list[str], name: str) -> None:
    cfg = replace(CFG, partition=name)
    anew = p.partition(cfg, SPLIT)
    first = p.partition(cfg, SPLIT, remember=True)
    asked.clear()
    again = p.partition(cfg, SPLIT, remember=True)
    assert not asked
    assert same(first, anew) and same(again, anew)


@pytest.mark.parametrize(
    "other", [{"partition_seed": 4}, {"clients": 5}, {"dirichlet_alpha": 0.7}, {"partition": "shards"}]
)
def test_another_setting_is_another_split(asked: list[str], other: dict[str, Any]) -> None:
    p.partition(CFG, SPLIT, remember=True)
    asked.clear()
    cfg = replace(CFG, **other)
    assert same(p.partition(cfg, SPLIT, remember=True), p.partition(cfg, SPLIT))
    assert len(asked) == 2


def test_other_labels_are_another_split(asked: list[str]) -> None:
    p.partition(CFG, SPLIT, remember=True)
    asked.clear()
    turned = replace(SPLIT, labels=LABELS[::-1].copy())
    assert same(p.partition(CFG, turned, remember=True), p.partition(CFG, turned))
    assert len(asked) == 2


def test_what_is_warned_of_is_warned_of_again(asked: list[str]) -> None:
    cfg = replace(CFG, partition="pathological", clients=2, classes_per_client=1)
    for _ in range(2):
        with pytest.warns(UserWarning, match="180 of 300 images are held by no client, 3 classes"):
            p.partition(cfg, SPLIT, remember=True)
    assert len(asked) == 1


def test_an_error_is_not_remembered(own_folder: Path) -> None:
    cfg = replace(CFG, partition="exponential", clients=200)
    for _ in range(2):
        with pytest.raises(ConfigError, match=r"data\.clients"):
            p.partition(cfg, SPLIT, remember=True)
    assert not list(own_folder.glob("*"))


def forged(path: Path, positions: Any, sizes: Any) -> None:
    """A file whose checksums hold."""
    write_checked(path, {"positions": np.array(positions), "sizes": np.array(sizes)})


WHOLE = np.arange(300)
DAMAGES: dict[str, Any] = {
    "torn": lambda path: path.write_bytes(path.read_bytes()[:-9]),
    "flipped": lambda path: path.write_bytes(path.read_bytes()[:-9] + b"\1" + path.read_bytes()[-8:]),
    "empty": lambda path: path.write_bytes(b""),
    "another table": lambda path: write_checked(path, {"weights": np.zeros(3)}),
    "no client": lambda path: forged(path, np.empty(0, np.int64), np.empty(0, np.int64)),
    "an image twice": lambda path: forged(path, [*WHOLE[:299], 0], [75] * 4),
    "an image too many": lambda path: forged(path, [*WHOLE[:299], 300], [75] * 4),
    "a negative position": lambda path: forged(path, [*WHOLE[:299], -1], [75] * 4),
    "sizes of more": lambda path: forged(path, WHOLE, [75] * 5),
    "a negative size": lambda path: forged(path, WHOLE, [400, -100]),
    "floats": lambda path: forged(path, WHOLE.astype(float), [75] * 4),
    "a column": lambda path: forged(path, WHOLE[:, None], [75] * 4),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_file_that_holds_no_split_of_these_images_is_dealt_again_and_mended(
    own_folder: Path, asked: list[str], damage: str
) -> None:
    right = p.partition(CFG, SPLIT, remember=True)
    [path] = own_folder.iterdir()
    whole = path.read_bytes()
    DAMAGES[damage](path)
    assert path.read_bytes() != whole
    asked.clear()
    assert same(p.partition(CFG, SPLIT, remember=True), right)
    assert len(asked) == 1 and path.read_bytes() == whole


def test_a_cache_that_cannot_be_written_changes_nothing(own_folder: Path, asked: list[str]) -> None:
    shutil.rmtree(own_folder, ignore_errors=True)
    own_folder.write_text("a file where a folder should be")
    assert same(p.partition(CFG, SPLIT, remember=True), p.partition(CFG, SPLIT))
    assert len(asked) == 2


def test_a_second_run_on_digits_imports_neither_partitioners_nor_scikit_learn() -> None:
    code = (
        "import sys; from osmotic.config.schema import DataConfig; from osmotic.data import partition, sources\n"
        "cfg = DataConfig(source='digits', partition='dirichlet', clients=4, max_images=200)\n"
        "partition.divide(cfg, sources.load(cfg).train)\n"
        "print(sorted({m.split('.')[0] for m in sys.modules} & {'sklearn', 'flwr_datasets', 'datasets', 'scipy', 'torch'}))"
    )
    said = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    ]
    assert "flwr_datasets" in said[0] and said[1] == "[]\n"
