"""osmotic trains one diffusion model by federated learning, today with all clients simulated on one machine.

    run = osmotic.run(preset="fedavg", data="digits", training={"rounds": 5})
    run.summary["quality"]["fd"], run.sample(10, label=3)

Everything here is imported when it is first used, so that `import osmotic` costs nothing. docs/python.md has examples.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Public name -> the module that it comes from.
_PUBLIC = {
    **dict.fromkeys(
        ("compare", "leaves", "list_pieces", "list_presets", "load", "plan", "run"), "osmotic.api"
    ),
    **dict.fromkeys(("register", "register_preset"), "osmotic.plugins"),
    "Run": "osmotic.runs.run",
    "register_network": "osmotic.models",
    "Callback": "osmotic.runs.callbacks",
    "Config": "osmotic.config.schema",
    "ConfigError": "osmotic.errors",
    # For pieces, exchanges and codecs of one's own.
    "Codec": "osmotic.codecs.base",
    "Extension": "osmotic.protocol.view",
    "Method": "osmotic.methods.base",
    "Phase": "osmotic.protocol.messages",
    "Piece": "osmotic.pieces.base",
    "Spec": "osmotic.protocol.messages",
    "Task": "osmotic.protocol.messages",
    "key": "osmotic.config.keys",
}

if TYPE_CHECKING:
    from osmotic.api import compare, leaves, list_pieces, list_presets, load, plan, run
    from osmotic.codecs.base import Codec
    from osmotic.config.keys import key
    from osmotic.config.schema import Config
    from osmotic.errors import ConfigError
    from osmotic.methods.base import Method
    from osmotic.models import register_network
    from osmotic.pieces.base import Piece
    from osmotic.plugins import register, register_preset
    from osmotic.protocol.messages import Phase, Spec, Task
    from osmotic.protocol.view import Extension
    from osmotic.runs.callbacks import Callback
    from osmotic.runs.run import Run

__all__ = [
    "Callback",
    "Codec",
    "Config",
    "ConfigError",
    "Extension",
    "Method",
    "Phase",
    "Piece",
    "Run",
    "Spec",
    "Task",
    "__version__",
    "compare",
    "key",
    "leaves",
    "list_pieces",
    "list_presets",
    "load",
    "plan",
    "register",
    "register_network",
    "register_preset",
    "run",
]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'osmotic' has no attribute {name!r}")
    from importlib import import_module

    value = globals()[name] = getattr(import_module(_PUBLIC[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
