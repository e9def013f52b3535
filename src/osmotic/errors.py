"""The errors that are told in one line, and how text from outside is shown: on one line, printable, of bounded length."""

from __future__ import annotations

from typing import Any

MAX_TEXT = 200  # characters of a text from outside that are kept or shown


def plain(text: object, most: int | None = MAX_TEXT) -> str:
    """A text from outside as one printable line: white space as spaces, all else that does not print as escapes.

    Without this a terminal would obey escape sequences, a right-to-left mark would turn a line round, and a lone
    surrogate could not be written to any file.

    Args:
        most: characters to keep; None keeps all.
    """
    found = str(text)
    # Cut before the work: a reply may hold megabytes.
    found = found if most is None else found[:most]
    shown = "".join(c if c.isprintable() else " " if c.isspace() else ascii(c)[1:-1] for c in found)
    return shown if most is None else shown[:most]


def shown(value: object, most: int = MAX_TEXT) -> str:
    """`repr` of a value from outside, as `plain`; also of a number of more digits than Python writes."""
    try:
        return plain(repr(value), most)
    except Exception:  # a whole number of thousands of digits, or an object whose repr fails
        return f"a value that cannot be written ({type(value).__name__})"


class RunStopped(RuntimeError):
    """A run that stopped by itself, told in one line. What had counted by then is on disk, and it can be resumed.

    The command line prints it on stderr with the way to go on, and exits with code 1.
    """


class ConfigError(ValueError):
    """Bad input, told in one line: key or file, value, rule and, for a misspelt key, the nearest valid one.

    The command line prints it on stderr and exits with code 2.

    Args:
        key: configuration key (`training.rounds`) or path of the file at fault.
        value: what was found there; None where there is nothing to show.
        rule: what would be accepted, in a few words.
        nearest: the closest valid key, if the key itself is unknown.
    """

    def __init__(self, key: str, value: object, rule: str, nearest: str | None = None) -> None:
        self.key, self.value, self.rule, self.nearest = key, value, rule, nearest
        told = "" if value is None else f" = {shown(value)}"
        hint = f" (nearest valid key: {nearest})" if nearest else ""
        super().__init__(plain(f"{plain(key)}{told}: {rule}{hint}", None))

    def __reduce__(self) -> tuple[Any, ...]:
        """From one process to another it goes as it is: subclasses are made of other arguments."""
        return _as_it_was, (type(self), self.args, vars(self))


def _as_it_was(kind: type[ConfigError], args: tuple[Any, ...], fields: dict[str, Any]) -> ConfigError:
    error = kind.__new__(kind, *args)
    error.args = args
    vars(error).update(fields)
    return error
