"""Batches of images: mapped ones are those in memory, bit by bit; mirrored ones are mirrored."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from stat import S_ISFIFO
from typing import Any

import numpy as np
import pytest
import torch

from osmotic.config.schema import DataConfig
from osmotic.data import sources
from osmotic.storage import cache
from osmotic.training.images import Images, Mapped
from osmotic.training.network import FlatNetwork

CPU = torch.device("cpu")
RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (9, 4, 4, 3), np.uint8)
LABELS = np.arange(9)


def mapped(pixels: np.ndarray) -> np.memmap:
    array = cache.nameless(pixels.shape, pixels.dtype)
    array[:] = pixels
    return array


@pytest.mark.parametrize("rows", [None, np.array([0, 2, 3, 8])], ids=["all", "some"])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_a_batch_of_mapped_images_is_that_of_images_in_memory(rows: np.ndarray | None, dtype: Any) -> None:
    pixels = PIXELS if dtype == np.uint8 else (PIXELS / 255).astype(np.float32)
    here = Images.of(pixels, LABELS, CPU, rows=rows)
    there = Images.of(mapped(pixels), LABELS, CPU, rows=rows)
    assert isinstance(here.pixels, torch.Tensor) and isinstance(there.pixels, Mapped)
    assert len(here) == len(there) and here.space.shape == there.space.shape == (3, 4, 4)
    index = torch.tensor([3, 0, 2, 0])
    for one, other in zip(here.batch(index), there.batch(index), strict=True):
        assert torch.equal(one, other) and one.stride() == other.stride()


def test_a_run_on_mapped_images_ends_with_the_same_weights(
    make_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    slim = ("training.rounds=1", "data.max_images=40", "data.flip=true")
    here = make_server(*slim, name="memory")
    here.run()
    monkeypatch.setattr(sources, "MAPPED_FROM", 0)
    there = make_server(*slim, name="file")
    there.run()
    assert all(isinstance(s.images.pixels, Mapped) for s in there.engine.sites.values())
    assert all(np.array_equal(there.state.weights[n], w) for n, w in here.state.weights.items())


def test_a_mapped_file_has_no_name_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OSMOTIC_CACHE", str(tmp_path))
    array = mapped(PIXELS)
    assert list(tmp_path.iterdir()) == [] and (array == PIXELS).all()


def test_a_disk_without_room_is_an_error_before_a_page_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OSMOTIC_CACHE", str(tmp_path))
    monkeypatch.setattr("os.posix_fallocate", lambda *_: pytest.fail("tried to fill the disk"))
    with pytest.raises(OSError, match=r"no room on the disk for [\d,]+ bytes of images"):
        cache.nameless((shutil.disk_usage(tmp_path).free + 2**20,), np.dtype(np.uint8))


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs Linux")
def test_the_room_of_a_mapped_file_is_taken_when_it_is_made() -> None:
    array = cache.nameless((2**20,), np.dtype(np.uint8))
    opened = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
    found = [os.stat(path) for path in opened if os.path.exists(path)]
    # A write to a page that finds no room later would end the process by a signal.
    assert any(
        f.st_nlink == 0 and f.st_size == array.nbytes <= f.st_blocks * 512
        for f in found
        if not S_ISFIFO(f.st_mode)
    )


# 640 images of 256 x 256 in colour are 126 MB; the limit is on private memory, which mapped files do not take.
WITHIN = """
import resource, sys, warnings
import numpy as np, torch
from osmotic.config.schema import DataConfig
from osmotic.data import sources
from osmotic.runs.study import _hash
from osmotic.training.network import FlatNetwork
from osmotic.training.images import Images

warnings.simplefilter("ignore")
torch.set_num_threads(1)
cfg = DataConfig(source=f"npz:{sys.argv[1]}")
now = next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith("VmData")) * 1024
resource.setrlimit(resource.RLIMIT_DATA, (now + 50 * 2**20,) * 2)
try:
    sources.load(cfg)
except MemoryError:
    print("does not fit")
