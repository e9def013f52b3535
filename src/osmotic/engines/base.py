"""All that a server knows about the world: who is there, and a way to give them tasks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

from osmotic.protocol.messages import Answer, Client, Sent


class Engine(Protocol):
    """Where clients run. Adding one means these two calls."""

    def clients(self, at_least: int, wait_seconds: float) -> list[Client]:
        """Clients sorted by their stable name; waits until `at_least` are there. Raises TimeoutError."""
        ...

    def exchange(self, tasks: Iterable[Sent], deadline_seconds: float) -> Iterator[Answer]:
        """One Answer per task, as they arrive. Tasks are taken from the iterable only as room for them comes free."""
        ...
