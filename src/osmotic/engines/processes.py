"""Clients in processes of this machine: as many train side by side as there are workers, and none waits for Python's lock.

Each worker has a task under way and the next one waiting beside it, so that it never waits for the server. Packets
travel through shared memory (`shared.py`), weights that go to many clients once; the results are to the bit those of
threads. A worker that dies is a failure of the one client that it served.
"""

from __future__ import annotations

import logging
import mmap
import os
import selectors
import signal
import socket
import time
import warnings
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from osmotic.engines.nursery import Nursery
from osmotic.engines.shared import Pool, Slab, one_after_another, receive, send
from osmotic.federation.client import StoreFailed
from osmotic.federation.interfaces import Work
from osmotic.protocol.messages import Answer, Client, Failure, Packet, Sent

AHEAD = 2  # tasks at a worker: one under way, one waiting
GRACE = 10.0  # seconds for a worker that was told to stop; it looks between two steps of training


@dataclass
class Posted:
    """A task at a worker: its number, and what of it lies in shared memory."""

    number: int
    sent: Sent
    blobs: list[bytes]
    asked_back: bool = False


@dataclass
class Hired:
    """The run's end of one worker process.

    `posted` holds its tasks in the order in which it serves them; `shown` the run's slabs that it has, `windows` its own
    that the run has, `freed` those of them that nobody here reads any more.
    """

    socket: socket.socket
    pid: int
    posted: deque[Posted] = field(default_factory=deque)
    shown: set[int] = field(default_factory=set)
    windows: dict[int, mmap.mmap] = field(default_factory=dict)
    freed: list[int] = field(default_factory=list)


class Outbox:
    """Blobs of packets in shared memory, each once however many clients it goes to."""

    def __init__(self) -> None:
        self.pool = Pool()
        self._lies: dict[
            int, tuple[Slab, list[bytes]]
        ] = {}  # by identity; kept, so that it stays the blob's own

    def put(self, blob: bytes) -> Slab:
        """The slab in which `blob` lies, from its beginning. Raises: OSError if there is no room."""
        if id(blob) not in self._lies:
            slab = self.pool.take(len(blob))
            slab.memory[: len(blob)] = blob
            self._lies[id(blob)] = (slab, [])
        slab, uses = self._lies[id(blob)]
        uses.append(blob)
        return slab

    def drop(self, blobs: Iterable[bytes]) -> None:
        """One task less that these go to."""
        for blob in blobs:
            slab, uses = self._lies[id(blob)]
            uses.pop()
            if not uses:
                del self._lies[id(blob)]
                self.pool.give_back(slab.number)


