"""What real freezing in USplit saves a client: seconds per optimiser step and peak memory, by the parts it returns.

python experiments/feddiffuse/freeze.py
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from study import machine
from tables import table

RETURNS = ("all", "decoder", "bottleneck+decoder", "encoder", "encoder+bottleneck")
SETTINGS = {"unet-8": (8, 16, 60), "convnext-unet": (28, 128, 6)}  # network: side, batch, steps


def measure(network: str, returns: str) -> dict[str, float]:
    """Median seconds of a step and the peak memory above the loaded program, in a process of its own, one thread."""
    import torch

    from osmotic import models
    from osmotic.diffusion.process import Process
    from osmotic.federation import client
    from osmotic.methods.usplit import USplit
    from osmotic.models import norms
    from osmotic.protocol.messages import Client
    from osmotic.runs import resolve

    torch.set_num_threads(1)
    side, batch, steps = SETTINGS[network]
    cfg = resolve.load(
        preset="usplit",
        sets=[f"model.network={network}", "model.conditional=false", f"training.batch_size={batch}"],
    )
    spec = models.NetworkSpec(network, side, 1)
    model = models.build(spec).to(memory_format=torch.channels_last)
    norms.guard(model)
    images = client.Images.of(np.zeros((batch, side, side, 1), np.uint8), None, torch.device("cpu"))
    local = client.Local(Client(0, "client-000", batch), 1, {}, cfg.training, 1e-4, {}, {})
    local.received = {n: p.detach().clone() for n, p in model.named_parameters()}
    local.returns = tuple(returns.split("+"))
    method = USplit(freeze=returns != "all")
    process = Process.from_config(cfg.model, cfg.recipe, 0)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    times: list[float] = []

    def tick() -> bool:
        times.append(time.perf_counter())
        return False

    client.fit(
        model,
        images,
        process,
        cfg.training,
        steps=steps,
        learning_rate=1e-4,
        rng=np.random.default_rng(0),
        method=method,
        local=local,
        stop=tick,
    )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return {"seconds": float(np.median(np.diff(times)[1:])), "megabytes": peak / 1024}


if __name__ == "__main__":
    if len(sys.argv) == 3:
        print(json.dumps(measure(*sys.argv[1:])))
        sys.exit()
    print(machine() + ", one thread\n")
    for network, (side, batch, _) in SETTINGS.items():
        lines = []
        for returns in RETURNS:
            done = subprocess.run(
                [sys.executable, __file__, network, returns], check=True, capture_output=True, text=True
            )
            found = json.loads(done.stdout)
            lines.append([returns, f"{1000 * found['seconds']:.0f}", f"{found['megabytes']:.0f}"])
        print(f"{network}, {side}x{side}, batch {batch}\n")
        print(table(["trains", "ms a step", "peak MB above the loaded program"], lines))
