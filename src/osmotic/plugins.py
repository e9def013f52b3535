"""What a user adds from outside the package, by name: pieces, exchanges, codecs, metrics, presets; and the files they lie in.

    import osmotic
    from dataclasses import dataclass

    @osmotic.register("feddyn")
    @dataclass(frozen=True, kw_only=True)
    class FedDyn(osmotic.Piece): ...

A plugin runs because the user named it (an import, `--plugin FILE`) or installed it (entry points of the group
"osmotic.plugins"), never because a run folder speaks of it.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import re
import sys
import traceback
import types
import typing
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

from osmotic.errors import ConfigError

if TYPE_CHECKING:
    from osmotic.config.schema import Config

GROUP = "osmotic.plugins"
FILES: list[Path] = []  # what `load_file` has run in this process, for whoever starts another one
# (kind, name) -> what a file or an installed package has registered: another process that loads them has it too.
LOADED: dict[tuple[str, str], Any] = {}
# Groups of tensors and control values that are not a piece's, and keys that stand beside pieces in their section.
NOT_FOR_PIECES = frozenset({"model", "image", "own", "codec", "control", "score", "pieces", "options"})

_own_presets: set[str] = set()
_installed_are_loaded = False

Thing = TypeVar("Thing")


@overload
def register(name: str) -> Callable[[Thing], Thing]: ...
@overload
def register(name: str, thing: Thing) -> Thing: ...
def register(name: str, thing: Any = None) -> Any:
    """Makes a piece, an exchange, a codec or a metric known by `name`; used as a decorator, or called with the thing.

    | thing | is then |
    |---|---|
    | a class derived from `osmotic.Piece` | named in `local.pieces`, `server.pieces` or `after.pieces` |
    | a class derived from `osmotic.Method` | `method.name` |
    | a class derived from `osmotic.Codec` | `codec.up`, `codec.down` |
    | a function (images, reference) -> number | named in `score.metrics` |

    The fields of a class are its configuration keys, made with `osmotic.key`. A network is registered with
    `osmotic.register_network`, a preset with `osmotic.register_preset`.

    >>> @osmotic.register("brightness")
    ... def brightness(images, reference):
    ...     return images.mean() - reference.mean()
    >>> osmotic.run(score={"metrics": ["brightness"]}, out=folder).summary["quality"]["metrics"].keys()
    dict_keys(['brightness'])

    Args:
        name: lower-case letters, digits, "-" and "_", beginning with a letter. One of the package is refused, one's own
            is replaced, so that a cell of a notebook can be run again.
        thing: what to register; without it the answer is a decorator.
    Returns: the thing.
    Raises: ConfigError for the name; TypeError for a thing of another kind, or a class that cannot be configured.
    """
    if thing is None:
        return lambda decorated: register(name, decorated)
    if not isinstance(thing, type):
        if not callable(thing):
            rule = "a class derived from Piece, Method or Codec, or a function (images, reference) -> number"
            raise TypeError(f"register {name!r}: must be {rule}, not {type(thing).__name__}")
        from osmotic.metrics.registry import METRICS, register_metric

        _refuse_taken("metric", name, METRICS)
        register_metric(name, thing)
        return thing
    word, registry, reserved = _kind_of(name, thing)
    _check_name(word, name, reserved)
    _refuse_taken(word, name, registry)
    _check_class(name, thing)
    if word == "codec":
        if _of_the_package(thing):
            raise TypeError(f"register {name!r}: {thing.__name__} has a name already: derive a class from it")
        thing.name = name  # type: ignore[attr-defined]  # stands in every packet, and both ends compare it
    registry[name] = thing
    return thing


def register_preset(name: str, keys: Mapping[str, Any], exchanges: str = "", paper: str = "") -> None:
    """Makes a named set of configuration keys known as a preset.

    >>> osmotic.register_preset("gentle", {"local": {"pieces": ["prox"], "prox": {"mu": 0.001}}})
    >>> osmotic.plan(preset="gentle")["pieces"]
    ['prox']

    Args:
        name: as of `register`.
        keys: sections as in a file, or keys with dots such as {"training.rounds": 5}.
        exchanges: what travels, in a few words, for `osmotic methods`.
        paper: arXiv id.
    Raises: ConfigError for the name, or a key that is unknown or out of its range.
    """
    from osmotic.config.presets import PRESETS, Preset
    from osmotic.config.schema import build, flatten

    _check_name("preset", name, frozenset())
    if name in PRESETS and name not in _own_presets:
        raise ConfigError("preset name", name, "is a preset of the package: take another one")
    flat = flatten(dict(keys))
    build(flat)
    _own_presets.add(name)
    PRESETS[name] = Preset(keys=flat, exchanges=exchanges, paper=paper)


# --- where plugins come from ---


def load_file(path: Path | str) -> types.ModuleType:
    """Runs a Python file that registers things, as `--plugin FILE` does; run again, it replaces what it registered.

    Raises: ConfigError with the line of the file at fault.
    """
    path = Path(path)
    try:
        source = path.read_bytes()
    except OSError as error:
        raise ConfigError("--plugin", str(path), f"cannot be read ({error.strerror})") from None
    # A name of its own for every file, as types of keys are looked up in the module that a class names.
    mark = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]
    module = types.ModuleType(f"plugin_{re.sub(r'[^0-9a-zA-Z]', '_', path.stem)}_{mark}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module
    try:
        with _noted():
            exec(compile(source, str(path), "exec"), module.__dict__)
    except (Exception, SystemExit) as error:
        del sys.modules[module.__name__]
        raise ConfigError("--plugin", str(path), _fault(error, path)) from error
    if path.resolve() not in FILES:
        FILES.append(path.resolve())
    return module


def load_installed() -> None:
    """Imports the plugins of installed packages, once; one that cannot be imported is a warning of one line."""
    global _installed_are_loaded
    if _installed_are_loaded:
        return
    _installed_are_loaded = True
    from importlib.metadata import entry_points

    for point in entry_points(group=GROUP):
        try:
            with _noted():
                point.load()
        except (Exception, SystemExit) as error:
            package = point.dist.name if point.dist is not None else "?"
            told = f"{type(error).__name__}: {error}".splitlines()[0]
            warnings.warn(f"plugin {point.name} of package {package} cannot be loaded ({told})", stacklevel=2)


def registries() -> dict[str, Mapping[str, Any]]:
    """What clients are made of, by kind and name."""
    from osmotic.codecs import CODECS
    from osmotic.methods import METHODS
    from osmotic.models import NETWORKS
    from osmotic.pieces import PIECES

    return {"piece": PIECES, "exchange": METHODS, "codec": CODECS, "network": NETWORKS}


@contextmanager
def _noted() -> Iterator[None]:
    """What is registered inside the block is written down in LOADED."""
    before = {kind: dict(known) for kind, known in registries().items()}
    yield
    for kind, known in registries().items():
        for name, thing in known.items():
            if before[kind].get(name) is not thing:
                LOADED[kind, name] = thing


def _fault(error: BaseException, path: Path) -> str:
    """What went wrong in a plugin's file, in one line that names the line."""
    if isinstance(error, SyntaxError) and error.filename == str(path):
        return f"line {error.lineno}: {error.msg}"
    own = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
    where = f"line {own[-1]}: " if own else ""
    said = str(error).strip().splitlines() or [""]
    return f"{where}{type(error).__name__}: {said[0]}" if said[0] else f"{where}{type(error).__name__}"


