"""Several clients' steps at once: opened one by one, trained as one (`training/batched.py`), closed one by one.

A client whose packet or state cannot be used, or whose own hook raises, is its own failure: the others go on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from osmotic.federation.client import Begun, Site, Worker, steps_asked
from osmotic.protocol.messages import Packet
from osmotic.training.batched import Job, fit_many
from osmotic.training.loop import Cancelled
from osmotic.training.network import FlatNetwork
from osmotic.training.stack import Stack

Outcome = tuple[float, int] | Exception


class Team:
    """Workers, one for each network of a stack.

    Args:
        stack: networks of the run's form.
        make_worker: gives the worker of one of them.
    """

    def __init__(self, stack: Stack, make_worker: Callable[[FlatNetwork], Worker]) -> None:
        self.stack = stack
        self.workers = [make_worker(network) for network in stack.networks]

    def serve_all(self, tasks: Sequence[tuple[Site, Packet]]) -> list[Packet]:
        """The answers to tasks of one phase, at most as many as there are workers, in their order.

        Raises: Cancelled if the run is being stopped; StoreFailed as `Worker.serve`.
        """
        answers: dict[int, Packet] = {}
        begun: dict[int, Begun] = {}
        # As `fit_many` wants them; who has as many steps stands by name, so that rows do not hang on the order of tasks.
        for i in sorted(range(len(tasks)), key=lambda i: (-self._steps(*tasks[i]), tasks[i][0].client.name)):
            worker = self.workers[len(begun)]
            found = worker.guarded(*tasks[i], partial(worker.begin, *tasks[i]))
            if isinstance(found, Begun):
                begun[i] = found
            else:
                answers[i] = found
        outcomes = self._train(list(begun.values())) if begun else []
        for worker, (i, step), outcome in zip(self.workers, begun.items(), outcomes, strict=False):
            answers[i] = worker.guarded(*tasks[i], partial(_end, worker, step, outcome))
        return [answers[i] for i in range(len(tasks))]

    def _train(self, begun: Sequence[Begun]) -> Sequence[Outcome]:
        """What each has come to."""
        worker = self.workers[0]
        jobs = [Job(b.opened.site.images, b.steps, b.rng, b.rule, b.moments) for b in begun]
        try:
            return fit_many(
                self.stack,
                jobs,
                worker.blueprint.process,
                worker.config.training,
                learning_rate=begun[0].opened.step.learning_rate,  # one phase has one
                stop=worker.stop.is_set,
                stepped=partial(worker.worked, "train", 1),
            )
        except Cancelled:
            raise
        except Exception as error:  # of what all share, such as memory
            return [error] * len(begun)

    def _steps(self, site: Site, packet: Packet) -> int:
        training = packet.header.get("action") == "train"
        return steps_asked(packet.header, site, self.workers[0].config.training) if training else 0


def _end(worker: Worker, begun: Begun, outcome: Outcome) -> Packet:
    if isinstance(outcome, Exception):
        raise outcome
    return worker.end(begun, outcome)
