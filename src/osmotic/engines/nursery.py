"""Worker processes, as the run sees them: one nursery that imports early, and workers forked from it when they are needed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import IO, Any

from osmotic.engines.shared import Slab, receive, send
from osmotic.errors import RunStopped

PATIENCE = 5.0  # seconds for a nursery that was told that the run is over
# As glibc comes, it gives memory of large activations back to the system after every step: a thousand page faults at 64
# images of `unet-8`, whose time was not told from noise (benchmarks/README.md).
MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
    "MALLOC_TRIM_THRESHOLD_": "17179869184",
    "MALLOC_TOP_PAD_": "67108864",
}
# One thread until a worker sets its own number: a process with threads is not to be forked.
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
HELD_BACK = (signal.SIGINT, signal.SIGTERM)


class _Gone(Exception):
    """The process of the nursery has ended."""


class Nursery:
    """A process that imports what workers need, and is forked for each. It starts at once, and ends with this one.

    Args:
        module: run as `python -m MODULE FD`; it calls `child.nurse` on the socket of that number.
    """

    def __init__(self, module: str) -> None:
        self.module = module
        self._setup: tuple[Mapping[str, Any], list[IO[bytes] | Slab]] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._start()

    def _start(self) -> None:
        self._calls, self._ready = 0, False
        self._control, theirs = socket.socketpair()
        # What is importable here is importable there; -P: and nothing else.
        path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
        environment = {**os.environ, **MALLOC, **ONE_THREAD, "PYTHONPATH": path}
        command = [sys.executable, "-P", "-m", self.module, str(theirs.fileno())]
        # Ctrl-C and SIGTERM reach all processes of a terminal or a job: only the run decides what follows.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, HELD_BACK)
        try:
            self._process = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()]
            )
        finally:
            theirs.close()
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if self._setup is not None:
            self._prepare()

    def prepare(self, setup: Mapping[str, Any], files: Sequence[IO[bytes] | Slab]) -> None:
        """Tells the nursery, in JSON, what it needs to know before it is forked; open files come with it."""
        self._setup = (setup, list(files))
        self._prepare()

    def _prepare(self) -> None:
        assert self._setup is not None
        self._calls += 1
        setup, files = self._setup
        with suppress(ConnectionError):  # `wait` will find that nobody is there
            send(self._control, {"call": self._calls, "prepare": setup}, [file.fileno() for file in files])

    def wait(self) -> None:
        """Returns once workers can be had. Raises: RunStopped if there will be none."""
        if self._ready:
            return
        try:
            told = self._answer(self._calls)
        except _Gone:
            raise RunStopped("worker processes cannot start: the process that makes them has ended") from None
        if "error" in told:
            raise RunStopped(f"worker processes cannot start: {told['error']}")
        self._ready = True

    def hire(self) -> tuple[socket.socket, int]:
        """A new worker process: our end of the socket to it, and its id. Raises: RunStopped if there is none to be had."""
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                self.wait()
                pid = self._ask({"hire": "fork"}, [theirs.fileno()])["pid"]
            except _Gone:  # as the system does that is out of memory: once more, with a new one
                self._control.close()
                self._start()
                self.wait()
                pid = self._ask({"hire": "fork"}, [theirs.fileno()])["pid"]
        return ours, int(pid)

    def end_of(self, pid: int) -> str:
        """How a worker process has ended, or is about to, in a few words."""
        try:
            status = int(self._ask({"end_of": pid})["status"])
        except _Gone:
            return "has ended"
        if os.WIFSIGNALED(status):
            number = os.WTERMSIG(status)
            known = {s.value for s in signal.Signals}
            return f"was killed by {signal.Signals(number).name if number in known else f'signal {number}'}"
        return f"has ended with code {os.waitstatus_to_exitcode(status)}"

    def close(self) -> None:
        """Ends all of its processes."""
        self._control.close()
        process, self._process = self._process, None
        if process is None:
            return
        if not self._ready:  # it has nobody to take along, and would import to the end
            process.kill()
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _ask(self, message: Mapping[str, Any], files: Sequence[int] = ()) -> dict[str, Any]:
        self._calls += 1
        try:
            send(self._control, {**message, "call": self._calls}, files)
        except ConnectionError:
            raise _Gone from None
        return self._answer(self._calls)

    def _answer(self, call: int) -> dict[str, Any]:
        while (heard := receive(self._control)) is not None:
            if heard[0]["call"] == call:  # an earlier one: whoever asked was interrupted
                return heard[0]
        raise _Gone

    def __enter__(self) -> Nursery:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
