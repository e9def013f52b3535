"""Links that are cut: every site reaches the hub through a proxy of this test's, which breaks what passes, at random moments.

The run must end with the weights of the unbroken one and no failure, as every site is back long before the deadline.

python -m tests.chaos.links [--cuts N] [--seed S]     # make chaos-sites; writes figures to stdout as JSON
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import socket
import struct
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any

from .federation import Federation, free_port
from .sites import CONFIG, NAMES, PATIENCE

ROUNDS = 6
# reset: all connections end at once; refuse: and none is let in for a while; hold: nothing moves for a while, and nobody is
# told; truncate: each ends after a few bytes more, in the middle of whatever it was.
KINDS = ("reset", "refuse", "hold", "truncate")


class Proxy:
    """Between sites and a hub, in a thread: bytes pass as they are until something is done to them.

    Args:
        hub: port of the hub, on this machine.
    """

    def __init__(self, hub: int) -> None:
        self.hub, self.port = hub, free_port()
        self.broken: Counter[str] = Counter()  # connections that were cut, by what was done
        self._open: dict[
            asyncio.StreamWriter, asyncio.StreamWriter
        ] = {}  # what comes from sites -> to the hub
        self._refused = False
        self._left: int | None = None  # bytes that each connection may still pass
        self._loop = asyncio.new_event_loop()
        self._passing = asyncio.Event()
        self._passing.set()
        listens = threading.Event()
        self._thread = threading.Thread(target=self._serve, args=(listens,), daemon=True)
        self._thread.start()
        assert listens.wait(10)

    def do(self, kind: str, seconds: float) -> None:
        """One cut: what is done, and for how long."""
        self._wait(self._cut(kind, seconds))

    def close(self) -> None:
        """Lets no more pass."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def _serve(self, listens: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(asyncio.start_server(self._let_in, "127.0.0.1", self.port))
        listens.set()
        self._loop.run_forever()

    def _wait(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _let_in(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._refused:
            _reset(writer)
            return
        try:
            theirs, ours = await asyncio.open_connection("127.0.0.1", self.hub)
        except OSError:
            _reset(writer)
            return
        self._open[writer] = ours
        await asyncio.gather(self._pass(reader, ours), self._pass(theirs, writer))
        self._open.pop(writer, None)
        for one in (writer, ours):
            one.close()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(2**16):
                await self._passing.wait()
                if self._left is not None:
                    writer.write(data[: self._left])
                    break
                writer.write(data)
                await writer.drain()
            writer.close()

    async def _cut(self, kind: str, seconds: float) -> None:
        self.broken[kind] += len(self._open)
        if kind == "hold":
            self._passing.clear()
        elif kind == "truncate":
            self._left = 100
        else:
            self._refused = kind == "refuse"
            for ends in list(self._open.items()):
                for one in ends:
                    _reset(one)
        await asyncio.sleep(seconds)
        self._passing.set()
        self._refused, self._left = False, None


def _reset(writer: asyncio.StreamWriter) -> None:
    """Ends a connection without a farewell, as a cable that is pulled does for whoever asks again."""
    with suppress(OSError):
        made = writer.get_extra_info("socket")
        made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def behind(made: Federation) -> Proxy:
    """Lets the sites of a federation, which is not up yet, reach its hub through a proxy alone."""
    proxy = Proxy(made.port)
    for name in made.names:
        file = made.folder / name / "site.toml"
        file.write_text(file.read_text().replace(f"localhost:{made.port}", f"localhost:{proxy.port}"))
    return proxy


def cut_up(made: Federation, proxy: Proxy, cuts: int, seed: int) -> list[dict[str, Any]]:
    """Runs until so many cuts were made; one line a run. Sites are up already."""
    rng, rows, done = random.Random(seed), [], 0
    expected = made.simulated("unbroken", f"training.rounds={ROUNDS}")
    while done < cuts:
        name, begun, kinds = f"cut-{len(rows)}", time.monotonic(), []
        run = made.run(name, f"training.rounds={ROUNDS}")
        lines = made.out(name) / "metrics.jsonl"
        while not lines.exists() and run.poll() is None:
            time.sleep(0.1)
        while run.poll() is None and time.monotonic() - begun < PATIENCE:
            time.sleep(rng.uniform(0, 30))
            if run.poll() is None and done < cuts:
                kinds.append(KINDS[done % len(KINDS)])
                done += 1
                proxy.do(kinds[-1], rng.uniform(1, 20) if kinds[-1] != "reset" else 0)
        if run.poll() is None:
            run.kill()
        told, _ = run.communicate()
        found = made.summary(name) if (made.out(name) / "summary.json").exists() else {}
        same = all(found.get(key) == expected[key] for key in ("weights_sha256", "bytes_up", "bytes_down"))
        row = {
            "cuts": kinds,
            "code": run.returncode,
            "equal": same and found.get("failures") == [],
            "failures": found.get("failures"),
            "seconds": round(time.monotonic() - begun, 1),
            "told": [] if run.returncode == 0 else told.splitlines()[-3:],
        }
        rows.append(row)
        print(json.dumps(row), flush=True)
    return rows


def main() -> int:
    """Makes the cuts; 1 if any run differs from the unbroken one."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cuts", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        made = Federation(Path(folder), CONFIG, NAMES)
        proxy = behind(made)
        with made.started():
            rows = cut_up(made, proxy, args.cuts, args.seed)
        proxy.close()
    equal = sum(row["equal"] for row in rows)
    cuts = sum(len(row["cuts"]) for row in rows)
    print(
        json.dumps(
            {"cuts": cuts, "runs": len(rows), "equal": equal, "connections": proxy.broken, "seed": args.seed}
        )
    )
    return 0 if equal == len(rows) else 1


if __name__ == "__main__":
    sys.exit(main())
