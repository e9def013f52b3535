"""The resolved configuration: defaults < recipe < preset < file < `--data` and `--set`, and every check on what a user typed.

Nothing heavy is imported here, so that a wrong key is answered at once.
"""

from __future__ import annotations

import dataclasses
import tomllib
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from osmotic import plugins
from osmotic.codecs import CODECS
from osmotic.config.keys import checked, nearest
from osmotic.config.presets import PRESETS, RECIPES
from osmotic.config.schema import PIECE_SECTIONS, Config, build, flatten
from osmotic.config.toml import read_toml
from osmotic.errors import ConfigError
from osmotic.methods import METHODS
from osmotic.metrics import weights
from osmotic.pieces import PIECES
from osmotic.runs.rules import check

# What makes a run the bundle of a preset: the exchange, and the pieces of the learning rule.
BUNDLE = ("method.name", *(f"{section}.pieces" for section in PIECE_SECTIONS))


def load(
    path: Path | Mapping[str, Any] | None = None,
    *,
    preset: str | None = None,
    data: str | None = None,
    sets: Iterable[str] = (),
    keys: Mapping[str, Any] | None = None,
    own_data: bool = False,
) -> Config:
    """The resolved, checked configuration.

    Args:
        path: TOML file, or tables as it would hold, or None for defaults.
        preset: name of a preset (`osmotic methods`).
        data: short for `--set data.source=DATA`.
        sets: `section.key=value` strings; values in TOML notation, bare words are strings.
        keys: the same as values, e.g. {"training.rounds": 5}; they come after `sets`.
        own_data: images are handed over in Python, so that `data.source` may be, and is, "python".
    Raises: ConfigError with one line for the first thing that is wrong.
    """
    plugins.load_installed()
    typed = flatten(path if isinstance(path, Mapping) else read_toml(path)) if path else {}
    origin = str(typed.pop("preset", "")) if path else ""
    overrides = dict(parse_set(s) for s in sets) | dict(keys or {})
    named_by_set = str(overrides.pop("preset", ""))
    if preset and named_by_set and preset != named_by_set:
        raise ConfigError("--set", f"preset={named_by_set}", f"contradicts --preset {preset}")
    chosen = preset or named_by_set or origin
    # The label of a bundle that is no preset, such as "udec+scaffold", stands in its resolved file.
    if chosen and chosen not in PRESETS and not (chosen == origin and "method.name" in typed):
        raise ConfigError("preset", chosen, "must be one of " + ", ".join(PRESETS), nearest(chosen, PRESETS))
    # A resolved file already holds its preset's keys, and they come later in precedence anyway.
    named = dict(PRESETS[chosen].keys) if chosen in PRESETS else {}
    if data is not None:
        typed["data.source"] = data
    if preset:
        _refuse_silent(preset, named, typed, path)
    merged = _merge(named, typed, overrides)
    # A preset of a plugin that is not loaded now: its run keeps its name, as long as it keeps what makes the bundle.
    kept = chosen not in PRESETS and chosen == origin and not overrides.keys() & set(BUNDLE)
    config = build({**merged, "preset": chosen if kept and chosen else _label(chosen, named, merged)})
    if chosen in PRESETS and (needed := PRESETS[chosen].needs) and not merged.get(needed):
        raise ConfigError(needed, "", f"must be given: preset {chosen} is of it")
    check(config, own_data)
    if config.model.pretrained_sha256 and not config.model.pretrained:
        rule = "is the hash of pretrained weights, and model.pretrained names none"
        raise ConfigError("model.pretrained_sha256", config.model.pretrained_sha256, rule)
    return _filled(config)


def _refuse_silent(
    preset: str,
    named: Mapping[str, Any],
    typed: Mapping[str, Any],
    path: Path | Mapping[str, Any] | None,
) -> None:
    """A preset on the command line may not be overruled in silence by what makes up a bundle in the file."""
    for key in BUNDLE:
        default: Any = "fedavg" if key == "method.name" else []
        if key in typed and _plain(typed[key]) != _plain(named.get(key, default)):
            where = "configuration" if isinstance(path, Mapping) else f"file {path}"
            rule = f"the {where} sets {key} = {typed[key]!r}, which the preset would not change"
            raise ConfigError("--preset", preset, rule)


def _merge(
    named: Mapping[str, Any], typed: Mapping[str, Any], overrides: Mapping[str, Any]
) -> dict[str, Any]:
    """The layers one over the other. Options belong to the exchange or piece that they were written for."""
    recipe = {**named, **typed, **overrides}.get("recipe.name", "default")
    if not isinstance(recipe, str) or recipe not in RECIPES:
        raise ConfigError(
            "recipe.name", recipe, "must be one of " + ", ".join(RECIPES), nearest(str(recipe), RECIPES)
        )
    merged: dict[str, Any] = {}
    for layer in (RECIPES[recipe], named, typed, overrides):
        if "method.name" in layer and layer["method.name"] != merged.get("method.name"):
            merged = {k: v for k, v in merged.items() if not k.startswith("method.")}
        for section in PIECE_SECTIONS:
            if (pieces := layer.get(f"{section}.pieces")) is not None:
                merged = {k: v for k, v in merged.items() if not _dropped(k, section, _plain(pieces))}
        merged.update(layer)
    return merged


