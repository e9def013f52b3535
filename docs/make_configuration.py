"""Writes configuration.md from the dataclasses of `osmotic.config`, so that the page cannot drift from the code.

python docs/make_configuration.py
"""

from __future__ import annotations

import dataclasses
import re
import typing
from pathlib import Path
from typing import Any

import osmotic
from osmotic.config import schema
from osmotic.config.presets import RECIPES

TARGET = Path(__file__).with_name("configuration.md")

HEAD = """\
# Configuration

This page is made by `docs/make_configuration.py` from the code; change the code, then run the script.

Every key has a default, so `osmotic run` alone trains on `digits`. A file holds only what differs:

```toml
seed = 1

[data]
source = "fashion-mnist"
clients = 5

[training]
rounds = 10
```

```sh
osmotic run config.toml --preset fedavg --set training.local_epochs=1
```

The resolved configuration, with every key, is written to `config.toml` of the run folder. Running that file again repeats the run.
An unknown key, a wrong type, a value out of range or an impossible combination ends with exit code 2 and one line that
names key, value, rule and the nearest valid key, before any work.

## Precedence

Lowest first: defaults, recipe, preset, file, `--data` and `--set`. Later `--set` options win over earlier ones.
`--data X` is short for `--set data.source=X`.

- A preset is chosen with `--preset NAME` or with `preset = "NAME"` at the top of a file; the option wins. It only sets keys, so a key that the file
  sets stays as the file says. A `config.toml` from a run folder sets every key: a preset on top of it changes nothing but the label.
- Options belong to the exchange or the piece that they were written for: where a later layer names another exchange, or other pieces, they are dropped.
- The label of a run (`preset`) is the preset's name as long as its exchange and pieces are the run's; otherwise it names these, as in `udec+scaffold+adam`.

## The `--set` notation

`--set section.key=value`, as often as needed. The value is written as in TOML; a bare word is a text.

| key | written |
|---|---|
| number | `--set training.rounds=5`, `--set training.learning_rate=2e-3` |
| text | `--set codec.up=int8` or `--set 'codec.up="int8"'` |
| true or false | `--set codec.error_feedback=true` |
| list | `--set 'recipe.ema_half_lives=[5000.0, 20000.0]'`, `--set 'track.backends=["tensorboard"]'`; `[]` is none |
| list of names | also `--set local.pieces=scaffold,prox` and `--set track.backends=wandb` |
| key of the exchange | `--set method.KEY=VALUE` |
| key of a piece or codec | `--set local.prox.mu=0.1`, `--set codec.learned.bits=0.25` |

A whole number is taken where a number is asked for, not the other way round.

## Units

| what | unit |
|---|---|
| `image_size` | pixels, of the side |
| `samples`, `max_images`, `batch_size` | images |
| `ema_half_lives` | images that all clients together have seen, for averages of personal models too; `osmotic run` on `digits` sees 2,874 in a round |
| `local_epochs` | passes over a client's images; fractions are rounded to whole optimiser steps, at least one |
| `fraction_train` | share; rounded to whole clients, at least one |
| `holdout`, `quorum_weight`, `label_dropout`, `dropout`, `feedback_decay`, `density`, `share` | shares |
| `bits`, `chunk` | of `learned` bits per weight, of `sparse` bits of a value; weights |
| `steps`, `timesteps` | sampler steps, schedule steps |
| `max_abs_update`, `max_update_norm` | in units of the weights |
| `threads`, `workers` | a count; the bits of a result depend on `threads`, never on `workers` |

In the tables, `(a, b]` leaves out a and holds b.
"""

