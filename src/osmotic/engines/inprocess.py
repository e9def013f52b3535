"""Clients in this process: threads that train one client after another, or several as one, each with networks of its own.

A task is taken only when a worker is free, so at most `workers` replies and the one being folded exist at a time,
whatever the number of clients. Every packet is encoded for real; only the transport is missing.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import islice

import torch

from osmotic.federation.client import Site, Worker
from osmotic.federation.team import Team
from osmotic.protocol.messages import Answer, Client, Failure, Sent
from osmotic.training.loop import Cancelled


class InProcess:
    """The default engine.

    Args:
        clients: who takes part.
        sites: what each client owns, by name; looked up once for every task.
        make_worker: builds one worker's network; called once per worker, when it is first needed.
        workers: clients side by side, >= 1.
        threads: operator threads of each worker; bits depend on it.
        stop: set when the exchange is given up, so that running clients end at their next step.
        together: clients that a worker is given at once, >= 1, in the order of the tasks; bits depend on it.
    """

    def __init__(
        self,
        clients: Sequence[Client],
        sites: Mapping[str, Site],
        make_worker: Callable[[], Worker | Team],
        workers: int,
        threads: int,
        stop: threading.Event,
        together: int = 1,
    ) -> None:
        self._clients, self.sites = sorted(clients, key=lambda client: client.name), sites
        self.workers, self.threads, self.stop, self.together = workers, threads, stop, together
        self._make_worker = make_worker
        self._idle: queue.SimpleQueue[Worker | Team] = queue.SimpleQueue()

    def clients(self, at_least: int, wait_seconds: float) -> list[Client]:
        """All clients, at once; raises TimeoutError if there are fewer than `at_least`."""
        if len(self._clients) < at_least:
            raise TimeoutError(f"{len(self._clients)} clients are here, {at_least} are needed")
        return list(self._clients)

    def exchange(self, tasks: Iterable[Sent], deadline_seconds: float) -> Iterator[Answer]:
        """Answers in order of completion; a client that raises says so in its packet.

        The next task starts before an answer is handed out, so that the server's sums cost the workers no time. At the
        deadline clients under way are stopped at their next step, and whoever waits for a worker is late too.
        """
        self.stop.clear()  # an exchange that was given up before must not end this one
        end = time.monotonic() + deadline_seconds if deadline_seconds else None
        waiting = iter(tasks)
        pending: dict[Future[list[Answer]], list[Sent]] = {}
        with ThreadPoolExecutor(self.workers) as pool:

            def fill() -> None:
                while len(pending) < self.workers and (group := list(islice(waiting, self.together))):
                    pending[pool.submit(self._serve, group)] = group

            try:
                fill()
                while pending:
                    left = None if end is None else max(0.0, end - time.monotonic())
                    done, _ = wait(pending, timeout=left, return_when=FIRST_COMPLETED)
                    if not done:
                        yield from self._late(pending, waiting, deadline_seconds)
                        return
                    while done:
                        future = done.pop()
                        del pending[future]
                        fill()
                        ready = future.result()[::-1]
                        del future  # what is not named here dies when the server has folded it
                        while ready:
                            yield ready.pop()
            except BaseException:
                self.stop.set()
                raise

    def close(self) -> None:
        """Lets the workers' networks go."""
        self.stop.set()
        while not self._idle.empty():
            self._idle.get_nowait()

    def _late(
        self, pending: dict[Future[list[Answer]], list[Sent]], waiting: Iterator[Sent], seconds: float
    ) -> Iterator[Answer]:
        # Their threads cannot be killed: a client looks at `stop` between two steps of training.
        self.stop.set()
        for future, group in pending.items():
            try:
                yield from future.result()  # it may have come while the clock ran out
            except Cancelled:
                for sent in group:
                    yield Answer(sent, failure=Failure("late", f"no answer within {seconds:g} s"))
        for sent in waiting:
            yield Answer(sent, failure=Failure("late", f"not begun within {seconds:g} s"))

    def _serve(self, group: list[Sent]) -> list[Answer]:
        torch.set_num_threads(self.threads)
        worker = self._take()
        try:
            tasks = [(self.sites[sent.task.client.name], sent.packet) for sent in group]
            packets = worker.serve_all(tasks)
            return [Answer(sent, packet) for sent, packet in zip(group, packets, strict=True)]
        finally:
            self._idle.put(worker)

    def _take(self) -> Worker | Team:
        try:
            return self._idle.get_nowait()
        except queue.Empty:
            return self._make_worker()
