"""Thousands of clients of whom few are asked: who idles costs no file, no images on the device, and next to no memory."""

from __future__ import annotations

import gc
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from osmotic.data.dataset import Dataset, Split
from osmotic.runs import launch, resolve, study
from osmotic.training.images import Images

FEW = (
    "data.clients=96",
    "data.partition=iid",
    "training.fraction_train=0.02",
    "training.rounds=2",
)  # 2 a round


def paths(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_clients_that_keep_nothing_have_no_folder_and_others_one_from_their_first_step_on(
    make_server: Any,
) -> None:
    plain, keeping = make_server(*FEW), make_server(*FEW, "training.optimizer_state=keep", name="keeping")
    plain.run()
    assert not any("client" in path for path in paths(plain.run_dir.path))
    keeping.run()
    there = {path.name for path in (keeping.run_dir.path / "clients").iterdir()}
    assert there == set(keeping.state.counted) and 2 <= len(there) <= 4


def test_the_number_of_files_does_not_hang_on_the_number_of_clients(make_server: Any) -> None:
    one = make_server("data.clients=1", "data.partition=iid", "training.rounds=2", name="one")
    many = make_server(*FEW, name="many")
    for server in (one, many):
        server.run()
    assert paths(one.run_dir.path) == paths(many.run_dir.path)


def test_images_go_to_the_device_only_for_those_who_are_asked(
    make_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    original = Images.of.__func__  # type: ignore[attr-defined]

    def counted(cls: Any, images: Any, *args: Any, **keys: Any) -> Any:
        made.append(len(keys["rows"]))
        return original(cls, images, *args, **keys)

    monkeypatch.setattr(Images, "of", classmethod(counted))
    server = make_server(*FEW, "engine.processes=false")
    assert made == []
    server.run()
    assert made == [1] * 4, "two clients of one image in either round"


def test_a_client_that_idles_takes_less_than_a_kilobyte() -> None:
    def traced(clients: int) -> int:
        """Bytes that a study and its engine hold beside the images."""
        cfg = resolve.load(sets=["data.partition=iid", f"data.clients={clients}"])
        x, y = np.zeros((clients, 8, 8, 1), np.uint8), np.zeros(clients, np.int64)
        images = Dataset("zeros", Split(x, y), Split(x[:1], y[:1]), ("zero",))
        gc.collect()
        tracemalloc.start()
        prepared = study.prepare(cfg, images)
        make_worker, stop = launch.worker_factory(prepared, {}, "")
        engine = launch.in_process(prepared, Path("nowhere"), make_worker, stop)
        assert len(engine.clients(1, 0.0)) == clients
        held = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        return held

    traced(10)  # imports
    few, many = traced(500), traced(3500)
    assert (many - few) / 3000 < 1000
