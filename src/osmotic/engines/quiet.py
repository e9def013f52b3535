"""What stands before any import of flwr: whether it is installed, and what its processes are told."""

from __future__ import annotations

import importlib.util

from osmotic.errors import ConfigError


def require(key: str, value: object, *packages: str) -> None:
    """Raises ConfigError with what to install unless all of these packages are there, which no import tells."""
    if missing := [name for name in packages if importlib.util.find_spec(name) is None]:
        raise ConfigError(key, value, f"needs {' and '.join(missing)}: pip install 'osmotic[flower]'")


# Without these flwr and Ray call home, and fetch an app's dependencies anew.
QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
}
