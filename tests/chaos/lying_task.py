"""A task of a site that lies, in the place of `osmotic.sites.task`: one kind of lie a round, told over Flower by a real process.

The site of the schedule's place i tells `wire.LIES[2 * (round - 1) + i]`.
"""

from __future__ import annotations

import os
import pickle
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import osmotic.flower
from osmotic.federation.client import Worker
from osmotic.protocol.messages import Packet
from osmotic.sites import task
from osmotic.sites.policy import Policy

from . import wire

PLACE, FOLDER = int(os.environ["LIAR"]), Path(os.environ["LIES"])


def main() -> None:
    """Does the task, and lies about it."""
    sys.set_int_max_str_digits(0)  # or this process could not write what it is to say
    Policy.too_large = staticmethod(lambda num_bytes: None)  # type: ignore[method-assign]
    honest, told = Worker.serve, osmotic.flower.records
    lie: list[wire.Lie] = []

    def serve(worker: Worker, site: Any, packet: Packet) -> Packet:
        answer = honest(worker, site, packet)
        header = packet.header
        if header["action"] != "train" or (found := wire.lie(header["server_round"], PLACE)) is None:
            return answer
        lie.append(found)
        before = [answer, *_read(PLACE), *_read(1 - PLACE)]
        layout = worker.network.layout.of_parts(header["returns"]).named("model/")
        _write(answer)
        return found.packet(answer, layout, before) if found.packet else answer

    def records(packet: Packet, **beside: str) -> Any:
        if lie and lie[0].records is not None:
            return lie[0].records()
        return told(packet, **beside)

    Worker.serve = serve  # type: ignore[method-assign]
    osmotic.flower.records = records
    _on_the_way(lambda: lie[0].transport if lie else None)
    task.main()


def _on_the_way(chosen: Callable[[], str | None]) -> None:
    """Lies of the transport, where Flower's own program hands the reply to its SuperNode."""
    from flwr.supernode.runtime import run_clientapp as flwr_program

    push_message, push_objects = flwr_program.push_message, flwr_program.push_objects

    def push(client: Any, message: Any, context: Any) -> None:
        metadata = message.metadata.__dict__
        match chosen():
            case "late":
                time.sleep(wire.DEADLINE + 30)
            case "of another message":
                metadata["_reply_to_message_id"] = "f" * 64
            case "of another run":
                metadata["_run_id"] = 7
            case "of another node":
                metadata["_src_node_id"] = 7
            case "twice":
                push_message(client, message, context)
        push_message(client, message, context)

    def objects(contents: Any, push_object: Any, **more: Any) -> Any:
        match chosen():
            case "announced, and never sent":
                return None
            case "other content than its hash":
                return push_objects(contents, lambda key, data: push_object(key, data[:-1] + b"~"), **more)
        return push_objects(contents, push_object, **more)

    flwr_program.push_message, flwr_program.push_objects = push, objects


def _write(answer: Packet) -> None:
    """Keeps an honest answer, for this site's next round and for the other liar's."""
    file = FOLDER / f"{PLACE}.pickle"
    file.with_suffix(".new").write_bytes(
        pickle.dumps((dict(answer.header), tuple(bytes(b) for b in answer.blobs)))
    )
    file.with_suffix(".new").rename(file)


def _read(place: int) -> list[Packet]:
    file = FOLDER / f"{place}.pickle"
    return [Packet(*pickle.loads(file.read_bytes()))] if file.exists() else []  # written by this test


if __name__ == "__main__":
    main()