def _dropped(key: str, section: str, pieces: list[str]) -> bool:
    """Whether `key` is an option of a piece that a later layer took out of its section."""
    owner = key.split(".")
    return len(owner) == 3 and owner[0] == section and owner[1] not in pieces


def _plain(value: Any) -> Any:
    """A list of names however it was written: a list, a tuple, or text with commas."""
    if isinstance(value, str) and ("," in value or value.startswith("[")):
        return [word.strip(" \"'") for word in value.strip("[] ").split(",") if word.strip()]
    return list(value) if isinstance(value, list | tuple) else value


def _label(chosen: str, named: Mapping[str, Any], merged: Mapping[str, Any]) -> str:
    """The preset's name if its exchange and pieces are still those of the run, else these, as in "udec+scaffold+adam"."""
    method = str(merged.get("method.name", "fedavg"))

    def names(of: Mapping[str, Any]) -> list[str]:
        found = (_plain(of.get(key, [])) for key in BUNDLE[1:])
        return [str(n) for names in found for n in (names if isinstance(names, list) else [names])]

    if chosen in PRESETS and named.get("method.name", "fedavg") == method and names(named) == names(merged):
        return chosen
    return "+".join([method, *names(merged)])


def _filled(config: Config) -> Config:
    """Every option of every piece with its value, so that a resolved file says all that a run depends on."""
    method, codec = config.method, config.codec
    codecs = {name: _typed(CODECS[name], f"codec.{name}", given) for name, given in codec.options.items()}
    full: dict[str, Any] = {
        "method": dataclasses.replace(method, options=_typed(METHODS[method.name], "method", method.options)),
        "codec": dataclasses.replace(codec, options=codecs),
    }
    for name in PIECE_SECTIONS:
        section = getattr(config, name)
        options = {
            piece: {f.name: f.default for f in dataclasses.fields(PIECES[piece])}
            | _typed(PIECES[piece], f"{name}.{piece}", section.options.get(piece, {}))
            for piece in section.pieces
        }
        full[name] = dataclasses.replace(section, options={p: o for p, o in options.items() if o})
    return dataclasses.replace(config, **full)


def _typed(cls: Any, prefix: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Options, which the rules have found good, in the types of their keys: a list as a tuple, 1 as 1.0."""
    hints = typing.get_type_hints(cls) if given else {}
    meta = {f.name: f.metadata for f in dataclasses.fields(cls)} if given else {}
    return {name: checked(f"{prefix}.{name}", v, hints[name], meta[name]) for name, v in given.items()}


def rebuilt(tables: Mapping[str, Any]) -> Config:
    """A resolved configuration from its tables (`to_dict`), where all of its names are known; nothing is checked again."""
    return _filled(build(flatten(tables)))


def received(tables: Mapping[str, Any], source: str, autoencoder: str = "", pretrained: str = "") -> Config:
    """A resolved configuration that came from elsewhere, for images of one's own; it is held to every rule.

    Args:
        source: of the images, in the place of `data.source`.
        autoencoder, pretrained: folders in the place of `model.autoencoder` and `model.pretrained`, where the run has them.
    Raises: ConfigError for a key or a combination that cannot be.
    """
    given = flatten(tables) | {
        "data.source": source,
        "data.max_images": 0,
        "engine.name": "inprocess",
        "engine.device": "auto",
        "track.backends": [],
    }
    for key, own in (("model.autoencoder", autoencoder), ("model.pretrained", pretrained)):
        if given.get(key):
            given[key] = own
    config = build(given)
    # Its files are those of another machine: whoever is asked for features here looks for its own.
    weights.check_name(config.score.encoder)
    score = dataclasses.replace(config.score, encoder="classifier")
    check(dataclasses.replace(config, score=score))
    return _filled(config)


def recorded(path: Path) -> Config:
    """The configuration in a run folder's file as it stands; what its names stand for need not be known here.

    Raises: ConfigError for a file that cannot be read, or with keys that there are not.
    """
    return build(flatten(read_toml(path)))


def parse_set(text: str) -> tuple[str, Any]:
    """`a.b=c` as (`a.b`, value); the value is TOML, and a bare word is a string."""
    name, equals, raw = text.partition("=")
    name, raw = name.strip(), raw.strip()
    if not equals or not name:
        raise ConfigError("--set", text, "must be section.key=value")
    try:
        return name, tomllib.loads(f"value = {raw}")["value"]
    except (ValueError, RecursionError):  # no TOML, a number of thousands of digits, brackets in brackets
        return name, raw.strip("'\"")
