"""Engines: where clients run. Only an engine knows about threads, processes or networks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from osmotic.federation.interfaces import Engine


def _inprocess(*args: Any, **kwargs: Any) -> Engine:
    from osmotic.engines.inprocess import InProcess  # torch, which a list of names does not need

    return InProcess(*args, **kwargs)


# What a person is told of where an engine's clients are: a simulation must never read as a federation of sites.
WHERE: dict[str, str] = {
    "inprocess": "a simulation: all clients share one machine, and nothing crosses a network"
}

# name -> (clients, sites, make_worker, workers, threads, stop, together) -> engine
ENGINES: dict[str, Callable[..., Engine]] = {"inprocess": _inprocess}
