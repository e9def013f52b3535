"""Configurations as TOML files, read and written."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from osmotic.config.schema import Config, to_dict
from osmotic.errors import ConfigError


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
    except (ValueError, RecursionError):  # a whole number of thousands of digits; brackets in brackets
        raise ConfigError(str(path), None, "is not valid TOML: too deep, or a number too long") from None


def to_toml(config: Config) -> str:
    """The resolved configuration as TOML; `load` of it gives an equal Config."""
    import tomli_w

    return tomli_w.dumps(to_dict(config))
