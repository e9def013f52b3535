"""The one error a user can cause: a key or file, its value, and the rule that it breaks."""

from __future__ import annotations


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
        shown = "" if value is None else f" = {value!r}"
        hint = f" (nearest valid key: {nearest})" if nearest else ""
        super().__init__(f"{key}{shown}: {rule}{hint}".replace("\n", " "))
