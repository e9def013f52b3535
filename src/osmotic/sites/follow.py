"""A run at the sites, from the hub: handed over, followed to its end, and handed over again where its server died."""

from __future__ import annotations

import re
import sys
import time
from contextlib import suppress
from pathlib import Path

from osmotic.config.schema import Config
from osmotic.errors import RunStopped, plain
from osmotic.sites.hub import Hub

POLL = 1.0  # seconds between two looks at a run
TRIES = 3  # times that a run is handed over again without getting any further


def run(hub: Hub, config: Config | None, out: Path, quiet: bool) -> int:
    """Hands a run to the hub and follows it; returns the exit code: 0, 1 where it failed, 130 where it was stopped here.

    A run whose server died is handed over again, to go on from its last checkpoint, as long as that brings it further.
    """
    tries = 0
    while True:
        before = _phases(out)
        number = hub.submit(config, out)
        try:
            status, reason = _followed(hub, number, quiet)
        except KeyboardInterrupt:
            with suppress(RunStopped):
                hub.stop(number)
            print(f"osmotic: stopped; {_hint(hub, out)}", file=sys.stderr)
            return 130
        if status == "finished:completed" and (out / "summary.json").is_file():
            return 0
        tries = 0 if _phases(out) > before else tries + 1
        if reason or status == "finished:stopped" or tries == TRIES:
            print(
                f"osmotic: {plain(reason or f'the run ended as {status}')}; {_hint(hub, out)}",
                file=sys.stderr,
            )
            with suppress(OSError):
                out.rmdir()  # where nothing was begun: its name is free again
            return 1
        begun = (out / "config.toml").is_file()
        where = "goes on from the last checkpoint" if begun else "begins again"
        print(f"osmotic: the run's server died: it {where}", file=sys.stderr, flush=True)
        config = None if begun else config


def _followed(hub: Hub, number: str, quiet: bool) -> tuple[str, str]:
    """(Flower's word for how a run ended, the run's own reason); prints the run's lines as they come."""
    reason, seen = "", 0
    while True:
        with suppress(RunStopped):
            # A log that is asked for again begins anew.
            for place, line in enumerate(hub.follow(number)):
                if place < seen:
                    continue
                seen = place + 1
                text = SHADE.sub("", line)
                if text.startswith("osmotic: error: "):
                    reason = text.removeprefix("osmotic: error: ")
                elif not quiet and OURS.match(text):
                    print(text, file=sys.stderr, flush=True)
        # It also ends where the hub was started again.
        with suppress(RunStopped):
            if (status := hub.status(number)).startswith("finished"):
                return status, reason
        time.sleep(POLL)


def _phases(out: Path) -> int:
    """Phases of a run that are closed."""
    with suppress(OSError):
        return (out / "metrics.jsonl").read_bytes().count(b"\n")
    return 0


def _hint(hub: Hub, out: Path) -> str:
    begun = (out / "config.toml").is_file()
    return (
        f"go on with: osmotic hub resume {out}"
        if begun
        else f"nothing was begun; {hub.path / 'logs'} has more"
    )


SHADE = re.compile(r"\x1b\[[0-9;]*m")
# Of all that Flower logs, the lines that the run itself says.
OURS = re.compile(r"osmotic: |(train|local|merge|score|personalise|own) -?\d+  ")
