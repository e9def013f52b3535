"""What a process that serves simulated clients is told, and what it makes of it: their images, states and a network.

Both ends are on one machine and one user's. Large arrays lie in memory without a name, whose file is handed over.
"""

from __future__ import annotations

import hashlib
import json
import logging
import mmap
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import torch

from osmotic import plugins
from osmotic.config.schema import to_dict
from osmotic.engines.shared import Slab, get_arrays, put_arrays
from osmotic.federation.blueprint import Blueprint
from osmotic.federation.client import Site, Worker
from osmotic.flat import Flat
from osmotic.protocol.messages import Client
from osmotic.runs import resolve
from osmotic.runs.sites import make_site
from osmotic.storage.cache import Nameless

if TYPE_CHECKING:
    from osmotic.runs.study import Study

Files = list[IO[bytes] | Slab]


class Mapped(ValueError):
    """Images that lie in a file of the caller's own cannot be handed to another process."""


def tell(study: Study, initial: Flat, contract: str, stores: Path) -> tuple[dict[str, Any], Files]:
    """All that workers need, as JSON, and the open files that go with it, in their order.

    Args:
        initial: weights at round 0, of the blueprint's layout.
        stores: folder of the clients' private states.
    Raises: Mapped; OSError if there is no room for the images.
    """
    images, labels, blueprint = study.prepared, study.dataset.train.labels, study.blueprint
    arrays: dict[str, np.ndarray] = {
        "rows": np.concatenate([h.train for h in study.holdings]),
        "watched": np.concatenate([h.watched for h in study.holdings]),
    }
    files: Files = []
    mapped = None
    if isinstance(images, Nameless) and images.file is not None:
        mapped = [images.dtype.str, list(images.shape)]
        files.append(images.file)
    elif _is_mapped(images):
        raise Mapped("images handed over are mapped from a file")
    else:
        arrays["images"] = images
    if labels is not None:
        arrays["labels"] = labels
    slab, places = put_arrays(arrays | {"initial": initial.buffer})
    told: dict[str, Any] = {
        "log_level": logging.getLogger("osmotic").getEffectiveLevel(),
        "plugins": [str(path) for path in plugins.FILES],
        "config": to_dict(study.config),
        "shape": [blueprint.image_size, blueprint.channels, blueprint.spec.num_classes],
        "device": str(study.device),
        "contract": contract,
        "clients": [[h.client.name, h.client.num_examples] for h in study.holdings],
        "watched": [len(h.watched) for h in study.holdings],
        "stores": str(stores.resolve()),
        "arrays": places,
        "size": slab.size,
        "mapped": mapped,
    }
    return told, [slab, *files]


def _is_mapped(array: Any) -> bool:
    """Whether an array is, or is a view of, one that lies in a file."""
    while array is not None:
        if isinstance(array, np.memmap):
            return True
        array = getattr(array, "base", None)
    return False


@dataclass(frozen=True)
class Workplace:
    """What the process makes of it.

    Args:
        names: of all clients, in the run's order.
        make_worker: a worker with a network of its own, given what stops it and what it tells of every batch.
        site_of: what a client of this name owns, made anew for every task.
        threads: operator threads.
    """

    names: list[str]
    make_worker: Callable[[Any, Any], Worker]
    site_of: Callable[[str], Site]
    threads: int

    @classmethod
    def of(cls, setup: Mapping[str, Any], files: Sequence[int]) -> Workplace:
        """Plugins first, then everything.

        Args:
            setup: as `tell` made it.
            files: its files, open; they stay so, for a process that is forked from this one.
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
        watched = np.split(arrays["watched"], np.cumsum(setup["watched"])[:-1])
        device, stores = torch.device(setup["device"]), Path(setup["stores"])

        def site_of(name: str) -> Site:
            place, client = clients[name]
            held = rows[ends[place] - client.num_examples : ends[place]]
            return make_site(blueprint, device, images, labels, client, held, stores, watched[place])

        def make_worker(stop: Any, worked: Any) -> Worker:
            model = blueprint.model(device)
            return Worker(blueprint, model, initial, setup["contract"], stop, worked, own_disk=False)

        return cls(list(clients), make_worker, site_of, config.engine.threads)


# --- handed over by a path, to processes that this one did not start ---


class Shown:
    """What `tell` gave, held open for processes of this user that are given `path`."""

    def __init__(self, setup: Mapping[str, Any], files: Files) -> None:
        self._files = files
        places = [f"/proc/{os.getpid()}/fd/{file.fileno()}" for file in files]
        text = json.dumps({**setup, "files": places}).encode()
        self._text = Slab.new(0, len(text))
        self._text.memory[:] = text
        # A number of a file comes again once it is closed: what it holds tells one workplace from the next.
        digest = hashlib.sha256(text).hexdigest()[:16]
        self.path = f"/proc/{os.getpid()}/fd/{self._text.fileno()}#{digest}"


def at(path: str) -> Workplace:
    """The workplace that a process of this user shows at this path."""
    setup = json.loads(Path(path.partition("#")[0]).read_bytes())
    return Workplace.of(setup, [os.open(place, os.O_RDONLY | os.O_CLOEXEC) for place in setup["files"]])
