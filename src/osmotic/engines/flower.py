"""Clients behind Flower (flwr 1.41): tasks pushed and answers pulled over any Grid, and Flower's own simulation of clients.

Who is who goes by stable names, never by node ids, which are drawn anew for every simulation. What the transport loses
is sent again: a client's step is a pure function of the task, so it may be repeated.

All that flwr does not document is imported here: `tests/engines/test_flower.py` holds it to what is used.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import warnings
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import httpx
from flwr.app import Message
from flwr.serverapp import Grid, ServerApp
from flwr.superlink.grid import http_grid

from osmotic.engines.envelope import NoPacket, beside, packet_of, records
from osmotic.engines.quiet import QUIET
from osmotic.errors import ConfigError, RunStopped, plain
from osmotic.protocol.messages import Answer, Client, Failure, Kind, Packet, Sent

log = logging.getLogger("osmotic.engine")

APP = "osmotic.flower"
WORK, HELLO = "train", "query.hello"  # types of message: every task, and who somebody is
DIED = 0  # flwr's code for a simulated client whose process is gone
POLL = 0.02  # seconds between two looks for replies
TRIES = 3  # times that a task may be lost, where no deadline says how long
ENDED = 30.0  # seconds that its processes may take to end
STARTED = 120.0  # seconds that Flower's simulation may take to begin
SETTLED = 20.0  # seconds after which no further node of somebody else's simulation is waited for
# flwr's ErrorCode as kinds of failure: what befell the message, and what the other side made of it.
KINDS: Mapping[int, Kind] = {
    0: "lost",
    1: "raised",
    2: "raised",
    3: "late",
    4: "lost",
    5: "lost",
    6: "refused",
    7: "refused",
    8: "lost",
}


@dataclass(frozen=True)
class Loan:
    """What Flower gives a process that it runs as its ServerApp.

    Args:
        grid: where messages go.
        study_of: makes the study of a run whose images are at sites, given grid, configuration and the names of its sites,
            () where they are not known yet; None in a simulation.
    """

    grid: Grid
    study_of: Callable[[Grid, Any, Sequence[str]], Any] | None = None


_loans: list[Loan] = []  # at most one


@contextmanager
def lent(grid: Grid, study_of: Callable[[Grid, Any, Sequence[str]], Any] | None = None) -> Iterator[None]:
    """Inside the block runs are on the grid that Flower has made around this process, and on none of their own."""
    _loans.append(Loan(grid, study_of))
    try:
        yield
    finally:
        _loans.clear()


def loan() -> Loan | None:
    """What Flower has lent this process, if it has."""
    return _loans[0] if _loans else None


class Lent:
    """The runtime that somebody else started, and ends."""

    def __init__(self, grid: Grid, nodes: int) -> None:
        there = len(registered(grid, nodes, SETTLED))
        if there != nodes:
            rule = f"but Flower's simulation has {there}: --federation-config 'num-supernodes={nodes}'"
            raise ConfigError("data.clients", nodes, rule)
        self._grid = grid

    def grid(self) -> Grid:
        """The grid."""
        return self._grid

    def close(self) -> None:
        """It is not ours to end."""


class Flower(ABC):
    """The server's end of a Grid. A class derived from it says which grid, and which node is which client.

    Args:
        at_once: tasks under way, >= 1: whoever waits for a place is in nobody's memory yet.
        poll: seconds between two looks for replies.
    """

    def __init__(self, at_once: int, poll: float = POLL) -> None:
        self.at_once, self.poll = at_once, poll

    # --- what a derived class says ---

    @abstractmethod
    def grid(self) -> Grid:
        """Where messages go; opened when it is first asked for. Raises: RunStopped if it is gone for good."""

    @abstractmethod
    def nodes(self) -> Mapping[str, int]:
        """Node of each client that is there now, by name."""

    def told(self) -> Mapping[str, str]:
        """Texts that go beside every packet."""
        return {}

    def heard(self, answer: Message) -> None:
        """A reply came, whatever it holds; raises what is to end the run."""

    def mend(self, code: int) -> bool:
        """A message was lost with this code of Flower's. True: all that was under way is lost with it, and can be sent anew."""
        return False

    # --- the engine ---

    def exchange(self, tasks: Iterable[Sent], deadline_seconds: float) -> Iterator[Answer]:
        """Answers as they come; what is lost on the way is sent again until the deadline, or `TRIES` times in all without one."""
        end = time.monotonic() + deadline_seconds if deadline_seconds else None
        waiting, again = iter(tasks), deque[Sent]()
        out: dict[str, Sent] = {}  # by message id
        tries: Counter[str] = Counter()  # that came to nothing, by client
        while True:
            absent: list[Sent] = []
            while len(out) < self.at_once and (sent := again.popleft() if again else next(waiting, None)):
                number = self._push(sent, end)
                if number is not None:
                    out[number] = sent
                elif self._may_try(sent, tries, end):
                    absent.append(sent)  # and may come back; nobody else waits for that
                else:
                    yield Answer(sent, failure=Failure("lost", "is not there"))
            again.extend(absent)
            if not out and not again:
                return
            if end is not None and time.monotonic() >= end:
                yield from self._late(out, again, waiting, deadline_seconds)
                return
            came = False
            # One by one: a reply may be as large as a model, and one that cannot be read must not take others along.
            for number in list(out):
                if (
                    number not in out
                    or (message := pulled(self.grid(), number, out[number].most_bytes)) is None
                ):
                    continue
                came, sent = True, out.pop(number)
                if isinstance(message, NoPacket):
                    yield Answer(sent, failure=Failure("bad", str(message)))
                    continue
                self.heard(message)
                answer = _answer(sent, message)
                # Late too: Flower also gives up, long before the deadline, what a node was handed that is gone.
                lost = answer.failure is not None and answer.failure.kind in ("lost", "late")
                if lost and self.mend(message.error.code):
                    again.extend(out.values())
                    out.clear()
                if lost and self._may_try(sent, tries, end):
                    again.append(sent)
                    continue
                del message
                yield answer
                del answer  # or its packet would lie beside the next one
            if not came:
                time.sleep(self.poll)

    def _push(self, sent: Sent, end: float | None) -> str | None:
        node = self.nodes().get(sent.task.client.name)
        if node is None:
            return None
        left = None if end is None else max(0.1, end - time.monotonic())
        phase = str(sent.packet.header.get("server_round", ""))
        # Nobody is handed it once its time is over: a straggler would work through all that it missed.
        message = Message(records(sent.packet, **self.told()), node, WORK, ttl=left, group_id=phase)
        [number] = list(self.grid().push_messages([message])) or [None]
        return number

    def _may_try(self, sent: Sent, tries: Counter[str], end: float | None) -> bool:
        """Whether a task that was lost is sent again. What was lost along with somebody else's costs no try."""
        tries[sent.task.client.name] += 1
        return tries[sent.task.client.name] < TRIES if end is None else time.monotonic() < end

    def _late(
        self, out: Mapping[str, Sent], again: Iterable[Sent], waiting: Iterator[Sent], seconds: float
    ) -> Iterator[Answer]:
        for sent in (*out.values(), *again):
            yield Answer(sent, failure=Failure("late", f"no answer within {seconds:g} s"))
        for sent in waiting:
            yield Answer(sent, failure=Failure("late", f"not begun within {seconds:g} s"))


