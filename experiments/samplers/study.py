"""Where should a sampler stop? Narrow Gaussians with an ideal network, and digits with trained ones. See README.md.

python experiments/samplers/study.py gaussians      # seconds
python experiments/samplers/study.py digits [RUNS]  # trains three models (skips what is finished) and scores them
"""

from __future__ import annotations

import json
import math
import statistics
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

import osmotic
from osmotic.diffusion import schedule as schedules
from osmotic.diffusion.process import Process
from osmotic.diffusion.solvers import SAMPLERS, DpmSolver, usable_timesteps
from osmotic.diffusion.target import EdmScaling, edm_scaling, edm_target

STDS = (0.05, 0.2, 0.5, 1.0)
COUNTS = (5, 10, 20, 50)
SEEDS = (10, 11, 12)
HERE = Path(__file__).parent


# --- stops to choose between, all for dpm-solver++ of order 2 ---


def power(exponent: float) -> Callable[[Process, int], list[int]]:
    """Stops at usable * (i / steps) ** exponent."""

    def stops(process: Process, steps: int) -> list[int]:
        usable = usable_timesteps(process, steps)
        return _distinct([round(usable * (i / steps) ** exponent) - 1 for i in range(1, steps + 1)])

    return stops


def karras(process: Process, steps: int) -> list[int]:
    """The timesteps nearest to the noise levels of arXiv:2206.00364, eq. 5, rho = 7, from the end of the usable part."""
    sigma = schedules.snr(process.alpha_bar.double()).rsqrt()
    high, low = float(sigma[usable_timesteps(process, steps) - 1]) ** (1 / 7), float(sigma[0]) ** (1 / 7)
    wanted = [(low + (high - low) * i / max(steps - 1, 1)) ** 7 for i in range(steps)]
    return _distinct([int((sigma - w).abs().argmin()) for w in wanted])


def even_log_snr(process: Process, steps: int) -> list[int]:
    """The timesteps nearest to evenly spaced log SNR, from timestep 0 to the end of the usable part."""
    log_snr = schedules.snr(process.alpha_bar.double()).log()
    high, low = float(log_snr[0]), float(log_snr[usable_timesteps(process, steps) - 1])
    wanted = [high + (low - high) * i / max(steps - 1, 1) for i in range(steps)]
    return _distinct([int((log_snr - w).abs().argmin()) for w in wanted])


def _distinct(rising: list[int]) -> list[int]:
    above, found = -1, []
    for stop in rising:
        above = max(above + 1, stop)
        found.append(above)
    return found[::-1]


SPACINGS = {
    "power 1.5": power(1.5),
    "power 2": power(2.0),
    "power 2.5": power(2.5),
    "karras": karras,
    "log SNR": even_log_snr,
}


# --- Gaussians ---


