"""Clients in this process: threads that train one client after another, each with one network that it reuses.

A task is taken only when a worker is free, so at most `workers` replies and the one being folded exist at a time,
whatever the number of clients. Every packet is encoded for real; only the transport is missing.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

import torch

from osmotic.federation.client import Site, Trainer
from osmotic.protocol.messages import Answer, Client, Failure, Sent


class InProcess:
    """The default engine.

    Args:
        sites: what each client owns.
        make_trainer: builds one worker's network; called once per worker.
        workers: clients side by side, >= 1.
        threads: operator threads of each worker; bits depend on it.
        stop: set when the exchange is given up, so that running clients end at their next step.
    """

    def __init__(
        self,
        sites: Sequence[Site],
        make_trainer: Callable[[], Trainer],
        workers: int,
        threads: int,
        stop: threading.Event,
    ) -> None:
        self.sites = {site.client.name: site for site in sites}
        self.workers, self.threads, self.stop = workers, threads, stop
        self._make_trainer = make_trainer
        self._trainers: queue.SimpleQueue[Trainer] = queue.SimpleQueue()

    def clients(self, at_least: int, wait_seconds: float) -> list[Client]:
        """All clients, at once; raises TimeoutError if there are fewer than `at_least`."""
        if len(self.sites) < at_least:
            raise TimeoutError(f"{len(self.sites)} clients are here, {at_least} are needed")
        return [self.sites[name].client for name in sorted(self.sites)]

    def exchange(self, tasks: Iterable[Sent], deadline_seconds: float) -> Iterator[Answer]:
        """Answers in order of completion; a client that raises gives an Answer with a Failure.

        The next task starts before an answer is handed out, so that the server's sums cost the workers no time.
        """
        self.stop.clear()  # an exchange that was given up before must not end this one
        waiting = iter(tasks)
        pending: set[Future[Answer]] = set()
        with ThreadPoolExecutor(self.workers) as pool:

            def fill() -> None:
                while len(pending) < self.workers and (sent := next(waiting, None)) is not None:
                    pending.add(pool.submit(self._serve, sent))

            try:
                fill()
                while pending:
                    done, _ = wait(pending, return_when=FIRST_COMPLETED)
                    while done:
                        future = done.pop()
                        pending.discard(future)
                        fill()
                        ready = [future.result()]
                        del future  # what is not named here dies when the server has folded it
                        yield ready.pop()
            except BaseException:
                self.stop.set()
                raise

    def _serve(self, sent: Sent) -> Answer:
        torch.set_num_threads(self.threads)
        trainer = self._take()
        try:
            packet = trainer.serve(self.sites[sent.task.client.name], sent.packet)
        finally:
            self._trainers.put(trainer)
        if failure := packet.header.get("failure"):
            return Answer(sent, packet, Failure(*failure))
        return Answer(sent, packet)

    def _take(self) -> Trainer:
        try:
            return self._trainers.get_nowait()
        except queue.Empty:
            return self._make_trainer()
