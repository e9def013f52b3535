"""Rules between keys: combinations that cannot work are refused before any work, with the reason."""

from __future__ import annotations

from osmotic.config import Config


def check(config: Config) -> None:
    """Raises ConfigError for the first impossible combination."""
