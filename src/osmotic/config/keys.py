"""One configuration key: its default, meaning and range, and the check of a value against them."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import field
from typing import Any, Literal

from osmotic.errors import ConfigError


def key(
    default: Any, rule: str = "", low: float | None = None, high: float | None = None, above: bool = False
) -> Any:
    """A configuration key: its default, what it means, and its closed range (`above`: the low end is excluded)."""
    return field(default=default, metadata={"doc": rule, "low": low, "high": high, "above": above})


def checked(name: str, value: Any, hint: Any, meta: Mapping[str, Any]) -> Any:
    """`value` in the key's type; ConfigError if it has another type or lies outside the key's range."""
    value = _typed(name, value, hint)
    low, high, above = meta.get("low"), meta.get("high"), meta.get("above", False)
    for number in value if isinstance(value, tuple) else (value,):
        if isinstance(number, str) and not _writable(number):
            raise ConfigError(name, number, "must be text that UTF-8 can hold")
        if isinstance(number, bool) or not isinstance(number, int | float):
            continue
        if (
            number != number
            or (low is not None and (number < low or (above and number == low)))
            or (high is not None and number > high)
        ):
            left = "" if low is None else f"{'>' if above else '>='} {low:g}"
            right = "" if high is None else f"<= {high:g}"
            raise ConfigError(name, value, "must be " + " and ".join(part for part in (left, right) if part))
        if number in (float("inf"), float("-inf")):
            raise ConfigError(name, value, "must be finite")
    return value


def _writable(text: str) -> bool:
    """Whether a text can stand in a file: the name of a file that is no UTF-8 comes with lone surrogates."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _typed(name: str, value: Any, hint: Any) -> Any:
    origin = typing.get_origin(hint)
    if origin is Literal:
        choices = typing.get_args(hint)
        if value in choices and isinstance(value, str):
            return value
        raise ConfigError(
            name, value, "must be one of " + ", ".join(map(str, choices)), nearest(str(value), choices)
        )
    if origin in (types.UnionType, typing.Union):
        kind, word = (a for a in typing.get_args(hint))
        if value in typing.get_args(word) and isinstance(value, str):
            return value
        try:
            return _typed(name, value, kind)
        except ConfigError as error:
            raise ConfigError(name, value, f"{error.rule} or {typing.get_args(word)[0]}") from None
    if origin is tuple:
        inner = typing.get_args(hint)[0]
        if isinstance(value, str) and inner is str:  # --set track.backends=wandb, or =[wandb,mlflow]
            value = [word.strip(" '\"") for word in value.strip("[] ").split(",") if word.strip()]
        if not isinstance(value, list | tuple):
            raise ConfigError(name, value, "must be a list, e.g. [a, b]")
        return tuple(_typed(name, item, inner) for item in value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            raise ConfigError(name, "a number of very many digits", "must be finite") from None
    if (hint is int and isinstance(value, bool)) or not isinstance(value, hint):
        kind = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}[hint]
        raise ConfigError(name, value, f"must be {kind}")
    return value


# What other tools call the last word of a key of ours.
ALSO = {"lr": "learning_rate"}


def ending(word: str, valid: Iterable[str]) -> list[str]:
    """The keys that end in this word whole: `epochs` is how `training.local_epochs` ends. An equal last part comes first."""
    word = ALSO.get(word, word)
    equal = [c for c in valid if c.rpartition(".")[2] == word]
    return equal or [c for c in valid if c.endswith(f"_{word}")]


def nearest(name: str, valid: Iterable[Any]) -> str | None:
    """The valid name closest to a misspelt one, or None. A slip of a letter goes before a last part that is whole in another."""
    candidates = [str(v) for v in valid]
    found = difflib.get_close_matches(name, candidates, n=1, cutoff=0.8)
    if not found and (whole := ending(name.split(".")[-1], candidates)):
        found = difflib.get_close_matches(name, whole, n=1, cutoff=0)
    found = found or difflib.get_close_matches(name, candidates, n=1, cutoff=0.5)
    if not found and "." in name:  # a misspelt leaf under the wrong section
        found = difflib.get_close_matches(name.split(".")[-1], candidates, n=1, cutoff=0.5)
    return found[0] if found else None
