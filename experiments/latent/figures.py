"""Draws the samples of README.md from the run folders: in latents, and in pixels after equal time.

python experiments/latent/figures.py
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from drawing import save  # noqa: E402
from matplotlib import pyplot as plt  # noqa: E402
from PIL import Image  # noqa: E402

RUNS = Path(os.environ.get("RUNS", "runs/latent"))

if __name__ == "__main__":
    figure, axes = plt.subplots(2, 1, figsize=(7.5, 8))
    for axis, kind in zip(axes, ("latent", "pixels"), strict=True):
        path = max((RUNS / f"{kind}-s0" / "samples").glob("round-*.png"))
        axis.set(xticks=[], yticks=[], title=kind)
        with Image.open(path) as grid:
            axis.imshow(grid.convert("L"), cmap="gray", vmin=0, vmax=255)
    save(figure, HERE / "samples.png")
