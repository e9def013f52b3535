"""The exchanges by name (the configuration's `method.name`). A new one is one file and two lines here, its import and its row; or `osmotic.register`."""

from __future__ import annotations

from osmotic.methods.base import Method
from osmotic.methods.central import Central
from osmotic.methods.fedavg import FedAvg
from osmotic.methods.local import Local
from osmotic.methods.oneshot import OneShot
from osmotic.methods.udec import UDec
from osmotic.methods.ulatdec import ULatDec
from osmotic.methods.usplit import USplit

METHODS: dict[str, type[Method]] = {
    "fedavg": FedAvg,
    "usplit": USplit,
    "ulatdec": ULatDec,
    "udec": UDec,
    "central": Central,
    "local": Local,
    "oneshot": OneShot,
}

__all__ = ["METHODS", "Method", "make"]


def make(name: str, options: dict[str, object]) -> Method:
    """An exchange with its options, already checked by runs/rules.py.

    Raises: KeyError for a name that is not registered.
    """
    return METHODS[name](**options)
