"""Lies over Flower with real processes, TLS and keys: a hub and four sites, two of which lie in every round, each time otherwise.

Every lie must be one failure of its site, and the run must end in the bits of one in which that site failed.

python -m tests.chaos.wire     # make chaos-sites; writes figures to stdout as JSON
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import zstandard

from osmotic.flat import FlatLayout
from osmotic.protocol.messages import Packet

from . import replies
from .federation import Federation

DEADLINE = 90.0  # seconds of a round
NAMES = [f"client-{i:03d}" for i in range(4)]
LIARS = NAMES[2:]
# What no packet can hold, as JSON and rows of bytes travel.
UNSAYABLE = {
    "nothing", "a table instead of a packet", "no header", "a list as header", "no blobs", "text as blobs", "text in blobs",
    "numbers in blobs",
}  # fmt: skip
# What only a wire can do: no reply comes of it, so it costs the deadline.
TRANSPORT = (
    "twice",
    "of another message",
    "of another run",
    "of another node",
    "late",
    # After these its own SuperNode waits for the rest, and the site is not heard of any more.
    "other content than its hash",
    "announced, and never sent",
)
# The first reply is a good one, and a second must not count; in JSON a number is a name like any other.
HARMLESS = {"twice", "a metric with a number as name"}


@dataclass(frozen=True)
class Lie:
    """One lie; `packet`, `records` or `transport` says where it is told.

    Args:
        name: of its kind.
        packet: (honest answer, layout of its changes, answers before it) -> what is told.
        records: what is told in the place of any packet.
        transport: one of TRANSPORT.
    """

    name: str
    packet: Callable[[Packet, FlatLayout, list[Packet]], Packet] | None = None
    records: Callable[[], Any] | None = None
    transport: str | None = None


@cache
def lies() -> tuple[Lie, ...]:
    """All of them, in the order in which they are told."""
    from flower_grid import hostile

    found = [Lie(f"records: {name}", records=lambda name=name: hostile()[name]) for name in hostile()]
    found += [Lie("a bomb behind it", packet=_bomb)]
    for name, reply in replies.KINDS.items():
        if name not in UNSAYABLE:
            found.append(Lie(name, packet=_told(reply)))
    return (*found, *(Lie(name, transport=name) for name in TRANSPORT))


def _told(reply: replies.Reply) -> Callable[[Packet, FlatLayout, list[Packet]], Packet]:
    def packet(answer: Packet, layout: FlatLayout, before: list[Packet]) -> Packet:
        replies.LAYOUTS[id(answer)] = layout
        told: Packet = reply(answer, "fp32", before)
        return told

    return packet


def _bomb(answer: Packet, layout: FlatLayout, before: list[Packet]) -> Packet:
    """A GiB of zeros in a few kilobytes, where the changes belong."""
    return Packet(answer.header, (zstandard.ZstdCompressor(19).compress(bytes(2**30)),))


def lie(server_round: int, place: int) -> Lie | None:
    """What the liar of this place tells in a round; None once all is told."""
    number = 2 * (server_round - 1) + place
    return lies()[number] if number < len(lies()) else None


def rounds() -> int:
    """In which all lies are told."""
    return (len(lies()) + 1) // 2


CONFIG = f"""
[data]
source = "digits"
clients = 4
max_images = 160
[training]
rounds = {{rounds}}
local_epochs = 0.2
[score]
every = 0
samples = 20
[checkpoint]
every = 20
[track]
backends = []
[engine]
deadline_seconds = {DEADLINE}
"""
# The run without them: who lies in a round fails in it, before it has trained.
WITHOUT = """
import sys
from tests.chaos import wire
from osmotic.federation.client import Worker

honest = Worker._serve

def serve(worker, site, packet):
    header, name = packet.header, site.client.name
    if header["action"] == "train" and name in wire.LIARS:
        told = wire.lie(header["server_round"], wire.LIARS.index(name))
        if told is not None and told.name not in wire.HARMLESS:
            raise RuntimeError("does not answer")
    return honest(worker, site, packet)

Worker._serve = serve
from osmotic.cli import main
main()
"""


def without(made: Federation, name: str, sets: Sequence[str]) -> dict[str, Any]:
    """The summary of the simulation in which nobody lies, and who would have, fails."""
    out = made.folder / "simulated" / name
    words = [
        "run",
        str(made.folder / "run.toml"),
        "--out",
        str(out),
        *(w for s in sets for w in ("--set", s)),
    ]
    tests = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, *words],
        env={**made.env, "PYTHONPATH": os.pathsep.join([str(tests.parent), str(tests), *sys.path])},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads((out / "summary.json").read_text()))


def corrupt(made: Federation) -> None:
    """From here on two of the sites lie: another program does their tasks."""
    (made.folder / "lies").mkdir()
    for place, name in enumerate(LIARS):
        made.tasks_by(name, "tests.chaos.lying_task", LIAR=str(place), LIES=str(made.folder / "lies"))


# Not the quality: a hub has no images to score with.
BITS = ("weights_sha256", "images_seen", "client_steps", "flops")


def check(made: Federation, sets: Sequence[str] = ()) -> list[str]:
    """One run in which everything is told: what is wrong with what it left. Sites are up already."""
    expected = without(made, "without", sets)
    corrupt(made)
    run = made.run("lies", *sets)
    told, _ = run.communicate()
    if run.returncode:
        return [f"exit code {run.returncode}: {' | '.join(told.splitlines()[-4:])}"]
    found = made.summary("lies")
    wrong = [f"{name} differs" for name in BITS if found[name] != expected[name]]
    failed = {(f["round"], NAMES[f["client_id"]]): f["reason"] for f in found["failures"]}
    for number in range(2 * found["rounds"]):
        server_round, place = number // 2 + 1, number % 2
        one, what = lie(server_round, place), (server_round, LIARS[place])
        reason = failed.pop(what, None)
        if one is None or one.name in HARMLESS:
            wrong += [f"round {what}: honest, and failed: {reason}"] * (reason is not None)
        elif reason is None:
            wrong.append(f"{one.name}: was taken")
        elif len(reason) > 250 or not reason.isprintable() or "secret" in reason:
            wrong.append(f"{one.name}: a reason of {len(reason)} characters: {reason[:80]!a}")
        elif one.transport is None and "no answer" in reason:
            wrong.append(f"{one.name}: cost the whole deadline")
    return [*wrong, *(f"{what} failed too: {reason}" for what, reason in failed.items())]


def main() -> int:
    """All lies in one run; 1 if anything is wrong."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        made = Federation(Path(folder), CONFIG.format(rounds=rounds()), NAMES)
        with made.started():
            wrong = check(made)
            reasons = made.summary("lies")["failures"] if (made.out("lies") / "summary.json").exists() else []
            for failure in reasons:
                told = lie(failure["round"], LIARS.index(NAMES[failure["client_id"]]))
                print(json.dumps({"lie": told and told.name, **failure}), flush=True)
    print(json.dumps({"lies": len(lies()), "wrong": wrong, "seconds": round(time.monotonic() - begun)}))
    return min(len(wrong), 1)


if __name__ == "__main__":
    sys.exit(main())
