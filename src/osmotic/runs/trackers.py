"""Trackers: the figures and pictures of each round, told to TensorBoard, MLflow, Weights & Biases or trackio.

Each package is imported only when asked for. Everything stays in the run folder unless the user's own environment says
otherwise (MLFLOW_TRACKING_URI, WANDB_MODE, TRACKIO_DIR).
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from osmotic.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np

PROJECT = "osmotic"
# Backend -> the module that it needs.
MODULES = {"tensorboard": "tensorboard", "mlflow": "mlflow", "wandb": "wandb", "trackio": "trackio"}


class Tracker(Protocol):
    """All that a run tells a tracker; a step is a server round."""

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        """Figures of one round by name; they may be NaN, and are never None."""

    def image(self, step: int, name: str, array: np.ndarray) -> None:
        """One picture, uint8 [H, W, C], C 1 or 3."""

    def close(self) -> None:
        """The run has ended, or was stopped."""


def check(backends: Iterable[str]) -> None:
    """Refuses an unknown backend, one named twice, or one whose package is not installed. Imports nothing.

    Raises: ConfigError.
    """
    from osmotic.config.keys import nearest

    seen: set[str] = set()
    for name in backends:
        if name not in MODULES:
            raise ConfigError(
                "track.backends", name, "must be one of " + ", ".join(MODULES), nearest(name, MODULES)
            )
        if name in seen:
            raise ConfigError("track.backends", name, "is named twice")
        seen.add(name)
        # Found, not imported: some of these packages take seconds.
        if MODULES[name] not in sys.modules and importlib.util.find_spec(MODULES[name]) is None:
            raise _missing(name)


def open_trackers(
    backends: Sequence[str], run_dir: Path, config: Mapping[str, Any], from_step: int = 0
) -> Tracker:
    """One tracker that tells all `backends`.

    Args:
        backends: names out of MODULES; none is fine.
        run_dir: the run folder, which also names the run.
        config: the resolved configuration as a nested dict.
        from_step: the first round that will be told; above 1 the run is resumed, and what was told of this round and
            later ones before the crash is replaced where the backend can do that.
    Raises: ConfigError if a backend is unknown or its package is missing or cannot be imported.
    """
    check(backends)
    run_dir = Path(run_dir)
    opened: dict[str, Tracker] = {}
    for name in backends:
        try:
            with contextlib.redirect_stdout(sys.stderr):  # stdout belongs to `--json`
                opened[name] = OPENERS[name](run_dir, config, from_step)
        except ImportError as error:
            # Those that are open already would otherwise wait for more, or keep a thread.
            Composite(opened).close()
            raise _missing(name) from error
    return Composite(opened)


def _missing(name: str) -> ConfigError:
    extra = "" if name == "tensorboard" else f"[{name}]"
    return ConfigError("track.backends", name, f"its package is not installed: install osmotic{extra}")


class Composite:
    """Tells every tracker; one that fails is dropped with a warning, because a run must not die of its log."""

    def __init__(self, trackers: Mapping[str, Tracker]) -> None:
        self.trackers = dict(trackers)

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        """Tells the figures that were measured; None is left out."""
        measured = {name: float(value) for name, value in scalars.items() if value is not None}
        if measured:
            self._each(lambda tracker: tracker.log(step, measured))

    def image(self, step: int, name: str, array: np.ndarray) -> None:
        """One picture, uint8 [H, W, 1 or 3], told as [H, W, 3].

        Raises: ValueError for any other shape or dtype: that is our own mistake, and no failure of a tracker.
        """
        import numpy as np

        if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] not in (1, 3):
            raise ValueError(f"array must be uint8 [H, W, 1 or 3], got {array.dtype} {array.shape}")
        colour = np.repeat(array, 3, axis=2) if array.shape[2] == 1 else array  # some backends know no grey
        self._each(lambda tracker: tracker.image(step, name, colour))

    def close(self) -> None:
        """Closes every tracker; after that it tells nobody."""
        self._each(lambda tracker: tracker.close())
        self.trackers.clear()

    def _each(self, call: Callable[[Tracker], None]) -> None:
        # A list, as the dict loses those that fail.
        for name, tracker in list(self.trackers.items()):
            try:
                with contextlib.redirect_stdout(sys.stderr):
                    call(tracker)
            # Any: networks, disks and versions that do not fit are not our business in the midst of a run.
            except Exception as error:
                warnings.warn(
                    f"tracker {name} failed and is told no more: {error}", RuntimeWarning, stacklevel=3
                )
                del self.trackers[name]


class TensorBoard:
    """Event files in run_dir/tensorboard."""

    def __init__(self, run_dir: Path, config: Mapping[str, Any], from_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # purge_step hides what a crashed run told of rounds that are now run again.
        self.writer = SummaryWriter(
            str(run_dir / "tensorboard"), purge_step=from_step if from_step > 1 else None
        )
        if from_step <= 1:
            lines = (f"    {key} = {value!r}" for key, value in flat(config).items())
            self.writer.add_text("config", "\n".join(lines), 0)

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        """Scalars, flushed: a run that is killed has told all of its rounds."""
        for name, value in scalars.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def image(self, step: int, name: str, array: np.ndarray) -> None:
        """The picture, [H, W, C]: the writer has to be told, as it expects [C, H, W]."""
        self.writer.add_image(name, array, step, dataformats="HWC")
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()


class MLflow:
    """An MLflow run in the file store run_dir/mlruns, or where MLFLOW_TRACKING_URI says."""

    def __init__(self, run_dir: Path, config: Mapping[str, Any], from_step: int) -> None:
        # Newer versions want leave for the file store, which alone needs no database package.
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        from mlflow.tracking import MlflowClient

        uri = os.environ.get("MLFLOW_TRACKING_URI") or (run_dir / "mlruns").resolve().as_uri()
        self.client = MlflowClient(tracking_uri=uri)
        known = self.client.get_experiment_by_name(PROJECT)
        experiment = known.experiment_id if known else self.client.create_experiment(PROJECT)
        tag = run_id(run_dir)
        earlier = (
            self.client.search_runs([experiment], filter_string=f"tags.`osmotic.id` = '{tag}'", max_results=1)
            if from_step > 1
            else []
        )
        if earlier:
            self.run = earlier[0].info.run_id
            self.client.update_run(self.run, status="RUNNING")
            return
        started = self.client.create_run(
            experiment, run_name=run_dir.resolve().name, tags={"osmotic.id": tag}
        )
        self.run = started.info.run_id
        for key, value in flat(config).items():
            # MLflow refuses + in a key, and older versions a text of more than 500 characters.
            self.client.log_param(self.run, key.replace("+", "_"), str(value)[:500])

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        """Metrics with the round as step, and one time for all of a round."""
        now = int(time.time() * 1000)
        for name, value in scalars.items():
            # It takes no other characters; a client's name may hold any.
            self.client.log_metric(
                self.run, re.sub(r"[^\w\-. :/]", "_", name), value, timestamp=now, step=step
            )

    def image(self, step: int, name: str, array: np.ndarray) -> None:
        """The picture [H, W, 3] as the artifact NAME/round-NNNN.png."""
        self.client.log_image(self.run, array, artifact_file=f"{name}/round-{step:04d}.png")

    def close(self) -> None:
        self.client.set_terminated(self.run)


class WandB:
    """A Weights & Biases run under run_dir/wandb, offline unless WANDB_MODE says otherwise."""

    def __init__(self, run_dir: Path, config: Mapping[str, Any], from_step: int) -> None:
        import wandb

        run_dir.mkdir(parents=True, exist_ok=True)
        self.to_image = wandb.Image
        self.run = wandb.init(
            project=PROJECT,
            name=run_dir.resolve().name,
            id=run_id(run_dir),
            resume="allow" if from_step > 1 else None,
            dir=str(run_dir),
            config=dict(config),
            # Nothing leaves the machine unless its user has said so.
            mode=os.environ.get("WANDB_MODE") or "offline",
            # It would write to stdout, which belongs to `--json`.
            settings={"silent": True, "console": "off"},
        )

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        self.run.log(dict(scalars), step=step)

    def image(self, step: int, name: str, array: np.ndarray) -> None:
        """The picture [H, W, 3] under its name at this step."""
        self.run.log({name: self.to_image(array)}, step=step)

    def close(self) -> None:
        self.run.finish()


class Trackio:
    """A trackio run in run_dir/trackio, or where TRACKIO_DIR says."""

    def __init__(self, run_dir: Path, config: Mapping[str, Any], from_step: int) -> None:
        # trackio reads the folder once, when it is imported.
        os.environ.setdefault("TRACKIO_DIR", str((run_dir / "trackio").resolve()))
        import trackio

        self.to_image = trackio.Image
        self.run = trackio.init(
            project=PROJECT,
            name=run_dir.resolve().name,
            config=flat(config),
            # Never: a new run of an old name must not go on with its curves.
            resume="allow" if from_step > 1 else "never",
        )

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        self.run.log(dict(scalars), step=step)

    def image(self, step: int, name: str, array: np.ndarray) -> None:
        """The picture [H, W, 3] under its name at this step."""
        self.run.log({name: self.to_image(array)}, step=step)

    def close(self) -> None:
        self.run.finish()


OPENERS: dict[str, Callable[[Path, Mapping[str, Any], int], Tracker]] = {
    "tensorboard": TensorBoard,
    "mlflow": MLflow,
    "wandb": WandB,
    "trackio": Trackio,
}


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"data": {"clients": 3}}` as `{"data.clients": 3}`."""
    out: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            out |= flat(value, f"{prefix}{key}.")
        else:
            out[prefix + key] = value
    return out


def run_id(run_dir: Path) -> str:
    """An id that stays the same when the run in this folder is resumed: 16 hex digits of its path's SHA-256."""
    return hashlib.sha256(str(Path(run_dir).resolve()).encode()).hexdigest()[:16]
