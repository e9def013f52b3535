"""How fast is a training step, measured against the machine's own matrix multiplication?

Question: which share of the fp32 rate that `torch.mm` reaches here does a training step reach?

Method. The step is forward, weighted loss, backward, clipping (as in the recipe), AdamW, on a channels-last network and
fixed inputs drawn once: noisy images, timesteps, labels, goals. Its floating-point operations are counted by torch's
FlopCounterMode over one real step, backward included (matrix products and convolutions only; on the CPU the counter
does not know fused attention, below 1 % of `unet-8`, so the rate is a lower bound). The yardstick is `torch.mm` of two
square float32 matrices on the same threads, timed in turn with the step in the same run; the figure is the median of
the ratios of neighbours. `fit` is the training loop that clients really run, `osmotic.training.loop.fit`, batches,
noise and labels included.

On a CUDA device every variant is timed: float32, TF32, bfloat16 autocast, each also through torch.compile and as a
captured CUDA graph of the whole step. Each is held against a matrix product of its own kind of arithmetic and against
the float32 one.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import machine
import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from osmotic import models
from osmotic.config import schema
from osmotic.diffusion.process import Process
from osmotic.training import loop
from osmotic.training.images import Images
from osmotic.training.network import FlatNetwork
from osmotic.training.replay import recorded

SIZES = {"unet-8": (8, 1), "unet-28": (28, 1), "unet-32": (32, 3)}  # side and channels of the images
CLASSES = 10
TRAINING = schema.TrainingConfig()
FIT_STEPS = 8


@dataclass(frozen=True)
class Variant:
    """One way to run the step: arithmetic ("fp32", "tf32", "bf16") and how it is launched ("eager", "compile", "graph")."""

    arithmetic: str
    launch: str = "eager"

    @property
    def name(self) -> str:
        """For example "bf16+graph"."""
        return self.arithmetic if self.launch == "eager" else f"{self.arithmetic}+{self.launch}"


def main() -> None:
    """Times every case asked for and prints the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--network", choices=sorted(SIZES), default="unet-8")
    parser.add_argument("--batch", type=int, nargs="+", default=[128, TRAINING.batch_size])
    parser.add_argument("--threads", type=int, nargs="+", default=[machine.cores()])
    parser.add_argument("--gemm", type=int, default=0, help="side of the matrices; 0: 2048, on CUDA 8192")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--clip", type=float, default=TRAINING.grad_clip, help="0 is off")
    parser.add_argument("--cpu", action="store_true", help="on the CPU even if there is a CUDA device")
    parser.add_argument("--compile", action="store_true", help="torch.compile on the CPU, too")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that everything works")
    args = parser.parse_args()
    if args.quick:
        args.batch, args.threads, args.gemm, args.repeats, args.cpu = [8], [1], 128, 2, True
    cuda = torch.cuda.is_available() and not args.cpu
    device = torch.device("cuda" if cuda else "cpu")
    side = args.gemm or (8192 if cuda else 2048)
    shortest = 0.0 if args.quick else 0.2
    results = []
    for threads in [1] if cuda else args.threads:
        torch.set_num_threads(threads)
        for batch in args.batch:
            work = Work(args.network, batch, device, args.clip)
            for variant in variants(cuda, args.compile):
                row = {
                    "batch": batch,
                    "threads": threads,
                    **measure(work, variant, side, args.repeats, shortest),
                }
                results.append(row)
    record = {
        "benchmark": "step",
        "network": args.network,
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "gemm_side": side,
        "repeats": args.repeats,
        "grad_clip": args.clip,
        "results": results,
    }
    machine.emit(record, "; ".join(readable(row) for row in results))


def variants(cuda: bool, compile_too: bool) -> list[Variant]:
    """What is tried on this kind of device."""
    if not cuda:
        return [Variant("fp32")] + ([Variant("fp32", "compile")] if compile_too else [])
    return [Variant(a, how) for a in ("fp32", "tf32", "bf16") for how in ("eager", "compile", "graph")]


