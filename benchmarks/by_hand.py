"""Federated averaging as a person would write it in plain torch: what `rounds.py` measures osmotic against.

Nothing here is the library's but its seeds, so that order, timesteps and noise are the same draws. One call runs one
loop over a case that `rounds.py` wrote, and prints its seconds and losses as JSON:

    python benchmarks/by_hand.py FOLDER LOOP ROUNDS

| loop | clients side by side | network |
|---|---|---|
| `two_processes` | 2 processes of one op thread, weights and sums in shared memory | channels-last, fused AdamW |
| `two_threads` | 2 threads of one op thread | channels-last, fused AdamW |
| `plain` | one at a time on 2 op threads | torch's defaults |
| `float64` | as `plain`; not timed, the yardstick of the weights | in float64 |
| `slip` | as `float64`, with a learning rate 0.1 % higher: what a small mistake does to the weights | in float64 |

Workers, networks, images and tables are there before the clock starts. FOLDER/LOOP.npz gets the weights after the
first round.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from osmotic import seeds

TIMESTEPS = 1000
LEARNING_RATE, CLIP = 2e-3, 1.0
TWO = 2

Weights = list[torch.Tensor]
Round = Callable[[int], float]  # number of the round -> mean loss of its clients


def main() -> None:
    """Runs the loop named on the command line."""
    folder, loop, rounds = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    case = Case(folder)
    seconds, losses = [], []
    with LOOPS[loop](case) as (step, weights):
        for server_round in range(1, rounds + 1):
            begin = time.perf_counter()
            losses.append(step(server_round))
            seconds.append(time.perf_counter() - begin)
            if server_round == 1:
                arrays = {n: w.contiguous().numpy() for n, w in zip(case.names, weights, strict=True)}
                np.savez(folder / f"{loop}.npz", **arrays)
    print(json.dumps({"seconds": seconds, "losses": losses}))


class Case:
    """What `rounds.py` wrote: images [clients, images, 8, 8], initial weights by name, batch size and seed."""

    def __init__(self, folder: Path) -> None:
        told = json.loads((folder / "case.json").read_text())
        self.folder, self.batch_size, self.seed = folder, told["batch"], told["seed"]
        self.pixels = np.load(folder / "pixels.npy")
        with np.load(folder / "initial.npz") as initial:
            self.initial = {name: initial[name] for name in initial.files}
        self.names = list(self.initial)
        self.clients = [f"client-{i:03d}" for i in range(len(self.pixels))]


def network() -> nn.Module:
    """The 0.7 million weights of `unet-8` for grey images, without classes."""
    from diffusers import UNet2DModel

    return UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
        attention_head_dim=8,
    )


class Trainer:
    """One network that trains client after client from the weights it is given."""

    def __init__(
        self,
        case: Case,
        *,
        channels_last: bool,
        fused: bool,
        dtype: torch.dtype = torch.float32,
        learning_rate: float = LEARNING_RATE,
    ) -> None:
        self.case, self.fused, self.dtype, self.learning_rate = case, fused, dtype, learning_rate
        self.format = torch.channels_last if channels_last else torch.contiguous_format
        # nn.Module's own: that of diffusers warns of every cast.
        self.model = nn.Module.to(network(), dtype=dtype, memory_format=self.format).train()
        named = dict(self.model.named_parameters())
        self.parameters = [named[name] for name in case.names]
        steps = torch.arange(TIMESTEPS + 1, dtype=torch.float64) / TIMESTEPS
        kept = torch.cos((steps + 0.008) / 1.008 * torch.pi / 2) ** 2  # arXiv:2102.09672, eq. 17
        betas = (1 - kept[1:] / kept[:-1]).clamp(max=0.999).float()
        alpha_bar = (1 - betas).cumprod(0)
        self.signal, self.noise = alpha_bar.sqrt().to(dtype), (1 - alpha_bar).sqrt().to(dtype)
        self.images = torch.from_numpy(case.pixels)[:, :, None].to(dtype) / 127.5 - 1

    def weights(self) -> Weights:
        """The initial weights, each laid out as the network's own."""
        return [
            torch.empty_like(p).copy_(torch.from_numpy(self.case.initial[n])).detach()
            for n, p in zip(self.case.names, self.parameters, strict=True)
        ]

    def share(self, clients: range, server_round: int, weights: Weights, sums: Weights) -> float:
        """Trains these clients and adds their share of the average to `sums`; returns the sum of their mean losses."""
        losses = 0.0
        for client in clients:
            losses += self.train(client, server_round, weights)
            with torch.no_grad():
                torch._foreach_add_(sums, self.parameters, alpha=1 / len(self.case.clients))
        return losses

    def train(self, client: int, server_round: int, weights: Weights) -> float:
        """One client, one epoch; returns its mean loss."""
        with torch.no_grad():
            torch._foreach_copy_(self.parameters, weights)
        fused = True if self.fused else None
        optimizer = torch.optim.AdamW(self.parameters, lr=self.learning_rate, fused=fused)
        rng = seeds.rng(self.case.seed, seeds.TRAINING, server_round, self.case.clients[client])
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        images = self.images[client]
        order = torch.from_numpy(rng.permutation(len(images)))
        losses = []
        for index in order.split(self.case.batch_size):
            x = images[index].contiguous(memory_format=self.format)
            t = torch.randint(0, TIMESTEPS, (len(index),), generator=generator)
            noise = torch.randn(x.shape, generator=generator).to(self.dtype)
            seen = self.signal[t].view(-1, 1, 1, 1) * x + self.noise[t].view(-1, 1, 1, 1) * noise
            loss = functional.mse_loss(self.model(seen, t, return_dict=False)[0], noise)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(self.parameters, CLIP)
            optimizer.step()
            losses.append(loss.detach())
        return float(torch.stack(losses).mean())


