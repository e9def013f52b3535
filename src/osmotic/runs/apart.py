"""Clients in processes of their own: what stands against it, and when it pays."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from osmotic import plugins
from osmotic.config.schema import Config
from osmotic.engines.nursery import Nursery
from osmotic.errors import ConfigError
from osmotic.flat import Flat
from osmotic.methods import METHODS
from osmotic.protocol.participation import batch_plan

if TYPE_CHECKING:
    from osmotic.runs.study import Study

KEY = "engine.processes"
PROGRAM = "osmotic.runs.worker"
# Optimiser steps of a whole run from which processes gain more than it costs to start them.
STEPS = 1000
GPUS = ("/dev/nvidiactl", "/dev/kfd")


@contextmanager
def started(config: Config, num_train: int) -> Iterator[Nursery | None]:
    """The nursery of a run's workers, which imports from now on; None where clients are threads.

    Args and errors as `wanted`.
    """
    if not wanted(config, num_train):
        yield None
        return
    with Nursery(PROGRAM) as nursery:
        yield nursery


def wanted(config: Config, num_train: int) -> bool:
    """Whether clients of this run are to be processes.

    Args:
        num_train: training images of all clients, about.
    Raises: ConfigError where processes are asked for and cannot be had.
    """
    asked = config.engine.processes
    if asked is False or config.engine.name != "inprocess":
        return False
    reason = against(config)
    if asked is True:
        return reason is None or _refused(config, reason)
    return reason is None and pays(config, num_train)


def against(config: Config) -> str | None:
    """Why clients of this configuration cannot be processes; None if they can."""
    if not (sys.platform == "linux" and hasattr(os, "memfd_create") and sys.executable):
        return "needs Linux"
    if config.engine.batched_clients > 1:
        return "engine.batched_clients trains several clients in one thread"
    device = config.engine.device
    if device.startswith("cuda") or (device == "auto" and any(os.path.exists(path) for path in GPUS)):
        return "one process is better for clients on a GPU; engine.device = cpu takes none"
    return plugins.registered_here(config)


def pays(config: Config, num_train: int) -> bool:
    """Whether a run is long enough, and has more than one client at a time."""
    clients = 1 if METHODS[config.method.name].pools_data else min(config.data.clients, num_train)
    cores = len(os.sched_getaffinity(0))
    asked = max(1, round(config.training.fraction_train * clients))
    training = config.training
    each = batch_plan(max(1, num_train // clients), training.batch_size, training.local_epochs)
    return min(config.engine.workers or cores, asked) > 1 and training.rounds * asked * each >= STEPS


def prepare(nursery: Nursery, study: Study, initial: Flat, contract: str, stores: Path) -> bool:
    """Tells the nursery all that workers need; False if these clients must be threads.

    Args:
        initial: weights at round 0, of the blueprint's layout.
        stores: folder of the clients' private states.
    Raises: ConfigError as `started`, for what only the data or the device tell; OSError if there is no room for the images.
    """
    from osmotic.runs import workplace  # torch, without which a configuration is checked

    if study.device.type != "cpu":
        return _refused(study.config, f"clients train on {study.device}")
    try:
        told, files = workplace.tell(study, initial, contract, stores)
    except workplace.Mapped as error:
        return _refused(study.config, str(error))
    nursery.prepare(told, files)
    return True


def _refused(config: Config, reason: str) -> bool:
    if config.engine.processes is True:
        raise ConfigError(KEY, True, f"{reason}: leave this key out")
    return False
