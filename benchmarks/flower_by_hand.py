"""Flower's own FedAvg on its own simulation, as a person would write it: what `engines.py` measures our engines against.

The clients take the steps of `by_hand.py` on one network per process, channels-last, with fused AdamW; they are asked for no
evaluation. One call runs it over a case that `rounds.py` wrote, and prints its seconds and losses as JSON:

    python benchmarks/flower_by_hand.py FOLDER ROUNDS
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
import warnings
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from by_hand import TWO, Case, Trainer, Weights
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from osmotic.engines.quiet import QUIET

FOLDER = "OSMOTIC_BENCHMARK_CASE"  # the processes of a simulation find the case by the environment
client = ClientApp()


@lru_cache(maxsize=1)
def _trainer() -> tuple[Trainer, Weights]:
    torch.set_num_threads(1)
    trainer = Trainer(Case(Path(os.environ[FOLDER])), channels_last=True, fused=True)
    return trainer, trainer.weights()


@client.train()
def train(message: Message, context: Context) -> Message:
    """One epoch of one client."""
    trainer, weights = _trainer()
    given = message.content["arrays"].to_torch_state_dict()
    with torch.no_grad():
        torch._foreach_copy_(weights, list(given.values()))
    place = int(context.node_config["partition-id"])
    loss = trainer.train(place, int(message.content["config"]["server-round"]), weights)
    named = dict(zip(trainer.case.names, (p.detach() for p in trainer.parameters), strict=True))
    metrics = MetricRecord({"loss": loss, "num-examples": len(trainer.images[place])})
    return Message(RecordDict({"arrays": ArrayRecord(named), "metrics": metrics}), reply_to=message)


class Timed(FedAvg):
    """Notes when each round begins and when its average is there."""

    def __init__(self, **more: Any) -> None:
        super().__init__(**more)
        self.begin, self.seconds, self.losses = 0.0, [], []  # type: ignore[var-annotated]

    def configure_train(self, *given: Any, **more: Any) -> Any:
        self.begin = time.perf_counter()
        return super().configure_train(*given, **more)

    def aggregate_train(self, server_round: int, replies: Any) -> Any:
        arrays, metrics = super().aggregate_train(server_round, replies)
        self.seconds.append(time.perf_counter() - self.begin)
        self.losses.append(metrics["loss"])
        return arrays, metrics


def main() -> None:
    """Runs it."""
    from flwr.simulation import run_simulation

    folder, rounds = sys.argv[1], int(sys.argv[2])
    os.environ |= {**QUIET, FOLDER: folder, "PYTHONPATH": str(Path(__file__).parent)}
    logging.getLogger("flwr").setLevel(logging.CRITICAL)
    warnings.simplefilter("ignore")
    case = Case(Path(folder))
    clients = len(case.clients)
    initial = {name: torch.from_numpy(array) for name, array in case.initial.items()}
    strategy = Timed(fraction_evaluate=0.0, min_train_nodes=clients, min_available_nodes=clients)
    server = ServerApp()

    @server.main()
    def run(grid: Grid, context: Context) -> None:
        strategy.start(grid, ArrayRecord(initial), num_rounds=rounds)

    resources = {
        "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
        "init_args": {"num_cpus": TWO, "logging_level": logging.ERROR, "log_to_driver": False},
    }
    run_simulation(server, client, clients, backend_config=resources)
    print(json.dumps({"seconds": strategy.seconds, "losses": strategy.losses}))


if __name__ == "__main__":
    # As a module of this name, so that the processes of the simulation import it, and make one network each.
    import flower_by_hand

    flower_by_hand.main()
