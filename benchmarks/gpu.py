"""How many images a second does training take in on a GPU, against diffusers' own example?

Question: `unet-32` (35.7 million weights, 32x32 colour) at batch 128 in bfloat16: what does osmotic's step do beside the loop
of diffusers' example `train_unconditional.py` with its defaults, and what does `engine.deterministic` cost?

Method. All sides train the same network on random images that are in memory already, so that no decoding is timed:

- `diffusers`: written out after the example, its defaults kept: a DataLoader without workers, DDPMScheduler, bf16 through
  accelerate (through torch's autocast, to the same effect, where that is not installed), AdamW with the example's betas,
  clipping at 1, cosine schedule with warm-up, the loss read after every step. `diffusers_ema` has its option --use_ema.
- `osmotic`: channels-last, weights in one buffer, bf16 autocast, fused AdamW, the whole step recorded as a CUDA graph,
  draws on the GPU, cudnn free to choose its kernels.
- `osmotic_deterministic`: the same with deterministic kernels, as `engine.deterministic` asks for.
- `osmotic_fit`: `training/loop.py` as clients run it now, with `engine.precision = "bf16"`: not recorded, draws on the CPU, so
  that results do not depend on the device.

Sides take turns in one process; the figure is the median of the ratios of neighbours to `diffusers`. Each has a network of its
own, and has taken steps before that are not counted.

Needs torch >= 2.11, diffusers and numpy. A machine with torch alone takes diffusers as a wheel (`pip download --no-deps
diffusers`, then `pip install --no-index --no-deps --target FOLDER`, FOLDER on PYTHONPATH beside src/): all that is imported of
it needs huggingface-hub, safetensors, pillow, requests, regex and filelock beside torch. Without a CUDA device it runs on the
CPU, where nothing is recorded; `--quick` shows that it works.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import machine
import numpy as np
import torch
from torch import nn
from torch.nn import functional

from osmotic import models
from osmotic.config import schema
from osmotic.diffusion.process import Process, Question
from osmotic.training import loop
from osmotic.training.images import Images
from osmotic.training.network import FlatNetwork
from osmotic.training.replay import Replays

SIZES = {"unet-8": (8, 1), "unet-28": (28, 1), "unet-32": (32, 3)}  # side and channels of the images
Steps = Callable[[int], None]  # takes so many steps


def main() -> None:
    """Times every side and prints the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--network", choices=sorted(SIZES), default="unet-32")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--images", type=int, default=8192)
    parser.add_argument("--steps", type=int, default=30, help="per turn")
    parser.add_argument("--repeats", type=int, default=7, help="turns of every side")
    parser.add_argument("--quick", action="store_true", help="tiny, on the CPU, to see that everything works")
    args = parser.parse_args()
    if args.quick:
        args.network, args.batch, args.images, args.steps, args.repeats = "unet-8", 4, 16, 2, 2
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # deterministic products on CUDA ask for it
    device = torch.device("cuda" if torch.cuda.is_available() and not args.quick else "cpu")
    side, channels = SIZES[args.network]
    pixels = np.random.default_rng(0).integers(0, 256, (args.images, side, side, channels), dtype=np.uint8)
    spec = models.resolve(args.network, side, channels, 0, 0.0)
    works: dict[str, Steps] = {
        "diffusers": by_example(spec, pixels, args.batch, device, ema=False),
        "diffusers_ema": by_example(spec, pixels, args.batch, device, ema=True),
        "osmotic": by_graph(spec, pixels, args.batch, device, deterministic=False),
        "osmotic_deterministic": by_graph(spec, pixels, args.batch, device, deterministic=True),
        "osmotic_fit": by_fit(spec, pixels, args.batch, device),
    }
    for work in works.values():
        work(3)

    def timed(work: Steps) -> float:
        wait(device)
        start = time.perf_counter()
        work(args.steps)
        wait(device)
        return time.perf_counter() - start

    turns = [lambda work=work: timed(work) for work in works.values()]
    taken = dict(zip(works, machine.alternate(turns, args.repeats), strict=True))
    seen = args.steps * args.batch
    record: dict[str, Any] = {
        "benchmark": "gpu",
        "network": args.network,
        "batch": args.batch,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "accelerate": importlib.util.find_spec("accelerate") is not None,
        "images_per_second": {n: round(seen / statistics.median(t), 1) for n, t in taken.items()},
    }
    for name, times in taken.items():
        if name != "diffusers":
            record[f"{name}_over_diffusers"] = round(machine.median_ratio(taken["diffusers"], times), 3)
            record[f"{name}_over_diffusers_range"] = machine.spread(taken["diffusers"], times)
    record["deterministic_over_fast"] = round(
        machine.median_ratio(taken["osmotic_deterministic"], taken["osmotic"]), 3
    )
    machine.emit(record, readable(record))


# --- diffusers' example ---


class InMemory(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """Images in [-1, 1], float32 [C, H, W], as the example's transforms would leave them."""

    def __init__(self, pixels: np.ndarray) -> None:
        self.images = torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy()).float() / 127.5 - 1

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input": self.images[index]}