# --- what may be registered ---


def _kind_of(name: str, cls: type) -> tuple[str, dict[str, Any], frozenset[str]]:
    """(what it is called, its registry, names that it may not have). Raises TypeError for any other class."""
    from osmotic.codecs import CODECS, Codec
    from osmotic.config.schema import CodecConfig
    from osmotic.methods import METHODS, Method
    from osmotic.pieces import PIECES, Piece

    if issubclass(cls, Piece):
        return "piece", PIECES, NOT_FOR_PIECES
    if issubclass(cls, Method):
        return "exchange", METHODS, frozenset()
    if issubclass(cls, Codec):
        return "codec", CODECS, frozenset(f.name for f in dataclasses.fields(CodecConfig))
    if any(base.__module__.startswith("torch.nn.") for base in cls.__mro__):
        raise TypeError(f"register {name!r}: is a network, use osmotic.register_network({name!r}, build)")
    rule = "must derive from osmotic.Piece, osmotic.Method or osmotic.Codec"
    raise TypeError(f"register {name!r}: {cls.__name__} {rule}")


def _check_name(word: str, name: object, reserved: frozenset[str]) -> None:
    if not isinstance(name, str) or not re.fullmatch(r"[a-z][a-z0-9_-]*", name):
        rule = "must be lower-case letters, digits, - and _, beginning with a letter"
        raise ConfigError(f"{word} name", name, rule)
    if name in reserved:
        raise ConfigError(f"{word} name", name, "means something else beside pieces: take another one")


