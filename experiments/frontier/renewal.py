"""From what should the network of `learned` be renewed? What clients owe under error feedback, by what the server learns from.

python experiments/frontier/rates.py changes      # once: the real changes
python experiments/frontier/renewal.py [BITS]     # rows of renewal.jsonl; default 0.5 and 0.1 bits per weight

All ten clients send their own real changes of rounds 3 to 20 with feedback; the network is learned from rounds 1 and 2, then every five rounds from
nothing new (frozen), the replies as decoded, these and one client's raw change a round, or all raw changes.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from rates import CLIENTS, NEVER, RENEW, ROUNDS, SEED, WARMUP, came_in, layout

from osmotic import codecs
from osmotic.flat import Flat

MODES = ("frozen", "decoded", "decoded and one raw", "all raw")
SHOWN = (5, 10, 15, 20)


def owed(mode: str, bits: float) -> dict[str, float]:
    """Mean over clients of |residual|^2 / |change|^2 after some rounds."""
    every = NEVER if mode == "frozen" else RENEW
    codec = codecs.make("learned", options={"learned": {"bits": bits, "every": every, "warmup": WARMUP}})
    codec.prepare(layout())

    def moments(change: np.ndarray) -> dict[str, np.ndarray]:
        return codec.observe(Flat(layout(), change).named("model/"))

    for r in range(1, WARMUP + 1):
        codec.learn({str(k): moments(change) for k, change in enumerate(came_in(r))})
    left, found = np.zeros((CLIENTS, layout().size), np.float32), {}
    for r in range(WARMUP + 1, ROUNDS + 1):
        codec.refresh(r)
        changes, observed = came_in(r), {}
        for k, change in enumerate(changes):
            meant = change + left[k]
            got = codec.read(codec.encode(Flat(layout(), meant), {}), {}, None, layout()).buffer  # type: ignore[attr-defined]
            left[k] = meant - got
            raw = mode == "all raw" or (mode == "decoded and one raw" and k == r % CLIENTS)
            observed[str(k)] = moments(change if raw else got)
        codec.learn(observed)
        if r in SHOWN:
            power = np.square(changes, dtype=np.float64).sum(axis=1)
            found[str(r)] = float((np.square(left, dtype=np.float64).sum(axis=1) / power).mean())
    return found


def main() -> None:
    """Measures and writes every row anew."""
    rows = []
    for bits in [float(word) for word in sys.argv[1:]] or [0.5, 0.1]:
        for mode in MODES:
            rows.append(
                {"bits": bits, "learned_from": mode, "seed": SEED, "owed_after_round": owed(mode, bits)}
            )
            print(json.dumps(rows[-1]), flush=True)
    Path(__file__).with_name("renewal.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    main()
