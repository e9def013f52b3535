"""What an autoencoder alone costs: real held-out images, before and after they went through it, against those trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

import osmotic
from osmotic.data.strata import draw
from osmotic.runs.scoring import Scoring
from osmotic.runs.study import prepare


def figures(out: Path) -> dict[str, Any]:
    """Further entries of a row: FD of real held-out images, as many as are drawn, as they are and as given back.

    Images given back are None where the network works in pixels.
    """
    run = osmotic.load(out)
    study = prepare(run.config)
    scoring = Scoring(study, None)
    test = study.dataset.test
    rows = draw(test.labels, len(test), scoring.samples, np.random.default_rng(0))
    real = test.images[rows]
    found = {"fd_real": scoring.yardstick.distances(scoring.encoder.features(real))[0], "fd_given_back": None}
    space = study.blueprint.space
    if run.config.model.autoencoder:
        latents = torch.from_numpy(space.prepare(real)).permute(0, 3, 1, 2)
        given_back = space.decode(space.encode(latents))
        found["fd_given_back"] = scoring.yardstick.distances(scoring.encoder.features(given_back))[0]
    return found
