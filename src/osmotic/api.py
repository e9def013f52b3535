"""osmotic from Python: train, plan, look at runs. What the commands do, with objects for text.

`import osmotic` offers all of it; nothing heavy is imported before it is needed.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from osmotic.errors import ConfigError
from osmotic.runs.run import Run, concluded
from osmotic.runs.session import fresh_folder, native, start, torch_as_found

if TYPE_CHECKING:
    from osmotic.config.presets import Preset
    from osmotic.config.schema import Config
    from osmotic.data.dataset import Dataset
    from osmotic.report.compare import Comparison
    from osmotic.runs.callbacks import Callback

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
    Raises: ConfigError, with the line that the command would print, before anything is written; RuntimeError if no
        client came through the first phase, or none was counted by the end; OSError for a full disk; what a callback raises. KeyboardInterrupt stops the run, which
        `osmotic.load(folder).resume()` goes on with.
    """
    from osmotic.runs.callbacks import gathered

    told = gathered(callbacks)
    resolved, dataset = _resolved(config, preset, data, keys, sections)
    folder = fresh_folder(resolved) if out is None else Path(out)
    with torch_as_found():
        return concluded(start(resolved, folder, dataset, told, quiet).path, told, quiet)


def plan(
    config: Settings = None,
    *,
    preset: str | None = None,
    data: Any = None,
    keys: Mapping[str, Any] | None = None,
    link_mbit: float = 100.0,
    time: bool = False,
    **sections: Any,
) -> dict[str, Any]:
    """What a run of these settings would send and hold, before anything runs; arguments as `run`.

    >>> planned = osmotic.plan(preset="fedavg", codec={"up": "int8"}, training={"rounds": 10})
    >>> planned["parameters"], planned["bytes_up"] < planned["bytes_down"] / 3.5
    (702753, True)

    Args:
        link_mbit: speed of a site's line in Mbit/s, for the time on the link.
        time: also time a few steps of the network on this machine: "seconds_training", "seconds_scoring". It imports torch
            and takes some seconds. As it reads the images, "traffic" then holds their compressed size too.
    Returns: the figures of `osmotic plan --json`.
    Raises: ConfigError as `run`.
    """
    from osmotic.runs import plan as planning

    resolved, dataset = _resolved(config, preset, data, keys, sections)
    with torch_as_found() if time else nullcontext():
        return planning.plan(resolved, link_mbit, dataset, time)


def leaves(
    config: Settings = None,
    *,
    preset: str | None = None,
    data: Any = None,
    keys: Mapping[str, Any] | None = None,
    **sections: Any,
) -> dict[str, Any]:
    """What would leave a site under these settings, what stays, and what the server could learn; arguments as `run`.

    >>> told = osmotic.leaves(preset="udec")
    >>> told["exchanges"][0]["from_site"]["parts"], len(told["missing"]) > 0
    (['decoder'], True)

    Returns: what `osmotic leaves --json` prints.
    Raises: ConfigError as `run`.
    """
    from osmotic.runs import leaves as leaving

    resolved, dataset = _resolved(config, preset, data, keys, sections)
    return leaving.leaves(resolved, dataset)


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
    rows = []
    for name, preset in PRESETS.items():
        exchanges, paper = _words_of(preset)
        rows.append(
            {"preset": name, "exchanges": exchanges, "paper": paper or None, "keys": dict(preset.keys)}
        )
    return rows


def _words_of(preset: Preset) -> tuple[str, str]:
    """What a preset exchanges and its paper: its own words, else those of its exchange and pieces."""
    from osmotic.config.schema import PIECE_SECTIONS
    from osmotic.methods import METHODS
    from osmotic.pieces import PIECES

    name = preset.keys.get("method.name", "fedavg")
    method = METHODS[name]
    pieces = [PIECES[p] for section in PIECE_SECTIONS for p in preset.keys.get(f"{section}.pieces", ())]
    exchanges = "; ".join([f"as {name}", *(p.title for p in pieces)]) if pieces else method.exchanges
    return preset.exchanges or exchanges, preset.paper or (pieces[0].paper if pieces else method.paper)


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
        origin = native(config)
    elif config is None or isinstance(config, str | os.PathLike):
        origin = None if config is None else Path(config)
    else:
        raise TypeError(f"config must be a path, a Config or a mapping, not {type(config).__name__}")
    given = schema.flatten(native(sections))
    if _is_section(data):
        given |= schema.flatten({"data": native(data)})
        data = None
    own = data is not None and not isinstance(data, str | os.PathLike)
    source = "python" if own else None if data is None else str(data)
    chosen = resolve.load(origin, preset=preset, data=source, keys=given | native(keys or {}), own_data=own)
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
