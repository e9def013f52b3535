"""Engines: where clients run. Only an engine knows about threads, processes or networks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from osmotic.federation.interfaces import Engine


def _inprocess(*args: Any, **kwargs: Any) -> Engine:
    from osmotic.engines.inprocess import InProcess  # torch, which a list of names does not need

    return InProcess(*args, **kwargs)


# name -> (sites, make_worker, workers, threads, stop) -> engine
ENGINES: dict[str, Callable[..., Engine]] = {"inprocess": _inprocess}