def pulled(grid: Grid, number: str, most_bytes: int | None = None) -> Message | NoPacket | None:
    """The reply to the message of this number; None where there is none yet, NoPacket for one that flwr cannot read.

    Args:
        most_bytes: no more of it is fetched; None sets no bound.
    Raises: httpx.HTTPError if the SuperLink cannot be reached.
    """
    try:
        with _bounded(most_bytes):
            # A node that is gone answers as somebody else: the number of what was asked is all that counts.
            found = [m for m in grid.pull_messages([number]) if m.metadata.reply_to_message_id == number]
    except httpx.HTTPError:
        raise
    except TooLarge:
        return NoPacket(f"is larger than the {most_bytes:,} bytes that an answer may have")
    except Exception as error:  # a reply is data from outside: whatever it breaks is its client's failure
        return NoPacket(f"cannot be read ({type(error).__name__})")
    return found[0] if found else None


class TooLarge(Exception):
    """A reply has more bytes than any honest one."""


@contextmanager
def _bounded(most_bytes: int | None) -> Iterator[None]:
    """Inside the block a grid over HTTP fetches no more than so many bytes: Flower would put together whatever a node has sent."""
    fetch, lock, fetched = http_grid.pull_objects, threading.Lock(), 0

    def bounded(object_ids: list[str], pull_object_fn: Callable[[str], bytes], **more: Any) -> Any:
        def one(object_id: str) -> bytes:
            nonlocal fetched
            content = pull_object_fn(object_id)
            with lock:
                fetched += len(content)
            if most_bytes is not None and fetched > most_bytes:
                raise TooLarge
            return content

        return fetch(object_ids, one, **more)

    http_grid.pull_objects = bounded
    try:
        yield
    finally:
        http_grid.pull_objects = fetch


