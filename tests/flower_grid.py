"""A Grid in this process: what is pushed is worked on when it is pulled, by the app that real nodes load."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from flwr.app import Context, Error, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

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
