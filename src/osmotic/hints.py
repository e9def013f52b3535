"""What was probably meant by a wrong word on the command line: another command, an option, a configuration key."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from click.exceptions import ClickException

# What other tools call a command of ours.
ALSO = {
    "train": "run",
    "start": "run",
    "fit": "run",
    "help": "--help",
    "continue": "resume",
    "generate": "sample",
    "score": "evaluate",
}


def told(error: ClickException) -> str:
    """A wrong word or option in one line, with the command or the configuration key that was probably meant."""
    from click.exceptions import NoSuchOption, UsageError

    said = error.format_message().replace("\n", " ")
    if isinstance(error, NoSuchOption) and (keys := _keys_called(error.option_name)):
        takes_keys = error.ctx is not None and any("--set" in p.opts for p in error.ctx.command.params)
        meant = " or ".join(f"--set {key}={_given(error.option_name)}" for key in keys)
        return f"No such option '{error.option_name}'. Did you mean {meant}?" if takes_keys else said
    unknown = re.fullmatch(r"No such command '(.*)'\.", error.message)
    if unknown and isinstance(error, UsageError) and error.ctx is not None:
        from osmotic.config.keys import nearest

        word = unknown[1].lower()
        name = ALSO.get(word) or nearest(word, getattr(error.ctx.command, "commands", ()))
        return error.message + (f" Did you mean '{name}'?" if name else "")
    return said


def _keys_called(option: str) -> list[str]:
    """Configuration keys that an option such as `--rounds` or `--epochs` would stand for."""
    from osmotic.config.keys import ending
    from osmotic.config.schema import valid_keys

    return ending(option.lstrip("-").replace("-", "_"), valid_keys())


def _given(option: str) -> str:
    """The value that was typed behind an option, or three dots."""
    for word, after in zip(sys.argv, [*sys.argv[1:], ""], strict=True):
        if word.startswith(f"{option}="):
            return word.partition("=")[2]
        if word == option and after and not after.startswith("-"):
            return after
    return "..."


def option_of(word: str) -> str | None:
    """The option that a word was meant for which stands alone where a file is expected."""
    from osmotic.config.presets import PRESETS
    from osmotic.data.sources import NAMED

    if word in PRESETS:
        return "--preset"
    if word in NAMED or word.startswith(("npz:", "folder:", "hf:")):
        return "--data"
    return "--set" if "=" in word else None
