"""Keeps the processes of a hub or a site alive: starts them, starts again what died, ends all of them together."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO

from osmotic.engines.fate import end_with_parent
from osmotic.engines.quiet import QUIET

FIRST_PAUSE, LONGEST_PAUSE = (
    1.0,
    30.0,
)  # seconds before a process that died is started again; doubled each time
LIVED = 60.0  # seconds after which it counts as having lived: the pause begins anew
GRACE = 10.0  # seconds between asking a process to end and killing it
# Bytes of a log before it goes to NAME.log.1, in the place of the one before, but for lines of that moment.
MAX_LOG = 50 * 2**20


@dataclass
class Service:
    """One process to keep alive.

    Args:
        name: as its log file and messages call it.
        command: its words; the first is a program of this Python's environment.
        hint: what is told with its end: the likeliest cause.
        stuck: given when it was started, in seconds since 1970, whether it is alive and does nothing any more, so that it is to be
            killed and started again.
    """

    name: str
    command: Sequence[str]
    hint: str = ""
    stuck: Callable[[float], bool] = lambda since: False
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    since: float = 0.0  # as `started`, by the clock of files
    pause: float = FIRST_PAUSE
    due: float = field(default=0.0)


class Supervisor:
    """Runs services until it is told to end; each in a process group of its own, with a log file in `logs`.

    Args:
        services: in the order in which they start.
        logs: folder of NAME.log.
        environment: beside this process's own.
        programs: the one folder in which services find programs to start; None is this Python's, then all others.
    """

    def __init__(
        self,
        services: Sequence[Service],
        logs: Path,
        environment: Mapping[str, str],
        programs: Path | None = None,
    ) -> None:
        self.services, self.logs = list(services), logs
        # Programs of Flower start each other by name.
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        path = path if programs is None else str(programs)
        self.environment = {**os.environ, **QUIET, "PATH": path, **environment}
        self._over = threading.Event()

    def run(self) -> None:
        """Until SIGINT or SIGTERM, or `end`; every process is gone when it returns."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, lambda *_: self.end())
        try:
            while not self._over.is_set():
                for service in self.services:
                    self._look_after(service)
                    self._turn_over(self.logs / f"{service.name}.log")
                self._over.wait(0.2)
        finally:
            for service in reversed(self.services):
                self._stop(service)

    def end(self) -> None:
        """Lets `run` return."""
        self._over.set()

    def _look_after(self, service: Service) -> None:
        now = time.monotonic()
        if service.process is not None:
            if (code := service.process.poll()) is None:
                if not service.stuck(service.since):
                    return
                service.process.kill()
                code = service.process.wait()
            if now - service.started > LIVED:
                service.pause = FIRST_PAUSE
            self._end_group(service.process)  # what it had started
            service.process, service.due = None, now + service.pause
            hint = f" ({service.hint})" if service.hint else ""
            log = self.logs / f"{service.name}.log"
            self._say(
                f"{service.name} ended with {code}{hint}; started again in {service.pause:g} s; {log} has more"
            )
            service.pause = min(2 * service.pause, LONGEST_PAUSE)
        if now >= service.due:
            service.since = time.time()
            service.process, service.started = self._start(service), now

    @staticmethod
    def _turn_over(log: Path) -> None:
        """Empties a log that has grown too long. Its process has it open, and writes at its end wherever that is."""
        # It may have been taken away, or the disk be full: no reason to end what it tells of.
        with suppress(OSError):
            if log.stat().st_size > MAX_LOG:
                older = log.with_name(f"{log.name}.1")
                try:
                    shutil.copyfile(log, older)
                except OSError:
                    older.unlink(missing_ok=True)
                os.truncate(log, 0)

    def _start(self, service: Service) -> subprocess.Popen[bytes]:
        self.logs.mkdir(parents=True, exist_ok=True)
        log: IO[bytes]
        with open(self.logs / f"{service.name}.log", "ab") as log:
            return subprocess.Popen(
                list(service.command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self.environment,
                start_new_session=True,  # Ctrl-C is this process's to pass on
                umask=0o077,  # states and databases are their owner's alone
                preexec_fn=partial(end_with_parent, os.getpid()),
            )

    def _stop(self, service: Service) -> None:
        process = service.process
        if process is None:
            return
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(GRACE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._end_group(process)
        service.process = None

    def _end_group(self, process: subprocess.Popen[bytes]) -> None:
        """Ends what is left of a process's group: it led one, so the group has its number."""
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            return

    def _say(self, text: str) -> None:
        print(f"osmotic: {text}", file=sys.stderr, flush=True)
