"""The methods by name. A new one is one file and one line here."""

from __future__ import annotations

from osmotic.methods.base import Method
from osmotic.methods.central import Central
from osmotic.methods.fedavg import FedAvg
from osmotic.methods.local import Local

METHODS: dict[str, type[Method]] = {"fedavg": FedAvg, "central": Central, "local": Local}

__all__ = ["METHODS", "Method", "make"]


def make(name: str, options: dict[str, object]) -> Method:
    """A method with its options, already checked by rules.py."""
    return METHODS[name](**options)