sources.MAPPED_FROM = 2**24
data = sources.load(cfg)
print(len(data.train), _hash(data.train).hexdigest())
batch, _ = Images.of(data.train.images, None, torch.device("cpu")).batch(torch.arange(0, 500, 50))
print(float(batch.mean()))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux")
def test_a_set_larger_than_the_memory_it_may_take_is_read_hashed_and_trained_on(tmp_path: Path) -> None:
    import hashlib

    np.savez_compressed(tmp_path / "a.npz", train_images=np.zeros((640, 256, 256, 3), np.uint8))
    words = [sys.executable, "-c", WITHIN, str(tmp_path / "a.npz")]
    done = subprocess.run(words, capture_output=True, text=True)
    digest = hashlib.sha256(bytes(512 * 256 * 256 * 3)).hexdigest()  # four fifths are for training
    assert done.stdout.splitlines() == ["does not fit", f"512 {digest}", "-1.0"], done.stderr


def test_a_compressed_array_comes_out_of_its_pieces_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("osmotic.data.npz.CHUNK_BYTES", 100)  # 2 images of 48 bytes a piece
    for name, order in (("c", "C"), ("f", "F")):
        np.savez_compressed(tmp_path / f"{name}.npz", train_images=np.asarray(PIXELS, order=order),
                            test_images=PIXELS[:3])  # fmt: skip
        data = sources.load(DataConfig(source=f"npz:{tmp_path / name}.npz"))
        assert (data.train.images == PIXELS).all() and (data.test.images == PIXELS[:3]).all()


# --- mirroring ---


def test_about_half_of_the_images_are_mirrored_and_whole() -> None:
    images = Images.of(PIXELS, LABELS, CPU)
    index = torch.zeros(400, dtype=torch.long)
    plain, _ = images.batch(index[:1])
    mirrored = plain.flip(3)
    assert not torch.equal(plain, mirrored)
    batch, labels = images.batch(index, np.random.default_rng(0))
    turned = [torch.equal(one, mirrored[0]) for one in batch]
    assert all(torch.equal(one, (mirrored if t else plain)[0]) for one, t in zip(batch, turned, strict=True))
    assert 160 < sum(turned) < 240  # 200 +- 10 of 400 tosses, four standard deviations
    assert labels is not None and (labels == 0).all()


def weights_of_run(make_server: Any, *keys: str, name: str, **options: Any) -> Any:
    server = make_server("training.rounds=2", "data.max_images=40", *keys, name=name, **options)
    server.run()
    return server.state.weights


def test_mirroring_changes_training_only_where_it_is_asked_for_and_is_resumed_to_the_bit(
    make_server: Any,
) -> None:
    from small_runs import Crash, crash_at

    plain = weights_of_run(make_server, name="plain")
    flipped = weights_of_run(make_server, "data.flip=true", name="flipped")
    assert any(not np.array_equal(flipped[n], w) for n, w in plain.items())
    with pytest.raises(Crash):
        weights_of_run(make_server, "data.flip=true", name="again", at=crash_at(2, 1))
    again = weights_of_run(make_server, "data.flip=true", name="again", resume=True)
    assert all(np.array_equal(again[n], w) for n, w in flipped.items())


def test_mirroring_moves_neither_the_order_of_the_images_nor_their_noise() -> None:
    from osmotic.config.schema import TrainingConfig
    from osmotic.training import loop

    class Watched:
        """Stands for the loss: notes what it was given."""

        def loss(self, model: Any, x: torch.Tensor, y: Any, generator: torch.Generator) -> torch.Tensor:
            seen.append((x.clone(), torch.rand(3, generator=generator)))
            return sum(p.sum() for p in model.parameters())

    symmetric = np.arange(6, dtype=np.uint8)[:, None, None, None].repeat(4, axis=1).repeat(4, axis=2)
    runs = []
    for flip in (False, True):
        seen: list[Any] = []
        loop.fit(
            FlatNetwork(torch.nn.Linear(1, 1)),
            Images.of(symmetric, None, CPU, flip=flip),
            Watched(),  # type: ignore[arg-type]
            TrainingConfig(batch_size=2),
            steps=4,
            learning_rate=0.1,
            rng=np.random.default_rng(3),
        )
        runs.append(seen)
    for (x, noise), (other, other_noise) in zip(*runs, strict=True):
        assert torch.equal(x, other) and torch.equal(noise, other_noise)
