"""Trackers: TensorBoard for real, the extras as fakes that record what they are told."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest

from osmotic.errors import ConfigError
from osmotic.runs import trackers

CONFIG = {"seed": 3, "data": {"clients": 2, "source": "digits"}}
PICTURE = np.full((4, 6, 1), 200, np.uint8)


def read_events(run_dir: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run_dir / "tensorboard"))
    events.Reload()
    return events


def test_tensorboard_holds_scalars_pictures_and_the_configuration(tmp_path: Path) -> None:
    tracker = trackers.open_trackers(["tensorboard"], tmp_path, CONFIG)
    tracker.log(1, {"loss": 0.5, "fd": 8.0})
    tracker.log(2, {"loss": 0.25})
    tracker.image(2, "samples", PICTURE)
    tracker.close()
    events = read_events(tmp_path)
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(1, 0.5), (2, 0.25)]
    assert [(e.step, e.value) for e in events.Scalars("fd")] == [(1, 8.0)]
    (picture,) = events.Images("samples")
    assert (picture.step, picture.height, picture.width) == (2, 4, 6)
    assert b"data.clients = 2" in events.Tensors("config/text_summary")[0].tensor_proto.string_val[0]


def test_a_resumed_run_replaces_what_the_crashed_one_told(tmp_path: Path) -> None:
    crashed = trackers.open_trackers(["tensorboard"], tmp_path, CONFIG)
    for step, value in ((1, 1.0), (2, 2.0), (3, 3.0)):
        crashed.log(step, {"loss": value})
    crashed.close()
    resumed = trackers.open_trackers(["tensorboard"], tmp_path, CONFIG, from_step=2)
    resumed.log(2, {"loss": 20.0})
    resumed.close()
    assert [(e.step, e.value) for e in read_events(tmp_path).Scalars("loss")] == [(1, 1.0), (2, 20.0)]


def test_what_was_not_measured_is_not_told(tmp_path: Path) -> None:
    heard = Recorder()
    tracker = trackers.Composite({"x": heard})
    tracker.log(1, {"loss": 0.5, "fd": None})  # type: ignore[dict-item]
    tracker.log(2, {"fd": None})  # type: ignore[dict-item]
    assert heard.said == [("log", 1, {"loss": 0.5})]


def test_no_backend_is_a_tracker_that_tells_nobody(tmp_path: Path) -> None:
    tracker = trackers.open_trackers([], tmp_path, CONFIG)
    tracker.log(1, {"loss": 1.0})
    tracker.close()
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_backend_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"track\.backends = 'tensorbord'.*nearest valid key: tensorboard"):
        trackers.check(["tensorbord"])
    with pytest.raises(ConfigError, match="named twice"):
        trackers.check(["tensorboard", "tensorboard"])


def test_a_missing_package_is_refused_with_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    for call in (lambda: trackers.check(["wandb"]), lambda: trackers.open_trackers(["wandb"], tmp_path, {})):
        with pytest.raises(ConfigError, match=r"install osmotic\[wandb\]"):
            call()


def test_a_package_that_cannot_be_imported_is_refused_too(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # this is how Python marks a failed import
    with pytest.raises(ConfigError, match=r"install osmotic\[wandb\]"):
        trackers.open_trackers(["wandb"], tmp_path, {})


class Recorder:
    def __init__(self) -> None:
        self.said: list[Any] = []

    def log(self, step: int, scalars: Any) -> None:
        self.said.append(("log", step, dict(scalars)))

    def image(self, step: int, name: str, array: np.ndarray) -> None:
        self.said.append(("image", step, name, array.shape))

    def close(self) -> None:
        self.said.append("close")


class Broken(Recorder):
    def log(self, step: int, scalars: Any) -> None:
        raise OSError("disk full")


def test_a_tracker_that_fails_is_dropped_and_the_others_go_on() -> None:
    broken, sound = Broken(), Recorder()
    tracker = trackers.Composite({"broken": broken, "sound": sound})
    with pytest.warns(RuntimeWarning, match="tracker broken failed.*disk full"):
        tracker.log(1, {"loss": 1.0})
    tracker.log(2, {"loss": 2.0})
    tracker.close()
    assert broken.said == []
    assert sound.said == [("log", 1, {"loss": 1.0}), ("log", 2, {"loss": 2.0}), "close"]


def test_pictures_reach_backends_in_colour_and_others_are_refused() -> None:
    heard = Recorder()
    tracker = trackers.Composite({"x": heard})
    tracker.image(1, "samples", PICTURE)
    assert heard.said == [("image", 1, "samples", (4, 6, 3))]
    with pytest.raises(ValueError, match="uint8"):
        tracker.image(1, "samples", PICTURE / 255)


def fake_run_module(name: str, told: list[Any]) -> ModuleType:
    """wandb and trackio as far as they are used: init, a run with log and finish, Image."""

    def init(**options: Any) -> SimpleNamespace:
        told.append(("init", options))
        return SimpleNamespace(
            log=lambda values, step: told.append((step, values)), finish=lambda: told.append("finish")
        )

    module = ModuleType(name)
    module.init, module.Image = init, lambda array: ("image", array.shape)  # type: ignore[attr-defined]
    return module


def test_wandb_is_offline_unless_the_user_says_otherwise(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    told: list[Any] = []
    monkeypatch.setitem(sys.modules, "wandb", fake_run_module("wandb", told))
    monkeypatch.delenv("WANDB_MODE", raising=False)
    tracker = trackers.open_trackers(["wandb"], tmp_path, CONFIG)
    tracker.log(1, {"loss": 0.5})
    tracker.image(1, "samples", PICTURE)
    tracker.close()
    options = told[0][1]
    assert (options["mode"], options["dir"], options["resume"]) == ("offline", str(tmp_path), None)
    assert options["config"] == CONFIG
    assert told[1:] == [(1, {"loss": 0.5}), (1, {"samples": ("image", (4, 6, 3))}), "finish"]
    monkeypatch.setenv("WANDB_MODE", "online")
    trackers.open_trackers(["wandb"], tmp_path, CONFIG, from_step=4)
    assert (told[-1][1]["mode"], told[-1][1]["resume"]) == ("online", "allow")
    assert told[-1][1]["id"] == options["id"]  # the same run goes on


def test_trackio_gets_a_flat_configuration_in_the_run_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    told: list[Any] = []
    monkeypatch.setitem(sys.modules, "trackio", fake_run_module("trackio", told))
    monkeypatch.setenv("TRACKIO_DIR", "")  # restored after the test
    monkeypatch.delenv("TRACKIO_DIR")
    tracker = trackers.open_trackers(["trackio"], tmp_path, CONFIG)
    tracker.log(2, {"loss": 0.5})
    tracker.close()
    assert trackers.os.environ["TRACKIO_DIR"] == str((tmp_path / "trackio").resolve())
    assert told[0][1]["config"] == {"seed": 3, "data.clients": 2, "data.source": "digits"}
    assert told[0][1]["resume"] == "never"
    assert told[1:] == [(2, {"loss": 0.5}), "finish"]


class FakeMlflow:
    """MlflowClient as far as it is used, with its store in a dict shared by all clients."""

    store: ClassVar[dict[str, Any]] = {}

    def __init__(self, tracking_uri: str) -> None:
        self.uri = tracking_uri

    def get_experiment_by_name(self, name: str) -> Any:
        return SimpleNamespace(experiment_id="1") if "experiment" in self.store else None

    def create_experiment(self, name: str) -> str:
        self.store["experiment"] = name
        return "1"

    def search_runs(self, experiments: list[str], filter_string: str, max_results: int) -> list[Any]:
        runs = [
            r for r, tags in self.store.get("runs", {}).items() if f"'{tags['osmotic.id']}'" in filter_string
        ]
        return [SimpleNamespace(info=SimpleNamespace(run_id=r)) for r in runs]

    def create_run(self, experiment: str, run_name: str, tags: dict[str, str]) -> Any:
        runs = self.store.setdefault("runs", {})
        runs[f"run{len(runs)}"] = tags
        return SimpleNamespace(info=SimpleNamespace(run_id=f"run{len(runs) - 1}"))

    def log_param(self, run: str, key: str, value: str) -> None:
        self.store.setdefault("params", {})[run, key] = value

    def log_metric(self, run: str, key: str, value: float, timestamp: int, step: int) -> None:
        self.store.setdefault("metrics", []).append((run, key, value, step))

    def log_image(self, run: str, array: np.ndarray, artifact_file: str) -> None:
        self.store.setdefault("images", []).append((run, array.shape, artifact_file))

    def update_run(self, run: str, status: str) -> None:
        self.store["status"] = status

    def set_terminated(self, run: str) -> None:
        self.store["status"] = "FINISHED"


def test_mlflow_writes_to_the_run_folder_and_goes_on_in_the_same_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    package, tracking = ModuleType("mlflow"), ModuleType("mlflow.tracking")
    tracking.MlflowClient = FakeMlflow  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mlflow", package)
    monkeypatch.setitem(sys.modules, "mlflow.tracking", tracking)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setattr(FakeMlflow, "store", {})
    tracker = trackers.open_trackers(["mlflow"], tmp_path, CONFIG)
    assert tracker.trackers["mlflow"].client.uri == (tmp_path / "mlruns").resolve().as_uri()  # type: ignore[attr-defined]
    tracker.log(1, {"loss": 0.5})
    tracker.image(1, "samples", PICTURE)
    tracker.close()
    resumed = trackers.open_trackers(["mlflow"], tmp_path, CONFIG, from_step=2)
    resumed.log(2, {"loss": 0.25})
    store = FakeMlflow.store
    assert list(store["runs"]) == ["run0"] and store["status"] == "RUNNING"
    assert store["metrics"] == [("run0", "loss", 0.5, 1), ("run0", "loss", 0.25, 2)]
    assert store["images"] == [("run0", (4, 6, 3), "samples/round-0001.png")]
    assert store["params"]["run0", "data.clients"] == "2"
