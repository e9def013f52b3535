"""Weights and bytes by `osmotic plan`, without training: Table 2's cells, codecs on top, and what sending only moved parts saves.

python experiments/feddiffuse/savings.py
"""

from __future__ import annotations

from typing import Any

from tables import table

import osmotic
from osmotic.runs.resolve import parse_set

MODES = ("full", "usplit", "ulatdec", "udec")


def planned(mode: str, clients: int, *sets: str) -> dict[str, Any]:
    """The paper's setting: Fashion-MNIST at 28x28, 15 rounds."""
    asked = [f"data.clients={clients}", "training.rounds=15", *sets]
    return osmotic.plan(preset=f"feddiffuse-{mode}", data="fashion-mnist", keys=dict(map(parse_set, asked)))


def total(figures: dict[str, Any], unit: str = "bytes") -> int:
    """Up and down together."""
    return int(figures[f"{unit}_up"] + figures[f"{unit}_down"])


def codecs() -> str:
    """Bytes against fp32 FedAvg (Full), 5 clients."""
    full = total(planned("full", 5))
    lines = []
    for mode in MODES:
        for up, down in (("fp32", "fp32"), ("int8", "fp32"), ("fp32", "int8"), ("int8", "int8")):
            size = total(planned(mode, 5, f"codec.up={up}", f"codec.down={down}"))
            lines.append([mode, up, down, f"{size / 1e6:.2f}", f"{full / size:.2f}"])
    return table(["mode", "up", "down", "MB", "factor"], lines)


def moved(seeds: range = range(10)) -> str:
    """Share of the down-link of USplit that `codec.changed_only` saves: mean of ten seeds, 15 rounds."""
    lines = []
    for clients, taking_part in ((2, 1), (3, 1), (5, 1), (10, 1), (5, 2), (10, 2), (10, 5), (2, 2), (5, 5)):
        saved = []
        for seed in seeds:
            sets = (f"training.fraction_train={taking_part / clients}", f"seed={seed}")
            off, on = (
                planned("usplit", clients, *sets, f"codec.changed_only={flag}") for flag in ("false", "true")
            )
            saved.append(1 - on["parameters_down"] / off["parameters_down"])
        lines.append([str(clients), str(taking_part), f"{100 * sum(saved) / len(saved):.1f} %"])
    return table(["clients", "of them a round", "down-link saved"], lines)


def encoders() -> str:
    """Weights of averaging the personal encoder in every m-th round, 5 clients, everybody."""
    lines = []
    for mode in ("ulatdec", "udec"):
        plain = total(planned(mode, 5), "parameters")
        for every in (0, 1, 3, 5, 15):
            weights = total(planned(mode, 5, f"method.encoder_every={every}"), "parameters")
            lines.append([mode, str(every), f"{weights / 1e6:.2f}", f"{100 * (weights / plain - 1):+.1f} %"])
    return table(["mode", "every", "weights, millions", "more"], lines)


def main() -> None:
    """Prints all four tables."""
    cells = [[m, *(f"{total(planned(m, k), 'parameters') / 1e6:.2f}" for k in (2, 5, 10))] for m in MODES]
    print("Weights conveyed, millions (seed 0)\n\n" + table(["mode", "K = 2", "K = 5", "K = 10"], cells))
    for part in (codecs, encoders, moved):
        print(f"{part.__doc__}\n\n{part()}")


if __name__ == "__main__":
    main()
