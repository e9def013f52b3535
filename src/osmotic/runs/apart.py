"""Clients in processes of their own: what stands against it, when it pays, and what these processes are told."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from osmotic import plugins
from osmotic.config.schema import Config, to_dict
from osmotic.engines.nursery import Nursery
from osmotic.engines.shared import Slab, put_arrays
from osmotic.errors import ConfigError
from osmotic.flat import Flat
from osmotic.methods import METHODS
from osmotic.protocol.participation import batch_plan
from osmotic.storage.cache import Nameless

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
    if asked is False:
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
    used = [("exchange", config.method.name), ("network", config.model.network)]
    used += [("codec", name) for name in (config.codec.up, config.codec.down)]
    used += [("piece", n) for section in (config.local, config.server, config.after) for n in section.pieces]
    known = plugins.registries()
    for kind, name in used:
        thing = known[kind].get(name)  # None: "auto"
        made_by = thing if isinstance(thing, type) else type(thing)
        ours = made_by.__module__.startswith("osmotic.") and not getattr(thing, "own", False)
        if not (thing is None or ours or plugins.LOADED.get((kind, name)) is thing):
            return (
                f"{kind} {name} is registered in Python, where only a file that --plugin names is found again"
            )
    return None


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
    images, labels, spec = study.dataset.train.images, study.dataset.train.labels, study.spec
    arrays: dict[str, np.ndarray] = {"rows": np.concatenate([h.train for h in study.holdings])}
    files: list[IO[bytes] | Slab] = []
    mapped = None
    if study.device.type != "cpu":
        return _refused(study.config, f"clients train on {study.device}")
    if isinstance(images, Nameless) and images.file is not None:
        mapped = [images.dtype.str, list(images.shape)]
        files.append(images.file)
    elif _is_mapped(images):
        return _refused(study.config, "images handed over are mapped from a file")
    else:
        arrays["images"] = images
    if labels is not None:
        arrays["labels"] = labels
    slab, places = put_arrays(arrays | {"initial": initial.buffer})
    told: dict[str, Any] = {
        "log_level": logging.getLogger("osmotic").getEffectiveLevel(),
        "plugins": [str(path) for path in plugins.FILES],
        "config": to_dict(study.config),
        "shape": [spec.image_size, spec.channels, spec.num_classes],
        "contract": contract,
        "clients": [[h.client.name, h.client.num_examples] for h in study.holdings],
        "stores": str(stores.resolve()),
        "arrays": places,
        "size": slab.size,
        "mapped": mapped,
    }
    nursery.prepare(told, [slab, *files])
    return True


def _refused(config: Config, reason: str) -> bool:
    if config.engine.processes is True:
        raise ConfigError(KEY, True, f"{reason}: leave this key out")
    return False


def _is_mapped(array: Any) -> bool:
    """Whether an array is, or is a view of, one that lies in a file."""
    while array is not None:
        if isinstance(array, np.memmap):
            return True
        array = getattr(array, "base", None)
    return False