COMBINATIONS = """\
## Combinations that are refused

| together | why |
|---|---|
| a codec other than `fp32`, error feedback, or `codec.changed_only`, with a method that sends nothing (`central`, `local`) | there is nothing to code |
| a piece in a section that is not its own, named twice, or with an exchange that it cannot work with (`scaffold` and the server's optimisers with `local`, `personalise` with `central`, `local`, `ulatdec`, `udec`) | the message says why |
| a key of a piece that its section does not name, or of a codec that neither direction takes | it would do nothing |
| `codec.error_feedback` with `codec.up = "fp32"` | fp32 loses nothing |
| `codec.feedback_decay` or `codec.feedback_flush` without `codec.error_feedback` | they are of the residual, and there is none |
| `codec.up_sends = "weights"` with `codec.error_feedback` | what is lost of weights is not owed to the next ones |
| `codec.down = "learned"`, or another codec that is trained, with another `codec.up` | it is trained on what clients send |
| a `codec.down` of one's own that remembers earlier packets | clients that missed one could not follow |
| target `edm` with a sampler that does not start with `edm-`, or the other way round | the networks mean different things |
| target `edm` with `model.schedule` or `model.timesteps` | it has no schedule |
| target `edm` with `recipe.loss = "huber"` | it weighs squared errors |
| more `score.steps` than the schedule has stops | each stop is visited once |
| `score.guidance` other than 1 with `model.conditional = false` or `recipe.label_dropout = 0` | the network does not know "no class" |
| `model.conditional = true`, or a label partition, on images without labels | there are no labels |
| `score.encoder = "inception-v3"` or `"dinov2"` without its weights on disk | [scores.md](scores.md) says how to get them |
| a tracker whose package is not installed | the message names the extra to install |
"""

TYPES = {int: "whole number", float: "number", bool: "true or false", str: "text"}


def page() -> str:
    """The whole page."""
    parts = [HEAD, "## Keys\n", "### Top level\n", table(schema.Config, "")]
    for name, section in schema.SECTIONS.items():
        parts += [f"### [{name}]\n", f"{section.__doc__}\n", table(section, f"{name}.")]
        if name == "method":
            parts.append(
                "The exchange's own keys stand beside `name`:\n\n" + options_table("method", own_keys())
            )
        if name in schema.PIECE_SECTIONS:
            own = {f"{name}.{piece}": dataclasses.fields(cls) for piece, cls in pieces_of(name).items()}
            parts.append(
                f"A piece's own keys stand in a table of its own, `[{name}.PIECE]`:\n\n"
                + options_table("piece", own)
            )
        if name == "codec":
            parts.append(
                "[codecs.md](codecs.md) says what each does to a weight. A codec's own keys, in `[codec.NAME]`:\n\n"
                + options_table("codec", codec_keys())
            )
    parts += [COMBINATIONS, "## Presets\n", presets_table(), "## Recipes\n", recipes_table()]
    return "\n".join(parts)


def table(section: type, prefix: str) -> str:
    """One row per key of a section; sections inside it are left out."""
    hints = typing.get_type_hints(section)
    rows = ["| key | type | default | range | meaning |", "|---|---|---|---|---|"]
    for field in dataclasses.fields(section):
        if field.name in schema.SECTIONS or field.name == "options":
            continue
        rows.append(
            f"| `{prefix}{field.name}` | {type_name(hints[field.name])} | `{toml(field.default)}` "
            f"| {limits(field.metadata)} | {field.metadata['doc']}{names_of(prefix + field.name)} |"
        )
    return "\n".join(rows) + "\n"


def names_of(key: str) -> str:
    """The names a key takes that a registry knows, to be put behind its meaning."""
    from osmotic.codecs import CODECS
    from osmotic.diffusion.compatibility import SAMPLERS, SCHEDULES, TARGETS
    from osmotic.engines import WHERE
    from osmotic.methods import METHODS

    registries: dict[str, Any] = {
        "method.name": METHODS,
        "codec.up": CODECS,
        "codec.down": CODECS,
        "model.target": TARGETS,
        "model.schedule": SCHEDULES,
        "score.sampler": SAMPLERS,
        "engine.name": WHERE,
    }
    registries |= {f"{section}.pieces": pieces_of(section) for section in schema.PIECE_SECTIONS}
    return ": " + ", ".join(registries[key]) if key in registries else ""


def pieces_of(section: str) -> dict[str, Any]:
    """The pieces that this section may name."""
    from osmotic.pieces import PIECES

    return {name: cls for name, cls in PIECES.items() if cls.section == section}