def ideal(process: Process, std: float) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """What an ideal network of pixels N(0, std^2) answers, [N], by target v or edm."""

    def network(x: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        if process.target == "edm":
            sigma = (4 * level.double()).exp().reshape(1)
            scaling: EdmScaling = edm_scaling(sigma)
            noisy = x / scaling.c_in
            return edm_target(std**2 / (std**2 + sigma**2) * noisy, noisy, scaling)
        a2 = process.alpha_bar.double()[level.long()]
        x0 = a2.sqrt() * std**2 / (a2 * std**2 + 1 - a2) * x
        noise = (x - a2.sqrt() * x0) / (1 - a2).sqrt()
        return a2.sqrt() * noise - (1 - a2).sqrt() * x0

    return network


def variance_ratio(name: str, process: Process, std: float, steps: int) -> float:
    """Variance of what is drawn over that of the data, exactly: with an ideal network every step is linear."""
    scheduler = SAMPLERS[name].scheduler(process, steps, clip=False)
    if SAMPLERS[name].ancestral:
        return _ancestral_ratio(process, [int(t) for t in scheduler.timesteps], std)
    return ratio_of(scheduler, process, std)


def ratio_of(scheduler: Any, process: Process, std: float) -> float:
    """The same of a diffusers scheduler whose steps are set and which draws no noise."""
    network = ideal(process, std)
    scheduler.set_begin_index(0)
    x = torch.tensor([0.0, 1.0], dtype=torch.float64).reshape(2, 1, 1, 1) * float(scheduler.init_noise_sigma)
    for level in scheduler.timesteps:
        answer = network(scheduler.scale_model_input(x, level), level)
        x = scheduler.step(answer, level, x, return_dict=False)[0].double()
    return float((x[1] - x[0]) / std) ** 2


def _ancestral_ratio(process: Process, stops: list[int], std: float) -> float:
    """As arXiv:2006.11239, eq. 7, whose step is x -> shrink * x + sqrt(beta_tilde) * noise."""
    variance = 1.0
    for here, there in zip(stops, [*stops[1:], -1], strict=True):
        a2 = float(process.alpha_bar[here])
        b2 = float(process.alpha_bar[there]) if there >= 0 else 1.0
        beta = 1 - a2 / b2
        kept = a2**0.5 * std**2 / (a2 * std**2 + 1 - a2)
        shrink = ((a2 / b2) ** 0.5 * (1 - b2) + b2**0.5 * beta * kept) / (1 - a2)
        variance = shrink**2 * variance + (1 - b2) / (1 - a2) * beta
    return variance / std**2


def order(name: str, process: Process, std: float) -> float:
    """The power of 1 / steps with which the error of the spread falls from 20 to 80 steps, T = 10,000."""
    # The longest schedule, so that rounding stops to whole timesteps is no part of the error.
    long = Process(target=process.target, schedule=process.schedule, timesteps=10_000)
    few, many = (abs(math.sqrt(variance_ratio(name, long, std, n)) - 1) for n in (20, 80))
    return math.log(few / many) / math.log(80 / 20)


def table(names: Iterable[str], schedule: str) -> Iterator[str]:
    """Rows of the table: variance ratio by steps and spread, and the order at the two narrowest spreads."""
    for name in names:
        process = Process(target="edm" if SAMPLERS[name].edm else "v", schedule=schedule)
        orders = [f"{order(name, process, s):.1f}" for s in STDS[:2]]
        for steps in COUNTS:
            cells = [f"{variance_ratio(name, process, s, steps):.2f}" for s in STDS]
            shown = [f"`{name}`", *orders] if steps == COUNTS[0] else ["", "", ""]
            yield f"| {' | '.join([*shown, str(steps), *cells])} |"


def gaussians() -> None:
    """Prints the tables of the README and of docs/scores.md."""
    for schedule in ("cosine", "linear"):
        print(
            f"\n{schedule}\n\n| sampler | order at 0.05 | at 0.2 | steps | "
            + " | ".join(f"std {s:g}" for s in STDS)
            + " |"
        )
        print("|---|---|---|---|" + "---|" * len(STDS))
        for line in table([n for n in SAMPLERS if schedule == "cosine" or not SAMPLERS[n].edm], schedule):
            print(line)


# --- digits ---


def digits(runs: Path) -> None:
    """Scores models of the default recipe, seeds that no other study has, at equal network evaluations."""
    path = HERE / "results.json"
    rows: dict[str, dict[str, Any]] = json.loads(path.read_text()) if path.exists() else {}
    for seed in SEEDS:
        out = runs / f"fedavg-{seed}"
        if not (out / "summary.json").exists():
            sets = {"seed": seed, "data.partition_seed": seed, "score.every": 0, "track.backends": []}
            osmotic.run(preset="fedavg", keys=sets, out=out)
        cases = [(name, steps) for steps in (10, 20) for name in SPACINGS] + [("ddim", 20), ("unipc", 20)]
        for name, steps in [*cases, ("log SNR", 100)]:
            if (case := f"{name}, {steps} steps, seed {seed}") not in rows:
                found = osmotic.load(out).evaluate(sampler=name, steps=steps, samples=1000)
                rows[case] = {k: found[k] for k in ("fd", "kid", "precision", "recall")}
                path.write_text(json.dumps(rows, indent=1) + "\n")
    print("| stops | steps | FD | KID | precision | recall | FD minus that of power 1.5, per seed |")
    print("|---|---|---|---|---|---|---|")
    for name, steps in [*cases, ("log SNR", 100)]:
        own = [rows[f"{name}, {steps} steps, seed {seed}"] for seed in SEEDS]
        base = [rows[f"power 1.5, {min(steps, 20)} steps, seed {seed}"]["fd"] for seed in SEEDS]
        means = [f"{statistics.mean(r[k] for r in own):.3f}" for k in ("fd", "kid", "precision", "recall")]
        gaps = ", ".join(f"{r['fd'] - b:+.3f}" for r, b in zip(own, base, strict=True))
        print(f"| {name} | {steps} | " + " | ".join(means) + f" | {gaps} |")


if __name__ == "__main__":
    torch.set_num_threads(1)
    SAMPLERS.update({name: DpmSolver(order=2, stops=stops) for name, stops in SPACINGS.items()})
    if sys.argv[1:2] == ["digits"]:
        digits(Path(sys.argv[2] if len(sys.argv) > 2 else "runs/samplers"))
    else:
        gaussians()
