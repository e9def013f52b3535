"""A Grid in this process: what is pushed is worked on when it is pulled, by the app that real nodes load."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from osmotic.engines import envelope

# What befalls a message: its node's partition and the message -> replies in the place of the node's own; None: its own.
Fate = Callable[[int, Message], list[Message] | None]


class LocalGrid(Grid):
    """Nodes with the ids of a real grid: large, and in no order.

    Args:
        nodes: how many.
        fate: what befalls messages.
        seed: of the node ids.
    """

    def __init__(self, nodes: int, fate: Fate = lambda partition, message: None, seed: int = 0) -> None:
        from osmotic.flower import client

        self.app, self.fate = client, fate
        ids = random.Random(seed).sample(range(2**40, 2**60), nodes)
        self.partitions = {node: place for place, node in enumerate(ids)}
        self.contexts = {
            node: Context(1, node, {"partition-id": place, "num-partitions": nodes}, RecordDict(), {})
            for node, place in self.partitions.items()
        }
        self.waiting: dict[str, Message] = {}
        self.most = self.pushed = 0
        # A Message says whose it is by these.
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1

    def set_run(self, run: Run) -> None:
        raise NotImplementedError

    @property
    def run(self) -> Run:
        raise NotImplementedError

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        raise NotImplementedError

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        raise NotImplementedError

    def get_node_ids(self) -> list[int]:
        return sorted(self.partitions, reverse=True)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        numbers = []
        for message in messages:
            self.pushed += 1
            number = message.metadata.__dict__["_message_id"] = f"message-{self.pushed}"
            self.waiting[number] = message
            numbers.append(number)
        self.most = max(self.most, len(self.waiting))
        return numbers

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        found: list[Message] = []
        for number in list(message_ids):
            if number not in self.waiting:
                continue
            message = self.waiting[number]
            node = message.metadata.dst_node_id
            replies = self.fate(self.partitions[node], message)
            if replies is None:
                replies = [self.app(message, self.contexts[node])]
            if replies:
                del self.waiting[number]
            found += replies
        return found


class SitesGrid(LocalGrid):
    """Nodes that are sites with folders, registered under their names."""

    def __init__(self, folders: list[Path], registered: list[str] | None = None, **more: Any) -> None:
        super().__init__(len(folders), **more)
        names = registered or [folder.name for folder in folders]
        self.online = set(self.partitions)
        self.names = {node: names[place] for node, place in self.partitions.items()}
        self.contexts = {
            node: Context(1, node, {"site": str(folders[place])}, RecordDict(), {})
            for node, place in self.partitions.items()
        }

    def get_nodes(self) -> Any:
        from flwr.proto.node_pb2 import NodeInfo

        return [NodeInfo(node_id=node, name=self.names[node]) for node in sorted(self.online)]


def failed(message: Message, code: int) -> Message:
    """Flower's word that this message came to nothing, as it comes of a node that is gone: from nobody in particular."""
    reply = Message(
        Error(code, "Traceback (most recent call last): /home/someone/secret.py"), reply_to=message
    )
    reply.metadata.__dict__["_src_node_id"] = 1
    return reply


class Runtime:
    """In the place of Flower's own runtime; remembers every grid that it opened."""

    opened: list[LocalGrid]
    fate: Fate

    def __init__(self, nodes: int, workers: int, gpus: float) -> None:
        self._grid = LocalGrid(
            nodes, lambda place, message: type(self).fate(place, message), len(self.opened)
        )
        self.opened.append(self._grid)

    def grid(self) -> LocalGrid:
        return self._grid

    def close(self) -> None:
        pass


def in_place_of_flower(monkeypatch: pytest.MonkeyPatch) -> type[Runtime]:
    """From here on, and until the test ends, `engine.name = "flower"` runs clients in this process."""
    from osmotic.engines import flower

    monkeypatch.setattr(Runtime, "opened", [], raising=False)
    monkeypatch.setattr(Runtime, "fate", staticmethod(lambda place, message: None), raising=False)
    monkeypatch.setattr(flower, "Runtime", Runtime)
    return Runtime


def hostile() -> dict[str, RecordDict]:
    """Records that hold no packet, by what is wrong with them."""
    header, none = ConfigRecord({"header": "{}"}), ArrayRecord(array_dict={})
    blob = Array("uint8", (3,), envelope.BYTES, b"abc")

    def both(told: Any = header, arrays: Any = none, **more: Any) -> RecordDict:
        return RecordDict({envelope.HEADER: told, envelope.BLOBS: arrays, **more})

    def blobs(**found: Array) -> RecordDict:
        return both(arrays=ArrayRecord(array_dict={name.removeprefix("b"): a for name, a in found.items()}))

    return {
        "nothing": RecordDict(),
        "no header": RecordDict({envelope.BLOBS: none}),
        "no blobs": RecordDict({envelope.HEADER: header}),
        "records in each other's places": both(none, header),
        "a third record": both(more=ConfigRecord()),
        "a header that is no text": both(ConfigRecord({"header": b"{}"})),
        "a header without end": both(ConfigRecord({"header": " " * (envelope.MAX_HEADER + 1)})),
        "no JSON": both(ConfigRecord({"header": "{"})),
        "a JSON list": both(ConfigRecord({"header": "[]"})),
        "brackets in brackets": both(ConfigRecord({"header": "[" * 100_000})),
        "a number of many digits": both(ConfigRecord({"header": '{"n": ' + "9" * 5_000 + "}"})),
        "blobs of other names": blobs(b1=blob),
        "too many blobs": both(
            arrays=ArrayRecord(array_dict={str(i): blob for i in range(envelope.MAX_BLOBS + 1)})
        ),
        "a pickle": blobs(b0=Array("uint8", (3,), "pickle", b"abc")),
        "numpy's own format": blobs(b0=Array(np.zeros(3))),
    }