class Work:
    """Fixed inputs of one step, and the network that they train."""

    def __init__(self, network: str, batch: int, device: torch.device, clip: float) -> None:
        side, channels = SIZES[network]
        self.spec = models.resolve(network, side, channels, CLASSES, 0.0)
        self.device, self.batch, self.clip = device, batch, clip
        generator = torch.Generator().manual_seed(0)
        cfg = schema.Config()
        self.process = Process.from_config(cfg.model, cfg.recipe, CLASSES)
        shape = (batch, channels, side, side)
        x0 = torch.rand(shape, generator=generator) * 2 - 1
        noise = torch.randn(shape, generator=generator)
        level = torch.randint(0, self.process.timesteps, (batch,), generator=generator)
        kept = self.process.alpha_bar[level].reshape(-1, 1, 1, 1)
        snr = (kept / (1 - kept)).flatten()
        weight = snr.clamp(max=self.process.min_snr) / (snr + 1)
        self.seen = self.on_device(kept.sqrt() * x0 + (1 - kept).sqrt() * noise)
        self.goal = self.on_device(kept.sqrt() * noise - (1 - kept).sqrt() * x0)
        self.level, self.weight = level.to(device), weight.to(device)
        self.labels = torch.randint(0, CLASSES, (batch,), generator=generator).to(device)

    def on_device(self, images: torch.Tensor) -> torch.Tensor:
        """Images as the training loop has them, channels-last."""
        return images.to(self.device).contiguous(memory_format=torch.channels_last)

    def network(self) -> nn.Module:
        """A fresh network, channels-last, in training mode."""
        return models.build(self.spec).to(self.device, memory_format=torch.channels_last).train()

    def step(self, variant: Variant) -> Callable[[], None]:
        """One optimiser step as a call without arguments, ready to be timed."""
        network = FlatNetwork(self.network())
        model, parameters = network.model, [run for _, run in network.trained().values()]
        graph = variant.launch == "graph"
        optimizer = torch.optim.AdamW(parameters, lr=TRAINING.learning_rate, fused=True, capturable=graph)
        if variant.launch == "compile":
            torch.compiler.reset()  # else the networks before would count against the limit of recompilations
        forward = torch.compile(model) if variant.launch == "compile" else model

        def step() -> None:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=variant.arithmetic == "bf16"):
                output = forward(self.seen, self.level, class_labels=self.labels, return_dict=False)[0]
            errors = functional.mse_loss(output.float(), self.goal, reduction="none").mean(dim=(1, 2, 3))
            network.gradient.zero_()
            (self.weight * errors).mean().backward()
            if self.clip:
                nn.utils.clip_grad_norm_(parameters, self.clip)
            optimizer.step()

        if not graph:
            return step
        with arithmetic(variant.arithmetic):
            return recorded(step)

    def flops(self) -> tuple[int, int]:
        """Operations of one whole step, and three times those of its forward pass."""
        step = self.step(Variant("fp32"))
        with FlopCounterMode(display=False) as whole:
            step()
        model = self.network()
        with torch.no_grad(), FlopCounterMode(display=False) as forward:
            model(self.seen, self.level, class_labels=self.labels)
        return int(whole.get_total_flops()), 3 * int(forward.get_total_flops())

    def fit(self) -> Callable[[], None]:
        """The shipped training loop, FIT_STEPS steps a call over as many batches of random 8-bit images."""
        side, channels = SIZES[self.spec.name]
        rng = np.random.default_rng(0)
        pixels = rng.integers(0, 256, (FIT_STEPS * self.batch, side, side, channels), dtype=np.uint8)
        images = Images.of(pixels, rng.integers(0, CLASSES, len(pixels)), self.device)
        network = FlatNetwork(self.network())
        training = schema.TrainingConfig(batch_size=self.batch, grad_clip=self.clip)

        def fit() -> None:
            loop.fit(
                network,
                images,
                self.process,
                training,
                steps=FIT_STEPS,
                learning_rate=training.learning_rate,
                rng=np.random.default_rng(0),
            )

        return fit


