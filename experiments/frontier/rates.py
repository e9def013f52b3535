"""At equal bytes, which way of writing a client's change loses least, once and with error feedback? See rates.md.

python experiments/frontier/rates.py changes [OUT.npz]     # a short FedAvg whose server keeps every change that comes (goes on)
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import cases
import numpy as np

import osmotic
from osmotic import models
from osmotic.flat import Flat, FlatLayout
from osmotic.pieces.base import Piece

HERE = Path(__file__).parent
CHANGES = Path("runs/frontier/changes.npz")
SEED, ROUNDS, CLIENTS = 100, 20, 10


@cache
def layout() -> FlatLayout:
    """Where the weights of unet-8 lie in a change [size]."""
    spec = models.resolve("unet-8", 8, 1, 10, 0.0)
    return FlatLayout(models.layout(spec), spec.part_names())


# --- real changes ---


@osmotic.register("keep-changes")
@dataclass(frozen=True, kw_only=True)
class KeepChanges(Piece):
    """The server writes down each round's weights and the changes that came back; nothing else is otherwise.

    Folder `into`: r01.npz and so on, `changes` float32 [clients, size], `weights` [size] that were sent, `num_examples` [clients].
    """

    section = "server"
    left = reveals = ""

    into: str = osmotic.key("", "an existing folder")

    def gather(self, view: Any, gathered: Any, reply: Any) -> dict[str, tuple[int, np.ndarray]]:
        """Client -> (num_examples, change [size])."""
        change = Flat.of(layout(), reply.change).buffer
        return {**(gathered or {}), reply.task.client.name: (reply.weight, change)}

    def change(self, view: Any, state: Any, gathered: Any, phase: Any, mean: Any) -> Any:
        """The mean as it is, [...] by name."""
        came = [gathered[name] for name in sorted(gathered)]
        np.savez(
            Path(self.into) / f"r{phase.server_round:02}.npz",
            changes=np.stack([change for _, change in came]),
            num_examples=np.array([count for count, _ in came]),
            weights=Flat.of(layout(), view.weights).buffer,
        )
        return mean, state, {}


def changes(out: Path) -> None:
    """Runs FedAvg, or goes on with it, and gathers its rounds in one file: "r01/changes" and so on."""
    folder = out.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    keys = cases.CELLS["dirichlet"] | cases.rounds(ROUNDS)
    keys |= {"seed": SEED, "data.partition_seed": SEED, "checkpoint.every": 1, "score.samples": 2}
    # What is registered here is known to this process alone.
    keys |= {"engine.workers": 1, "engine.processes": False}
    keys |= {"server.pieces": ["keep-changes"], "server.keep-changes.into": str(folder)}
    if (folder / "run/config.toml").exists():
        osmotic.load(folder / "run").resume()
    else:
        osmotic.run(preset="fedavg", keys=keys, out=folder / "run")
    rounds = [np.load(folder / f"r{r:02}.npz") for r in range(1, ROUNDS + 1)]
    np.savez(out, **{f"r{r:02}/{name}": one[name] for r, one in enumerate(rounds, 1) for name in one.files})


if __name__ == "__main__":
    if sys.argv[1:2] == ["changes"]:
        changes(Path(sys.argv[2]) if len(sys.argv) > 2 else CHANGES)
