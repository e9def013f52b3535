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

    from osmotic.federation.blueprint import Blueprint
    from osmotic.pieces import Chain
    from osmotic.protocol.messages import TRAIN, Client
    from osmotic.protocol.view import Step
    from osmotic.runs import resolve
    from osmotic.training.images import Images
    from osmotic.training.loop import fit

    torch.set_num_threads(1)
    side, batch, steps = SETTINGS[network]
    freeze = {"method.freeze": returns != "all"}
    keys = {"model.network": network, "model.conditional": False, "training.batch_size": batch}
    cfg = resolve.load(preset="usplit", keys=keys | freeze)
    blueprint, device = Blueprint.of(cfg, side, 1, 0), torch.device("cpu")
    model = blueprint.model(device)
    images = Images.of(np.zeros((batch, side, side, 1), np.uint8), None, device)
    step = Step(
        client=Client(0, "client-000", batch),
        phase=TRAIN,
        server_round=1,
        seed=0,
        training=cfg.training,
        learning_rate=1e-4,
        returns=() if returns == "all" else tuple(returns.split("+")),
        part_names=blueprint.part_names,
    )
    rule = Chain({}).open(blueprint.method(), step, {})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    times: list[float] = []

    def tick() -> bool:
        times.append(time.perf_counter())
        return False

    fit(
        model,
        images,
        blueprint.process,
        cfg.training,
        steps=steps,
        learning_rate=1e-4,
        rng=np.random.default_rng(0),
        rule=rule,
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
