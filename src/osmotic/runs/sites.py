"""Simulated clients: what each owns, made from images that all of them share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from osmotic.federation.blueprint import Blueprint
from osmotic.federation.client import Site
from osmotic.protocol.messages import Client
from osmotic.storage.store import Store
from osmotic.training.images import Images


def make_site(
    blueprint: Blueprint,
    device: torch.device,
    images: np.ndarray,
    labels: np.ndarray | None,
    client: Client,
    rows: np.ndarray,
    stores: Path,
    watched: np.ndarray | None = None,
) -> Site:
    """A client with its images on the device and a store of its own.

    Args:
        images: of the training split, as the space keeps them, [N, H, W, C].
        labels: int64 [N], or None.
        rows: which of them are the client's, int64 [n].
        stores: folder of all clients' private states.
        watched: those that it holds out for what training watches, int64 [m].
    """
    given = labels if blueprint.spec.num_classes else None
    flip = blueprint.config.data.flip
    held = Images.of(images, given, device, blueprint.space, rows=rows, flip=flip)
    store = Store(stores / client.name)
    if watched is None or not len(watched):
        return Site(client, held, store)
    return Site(client, held, store, Images.of(images, given, device, blueprint.space, rows=watched))


class Sites(Mapping[str, Site]):
    """Clients by name, each made whenever it is asked for: what is held does not grow with those that are not at work.

    Args:
        make: of a client's name.
        names: of all.
    """

    def __init__(self, make: Callable[[str], Site], names: Sequence[str]) -> None:
        self._make, self._names = make, names

    def __getitem__(self, name: str) -> Site:
        return self._make(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
