"""Named sources and the keys: what comes out of each, and that `describe` agrees with `load`."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from osmotic.config.schema import DataConfig
from osmotic.data import sources
from osmotic.errors import ConfigError

Load = Callable[..., Any]  # the fixture of conftest.py


RNG = np.random.default_rng(0)


def grey(count: int, side: int = 4) -> np.ndarray:
    return RNG.integers(0, 256, (count, side, side), np.uint8)


def test_digits_are_scaled_to_bytes_and_split_by_class(load: Load) -> None:
    from sklearn.datasets import load_digits

    data = load("digits")
    # 1797 images: a fifth, rounded up, is 360
    assert (data.train.images.shape, data.test.images.shape) == ((1437, 8, 8, 1), (360, 8, 8, 1))
    assert data.train.images.dtype == np.uint8 and data.train.labels.dtype == np.int64
    # levels k of 16 become 255 k / 16: 0, 15.94, ..., 127.5 (to even), ..., 255
    assert set(np.unique(data.train.images)) <= {round(255 * k / 16) for k in range(17)}
    assert data.train.images.max() == 255
    share = np.bincount(data.test.labels) / np.bincount(load_digits().target)
    assert np.abs(share - 0.2).max() < 1 / 170  # the smallest class has 174: off by less than one image
    assert data.class_names == tuple("0123456789")


def test_digits_are_the_same_read_from_the_package_and_through_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from sklearn.datasets import load_digits

    read = sources._digits_table()
    monkeypatch.setattr(sources.importlib.util, "find_spec", lambda name: None)
    through = sources._digits_table()
    assert read.dtype == through.dtype and np.array_equal(read, through)
    images, labels = load_digits().images, load_digits().target
    assert np.array_equal(read[:, :-1].reshape(-1, 8, 8), images) and np.array_equal(read[:, -1], labels)


def test_max_images_is_the_same_random_subset_for_every_partition_seed(load: Load) -> None:
    whole, some = load("digits"), load("digits", max_images=100)
    other = load("digits", max_images=100, partition_seed=5)
    assert (some.train.images == other.train.images).all() and len(some.test) == 360
    rows = {row.tobytes(): i for i, row in enumerate(whole.train.images)}
    positions = [rows[row.tobytes()] for row in some.train.images]
    assert positions == sorted(positions) and positions[-1] > 1000  # in file order, from all over it
    assert len(load("digits", max_images=10**6).train) == 1437


def test_named_sets_are_described_without_files_or_imports() -> None:
    code = (
        "import sys; from osmotic.config.schema import DataConfig; from osmotic.data import sources\n"
        "for name in ('digits', 'mnist', 'fashion-mnist', 'cifar10'):\n"
        "    s = sources.describe(DataConfig(source=name, max_images=1000, image_size=16))\n"
        "    print(s.image_size, s.channels, s.num_classes, s.num_train)\n"
        "print([m for m in ('torch', 'datasets', 'flwr_datasets', 'sklearn', 'PIL') if m in sys.modules])"
    )
    env = {k: v for k, v in os.environ.items() if k != "OSMOTIC_DATA"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
    assert done.stdout.split("\n")[:5] == ["16 1 10 1000"] * 3 + ["16 3 10 1000", "[]"]


def test_named_sets_come_from_the_folder_osmotic_data(
    load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OSMOTIC_DATA", str(tmp_path))
    np.savez(tmp_path / "mnist.npz", train_images=grey(10), train_labels=np.arange(10) % 2)
    data = load("mnist")
    assert data.name == "mnist" and len(data.train) == 8 and data.class_names == ("0", "1")


def test_a_named_set_that_is_nowhere_tells_both_ways_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(name: str) -> None:
        raise ConfigError(f"hf:{name}", None, "cannot be loaded (no route)")

    monkeypatch.setenv("OSMOTIC_DATA", str(tmp_path))
    monkeypatch.setattr(sources, "open_hub", unreachable)
    rule = "cifar10.npz or cifar10-jpeg.npz into a folder and set OSMOTIC_DATA .* hub be reached for uoft-cs/cifar10"
    with pytest.raises(ConfigError, match=f"data.source = 'cifar10': not found: put {rule}"):
        sources.load(DataConfig(source="cifar10"))


@pytest.mark.skipif("OSMOTIC_DATA" not in os.environ, reason="needs the real data sets in OSMOTIC_DATA")
@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "cifar10"])
def test_real_sets_have_the_built_in_shape(load: Load, name: str) -> None:
    data = load(name, max_images=200)
    native = sources.NAMED[name]
    assert data.train.images.shape == (200, native.image_size, native.image_size, native.channels)
    assert len(data.test) == 10_000 and len(data.class_names) == native.num_classes
    assert sources.describe(DataConfig(source=name)) == native
    # images of 10 balanced classes: neither empty nor saturated
    assert 50 < data.train.images.mean() * (3.5 if name == "mnist" else 1) < 150


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"source": "digit"}, "data.source = 'digit': must be one of digits, .*nearest valid key: digits"),
        ({"source": "foldr:x"}, "nearest valid key: folder:x"),
        ({"source": "x/own.npz"}, "nearest valid key: npz:x/own.npz"),
        ({"source": "npz:"}, "must name what comes after the colon"),
        ({"source": ""}, "data.source = '': must be one of"),
        ({"channels": 2}, r"data.channels = 2: must be 0 \(native\), 1 \(grey\) or 3"),
    ],
)
def test_bad_keys_are_told_with_the_nearest_valid_one(keys: dict[str, Any], message: str) -> None:
    for look in (sources.load, sources.describe):
        with pytest.raises(ConfigError, match=message):
            look(DataConfig(**keys))


def test_a_forgotten_folder_prefix_is_guessed(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"nearest valid key: folder:{tmp_path}"):
        sources.load(DataConfig(source=str(tmp_path)))


def test_size_and_channels_are_converted_on_request(load: Load) -> None:
    data = load("digits", image_size=16, channels=3, max_images=20)
    assert data.train.images.shape == (20, 16, 16, 3) and data.test.images.shape == (360, 16, 16, 3)
    assert (data.train.images[..., 0] == data.train.images[..., 2]).all()
