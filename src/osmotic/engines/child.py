"""The other side of `processes.py`: a nursery that imports once and is forked, and the desk of one worker process.

The nursery has one thread, so it may be forked; a plugin that gave it others makes it start every worker anew instead.
Nobody here outlives the run: each reads a socket whose other end the run holds, and ends when that is closed.
"""

from __future__ import annotations

import logging
import mmap
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
import warnings
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch

from osmotic.engines.fate import end_with_parent
from osmotic.engines.shared import Pool, one_after_another, receive, send
from osmotic.errors import plain
from osmotic.federation.client import Site, StoreFailed, Worker
from osmotic.federation.interfaces import Work
from osmotic.protocol.messages import Packet
from osmotic.training.loop import Cancelled

TOLD_EVERY = 0.1  # seconds between two words on progress

_started: list[socket.socket] = []  # to workers that are no forks; each ends when its own is closed

MakeWorker = Callable[[threading.Event, Callable[[Work, float], object]], Worker]


@dataclass
class Job:
    """A task as the run told it: whom to serve, the packet's header, and where its blobs lie, (slab, length)."""

    number: int
    client: str
    header: Mapping[str, Any]
    blobs: list[tuple[int, int]]


class Desk:
    """One worker process: serves its tasks one after another, and hears of new ones, and of a stop, meanwhile.

    Made in the nursery, so that forked processes share what it holds; `run` begins in a process of its own.

    Args:
        make_worker: called once, with the event that stops it and what it tells of every batch.
        site_of: what a client of this name owns; it is made anew for every task.
        threads: operator threads.
    """

    def __init__(self, make_worker: MakeWorker, site_of: Callable[[str], Site], threads: int) -> None:
        self._stop = threading.Event()
        self.worker, self.site_of, self.threads = make_worker(self._stop, self._worked), site_of, threads
        self._jobs: deque[Job] = deque()
        self._changed = threading.Condition()
        self._current = 0  # number of the job under way, or of the last one
        self._until = 0  # jobs up to this number are to be stopped
        self._windows: dict[int, mmap.mmap] = {}  # the run's slabs
        self._freed: deque[int] = deque()
        self._pool, self._shown = Pool(), set[int]()  # our slabs, and which of them the run has been shown
        self._done: dict[Work, float] = {}
        self._told = 0.0
        self._sending = threading.Lock()

    def run(self, to: socket.socket) -> None:
        """Serves until the run is over, which ends the process."""
        self._socket = to
        torch.set_num_threads(self.threads)
        self._forward()
        threading.Thread(target=self._listen, daemon=True).start()
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._jobs)
                job = self._jobs.popleft()
                self._current = job.number
                begun = job.number > self._until
                if begun:
                    self._stop.clear()
            self._serve(job) if begun else self._tell({"cancelled": job.number})
            with suppress(OSError, ValueError):
                sys.stdout.flush()  # what plugins print; this process does not end as others do

    def _serve(self, job: Job) -> None:
        views: list[Any] = [memoryview(self._windows[slab])[:length] for slab, length in job.blobs]
        try:
            answer = self.worker.serve(self.site_of(job.client), Packet(job.header, tuple(views)))
            self._answer(job.number, answer)
        except Cancelled:
            self._tell({"cancelled": job.number})
        except StoreFailed as error:
            self._tell({"failed": [error.errno, error.strerror, error.filename], "store": True})

    def _answer(self, number: int, answer: Packet) -> None:
        while self._freed:
            self._pool.give_back(self._freed.popleft())
        lengths = [len(blob) for blob in answer.blobs]
        message: dict[str, Any] = {"answer": number, "header": dict(answer.header), "lengths": lengths}
        files = []
        if lengths:
            starts, size = one_after_another(lengths)
            try:
                slab = self._pool.take(size)
            except OSError as error:
                self._tell({"failed": [error.errno, error.strerror, error.filename], "store": False})
                return
            for start, blob in zip(starts, answer.blobs, strict=True):
                slab.memory[start : start + len(blob)] = blob
            message["slab"] = slab.number
            if slab.number not in self._shown:
                self._shown.add(slab.number)
                files, message["size"] = [slab.file], slab.size
        message["worked"], self._done = list(self._done.items()), {}
        self._tell(message, files)

    # --- what is told to the run ---

    def _tell(self, message: Mapping[str, Any], files: list[int] | None = None) -> None:
        try:
            with self._sending:
                send(self._socket, message, files or [])
        except ConnectionError:
            os._exit(0)

    def _worked(self, work: Work, amount: float) -> None:
        self._done[work] = self._done.get(work, 0) + amount
        now = time.monotonic()
        if now - self._told >= TOLD_EVERY:
            self._told, done, self._done = now, self._done, {}
            self._tell({"worked": list(done.items())})

    def _forward(self) -> None:
        """Warnings and log records go where the run's own go."""
        desk = self

        class Handler(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                text = "".join(traceback.format_exception(*record.exc_info)) if record.exc_info else None
                told = {"name": record.name, "level": record.levelno, "text": record.getMessage()}
                desk._tell({"log": told | {"trace": text}})

        def showwarning(message: Any, category: type[Warning], *place: Any) -> None:
            desk._tell({"warning": [category.__name__, str(message)]})

        logging.getLogger().handlers[:] = [Handler()]
        warnings.showwarning = showwarning  # type: ignore[assignment]

    # --- what the run tells ---

    def _listen(self) -> None:
        try:
            while (heard := receive(self._socket)) is not None:
                message, files = heard
                with self._changed:
                    self._hear(message, files)
                    self._changed.notify()
        finally:
            os._exit(0)  # the run is over, or dead

    def _hear(self, message: Mapping[str, Any], files: list[int]) -> None:
        self._freed.extend(message.get("freed", ()))
        for (number, size), file in zip(message.get("slabs", ()), files, strict=True):
            self._windows[number] = mmap.mmap(file, size, access=mmap.ACCESS_READ)
            os.close(file)
        if "task" in message:
            self._jobs.append(Job(**message["task"]))
        if "stop" in message:
            self._until = message["stop"]
            if self._current <= self._until:
                self._stop.set()
        if "give_back" in message:
            asked = message["give_back"]
            for job in [j for j in self._jobs if j.number == asked]:  # none: it has begun
                self._jobs.remove(job)
                self._tell({"given_back": asked})


def nurse(control: socket.socket, prepare: Callable[[Mapping[str, Any], list[int]], Desk]) -> None:
    """Waits for what the run asks: "prepare" makes the desk, "hire" forks a worker, "end_of" says how one has ended.

    Ends with the run, and ends all workers.
    """
    setup: tuple[dict[str, Any], list[int]] | None = None
    desk: Desk | None = None
    workers: set[int] = set()
    try:
        while (heard := receive(control)) is not None:
            message, files = heard
            told: dict[str, Any] = {"call": message["call"]}
            if "prepare" in message:
                setup = (message, files)
                try:
                    desk = prepare(message["prepare"], files)
                except Exception as error:
                    traceback.print_exc()
                    told["error"] = plain(f"{type(error).__name__}: {error}")
            elif "hire" in message:
                assert desk is not None and setup is not None
                if message["hire"] == "this process":
                    _become_worker(desk, files[0])
                told["pid"] = _worker(control, desk, files[0], setup)
                workers.add(told["pid"])
                os.close(files[0])
            elif "end_of" in message:
                told["status"] = os.waitpid(message["end_of"], 0)[1]
                workers.discard(message["end_of"])
            send(control, told)
    finally:
        for pid in workers:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)  # in a container nobody else may
        os._exit(0)


def _worker(control: socket.socket, desk: Desk, end: int, setup: tuple[Mapping[str, Any], list[int]]) -> int:
    """A new worker process that serves at this end of a socket: its id."""
    if len(os.listdir("/proc/self/task")) == 1:
        if pid := os.fork():
            return pid
        control.close()
        _become_worker(desk, end)
    # A fork would leave the other threads behind, and whatever lock they hold.
    ours, theirs = socket.socketpair()
    with theirs:
        command = [*sys.orig_argv[:-1], str(theirs.fileno())]
        pid = subprocess.Popen(command, pass_fds=[theirs.fileno()]).pid
    _started.append(ours)
    send(ours, setup[0], setup[1])
    send(ours, {"call": 0, "hire": "this process"}, [end])
    return pid


def _become_worker(desk: Desk, end: int) -> None:
    """Serves, until the process ends."""
    try:
        # Should it hang where no thread of Python can act: the nursery ends with the run, and takes it along.
        end_with_parent()
        desk.run(socket.socket(fileno=end))
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(1)
