"""What do clients cost that are trained as one computation, held against the same clients one after another?

Question: how many times as fast is `engine.batched_clients`, and by which kind of convolution?

Method. N clients of `unet-8`, each with images of its own, take the same steps twice: by `training.loop.fit`, one after
another on one network, and by `training.batched.fit_many`, all at once, with a convolution as a grouped one or as windows
and a batched product (`models.stacked.GROUPED` holds the choice that is shipped). On a CUDA device the latter run both
launched one by one and as a recorded CUDA graph, which is what is shipped. The ways alternate within one process; the
figure is the median of the ratios of neighbours. Losses are compared: they must agree within rounding.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import machine
import numpy as np
import torch
from torch import nn

from osmotic import models
from osmotic.config import schema
from osmotic.diffusion.process import Process
from osmotic.models import stacked
from osmotic.training.batched import Job, fit_many
from osmotic.training.images import Images
from osmotic.training.loop import fit
from osmotic.training.network import FlatNetwork
from osmotic.training.replay import Replays
from osmotic.training.stack import Stack

SIZES = {"unet-8": (8, 1), "unet-28": (28, 1), "unet-32": (32, 3)}  # side and channels of the images
CONFIG = schema.Config()


def main() -> None:
    """Times every case asked for and prints the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--network", choices=sorted(SIZES), default="unet-8")
    parser.add_argument("--clients", type=int, default=32, help="trained as one")
    parser.add_argument("--batch", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--images", type=int, default=0, help="of each client; 0: a batch")
    parser.add_argument("--steps", type=int, default=4, help="of each client and call")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--cpu", action="store_true", help="on the CPU even if there is a CUDA device")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that everything works")
    args = parser.parse_args()
    if args.quick:
        args.clients, args.batch, args.steps, args.repeats, args.cpu = 2, [2], 1, 2, True
    device = torch.device("cuda" if torch.cuda.is_available() and not args.cpu else "cpu")
    torch.set_num_threads(1)
    work = Work(args.network, args.clients, device)
    results = []
    for batch in args.batch:
        results += measure(work, batch, args.images or batch, args.steps, args.repeats)
    record = {
        "benchmark": "batched",
        "network": args.network,
        "clients": args.clients,
        "steps": args.steps,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "repeats": args.repeats,
        "results": results,
    }
    machine.emit(record, "; ".join(readable(row) for row in results))


class Work:
    """The networks of both ways, which start every call from the same weights."""

    def __init__(self, network: str, clients: int, device: torch.device) -> None:
        self.side, self.channels = SIZES[network]
        self.spec = models.resolve(network, self.side, self.channels, 0, 0.0)
        self.device, self.clients = device, clients
        self.process = Process.from_config(CONFIG.model, CONFIG.recipe, 0)
        self.initial = models.initial(self.spec, 0)
        self.one, self.stack = FlatNetwork(self.build()), Stack(self.build, clients)

    def build(self) -> nn.Module:
        """A fresh network as clients have it."""
        return models.build(self.spec).to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def images(self, count: int) -> list[Images]:
        """Random 8-bit images of each client."""
        rng = np.random.default_rng(0)
        shape = (count, self.side, self.side, self.channels)
        return [
            Images.of(rng.integers(0, 256, shape, np.uint8), None, self.device) for _ in range(self.clients)
        ]


def measure(work: Work, batch: int, count: int, steps: int, repeats: int) -> list[dict[str, Any]]:
    """One row per way of being trained as one, each held against the loop."""
    images, training = work.images(count), schema.TrainingConfig(batch_size=batch)
    losses: dict[str, list[float]] = {}

    def apart() -> None:
        losses["apart"] = []
        for i, own in enumerate(images):
            work.one.load(work.initial)
            answer = fit(
                work.one,
                own,
                work.process,
                training,
                steps=steps,
                learning_rate=training.learning_rate,
                rng=np.random.default_rng(i),
            )
            losses["apart"].append(answer[0])

    def together(name: str, grouped: bool, replays: Replays | None) -> Callable[[], None]:
        def run() -> None:
            stacked.GROUPED = {work.device.type} if grouped else set()
            work.stack.replays = replays
            for network in work.stack.networks:
                network.load(work.initial)
            jobs = [Job(own, steps, np.random.default_rng(i)) for i, own in enumerate(images)]
            found = fit_many(work.stack, jobs, work.process, training, learning_rate=training.learning_rate)
            losses[name] = [answer[0] for answer in found if not isinstance(answer, Exception)]

        return run

    ways: dict[str, Callable[[], None]] = {}
    for grouped, kind in ((True, "grouped"), (False, "windows")):
        ways[kind] = together(kind, grouped, None)
        if work.device.type == "cuda":
            ways[f"{kind}+graph"] = together(f"{kind}+graph", grouped, Replays())
    shipped = set(stacked.GROUPED)
    timers = [timer(run, work.device) for run in (apart, *ways.values())]
    for run in timers:  # recorded, and every kernel chosen
        run()
    taken = machine.alternate(timers, repeats)
    stacked.GROUPED = shipped
    rows = []
    for name, seconds in zip(ways, taken[1:], strict=True):
        gaps = [abs(a / b - 1) for a, b in zip(losses[name], losses["apart"], strict=True)]
        row = {
            "way": name,
            "batch": batch,
            "images": count,
            "apart_ms": round(1e3 * statistics.median(taken[0]) / work.clients / steps, 3),
            "together_ms": round(1e3 * statistics.median(seconds) / work.clients / steps, 3),
            "times_as_fast": round(machine.median_ratio(taken[0], seconds), 3),
            "times_as_fast_range": machine.spread(taken[0], seconds),
            "largest_loss_gap": max(gaps),
        }
        rows.append(row)
    return rows


def timer(run: Callable[[], None], device: torch.device) -> Callable[[], float]:
    """Seconds of one call; the device is waited for."""

    def timed() -> float:
        start = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    return timed


def readable(row: dict[str, Any]) -> str:
    """One clause for people."""
    return (
        f"{row['way']}, batch {row['batch']}: {row['together_ms']:.1f} ms per client and step, one after another "
        f"{row['apart_ms']:.1f}: {row['times_as_fast']:.2f} times as fast"
    )


if __name__ == "__main__":
    main()
