"""What the fork server imports before the first process is forked. It starts no thread: none would survive a fork."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers
import flwr_datasets.partitioner
import matplotlib.pyplot
import sklearn.datasets
import sklearn.neighbors
import tiny_network
import torch.utils.flop_counter
import torchmetrics.image.fid
import torchmetrics.image.kid

import osmotic.runs.commands
import osmotic.runs.launch
import osmotic.runs.plan
import osmotic.runs.progress
from osmotic import cli
from osmotic.config import toml
from osmotic.report import card, page
from osmotic.runs import resolve
from osmotic.storage.beside import Beside

__all__ = ["cli", "diffusers", "flwr_datasets", "matplotlib", "osmotic", "sklearn", "torch", "torchmetrics"]

tiny_network.register()
# The first check of a type against an abstract one walks through thousands of imported classes.
toml.to_toml(resolve.load())
# Drawing the pages takes half of the time of such a run, and they are functions of the files that are compared.
page.render = lambda run: "<p>a report</p>\n"
card.render = lambda run, folder, clients: "a card\n"


class Late(Beside[Any]):
    """Writes nothing before it is awaited: the longest that a checkpoint can be missing, and crash point 57 is always the same."""

    def begin(self, work: Callable[[], Any]) -> None:
        """Keeps `work` for `wait`."""
        self.wait()
        self._work: Callable[[], Any] | None = work

    def wait(self) -> Any:
        """Does what is kept."""
        work, self._work = getattr(self, "_work", None), None
        return None if work is None else work()


Beside.begin, Beside.wait = Late.begin, Late.wait  # type: ignore[method-assign, assignment]