def _answer(sent: Sent, message: Message) -> Answer:
    """A reply of Flower's as an answer of ours."""
    if message.has_error():
        # Its text is a traceback's, or Flower's own: the code says as much.
        code = message.error.code
        return Answer(sent, failure=Failure(KINDS.get(code, "lost"), f"Flower reports error {code}"))
    try:
        return Answer(sent, packet_of(message.content))
    except NoPacket as error:
        return Answer(sent, failure=Failure("bad", str(error)))


class Simulation(Flower):
    """Clients in the processes of Flower's simulation, which starts with the first task and ends with `close`.

    Args:
        clients: who takes part; the order is that of the partitions.
        workers: clients side by side, >= 1, each one process.
        gpus: share of a GPU that each of these takes; 0 on a CPU.
        setup: where a client's process finds what it must know, told with every task.
        worked: as `interfaces.Observer.worked`.
        keep: what must live as long as the clients do.
    """

    def __init__(
        self,
        clients: Sequence[Client],
        workers: int,
        gpus: float,
        setup: str,
        worked: Callable[[Any, float], object] = lambda work, amount: None,
        keep: object = None,
    ) -> None:
        super().__init__(workers + 1)  # one more than work, so that nobody waits for the server
        self._clients, self.workers, self.gpus = list(clients), workers, gpus
        self._setup, self._worked, self._keep = setup, worked, keep
        self._runtime: Runtime | Lent | None = None
        self._nodes: dict[str, int] = {}

    def clients(self, at_least: int, wait_seconds: float) -> list[Client]:
        """All clients, at once; raises TimeoutError if there are fewer than `at_least`."""
        if len(self._clients) < at_least:
            raise TimeoutError(f"{len(self._clients)} clients are here, {at_least} are needed")
        return sorted(self._clients, key=lambda client: client.name)

    def close(self) -> None:
        """Ends Flower's simulation and all its processes."""
        runtime, self._runtime, self._nodes = self._runtime, None, {}
        if runtime is not None:
            runtime.close()

    def grid(self) -> Grid:
        """The grid of the simulation, which is started for it."""
        if self._runtime is None:
            nodes = len(self._clients)
            self._runtime = (
                Lent(given.grid, nodes) if (given := loan()) else Runtime(nodes, self.workers, self.gpus)
            )
        return self._runtime.grid()

    def nodes(self) -> Mapping[str, int]:
        """All clients' nodes: asked once for the partition of each."""
        if not self._nodes:
            found = partitions(self.grid(), len(self._clients))
            self._nodes = {self._clients[place].name: node for place, node in found.items()}
        return self._nodes

    def told(self) -> Mapping[str, str]:
        """The place of the setup."""
        return {"setup": self._setup}

    def heard(self, answer: Message) -> None:
        """Passes progress on. Raises: OSError where a client's disk, which is the run's, refuses."""
        if answer.has_error():
            return
        if disk := beside(answer.content, "disk"):
            raise OSError(None, f"a client's private state: {plain(disk)}")
        with suppress(ValueError):
            self._worked("train", float(beside(answer.content, "steps") or 0))

    def mend(self, code: int) -> bool:
        """A new simulation in the place of one whose process died: Flower gives the dead one work again and again."""
        if code != DIED or isinstance(self._runtime, Lent):
            return False
        log.warning("a process of Flower's simulation died: it is started again")
        self.close()
        return True


