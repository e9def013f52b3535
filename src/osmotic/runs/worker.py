"""The program of a worker process, `python -m osmotic.runs.worker FD`: plugins, blueprint and network, then clients.

The run starts it (`runs/apart.py`); it speaks with nobody else.
"""

from __future__ import annotations

import logging
import mmap
import os
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from osmotic import lean, models, plugins
from osmotic.engines import child
from osmotic.engines.shared import get_arrays
from osmotic.federation.blueprint import Blueprint
from osmotic.federation.client import Site, Worker
from osmotic.flat import Flat
from osmotic.protocol.messages import Client
from osmotic.runs import resolve
from osmotic.runs.sites import make_site
from osmotic.training.optimizers import make_optimizer


def prepare(setup: Mapping[str, Any], files: list[int]) -> child.Desk:
    """Everything that a worker needs before its first task.

    Args:
        setup: as `apart.setup` made it.
        files: of its arrays, and of mapped images; they stay open, for a worker that cannot be forked.
    """
    logging.getLogger("osmotic").setLevel(setup["log_level"])
    for path in setup["plugins"]:
        plugins.load_file(path)
    config = resolve.rebuilt(setup["config"])
    blueprint = Blueprint.of(config, *setup["shape"])
    arrays = get_arrays(mmap.mmap(files[0], setup["size"], access=mmap.ACCESS_READ), setup["arrays"])
    images = arrays.get("images")
    if images is None:
        dtype, shape = setup["mapped"]
        with os.fdopen(files[1], "rb", closefd=False) as file:
            images = np.memmap(file, np.dtype(dtype), "r", shape=tuple(shape))
    labels, rows = arrays.get("labels"), arrays["rows"]
    initial = Flat(blueprint.flat, arrays["initial"])
    clients = {name: (i, Client(i, name, count)) for i, (name, count) in enumerate(setup["clients"])}
    ends = np.cumsum([count for _, count in setup["clients"]])
    device, stores = torch.device("cpu"), Path(setup["stores"])

    def site_of(name: str) -> Site:
        place, client = clients[name]
        held = rows[ends[place] - client.num_examples : ends[place]]
        return make_site(blueprint, device, images, labels, client, held, stores)

    def make_worker(stop: Any, worked: Any) -> Worker:
        model = blueprint.model(device)
        return Worker(blueprint, model, initial, setup["contract"], stop, worked, own_disk=False)

    return child.Desk(make_worker, site_of, config.engine.threads)


def main() -> None:
    """Imports first: the run is still reading its images."""
    lean.start()
    control = socket.socket(fileno=int(sys.argv[1]))
    control.set_inheritable(False)
    torch.set_num_threads(1)
    plugins.load_installed()
    # What is imported when it is first used is imported here, once for all workers.
    models.build(models.resolve("unet-8", 8, 1, 0, 0.0))
    make_optimizer([torch.nn.Parameter(torch.zeros(1))], "adamw", 1e-3).zero_grad()
    child.nurse(control, prepare)


if __name__ == "__main__":
    main()