class Processes:
    """The engine `inprocess` with workers that are processes.

    Args:
        clients: who takes part.
        nursery: prepared; it is closed with the engine.
        workers: clients side by side, >= 1.
        worked: is told what the workers are at (`interfaces.Observer`), a few times a second.
    """

    def __init__(
        self,
        clients: Sequence[Client],
        nursery: Nursery,
        workers: int,
        worked: Callable[[Work, float], object] = lambda work, amount: None,
    ) -> None:
        self._clients = sorted(clients, key=lambda client: client.name)
        self.nursery, self.workers, self.worked = nursery, workers, worked
        self.hired: list[Hired] = []
        self._outbox = Outbox()
        self._select = selectors.DefaultSelector()
        self._number = 0

    def clients(self, at_least: int, wait_seconds: float) -> list[Client]:
        """All clients, once workers can be had.

        Raises: TimeoutError if there are fewer than `at_least`; RunStopped if there will be no workers.
        """
        self.nursery.wait()
        if len(self._clients) < at_least:
            raise TimeoutError(f"{len(self._clients)} clients are here, {at_least} are needed")
        return list(self._clients)

    def exchange(self, tasks: Iterable[Sent], deadline_seconds: float) -> Iterator[Answer]:
        """Answers in order of completion; blobs of an answer are views that stay as they are while anybody holds them.

        Raises: StoreFailed as `Worker.serve`; OSError if there is no room for memory to share; RunStopped if a worker that
            died cannot be replaced.
        """
        end = time.monotonic() + deadline_seconds if deadline_seconds else None
        waiting: deque[Sent] = deque()  # taken back from workers
        source = iter(tasks)
        try:
            while self._fill(waiting, source):
                left = None if end is None else end - time.monotonic()
                if left is not None and left <= 0:
                    yield from self._late(waiting, source, deadline_seconds)
                    return
                for key, _ in self._select.select(left):
                    come = self._hear(key.data, waiting)
                    if come:
                        self._fill(waiting, source)
                    while come:
                        yield come.pop()  # not named here, or it would live on beside the next one
        except BaseException:
            # Clients under way may not go on beside a resumed run.
            self._kill()
            raise

    def close(self) -> None:
        """Ends all worker processes."""
        self._select.close()
        for worker in self.hired:
            worker.socket.close()
        self.hired = []
        self.nursery.close()

    # --- tasks to workers ---

    def _fill(self, waiting: deque[Sent], source: Iterator[Sent]) -> bool:
        """Gives out tasks while there is room; whether any is under way then."""
        for ahead in range(AHEAD):
            for place in range(self.workers):
                if place < len(self.hired) and len(self.hired[place].posted) > ahead:
                    continue
                sent = waiting.popleft() if waiting else next(source, None)
                if sent is None:
                    self._even_out()
                    return any(worker.posted for worker in self.hired)
                if place == len(self.hired):
                    self._hire()
                self._post(self.hired[place], sent)
        return True

    def _hire(self) -> None:
        end, pid = self.nursery.hire()
        self.hired.append(Hired(end, pid))
        self._select.register(end, selectors.EVENT_READ, self.hired[-1])

    def _post(self, worker: Hired, sent: Sent) -> None:
        self._number += 1
        blobs = list(sent.packet.blobs)
        placed = [self._outbox.put(blob) for blob in blobs]
        slabs = {slab.number: slab for slab in placed}
        worker.posted.append(Posted(self._number, sent, blobs))
        new = [slabs[n] for n in sorted(slabs.keys() - worker.shown)]
        worker.shown |= slabs.keys()
        task = {
            "number": self._number,
            "client": sent.task.client.name,
            "header": dict(sent.packet.header),
            "blobs": [(slab.number, len(blob)) for slab, blob in zip(placed, blobs, strict=True)],
        }
        freed = [worker.freed.pop() for _ in range(len(worker.freed))]
        shown = [(slab.number, slab.size) for slab in new]
        self._tell(worker, {"task": task, "freed": freed, "slabs": shown}, [slab.file for slab in new])

    def _even_out(self) -> None:
        """Where no task is left for a worker, one that waits at another is asked back."""
        idle = self.workers - sum(1 for worker in self.hired if worker.posted)
        for worker in self.hired:
            if idle and len(worker.posted) > 1 and not worker.posted[-1].asked_back:
                worker.posted[-1].asked_back = True
                self._tell(worker, {"give_back": worker.posted[-1].number})
                idle -= 1

    def _tell(self, worker: Hired, message: Mapping[str, Any], files: Sequence[int] = ()) -> None:
        with suppress(ConnectionError):  # it has died, which is seen when it is listened to
            send(worker.socket, message, files)

    # --- answers from workers ---

    def _hear(self, worker: Hired, waiting: deque[Sent]) -> list[Answer]:
        """The next word of a worker: an answer, or none."""
        heard = receive(worker.socket)
        if heard is None:
            return self._died(worker, waiting)
        message, files = heard
        for work, amount in message.get("worked", ()):
            self.worked(work, amount)
        if "log" in message:
            _log(**message["log"])
        elif "warning" in message:
            _warn(*message["warning"])
        elif "answer" in message:
            return [Answer(self._take(worker, message["answer"]), self._packet(worker, message, files))]
        elif "given_back" in message:
            waiting.append(self._take(worker, message["given_back"]))
        elif "cancelled" in message:
            self._take(worker, message["cancelled"])
        elif "failed" in message:
            raise (StoreFailed if message["store"] else OSError)(*message["failed"])
        return []

    def _take(self, worker: Hired, number: int) -> Sent:
        """A task is at this worker no more."""
        posted = next(p for p in worker.posted if p.number == number)
        worker.posted.remove(posted)
        self._outbox.drop(posted.blobs)
        return posted.sent

    def _packet(self, worker: Hired, message: Mapping[str, Any], files: Sequence[int]) -> Packet:
        blobs: list[Any] = []
        if message["lengths"]:
            number = message["slab"]
            if files:
                worker.windows[number] = mmap.mmap(files[0], message["size"], access=mmap.ACCESS_READ)
                os.close(files[0])
            # Whoever holds a view of a blob holds this array: the worker has its slab back when the last one is gone.
            whole: Any = np.frombuffer(worker.windows[number], np.uint8)
            weakref.finalize(whole, worker.freed.append, number).atexit = False
            starts, _ = one_after_another(message["lengths"])
            for start, length in zip(starts, message["lengths"], strict=True):
                blobs.append(memoryview(whole)[start : start + length])
        return Packet(message["header"], tuple(blobs))

    def _died(self, worker: Hired, waiting: deque[Sent]) -> list[Answer]:
        """Its client has failed; what waited beside goes to others, and the next task finds a new worker."""
        tasks = [self._take(worker, posted.number) for posted in list(worker.posted)]
        self._let_go(worker)
        waiting.extendleft(reversed(tasks[1:]))
        told = f"its process {self.nursery.end_of(worker.pid)}"
        return [Answer(sent, failure=Failure("lost", told)) for sent in tasks[:1]]

    def _let_go(self, worker: Hired) -> None:
        self._select.unregister(worker.socket)
        worker.socket.close()
        self.hired.remove(worker)

    # --- the end, early ---

    def _late(self, waiting: deque[Sent], source: Iterator[Sent], seconds: float) -> Iterator[Answer]:
        """Whoever has begun is stopped at its next step; an answer that came while the clock ran out counts."""
        posted = [p.sent for worker in self.hired for p in worker.posted]
        begun = {id(worker.posted[0].sent) for worker in self.hired if worker.posted}
        for worker in self.hired:
            self._tell(worker, {"stop": self._number})
        end, halted = time.monotonic() + GRACE, deque[Sent]()
        while any(worker.posted for worker in self.hired) and (left := end - time.monotonic()) > 0:
            for key, _ in self._select.select(left):
                for answer in self._hear(key.data, halted):
                    posted = [sent for sent in posted if sent is not answer.sent]
                    yield answer
        self._kill()
        for sent in posted:
            told = f"{'no answer' if id(sent) in begun else 'not begun'} within {seconds:g} s"
            yield Answer(sent, failure=Failure("late", told))
        for sent in (*waiting, *source):
            yield Answer(sent, failure=Failure("late", f"not begun within {seconds:g} s"))

    def _kill(self) -> None:
        """Ends the workers that have a task. Their clients' states are whole at every moment, and others take their place.

        The nursery is not asked how they ended: this may be an interrupt that broke into a word of it.
        """
        for worker in [w for w in self.hired if w.posted]:
            os.kill(worker.pid, signal.SIGKILL)
            for posted in list(worker.posted):
                self._take(worker, posted.number)
            self._let_go(worker)


def _log(name: str, level: int, text: str, trace: str | None) -> None:
    """A record of a worker's log, as if it had been written here."""
    record: dict[str, Any] = {"name": name, "levelno": level, "levelname": logging.getLevelName(level)}
    log = logging.getLogger(name)
    if log.isEnabledFor(level):
        log.handle(logging.makeLogRecord({**record, "msg": text, "exc_text": trace}))


def _warn(category: str, text: str) -> None:
    """A worker's warning; told here, two workers' are told as one."""
    import builtins

    known = getattr(builtins, category, UserWarning)
    is_one = isinstance(known, type) and issubclass(known, Warning)
    warnings.warn(text, known if is_one else UserWarning, stacklevel=1)
