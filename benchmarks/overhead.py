"""What does a federated round cost above the training itself?

Question: how much longer than the bare PyTorch loop does a whole round of federated averaging take, and does it give
the same weights?

Method. Side A is the real thing: `Server.run` of one round with FedAvg, the in-process engine and its workers, every
packet encoded, decoded, checked, gated, summed exactly and booked (codec fp32 both ways, the recipe's averages kept).
It is timed from the server's "phase started" to its "phase done". Scoring is outside: the scorer is a stub. The
checkpoints before and after the round are outside that interval too; the second one is timed apart.
Side B is written out below with plain torch and nothing of the library but its seeds: per client load the weights,
the same order of images, timesteps, noise and dropped labels, AdamW (fused), clipping; then the average in float64.
Its images and schedule tables are prepared beforehand. Both sides run the same network on the same number of threads
in one process, A B, B A, ...; the figure is the median of the ratios of neighbours.

The weights: every local step is the same bits on both sides, so only the averages differ. A rounds each change and its
mean to float32 and adds, B rounds the float64 average once: |A - B| <= u (sum_k p_k |change_k| + |mean change| + |A| + |B|)
plus half a unit of the fixed-point sum per client, u = 2**-24, element by element. Nothing in it is tuned.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import machine
import numpy as np
import torch
from torch import nn
from torch.nn import functional

from osmotic import seeds
from osmotic.config.schema import Config
from osmotic.data.dataset import Dataset, Split
from osmotic.engines.inprocess import InProcess
from osmotic.federation.blueprint import Blueprint
from osmotic.federation.client import Worker
from osmotic.federation.server import Server
from osmotic.protocol import aggregate
from osmotic.protocol.messages import Client, Phase, contract_hash
from osmotic.runs import launch, resolve, study
from osmotic.storage.folder import RunDir
from osmotic.tensors import Tensors

UNIT = 2.0**-24  # unit roundoff of float32, half its eps


def main() -> None:
    """Runs both sides and prints the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--images", type=int, default=90, help="per client")
    parser.add_argument("--local-epochs", type=float, default=2.0)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--quick", action="store_true", help="a tiny round, to see that everything works")
    args = parser.parse_args()
    if args.quick:
        args.clients, args.images, args.local_epochs, args.repeats = 3, 20, 1.0, 2
    case = digits_like(args.clients, args.images, args.local_epochs)
    with tempfile.TemporaryDirectory() as folder:
        record = measure(case, Path(folder), args.repeats)
    shape = {k: vars(args)[k] for k in ("clients", "images", "local_epochs", "repeats")}
    machine.emit({"benchmark": "overhead", **shape, **record}, readable(record))
    if not record["weights_within_bound"]:
        raise SystemExit("the weights differ by more than float32 rounding")


def digits_like(clients: int, images: int, local_epochs: float) -> study.Study:
    """Clients with random 8x8 images and labels: the arithmetic of `digits`, in any number."""
    cfg: Config = resolve.load(
        sets=[f"training.local_epochs={local_epochs}", "training.rounds=1", "score.every=0"]
    )
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (clients * images, 8, 8, 1), dtype=np.uint8)
    labels = rng.integers(0, 10, clients * images)
    split, names = Split(pixels, labels), tuple("0123456789")
    holdings = [
        study.Holding(
            Client(i, f"client-{i:03d}", images), np.arange(i * images, (i + 1) * images), np.arange(0)
        )
        for i in range(clients)
    ]
    blueprint = Blueprint.of(cfg, 8, 1, len(names))
    data = Dataset("digits-like", split, split, names)
    return study.Study(blueprint, data, holdings, torch.device("cpu"))


# --- side A: the library ---


class Clock:
    """Observer that notes when the phase began and ended."""

    def __init__(self) -> None:
        self.started = self.done = 0.0

    def phase_started(self, phase: Phase, index: int, count: int) -> None:
        """Starts the clock."""
        self.started = time.perf_counter()

    def answered(self, client: str) -> None:
        """Not of interest."""

    def worked(self, work: str, amount: float) -> None:
        """Not of interest."""

    def phase_done(self, line: Mapping[str, Any]) -> None:
        """Stops the clock."""
        self.done = time.perf_counter()


