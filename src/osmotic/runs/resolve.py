"""The resolved configuration: defaults < recipe < preset < file < `--data` and `--set`, and every check on what a user typed.

Nothing heavy is imported here, so that a wrong key is answered at once.
"""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from osmotic.config.keys import nearest
from osmotic.config.presets import PRESETS, RECIPES
from osmotic.config.schema import PIECE_SECTIONS, Config, build, flatten
from osmotic.errors import ConfigError
from osmotic.pieces import PIECES
from osmotic.runs.rules import check

# What makes a run the bundle of a preset: the exchange, and the pieces of the learning rule.
BUNDLE = ("method.name", *(f"{section}.pieces" for section in PIECE_SECTIONS))


def load(
    path: Path | None = None,
    *,
    preset: str | None = None,
    data: str | None = None,
    sets: Iterable[str] = (),
    keys: Mapping[str, Any] | None = None,
) -> Config:
    """The resolved, checked configuration.

    Args:
        path: TOML file, or None for defaults.
        preset: name of a preset (`osmotic methods`).
        data: short for `--set data.source=DATA`.
        sets: `section.key=value` strings; values in TOML notation, bare words are strings.
        keys: the same as values, e.g. {"training.rounds": 5}; they come after `sets`.
    Raises: ConfigError with one line for the first thing that is wrong.
    """
    typed = flatten(read_toml(path)) if path else {}
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
    config = build({**merged, "preset": _label(chosen, named, merged)})
    check(config)
    return _filled(config)


def _refuse_silent(
    preset: str, named: Mapping[str, Any], typed: Mapping[str, Any], path: Path | None
) -> None:
    """A preset on the command line may not be overruled in silence by what makes up a bundle in the file."""
    for key in BUNDLE:
        default: Any = "fedavg" if key == "method.name" else []
        if key in typed and _plain(typed[key]) != _plain(named.get(key, default)):
            rule = f"the file {path} sets {key} = {typed[key]!r}, which the preset would not change"
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
    full = {}
    for name in PIECE_SECTIONS:
        section = getattr(config, name)
        options = {
            piece: {
                f.name: section.options.get(piece, {}).get(f.name, f.default)
                for f in dataclasses.fields(PIECES[piece])
            }
            for piece in section.pieces
        }
        full[name] = dataclasses.replace(section, options={p: o for p, o in options.items() if o})
    return dataclasses.replace(config, **full)


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file. Raises ConfigError when it cannot be read or parsed."""
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(str(path), None, f"cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise ConfigError(str(path), None, "must be a UTF-8 text file") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(str(path), None, f"is not valid TOML: {error}") from None


def parse_set(text: str) -> tuple[str, Any]:
    """`a.b=c` as (`a.b`, value); the value is TOML, and a bare word is a string."""
    name, equals, raw = text.partition("=")
    name, raw = name.strip(), raw.strip()
    if not equals or not name:
        raise ConfigError("--set", text, "must be section.key=value")
    try:
        return name, tomllib.loads(f"value = {raw}")["value"]
    except ValueError:  # no TOML, or a number of thousands of digits
        return name, raw.strip("'\"")