def registered(grid: Grid, count: int, seconds: float) -> list[int]:
    """The grid's nodes, once there are so many, or after so many seconds: a simulation registers one after the other."""
    end = time.monotonic() + seconds
    while len(nodes := list(grid.get_node_ids())) < count and time.monotonic() < end:
        time.sleep(POLL)
    return nodes


def partitions(grid: Grid, count: int) -> dict[int, int]:
    """The node of each of `count` partitions, as the nodes say themselves. Raises: RunStopped if one does not, or is not there."""
    nodes = registered(grid, count, STARTED)
    if len(nodes) != count:
        raise RunStopped(f"Flower's simulation has {len(nodes)} clients in the place of {count}")
    hello = records(Packet({}))
    asked = dict(zip(grid.push_messages([Message(hello, node, HELLO) for node in nodes]), nodes, strict=True))
    found: dict[int, int] = {}
    end = time.monotonic() + STARTED
    while asked:
        for number in list(asked):
            if (message := pulled(grid, number)) is None:
                continue
            node, answer = asked.pop(number), None
            if isinstance(message, Message) and not message.has_error():
                with suppress(NoPacket):
                    answer = packet_of(message.content).header.get("partition")
            if not isinstance(answer, int) or not 0 <= answer < len(nodes) or answer in found:
                raise RunStopped("a client of Flower's simulation does not say which it is")
            found[answer] = node
        if asked and time.monotonic() > end:
            raise RunStopped(f"{len(asked)} clients of Flower's simulation did not begin in {STARTED:g} s")
        time.sleep(POLL if asked else 0)
    return found


class Runtime:
    """Flower's simulation runtime, which is Ray's actors, beside this thread; its grid is handed out.

    Args:
        nodes: clients.
        workers: processes.
        gpus: share of a GPU of each.
    """

    def __init__(self, nodes: int, workers: int, gpus: float) -> None:
        self._opened, self._over = threading.Event(), threading.Event()
        self._grid: Grid | None = None
        self._error: BaseException | None = None
        self._python_path = os.environ.get("PYTHONPATH")
        for name, value in QUIET.items():
            os.environ.setdefault(name, value)
        self._config: Any = {
            "client_resources": {"num_cpus": 1, "num_gpus": gpus},
            "init_args": {"num_cpus": workers, "logging_level": logging.ERROR, "log_to_driver": False},
        }
        # It ends what Ray has started; `close` waits for that, but not for a Ray that hangs.
        self._thread = threading.Thread(target=self._run, args=(nodes,), name="flower", daemon=True)
        self._thread.start()

    def grid(self) -> Grid:
        """The grid, once it is there. Raises: RunStopped if the simulation has ended by itself."""
        if not self._opened.wait(STARTED):
            raise RunStopped(f"Flower's simulation has not begun within {STARTED:g} s")
        if self._error is not None or not self._thread.is_alive():
            reason = type(self._error).__name__ if self._error else "it ended"
            raise RunStopped(f"Flower's simulation is not there: {reason}: {plain(self._error or '')}")
        assert self._grid is not None
        return self._grid

    def close(self) -> None:
        """Ends it, and waits until its processes are gone."""
        import ray

        self._over.set()
        self._thread.join(ENDED)
        if ray.is_initialized():  # a simulation that did not get as far as its own end
            ray.shutdown()
        # Flower sets it, for the processes that it starts.
        if self._python_path is None:
            os.environ.pop("PYTHONPATH", None)
        else:
            os.environ["PYTHONPATH"] = self._python_path

    def _run(self, nodes: int) -> None:
        from flwr.simulation import run_simulation
        from ray._private import worker

        # Ray tells of a dead process on stdout, where a command's own answer belongs.
        worker.print_to_stdstream = lambda data, ignore_prefix: log.debug("Ray: %s", data["lines"])
        # By its name, as Flower loads it everywhere: it stands above all engines.
        client = import_module(APP).client
        server = ServerApp()

        @server.main()
        def main(grid: Grid, context: object) -> None:
            # The server is the thread that asks for the grid: this one only keeps it open.
            self._grid = grid
            self._opened.set()
            self._over.wait()

        try:
            logging.getLogger("flwr").setLevel(logging.CRITICAL)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                run_simulation(server, client, nodes, backend_config=self._config)
        except BaseException as error:
            self._error = error
        finally:
            self._opened.set()