class Unscored:
    """Scorer that measures nothing, so that a round is the round alone."""

    def score_global(self, weights: Tensors, server_round: int) -> dict[str, Any]:
        """No score."""
        return {}

    def wanted(self, client: Client) -> Mapping[str, Any]:
        """No images are wanted."""
        return {}

    def score_personal(
        self, pools: Mapping[str, np.ndarray], stage: str, server_round: int
    ) -> dict[str, Any]:
        """No score."""
        return {}

    def with_after(self, before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
        """No score."""
        return {}


class Federated:
    """One engine whose workers live on from round to round, and a fresh server for each round."""

    def __init__(self, case: study.Study, initial: Tensors, folder: Path, workers: int, threads: int) -> None:
        self.case, self.initial, self.folder, self.threads = case, initial, folder, threads
        self.contract = contract_hash(case.blueprint.contract())
        make, stop = launch.worker_factory(case, initial, self.contract)
        sites = launch.make_sites(case, folder / f"clients-{workers}x{threads}")
        self.engine = InProcess(sites, make, workers, threads, stop)
        self.flops, self.rounds = launch.flops_per_image(case), 0
        self.weights: Tensors = {}
        self.save_seconds: list[float] = []

    def round(self) -> float:
        """Seconds of round 1 from the initial weights; its result is in `weights`."""
        self.rounds += 1
        run = RunDir.new(self.folder / f"run-{id(self)}-{self.rounds}")
        clock = Clock()
        server = Server(
            self.case.blueprint,
            self.engine,
            run,
            initial=self.initial,
            contract=self.contract,
            flops_per_image=self.flops,
            scorer=Unscored(),
            trainer=launch.ServerTrainer(self.case, self.make_no_worker),
            observer=clock,
        )
        server.run()
        if server.state.failures:
            raise SystemExit(f"a client failed: {server.state.failures[0]}")
        self.save_seconds.append(time.perf_counter() - clock.done)
        self.weights = server.state.weights
        return clock.done - clock.started

    def make_no_worker(self) -> Worker:
        """FedAvg trains nothing on the server."""
        raise AssertionError("the server was asked to train")


# --- side B: plain torch ---


class Bare:
    """The same round as a person would write it without a library."""

    def __init__(self, case: study.Study, initial: Tensors, threads: int) -> None:
        self.case, self.threads = case, threads
        self.start = {n: torch.from_numpy(t) for n, t in initial.items()}
        self.model: nn.Module = case.model().train()
        split = case.dataset.train
        assert split.labels is not None
        pixels = torch.from_numpy(split.images.transpose(0, 3, 1, 2).copy()).float().div(127.5).sub(1)
        labels = torch.from_numpy(split.labels)
        self.data = [(h.client.name, pixels[h.train], labels[h.train]) for h in case.holdings]
        kept = case.blueprint.process.alpha_bar
        self.signal, self.noise = kept.sqrt(), (1.0 - kept).sqrt()
        snr = kept / (1.0 - kept)
        self.weight = snr.clamp(max=case.config.recipe.min_snr) / (snr + 1.0)
        self.weights: dict[str, torch.Tensor] = {}

    def round(self) -> float:
        """Seconds of round 1 from the initial weights; its result is in `weights`, float32."""
        torch.set_num_threads(self.threads)
        begin = time.perf_counter()
        total = sum(len(x) for _, x, _ in self.data)
        sums = {n: torch.zeros_like(t, dtype=torch.float64) for n, t in self.start.items()}
        for name, pixels, labels in self.data:
            self.train(name, pixels, labels)
            for n, p in self.model.named_parameters():
                sums[n] += p.detach().double() * (len(pixels) / total)
        self.weights = {n: s.float() for n, s in sums.items()}
        return time.perf_counter() - begin

    def train(self, name: str, pixels: torch.Tensor, labels: torch.Tensor) -> None:
        """One client: v-prediction with the min-SNR weight and dropped labels, as the default recipe says."""
        training, recipe = self.case.config.training, self.case.config.recipe
        with torch.no_grad():
            for n, p in self.model.named_parameters():
                p.copy_(self.start[n])
        rng = seeds.rng(self.case.config.seed, seeds.TRAINING, 1, name)
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        parameters = list(self.model.parameters())
        optimizer = torch.optim.AdamW(parameters, lr=training.learning_rate, fused=True)
        order = torch.empty(0, dtype=torch.long)
        for _ in range(max(1, round(training.local_epochs * -(-len(pixels) // training.batch_size)))):
            if len(order) == 0:
                order = torch.from_numpy(rng.permutation(len(pixels)))
            index, order = order[: training.batch_size], order[training.batch_size :]
            x = pixels[index].contiguous(memory_format=torch.channels_last)
            t = torch.randint(0, len(self.signal), (len(index),), generator=generator)
            noise = torch.randn(x.shape, generator=generator)
            dropped = torch.rand(len(index), generator=generator) < recipe.label_dropout
            a, s = self.signal[t].view(-1, 1, 1, 1), self.noise[t].view(-1, 1, 1, 1)
            given = labels[index].masked_fill(dropped, self.case.spec.num_classes)
            output = self.model(a * x + s * noise, t, class_labels=given, return_dict=False)[0]
            errors = functional.mse_loss(output, a * noise - s * x, reduction="none").mean(dim=(1, 2, 3))
            loss = (self.weight[t] * errors).mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, training.grad_clip)
            optimizer.step()

    def changes(self) -> dict[str, np.ndarray]:
        """sum_k p_k |change_k| of every weight, float64, from one more round that is not timed."""
        total = sum(len(x) for _, x, _ in self.data)
        out = {n: np.zeros(tuple(t.shape)) for n, t in self.start.items()}
        for name, pixels, labels in self.data:
            self.train(name, pixels, labels)
            for n, p in self.model.named_parameters():
                out[n] += (p.detach() - self.start[n]).abs().double().numpy() * (len(pixels) / total)
        return out


# --- the comparison ---


def measure(case: study.Study, folder: Path, repeats: int) -> dict[str, Any]:
    """All figures; each engine and each bare loop has done one round that is not counted."""
    initial = case.blueprint.initial()
    federated, bare = Federated(case, initial, folder, 1, 1), Bare(case, initial, 1)
    pairs = machine.alternate([federated.round, bare.round], repeats + 1)
    ours, plain = (times[1:] for times in pairs)
    agreement = compare(federated.weights, bare, initial, case)
    both = min(2, machine.cores())
    two_workers = Federated(case, initial, folder, both, 1)
    two_threads = Federated(case, initial, folder, 1, both)
    bare_threads = Bare(case, initial, both)
    crowd = machine.alternate([two_workers.round, two_threads.round, bare_threads.round], repeats + 1)
    workers, threads, plain_threads = (times[1:] for times in crowd)
    same = all(np.array_equal(two_workers.weights[n], t) for n, t in federated.weights.items())
    steps = len(case.holdings) * max(
        1,
        round(
            case.config.training.local_epochs
            * -(-len(case.holdings[0].train) // case.config.training.batch_size)
        ),
    )
    return {
        "steps": steps,
        "federated_seconds": round(statistics.median(ours), 4),
        "bare_seconds": round(statistics.median(plain), 4),
        "overhead_ratio": round(machine.median_ratio(ours, plain), 4),
        "overhead_ratio_range": machine.spread(ours, plain),
        "target_ratio": 1.03,
        "checkpoint_seconds": round(statistics.median(federated.save_seconds[1:]), 4),
        **agreement,
        "two_workers_seconds": round(statistics.median(workers), 4),
        "two_threads_seconds": round(statistics.median(threads), 4),
        "bare_two_threads_seconds": round(statistics.median(plain_threads), 4),
        "two_workers_over_two_threads": round(machine.median_ratio(workers, threads), 4),
        "two_threads_overhead_ratio": round(machine.median_ratio(threads, plain_threads), 4),
        "two_workers_same_bits_as_one": same,
    }


def compare(ours: Tensors, bare: Bare, initial: Tensors, case: study.Study) -> dict[str, Any]:
    """Largest difference of the two results, the bound at that weight, and whether every weight keeps its bound."""
    changes = bare.changes()
    total = sum(len(h.train) for h in case.holdings)
    scale = aggregate.Accumulator(total, case.config.training.max_abs_update).scale_bits
    fixed_point = len(case.holdings) * 0.5 * 2.0**-scale / total
    largest, bound_there, worst = 0.0, 0.0, 0.0
    for name, mine in ours.items():
        a, b = mine.astype(np.float64), bare.weights[name].numpy().astype(np.float64)
        difference = np.abs(a - b)
        moved = np.abs(b - initial[name].astype(np.float64))
        bound = UNIT * (changes[name] + moved + np.abs(a) + np.abs(b)) * (1 + 8 * UNIT) + fixed_point
        worst = max(worst, float((difference / bound).max()))
        at = np.unravel_index(int(difference.argmax()), difference.shape)
        if difference[at] >= largest:
            largest, bound_there = float(difference[at]), float(bound[at])
    return {
        "weights_largest_difference": largest,
        "bound_at_largest_difference": bound_there,
        "largest_difference_over_bound": round(worst, 4),
        "weights_within_bound": worst <= 1.0,
    }


def readable(r: Mapping[str, Any]) -> str:
    """One line for people."""
    verdict = "equal within rounding" if r["weights_within_bound"] else "DIFFER"
    return (
        f"federated round {r['federated_seconds']:.2f} s, bare loop {r['bare_seconds']:.2f} s ({r['steps']} steps): "
        f"{100 * (r['overhead_ratio'] - 1):+.1f} % (target at most +3 %); weights {verdict} "
        f"(largest difference {r['weights_largest_difference']:.2g}, bound there {r['bound_at_largest_difference']:.2g}); "
        f"two workers take {r['two_workers_over_two_threads']:.2f} of the time of two threads; "
        f"checkpoint apart: {1000 * r['checkpoint_seconds']:.0f} ms"
    )


if __name__ == "__main__":
    main()