# --- the loops: each gives one round as a call, and the weights that it changes in place ---


@contextmanager
def one_at_a_time(case: Case, **other: Any) -> Iterator[tuple[Round, Weights]]:
    """torch's defaults on two op threads; `other` as `Trainer`."""
    torch.set_num_threads(TWO)
    trainer = Trainer(case, channels_last=False, fused=False, **other)
    weights = trainer.weights()
    sums = [torch.zeros_like(w) for w in weights]

    def step(server_round: int) -> float:
        losses = trainer.share(range(len(case.clients)), server_round, weights, sums)
        take(weights, [sums])
        return losses / len(case.clients)

    yield step, weights


@contextmanager
def two_threads(case: Case) -> Iterator[tuple[Round, Weights]]:
    """Each thread has a network and sums of its own."""
    torch.set_num_threads(1)
    trainers = [Trainer(case, channels_last=True, fused=True) for _ in range(TWO)]
    weights = trainers[0].weights()
    sums = [[torch.zeros_like(w) for w in weights] for _ in range(TWO)]

    def work(which: int, server_round: int) -> float:
        torch.set_num_threads(1)
        return trainers[which].share(mine(case, which), server_round, weights, sums[which])

    with ThreadPoolExecutor(TWO) as pool:

        def step(server_round: int) -> float:
            losses = sum(pool.map(lambda which: work(which, server_round), range(TWO)))
            take(weights, sums)
            return losses / len(case.clients)

        yield step, weights


@contextmanager
def two_processes(case: Case) -> Iterator[tuple[Round, Weights]]:
    """The processes are started once; a round is a word to each, and one back."""
    torch.set_num_threads(1)
    context = torch.multiprocessing.get_context("spawn")
    weights = [w.share_memory_() for w in Trainer(case, channels_last=True, fused=True).weights()]
    sums = [[torch.zeros_like(w).share_memory_() for w in weights] for _ in range(TWO)]
    pipes, processes = [], []
    for which in range(TWO):
        pipe, other = context.Pipe()
        process = context.Process(
            target=serve, args=(case.folder, which, weights, sums[which], other), daemon=True
        )
        process.start()
        other.close()
        pipes.append(pipe)
        processes.append(process)
    for pipe in pipes:
        pipe.recv()

    def step(server_round: int) -> float:
        for pipe in pipes:
            pipe.send(server_round)
        losses = sum(pipe.recv() for pipe in pipes)
        take(weights, sums)
        return losses / len(case.clients)

    yield step, weights
    for pipe, process in zip(pipes, processes, strict=True):
        pipe.send(0)
        process.join()


def serve(folder: Path, which: int, weights: Weights, sums: Weights, pipe: Any) -> None:
    """One worker process: trains its half of the clients for every round it is told, until it is told 0."""
    torch.set_num_threads(1)
    case = Case(folder)
    trainer = Trainer(case, channels_last=True, fused=True)
    pipe.send("ready")
    while server_round := pipe.recv():
        pipe.send(trainer.share(mine(case, which), server_round, weights, sums))


def mine(case: Case, which: int) -> range:
    """Every second client."""
    return range(which, len(case.clients), TWO)


def take(weights: Weights, parts: list[Weights]) -> None:
    """The average over: the parts of the sum go into the weights, and are zero again."""
    torch._foreach_copy_(weights, parts[0])
    for part in parts[1:]:
        torch._foreach_add_(weights, part)
    for part in parts:
        torch._foreach_zero_(part)


LOOPS = {
    "two_processes": two_processes,
    "two_threads": two_threads,
    "plain": one_at_a_time,
    "float64": lambda case: one_at_a_time(case, dtype=torch.float64),
    "slip": lambda case: one_at_a_time(case, dtype=torch.float64, learning_rate=1.001 * LEARNING_RATE),
}

if __name__ == "__main__":
    main()
