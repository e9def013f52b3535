"""JSON as run folders hold it: strict when written, and one line about the file when it cannot be read."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from osmotic.errors import ConfigError


def dumps(value: Any, **layout: Any) -> str:
    """`value` as JSON that every reader takes: what is no finite number is null, as what was not measured is.

    Python would write NaN and Infinity, which are not JSON.

    Args:
        layout: `indent`, `sort_keys` and the like, as of `json.dumps`.
    Raises: TypeError for what JSON cannot hold.
    """
    try:
        return json.dumps(value, allow_nan=False, **layout)
    except ValueError:  # rare, so that only such a value is walked through
        return json.dumps(_finite(value), allow_nan=False, **layout)


def read_table(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises: ConfigError naming the file if it cannot be read, or holds anything else.
    """
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(str(path), None, f"cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:  # no UTF-8, no JSON, or brackets in brackets
        raise ConfigError(str(path), None, f"is not valid JSON ({type(error).__name__})") from None
    if not isinstance(found, dict):
        raise ConfigError(str(path), None, "must be a JSON object")
    return found


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return value