def by_example(spec: Any, pixels: np.ndarray, batch: int, device: torch.device, ema: bool) -> Steps:
    """The steps of `train_unconditional.py`, its defaults kept but for batch size and bf16."""
    from diffusers import DDPMScheduler
    from diffusers.optimization import get_scheduler
    from diffusers.training_utils import EMAModel

    model = models.build(spec)
    vars(model).pop("forward")  # diffusers' own forward pass, in the default layout
    scheduler = DDPMScheduler(num_train_timesteps=1000, beta_schedule="linear", prediction_type="epsilon")
    data = torch.utils.data.DataLoader(InMemory(pixels), batch_size=batch, shuffle=True, num_workers=0)
    optimizer: Any = torch.optim.AdamW(
        model.parameters(), lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6, eps=1e-8
    )
    rates: Any = get_scheduler(
        "cosine", optimizer=optimizer, num_warmup_steps=500, num_training_steps=len(data) * 100
    )
    backward: Callable[[torch.Tensor], None] = torch.Tensor.backward
    if importlib.util.find_spec("accelerate") is not None:
        from accelerate import Accelerator

        accelerator = Accelerator(mixed_precision="bf16", cpu=device.type == "cpu")
        model, optimizer, data, rates = accelerator.prepare(model, optimizer, data, rates)
        backward = accelerator.backward
        clip = accelerator.clip_grad_norm_
        autocast = accelerator.autocast
    else:
        model = model.to(device)
        clip = nn.utils.clip_grad_norm_

        def autocast() -> Any:
            return torch.autocast(device.type, torch.bfloat16)

    averaged = (
        EMAModel(model.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=3 / 4)
        if ema
        else None
    )
    batches = endless(data)

    def steps(count: int) -> None:
        model.train()
        for _ in range(count):
            clean = next(batches)["input"].to(device, torch.bfloat16)
            noise = torch.randn(clean.shape, dtype=torch.bfloat16, device=clean.device)
            times = torch.randint(0, 1000, (len(clean),), device=clean.device).long()
            noisy = scheduler.add_noise(clean, noise, times)
            with autocast():
                output = model(noisy, times).sample
            loss = functional.mse_loss(output.float(), noise.float())
            backward(loss)
            clip(model.parameters(), 1.0)
            optimizer.step()
            rates.step()
            optimizer.zero_grad()
            if averaged is not None:
                averaged.step(model.parameters())
            loss.detach().item()  # for its progress bar and tracker

    return steps


def endless(data: Any) -> Iterator[Any]:
    """Epoch after epoch."""
    while True:
        yield from data


# --- osmotic ---


def by_graph(spec: Any, pixels: np.ndarray, batch: int, device: torch.device, deterministic: bool) -> Steps:
    """The whole step recorded: loss, backward pass, clipping, optimiser."""
    network, images, process, training = parts(spec, pixels, batch, device)
    parameters = [run for _, run in network.trained().values()]
    cuda = device.type == "cuda"
    optimizer = torch.optim.AdamW(parameters, lr=training.learning_rate, fused=True, capturable=cuda)
    replays = Replays() if cuda else Replays(lambda compute: compute)
    generator = torch.Generator(device).manual_seed(0)

    def compute(*asked: Any) -> torch.Tensor:
        network.gradient.zero_()
        loss = process.losses_of(network.model, Question(*asked)).mean()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, training.grad_clip)
        optimizer.step()
        return loss.detach()

    def steps(count: int) -> None:
        with kernels(deterministic):
            for _ in range(count):
                index = torch.randint(0, len(images), (batch,), generator=generator, device=device)
                x, _ = images.batch(index)
                asked = process.ask(x, None, process.draw(x.shape, False, generator))
                replays(compute, (asked.seen, asked.level, asked.goal, asked.weight, asked.labels))

    return steps


def by_fit(spec: Any, pixels: np.ndarray, batch: int, device: torch.device) -> Steps:
    """The training loop of clients."""
    network, images, process, training = parts(spec, pixels, batch, device)

    def steps(count: int) -> None:
        loop.fit(
            network,
            images,
            process,
            training,
            steps=count,
            learning_rate=training.learning_rate,
            rng=np.random.default_rng(0),
        )

    return steps


def parts(
    spec: Any, pixels: np.ndarray, batch: int, device: torch.device
) -> tuple[FlatNetwork, Images, Process, schema.TrainingConfig]:
    """Network, images, bf16 process and training keys of one side."""
    model = nn.Module.to(models.build(spec), device, memory_format=torch.channels_last).train()
    process = Process.from_config(schema.ModelConfig(target="epsilon"), schema.RecipeConfig(), 0, "bf16")
    training = schema.TrainingConfig(batch_size=batch)
    return FlatNetwork(model), Images.of(pixels, None, device), process, training


@contextmanager
def kernels(deterministic: bool) -> Iterator[None]:
    """Deterministic kernels inside the block, or those that cudnn finds fastest."""
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.benchmark = not deterministic
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.backends.cudnn.benchmark = before[1]


def wait(device: torch.device) -> None:
    """Returns when the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def readable(record: dict[str, Any]) -> str:
    """One line for people."""
    rates = ", ".join(f"{name} {rate:.0f}" for name, rate in record["images_per_second"].items())
    return (
        f"{record['network']} at batch {record['batch']} on {record['device']}, images a second: {rates}; osmotic "
        f"{record['osmotic_over_diffusers']:.2f} of diffusers' rate (aim 1.5), deterministic kernels take "
        f"{record['deterministic_over_fast']:.2f} of the time"
    )


if __name__ == "__main__":
    main()