def type_name(hint: Any) -> str:
    """A type in words; the texts of a closed choice are listed."""
    if typing.get_origin(hint) is typing.Literal:
        return " or ".join(f'`"{choice}"`' for choice in typing.get_args(hint))
    if typing.get_origin(hint) is tuple:
        return f"list of {TYPES[typing.get_args(hint)[0]]}s"
    if arguments := typing.get_args(hint):
        return ", or ".join(type_name(argument) for argument in arguments)
    return TYPES[hint]


def limits(metadata: Any) -> str:
    """The range of a number in interval notation, "" without one."""
    low, high = metadata.get("low"), metadata.get("high")
    if low is None and high is None:
        return ""
    left = "(" if metadata.get("above") else "["
    return f"{left}{'' if low is None else number(low)}, {'∞)' if high is None else number(high) + ']'}"


def choices(field: Any) -> str:
    """The texts of a closed choice, from its annotation as written; "" for other types."""
    found = re.fullmatch(r"Literal\[(.*)\]", str(field.type))
    return " or ".join(f"`{text}`" for text in found[1].replace("'", '"').split(", ")) if found else ""


def number(value: float) -> str:
    """A limit, with commas; the largest seeds as powers of two."""
    for power in (32, 63):
        if value == 2**power - 1:
            return f"2^{power} - 1"
    return f"{value:,.12g}"


def toml(value: Any) -> str:
    """A default as it is written in a file."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, tuple):
        return f"[{', '.join(map(toml, value))}]"
    return str(value)


def own_keys() -> dict[str, Any]:
    """The configuration keys of every exchange: the fields of its dataclass."""
    from osmotic.methods import METHODS

    return {"method": [(name, f) for name, cls in METHODS.items() for f in dataclasses.fields(cls)]}


def codec_keys() -> dict[str, Any]:
    """The configuration keys of every codec that has any."""
    from osmotic.codecs import CODECS

    return {
        f"codec.{name}": dataclasses.fields(cls)
        for name, cls in CODECS.items()
        if dataclasses.is_dataclass(cls)
    }


def options_table(kind: str, owners: dict[str, Any]) -> str:
    """Keys of exchanges, pieces or codecs, by what stands before them, and their defaults."""
    rows = [f"| {kind} | key | default | range | meaning |", "|---|---|---|---|---|"]
    for prefix, fields in owners.items():
        for entry in fields:
            owner, f = entry if isinstance(entry, tuple) else (prefix.partition(".")[2], entry)
            rows.append(
                f"| `{owner}` | `{prefix}.{f.name}` | `{toml(f.default)}` | {choices(f) or limits(f.metadata)} "
                f"| {f.metadata.get('doc', '')} |"
            )
    return "\n".join(rows) + "\n"


def presets_table() -> str:
    """What each preset sets."""
    rows = ["| preset | sets | exchanges | paper |", "|---|---|---|---|"]
    for preset in osmotic.list_presets():
        name, paper = preset["preset"], f"arXiv {preset['paper']}" if preset["paper"] else ""
        rows.append(
            f"| [`{name}`](methods.md#{name.replace('+', '-1')}) | {settings(preset['keys'])} | {preset['exchanges']} | {paper} |"
        )
    return "\n".join(rows) + "\n"


def recipes_table() -> str:
    """What each recipe sets."""
    rows = [
        "A recipe is a named bundle of model, recipe and training keys beneath the preset: `recipe.name`.\n",
        "| recipe | sets |",
        "|---|---|",
    ]
    rows += [f"| `{n}` | {settings(keys) or 'nothing: the defaults above'} |" for n, keys in RECIPES.items()]
    return "\n".join(rows) + "\n"


def settings(keys: Any) -> str:
    """Keys with their values."""
    return ", ".join(f"`{key} = {toml(value)}`" for key, value in keys.items())


if __name__ == "__main__":
    TARGET.write_text(page(), encoding="utf-8")
    print(TARGET)
