"""The ledger: every byte, weight, image, optimiser step and FLOP, by round, client and direction."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from osmotic.storage import strict_json


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One message of one client in one direction, or, of `server`, the server's own work in a phase.

    `parameters` counts one per weight conveyed, whatever the codec; `bytes` is the length of the encoded payload,
    headers and scales included. `images` and `steps` are the training behind an upward message, or of the server, `flops`
    their cost; the server's hold what it has drawn too.
    """

    round: int
    phase: str
    client: str
    direction: Literal["up", "down", "server"]
    parameters: int
    bytes: int
    status: str  # "counted", "refused" (came, not summed), "failed" (nothing usable came back), "unused" (round had no quorum)
    total: bool  # part of the summary's four totals; scoring and personalising are not
    images: int = 0
    steps: int = 0
    flops: int = 0


@dataclass
class Totals:
    """Running sums of the entries marked `total`."""

    parameters_up: int = 0
    parameters_down: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    images_seen: int = 0
    client_steps: int = 0
    flops: int = 0
    server_flops: int = 0

    def add(self, entries: Iterable[Entry]) -> None:
        """Adds entries; what a refused reply cost in bytes counts, the work behind it does not."""
        for e in entries:
            if not e.total:
                continue
            if e.direction == "server":
                self.server_flops += e.flops
                continue
            if e.direction == "up":
                self.parameters_up += e.parameters
                self.bytes_up += e.bytes
            else:
                self.parameters_down += e.parameters
                self.bytes_down += e.bytes
            self.images_seen += e.images
            self.client_steps += e.steps
            self.flops += e.flops


def lines(entries: Iterable[Entry]) -> str:
    """Entries as JSON lines, sorted by client and direction so that the file does not depend on arrival."""
    ordered = sorted(entries, key=lambda e: (e.client, e.direction))
    return "".join(strict_json.dumps(_dict(e)) + "\n" for e in ordered)


def _dict(entry: Entry) -> dict[str, Any]:
    return dataclasses.asdict(entry)
