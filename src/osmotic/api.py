"""osmotic from Python: train, plan, look at runs. What the commands do, with objects for text.

`import osmotic` offers all of it; nothing heavy is imported before it is needed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from osmotic.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from diffusers import DiffusionPipeline

    from osmotic.config.schema import Config
    from osmotic.data.dataset import Dataset
    from osmotic.federation.interfaces import Observer
    from osmotic.report.compare import Comparison
    from osmotic.runs.callbacks import Callback
    from osmotic.storage.folder import RunDir

    Place = str | os.PathLike[str]
    Settings = Place | Config | Mapping[str, Any] | None


def run(
    config: Settings = None,
    *,
    preset: str | None = None,
    data: Any = None,
    out: Place | None = None,
    callbacks: Callback | Iterable[Callback] = (),
    keys: Mapping[str, Any] | None = None,
    quiet: bool = True,
    **sections: Any,
) -> Run:
    """Trains a model, scores it, writes the report, and returns the run: `osmotic run` from Python.

    >>> run = osmotic.run(preset="fedprox", training={"rounds": 2}, local={"prox": {"mu": 0.1}}, out=folder)
    >>> run.finished, run.config.training.rounds, len(run.metrics)
    (True, 2, 2)

    Images of one's own are handed over as they are, here 60 of 8 x 8 pixels with labels:

    >>> images = numpy.random.default_rng(0).integers(0, 256, (60, 8, 8), dtype=numpy.uint8)
    >>> labels = numpy.arange(60) % 3
    >>> osmotic.run(data=(images, labels), keys={"data.clients": 2, "training.rounds": 1}, out=other).config.data.source
    'python'

    Args:
        config: a TOML file, a `Config`, or a mapping of sections as such a file holds them. Every key has a default.
        preset: a name of `osmotic.list_presets()`.
        data: a source ("digits", "folder:PATH", ...), or images of one's own: an array [N, H, W] or [N, H, W, C],
            (images, labels), a mapping of arrays (train_images, train_labels, ...), a torch Dataset, a
            datasets.Dataset. Or the section [data], as a mapping of its keys.
        out: a new or empty folder for the run; by default runs/PRESET-DATA-SEED, with a number where that is taken.
        callbacks: what is told while the run goes on.
        keys: keys with dots, such as {"training.rounds": 5}; they win over everything else.
        quiet: print nothing; False shows what the command shows.
        sections: further sections by name, such as training={"rounds": 5}, and `seed`; they win over preset and config.
    Raises: ConfigError, with the line that the command would print, before anything is written; RuntimeError if the run
        came to its end and no client was counted; what a callback raises. KeyboardInterrupt stops the run, which
        `osmotic.load(folder).resume()` goes on with.
    """
    from osmotic.runs.callbacks import gathered

    told = gathered(callbacks)
    resolved, dataset = _resolved(config, preset, data, keys, sections)
    folder = fresh_folder(resolved) if out is None else Path(out)
    with _torch_as_found():
        return _concluded(start(resolved, folder, dataset, told, quiet).path, told, quiet)


def plan(
    config: Settings = None,
    *,
    preset: str | None = None,
    data: Any = None,
    keys: Mapping[str, Any] | None = None,
    link_mbit: float = 100.0,
    **sections: Any,
) -> dict[str, Any]:
    """What a run of these settings would send and hold, before anything runs; arguments as `run`.

    >>> planned = osmotic.plan(preset="fedavg", codec={"up": "int8"}, training={"rounds": 10})
    >>> planned["parameters"], planned["bytes_up"] < planned["bytes_down"] / 3.5
    (702753, True)

    Args:
        link_mbit: speed of a site's line in Mbit/s, for the time on the link.
    Returns: the figures of `osmotic plan --json`.
    Raises: ConfigError as `run`.
    """
    from osmotic.runs import plan as planning

    resolved, dataset = _resolved(config, preset, data, keys, sections)
    return planning.plan(resolved, link_mbit, dataset)


def load(path: Place) -> Run:
    """The run in a folder, finished or not.

    >>> osmotic.load(finished).summary["method"]
    'fedavg'

    Raises: ConfigError if there is no run.
    """
    return Run(path)


def compare(runs: Iterable[Run | Place]) -> Comparison:
    """Finished runs side by side: `rows` (one per run), `ranked()`, and in `differences` why they cannot be ranked.

    >>> comparison = osmotic.compare([finished, finished])
    >>> comparison.comparable, [row.method for row in comparison.rows]
    (True, ['fedavg', 'fedavg'])

    `pandas.DataFrame(comparison.rows)` is a table, `comparison.write_html(path)` a page with plots.
    Raises: ConfigError if one is not finished.
    """
    from osmotic import plugins
    from osmotic.report.compare import compare as side_by_side

    plugins.load_installed()
    return side_by_side([run.path if isinstance(run, Run) else Path(run) for run in runs])


def list_presets() -> list[dict[str, Any]]:
    """The presets, those of plugins with them: what each exchanges, the paper it comes from, its keys.

    >>> osmotic.list_presets()[0]["preset"]
    'fedavg'
    """
    from osmotic import plugins
    from osmotic.config.presets import PRESETS

    plugins.load_installed()
    return [
        {"preset": name, "exchanges": p.exchanges, "paper": p.paper or None, "keys": dict(p.keys)}
        for name, p in PRESETS.items()
    ]


def list_pieces() -> list[dict[str, Any]]:
    """The pieces of the learning rule, those of plugins with them: section, what it does, paper, keys with defaults.

    >>> {row["piece"]: row["keys"] for row in osmotic.list_pieces()}["prox"]
    {'local.prox.mu': 0.01}
    """
    import dataclasses

    from osmotic import plugins
    from osmotic.pieces import PIECES

    plugins.load_installed()
    return [
        {
            "piece": name,
            "section": cls.section,
            "title": cls.title,
            "paper": cls.paper or None,
            "keys": {f"{cls.section}.{name}.{f.name}": f.default for f in dataclasses.fields(cls)},
        }
        for name, cls in PIECES.items()
    ]


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
        found = json.loads(self._folder.partition.read_text(encoding="utf-8"))
        counts = found["counts"] or [[] for _ in found["clients"]]
        named = [dict(zip(found["class_names"], row, strict=False)) for row in counts]
        rows = zip(found["clients"], found["sizes"], found["holdout_sizes"], named, strict=True)
        return [
            {"client": client, "images": size, "held_out": held} | {f"images.{c}": n for c, n in row.items()}
            for client, size, held, row in rows
        ]

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
        given = {f"score.{name}": value for name, value in _native(score).items()}
        with _torch_as_found():
            return commands.evaluate(self.path, (), ema, self._dataset(data), given)

    def resume(
        self, callbacks: Callback | Iterable[Callback] = (), data: Any = None, *, quiet: bool = True
    ) -> Run:
        """Goes on where the run was stopped, to the bits that it would have had unbroken; a finished one is summed up again.

        >>> osmotic.load(finished).resume().finished
        True

        Args:
            callbacks, quiet: as of `run`.
            data: where the run was begun with images handed over in Python, the same ones.
        Returns: this run.
        Raises: ConfigError for other images, or what is registered no more; as `run`.
        """
        from osmotic.runs.callbacks import gathered

        told = gathered(callbacks)
        with _torch_as_found():
            go_on(self.path, self._dataset(data), told, quiet)
            return _concluded(self.path, told, quiet)

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


# --- what the commands share with `run` and `resume` ---


def fresh_folder(config: Config) -> Path:
    """runs/PRESET-DATA-SEED, with a number behind it if that is taken."""
    source = (
        config.data.source.rstrip("/").replace("\\", "/").split("/")[-1].split(":")[-1].removesuffix(".npz")
    )
    base = Path("runs") / f"{config.preset or config.method.name}-{source}-{config.seed}"
    folder, number = base, 2
    while folder.exists():
        folder, number = base.with_name(f"{base.name}-{number}"), number + 1
    return folder


def start(
    config: Config,
    folder: Path,
    dataset: Dataset | None = None,
    callbacks: Sequence[Callback] = (),
    quiet: bool = True,
) -> RunDir:
    """Trains a resolved configuration into a new folder; scored and summed up, but without a report.

    What can be known without the images is refused before the seconds that imports take.
    """
    from osmotic.runs import plan as planning
    from osmotic.storage.folder import RunDir

    RunDir.refuse_used(folder)
    more = () if dataset is None else (dataset,)
    planning.network(config, *more)
    from osmotic.runs import launch

    with _observed(callbacks, quiet) as observer:
        return launch.start(config, folder, observer, *more)


def go_on(
    folder: Path, dataset: Dataset | None = None, callbacks: Sequence[Callback] = (), quiet: bool = True
) -> RunDir:
    """Resumes the run in a folder, as `start` ends it."""
    from osmotic.runs import launch

    more = () if dataset is None else (dataset,)
    with _observed(callbacks, quiet) as observer:
        return launch.resume(folder, observer, *more)


@contextmanager
def _observed(callbacks: Sequence[Callback], quiet: bool) -> Iterator[Callable[[RunDir, Config], Observer]]:
    """What makes the observer of a run: its progress and trackers, then the callbacks."""
    from osmotic.runs.callbacks import Observers
    from osmotic.runs.progress import Progress

    opened: list[Progress] = []

    def observe(run_dir: RunDir, config: Config) -> Observer:
        opened.append(Progress(run_dir, config, quiet=quiet))
        return Observers([*opened, *callbacks])

    try:
        yield observe
    finally:
        for progress in opened:
            progress.close()


def _concluded(folder: Path, callbacks: Sequence[Callback], quiet: bool) -> Run:
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


# --- from what a user wrote to a configuration ---


def _resolved(
    config: Settings,
    preset: str | None,
    data: Any,
    keys: Mapping[str, Any] | None,
    sections: Mapping[str, Any],
) -> tuple[Config, Dataset | None]:
    """The checked configuration, and the images where they were handed over."""
    from osmotic.config import schema
    from osmotic.runs import resolve

    origin: Path | Mapping[str, Any] | None
    if isinstance(config, schema.Config):
        origin = schema.to_dict(config)
    elif isinstance(config, Mapping):
        origin = _native(config)
    elif config is None or isinstance(config, str | os.PathLike):
        origin = None if config is None else Path(config)
    else:
        raise TypeError(f"config must be a path, a Config or a mapping, not {type(config).__name__}")
    given = schema.flatten(_native(sections))
    if _is_section(data):
        given |= schema.flatten({"data": _native(data)})
        data = None
    own = data is not None and not isinstance(data, str | os.PathLike)
    source = "python" if own else None if data is None else str(data)
    chosen = resolve.load(origin, preset=preset, data=source, keys=given | _native(keys or {}), own_data=own)
    if not own:
        return chosen, None
    if chosen.data.source != "python":
        raise ConfigError(
            "data.source", chosen.data.source, "images were handed over too: leave one of them out"
        )
    from osmotic.data.own import from_python

    return chosen, from_python(data, config=chosen.data)


def _is_section(data: Any) -> bool:
    """Whether `data` is a mapping of configuration keys and not one of arrays, or of splits of a data set."""
    if not isinstance(data, Mapping) or type(data).__module__.split(".")[0] == "datasets":
        return False
    return not any(str(k).startswith(("train_", "test_")) or k == "class_names" for k in data)


def _native(value: Any) -> Any:
    """Numbers of numpy and paths as Python's own numbers and texts, in whatever they stand; sweeps are full of them."""
    if isinstance(value, Mapping):
        return {str(k): _native(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_native(v) for v in value]
    if isinstance(value, os.PathLike):
        return str(value)
    return value.item() if getattr(value, "shape", None) == () and hasattr(value, "item") else value


@contextmanager
def _torch_as_found() -> Iterator[None]:
    """A run sets torch's threads and switches for its bits; the caller gets them back as they were."""
    import torch

    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    benchmark = torch.backends.cudnn.benchmark
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)
        torch.backends.cudnn.benchmark = benchmark


# --- from files to rows ---


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
