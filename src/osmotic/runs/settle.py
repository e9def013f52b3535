"""What `auto` stands for once the data are known; torch is not imported."""

from __future__ import annotations

from dataclasses import replace

from osmotic import methods
from osmotic.config.schema import Config
from osmotic.data import partition

# Below 50 samples own scores are not formed; above 1,000 a score of small images costs more than it tells.
FEWEST_SAMPLES, MOST_SAMPLES = 50, 1000
# Where clients have models of their own, each draws for a score, and that takes most of the time: all together at most so
# many, and each at least as many as a score can be read by.
MOST_OF_ALL, FEWEST_OF_MANY = 20_000, 100
SCORES = 5  # points that a curve needs to be one


def settle(config: Config, num_train: int, num_classes: int) -> Config:
    """The configuration with a value in place of every `auto` that depends on the data or on the rounds.

    A run records these values, so that it repeats whatever `auto` will mean in later versions.

    Args:
        num_train: training images of all clients.
        num_classes: 0 if unlabelled.
    """
    data, score = partition.settled(config.data, num_classes > 0), config.score
    if score.samples == "auto":
        score = replace(score, samples=min(max(num_train, FEWEST_SAMPLES), _most(config)))
    if score.every == "auto":
        score = replace(score, every=max(1, config.training.rounds // SCORES))
    return replace(config, data=data, score=score)


def _most(config: Config) -> int:
    """Samples that `auto` takes for one model at most."""
    method = methods.make(config.method.name, dict(config.method.options))
    # By a column there are as many clients as it has values, and `data.clients` is not read.
    if method.global_model or config.data.partition.startswith("by:"):
        return MOST_SAMPLES
    return min(MOST_SAMPLES, max(FEWEST_OF_MANY, MOST_OF_ALL // config.data.clients))