@contextmanager
def arithmetic(kind: str) -> Iterator[None]:
    """Whether CUDA may round float32 factors to TF32, for products and convolutions, inside the block."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = kind == "tf32"
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def timer(work: Callable[[], None], kind: str, device: torch.device, shortest: float) -> Callable[[], float]:
    """Seconds per call in this arithmetic, from as many calls as fill `shortest` seconds; the device is waited for."""

    def run(calls: int) -> float:
        with arithmetic(kind):
            wait(device)
            start = time.perf_counter()
            for _ in range(calls):
                work()
            wait(device)
            return (time.perf_counter() - start) / calls

    run(3)
    calls = max(1, round(shortest / run(2)))
    return lambda: run(calls)


def wait(device: torch.device) -> None:
    """Returns when the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def product(side: int, device: torch.device, dtype: torch.dtype) -> Callable[[], None]:
    """`torch.mm` of two fixed square matrices into a third."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(side, side, generator=generator).to(device, dtype) for _ in range(2))
    out = torch.empty_like(a)

    def multiply() -> None:
        torch.mm(a, b, out=out)

    return multiply


def measure(work: Work, variant: Variant, side: int, repeats: int, shortest: float) -> dict[str, Any]:
    """One row: the step, matrix products and, if launched eagerly, the training loop of clients, timed in turn."""
    flops, three_forwards = work.flops()
    row: dict[str, Any] = {
        "variant": variant.name,
        "step_gflop": round(flops / 1e9, 3),
        "step_gflop_three_forwards": round(three_forwards / 1e9, 3),
    }
    kind = variant.arithmetic
    dtype = torch.bfloat16 if kind == "bf16" else torch.float32
    try:
        works = {
            "step": timer(work.step(variant), kind, work.device, shortest),
            "gemm": timer(product(side, work.device, dtype), kind, work.device, shortest),
        }
        if kind != "fp32":
            float32 = product(side, work.device, torch.float32)
            works["gemm_fp32"] = timer(float32, "fp32", work.device, shortest)
        if variant == Variant("fp32"):
            works["fit"] = timer(work.fit(), kind, work.device, shortest)
    except RuntimeError as error:  # no compiler on this machine, or an operation that cannot be captured
        return {**row, "not_possible": f"{type(error).__name__}: {str(error).splitlines()[0]}"}
    taken = dict(zip(works, machine.alternate(list(works.values()), repeats), strict=True))
    return {**row, **rates(taken, flops, 2 * side**3)}


def rates(taken: dict[str, list[float]], flops: int, product_flops: int) -> dict[str, Any]:
    """Times as rates, and shares of the matrix product's rate: medians of ratios of neighbours."""
    scale = flops / product_flops
    plain = taken.get("gemm_fp32", taken["gemm"])
    row = {
        "step_ms": round(1e3 * statistics.median(taken["step"]), 3),
        "step_gflops": round(flops / statistics.median(taken["step"]) / 1e9, 1),
        "gemm_gflops": round(product_flops / statistics.median(taken["gemm"]) / 1e9, 1),
        "gemm_fp32_gflops": round(product_flops / statistics.median(plain) / 1e9, 1),
        "share_of_gemm": round(scale * machine.median_ratio(taken["gemm"], taken["step"]), 4),
        "share_of_gemm_range": [round(scale * r, 4) for r in machine.spread(taken["gemm"], taken["step"])],
        "share_of_fp32_gemm": round(scale * machine.median_ratio(plain, taken["step"]), 4),
    }
    if "fit" in taken:
        per_step = [t / FIT_STEPS for t in taken["fit"]]
        row["fit_ms"] = round(1e3 * statistics.median(per_step), 3)
        row["fit_share_of_gemm"] = round(scale * machine.median_ratio(taken["gemm"], per_step), 4)
    return row


def readable(row: dict[str, Any]) -> str:
    """One clause for people."""
    head = f"{row['variant']} batch {row['batch']}, {row['threads']} thread(s): "
    if "not_possible" in row:
        return head + row["not_possible"]
    tail = (
        f", client's loop {row['fit_ms']:.1f} ms ({100 * row['fit_share_of_gemm']:.0f} %)"
        if "fit_ms" in row
        else ""
    )
    return (
        f"{head}{row['step_ms']:.1f} ms, {row['step_gflops']:.0f} GFLOP/s, "
        f"{100 * row['share_of_gemm']:.0f} % of torch.mm's {row['gemm_gflops']:.0f}{tail}"
    )


if __name__ == "__main__":
    main()