def _refuse_taken(word: str, name: str, registry: Mapping[str, Any]) -> None:
    if name in registry and _of_the_package(registry[name]):
        raise ConfigError(f"{word} name", name, f"is a {word} of the package: take another one")


def _of_the_package(thing: Any) -> bool:
    return str(thing.__module__).split(".")[0] == "osmotic"


def _refuse_misspelt(name: str, cls: type) -> None:
    """A hook under a name that is nearly right would never be called, and nobody would notice. Raises TypeError."""
    hooks = {hook for base in cls.__mro__[1:-1] for hook in vars(base) if not hook.startswith("_")}
    for own, value in vars(cls).items():
        if callable(value) and not own.startswith("_") and own not in hooks:
            near = difflib.get_close_matches(own, hooks, n=1, cutoff=0.85)
            if near:
                rule = f"{own} is no hook, and would never be called: did you mean {near[0]}?"
                raise TypeError(f"register {name!r}: {rule} If not, give it another name or a leading _")


def _check_class(name: str, cls: Any) -> None:
    """Whether its fields can be configuration keys, and it can be made without any. Raises TypeError or ConfigError."""
    if any(isinstance(value, dataclasses.Field) for value in vars(cls).values()):
        rule = "put @dataclass(frozen=True, kw_only=True) between @osmotic.register and the class"
        raise TypeError(f"register {name!r}: {rule}")
    from osmotic.config.keys import checked

    _refuse_misspelt(name, cls)
    try:
        hints = typing.get_type_hints(cls)
    except Exception as error:
        raise TypeError(f"register {name!r}: the type of a key is not to be found ({error})") from None
    for field in dataclasses.fields(cls) if dataclasses.is_dataclass(cls) else ():
        if not _is_key_type(hints[field.name]):
            rule = "int, float, bool, str, Literal of texts, one of these | Literal, or tuple[..., ...]"
            raise TypeError(f"register {name!r}: key {field.name} must be of type {rule}")
        if field.default is dataclasses.MISSING:
            raise TypeError(
                f"register {name!r}: key {field.name} needs a default, as in osmotic.key(0.1, 'what it means')"
            )
        checked(f"{name}.{field.name}", field.default, hints[field.name], field.metadata)
    try:
        cls()
    except TypeError as error:
        raise TypeError(f"register {name!r}: {error}") from None


def _is_key_type(hint: Any) -> bool:
    """Whether `config.keys.checked` can hold a value against this type."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return all(isinstance(choice, str) for choice in inner)
    if origin in (types.UnionType, typing.Union):
        plain, word = inner if len(inner) == 2 else (None, None)
        return plain in (int, float, bool, str) and typing.get_origin(word) is Literal and _is_key_type(word)
    if origin is tuple:
        return len(inner) == 2 and inner[1] is Ellipsis and inner[0] in (int, float, bool, str)
    return hint in (int, float, bool, str)


def registered_here(config: Config) -> str | None:
    """Why another process does not find all that this configuration names; None if it does."""
    used = [("exchange", config.method.name), ("network", config.model.network)]
    used += [("codec", name) for name in (config.codec.up, config.codec.down)]
    used += [("piece", n) for section in (config.local, config.server, config.after) for n in section.pieces]
    known = registries()
    for kind, name in used:
        thing = known[kind].get(name)  # None: "auto"
        made_by = thing if isinstance(thing, type) else type(thing)
        ours = made_by.__module__.startswith("osmotic.") and not getattr(thing, "own", False)
        if not (thing is None or ours or LOADED.get((kind, name)) is thing):
            return (
                f"{kind} {name} is registered in Python, where only a file that --plugin names is found again"
            )
    return None
