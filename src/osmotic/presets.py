"""Presets and recipes: named sets of configuration keys, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A named set of choices; `exchanges` says in a few words what travels, `paper` is an arXiv id or ''."""

    keys: Mapping[str, Any] = field(default_factory=dict)
    exchanges: str = ""
    paper: str = ""


PRESETS: dict[str, Preset] = {
    "fedavg": Preset(
        keys={"method.name": "fedavg"},
        exchanges="all weights down, all changes up, every round",
        paper="1602.05629",
    ),
    "central": Preset(
        keys={"method.name": "central"},
        exchanges="nothing: one trainer holds all images (upper baseline)",
    ),
    "local": Preset(
        keys={"method.name": "local"},
        exchanges="nothing: every client trains alone (lower baseline)",
    ),
}

# Keys a recipe sets beneath preset, file and --set. One recipe serves all methods, so that a comparison compares methods.
RECIPES: dict[str, Mapping[str, Any]] = {"default": {}}
