"""One run in its folder, as Python sees it: figures as rows, images, pipelines, scores; and going on with it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from osmotic.errors import ConfigError
from osmotic.runs.session import go_on, native, torch_as_found

if TYPE_CHECKING:
    import numpy as np
    from diffusers import DiffusionPipeline

    from osmotic.config.schema import Config
    from osmotic.data.dataset import Dataset
    from osmotic.runs.callbacks import Callback

    Place = str | os.PathLike[str]


class Run:
    """A run in its folder. Everything is read when it is asked for, so that it is right while a run goes on.

    >>> run = osmotic.load(finished)
    >>> run.finished, run.config.seed, run.summary["num_clients"]
    (True, 0, 3)
    >>> run.metrics[-1]["quality.fd"] == run.summary["quality"]["fd"]
    True

    Raises: ConfigError if the folder holds no run.
    """

    def __init__(self, path: Place) -> None:
        from osmotic.storage.folder import RunDir

        self._folder = RunDir.existing(Path(path))

    @property
    def path(self) -> Path:
        """The run's folder; docs/run-folder.md says what lies in it."""
        return self._folder.path

    @property
    def config(self) -> Config:
        """The resolved configuration, as it stands in the folder."""
        from osmotic.runs import resolve

        return resolve.recorded(self._folder.config)

    @property
    def finished(self) -> bool:
        """Whether the run has come to its end; if not, `resume` goes on with it."""
        return self._folder.summary.is_file()

    @property
    def summary(self) -> dict[str, Any]:
        """summary.json: scores, bytes, images seen, failures.

        Raises: ConfigError if the run is not finished.
        """
        from osmotic.runs import commands

        found: dict[str, Any] = json.loads(commands.finished(self.path).summary.read_text(encoding="utf-8"))
        return found

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """A row per phase so far, for `pandas.DataFrame`; what is nested has dots: "quality.fd", "client_loss.client-000"."""
        return [_flat(line) for line in _lines(self._folder.log("metrics"))]

    @property
    def ledger(self) -> list[dict[str, Any]]:
        """A row per phase, client and direction so far: weights, bytes, images, optimiser steps."""
        return [_flat(line) for line in _lines(self._folder.log("ledger"))]

    @property
    def partition(self) -> list[dict[str, Any]]:
        """A row per client: training images, held-out ones, and training images of every class as "images.CLASS"."""
        if not self._folder.partition.is_file():
            return []  # stopped before the images were dealt out
        from osmotic.storage import strict_json

        found = strict_json.read_table(self._folder.partition)
        try:
            counts = found["counts"] or [[] for _ in found["clients"]]
            named = [dict(zip(found["class_names"], row, strict=False)) for row in counts]
            rows = zip(found["clients"], found["sizes"], found["holdout_sizes"], named, strict=True)
            return [
                {"client": client, "images": size, "held_out": held}
                | {f"images.{c}": n for c, n in row.items()}
                for client, size, held, row in rows
            ]
        except (KeyError, TypeError, ValueError):
            rule = "does not say who holds how many images"
            raise ConfigError(str(self._folder.partition), None, rule) from None

    def sample(
        self,
        count: int = 100,
        label: str | int | None = None,
        *,
        steps: int | None = None,
        guidance: float | None = None,
        seed: int = 0,
        client: str | None = None,
    ) -> np.ndarray:
        """Images of the trained model, uint8 [count, H, W, C]; nothing is written.

        >>> osmotic.load(finished).sample(4, label=3, steps=2).shape
        (4, 8, 8, 1)

        Args:
            label: class name or number; None takes all classes in turn.
            steps: sampler steps; None is the model's own number.
            guidance: classifier-free guidance scale, 1 is off; None is that of the scores.
            seed: of the noise. Image i is the same whatever `count` is.
            client: whose model, where clients have models of their own.
        Raises: ConfigError for a label or client that there is none of, or a run that is not finished.
        """
        from osmotic.runs import commands, saved

        if count < 1:
            raise ConfigError("count", count, "must be >= 1")
        run = commands.finished(self.path)
        return saved.draw(run, count, label, steps, guidance, seed, client)[0]

    def pipeline(self, client: str | None = None) -> DiffusionPipeline:
        """The trained model as a diffusers pipeline. Unlike diffusers' own loading, no file of the folder is executed.

        >>> pipe = osmotic.load(finished).pipeline()
        >>> len(pipe(class_labels=[0, 1, 2], num_inference_steps=2).images)
        3

        Args:
            client: whose model, where clients have models of their own.
        Raises: ConfigError as `sample`, and for an own network that is not registered.
        """
        from osmotic.runs import commands, saved

        return saved.load(commands.finished(self.path), client)

    def evaluate(self, *, ema: float | None = None, data: Any = None, **score: Any) -> dict[str, Any]:
        """Scores the run's models again, otherwise: with other keys of [score], or another average. The run stays as it is.

        >>> osmotic.load(finished).evaluate(samples=20, sampler="ddim", steps=2)["num_samples"]
        20

        Args:
            ema: half-life in images of the average to score; 0 for the raw weights, None for what the run scored.
            data: where the run was begun with images handed over in Python, the same ones.
            score: keys of [score], such as samples=5000.
        Raises: ConfigError for a key that is none of [score], other images, or a run that is not finished.
        """
        from osmotic.runs import commands

        commands.finished(self.path)
        given = {f"score.{name}": value for name, value in native(score).items()}
        with torch_as_found():
            return commands.evaluate(self.path, (), ema, self._dataset(data), given)

    def resume(
        self,
        callbacks: Callback | Iterable[Callback] = (),
        data: Any = None,
        *,
        keys: Mapping[str, Any] | None = None,
        quiet: bool = True,
    ) -> Run:
        """Goes on where the run was stopped, to the bits that it would have had unbroken; a finished one is summed up again.

        With more rounds, as in `keys={"training.rounds": 40}`, stopped and finished runs are extended, to the bits of
        one begun with so many.

        >>> osmotic.load(finished).resume().finished
        True

        Args:
            callbacks, quiet: as of `run`.
            data: where the run was begun with images handed over in Python, the same ones.
            keys: a larger `training.rounds`, and keys that leave the result as it is (`engine.workers`, `engine.processes`, `track.`, `checkpoint.`).
        Returns: this run.
        Raises: ConfigError for other images, any other key, or what is registered no more; as `run`.
        """
        from osmotic.runs.callbacks import gathered

        told = gathered(callbacks)
        with torch_as_found():
            go_on(self.path, self._dataset(data), told, quiet, keys=native(keys or {}))
            return concluded(self.path, told, quiet)

    def report(self) -> Path:
        """Writes report.html and the model card anew; returns the report's path. Raises: ConfigError as `summary`."""
        from osmotic.runs import commands

        return commands.report(commands.finished(self.path).path)

    def _dataset(self, data: Any) -> Dataset | None:
        """Images handed over again; None where the run reads them from their source itself."""
        if data is None:
            return None
        config = self.config
        if config.data.source != "python":
            raise ConfigError("data", None, f"this run reads {config.data.source} itself: leave it out")
        from osmotic.data.own import from_python

        return from_python(data, config=config.data)

    def _facts(self) -> list[tuple[str, str]]:
        """What `repr` tells."""
        from osmotic.report.formatting import fd_name, figure, size

        config = self.config
        facts = [("run", config.preset or config.method.name), ("data", config.data.source)]
        if not self.finished:
            return [*facts, ("finished", f"no, {len(self.metrics)} phases done")]
        summary = self.summary
        quality = summary["quality"] or {}
        fd = quality.get("fd")
        if fd is None:
            fd = (quality.get("mean") or {}).get("fd_all")
        return [
            *facts,
            ("clients", str(summary["num_clients"])),
            ("rounds", str(summary["rounds"])),
            (fd_name(quality.get("encoder")), figure(fd)),
            ("up", size(summary["bytes_up"])),
            ("down", size(summary["bytes_down"])),
        ]

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r}: " + ", ".join(f"{k} {v}" for k, v in self._facts()) + ")"

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th style='text-align:left'>{escape(name)}</th><td style='text-align:left'>{escape(value)}</td></tr>"
            for name, value in [*self._facts(), ("folder", str(self.path))]
        )
        return f"<table>{rows}</table>"


def concluded(folder: Path, callbacks: Sequence[Callback], quiet: bool) -> Run:
    """The report, and whoever is told that all is done."""
    from osmotic.runs import commands
    from osmotic.storage.folder import RunDir

    if quiet:
        commands.report(folder)
    else:
        commands.publish(RunDir(folder), json=False)
    done = Run(folder)
    if reason := commands.untrained(done.summary):
        raise RuntimeError(reason)
    for callback in callbacks:
        callback.run_done(done)
    return done


def _lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a log; one that is being written is left out."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    try:
        return [json.loads(line) for line in lines]
    except ValueError as error:
        raise ConfigError(str(path), None, f"is not valid JSON: {error}") from None


def _flat(entry: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as keys with dots; what was not measured as a whole (`quality` of most rounds) is left out."""
    row: dict[str, Any] = {}
    for name, value in entry.items():
        if isinstance(value, Mapping):
            row |= _flat(value, f"{prefix}{name}.")
        elif value is not None or name not in ("quality", "mean", "weighted", "worst", "after"):
            row[f"{prefix}{name}"] = value
    return row
