"""The program of a worker process, `python -m osmotic.runs.worker FD`: plugins, blueprint and network, then clients.

The run starts it (`runs/apart.py`); it speaks with nobody else.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Mapping
from typing import Any

import torch

from osmotic import lean, models, plugins
from osmotic.engines import child
from osmotic.runs.workplace import Workplace
from osmotic.training.optimizers import make_optimizer


def prepare(setup: Mapping[str, Any], files: list[int]) -> child.Desk:
    """Everything that a worker needs before its first task; arguments as `Workplace.of`."""
    place = Workplace.of(setup, files)
    return child.Desk(place.make_worker, place.site_of, place.threads)


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
