"""The key that would shorten a long run most, with the time it would then take: timed, not guessed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from osmotic.data.dataset import Dataset, Split
from osmotic.errors import ConfigError
from osmotic.federation.blueprint import Blueprint
from osmotic.runs import timing
from osmotic.runs.estimate import Amounts, Timed, seconds
from osmotic.runs.study import Study

NETWORKS = ("unet-32", "unet-28", "unet-8")  # from slow to quick


def quicker(study: Study, phases: Sequence[Amounts], timed: Timed, enough: float) -> tuple[str, float] | None:
    """Options for the command line and the seconds that the run would take with them.

    The first change of network or size that comes under `enough` seconds, else the quickest of them; fewer rounds where
    neither helps.
    """
    now = sum(seconds(phases, timed))
    tried: list[tuple[float, str]] = []
    for keys, other in alternatives(study):
        span = sum(seconds(phases, {**timed, **timing.network(other)}))
        if span < enough:
            return keys, span
        tried.append((span, keys))
    span, keys = min(tried, key=lambda found: found[0], default=(now, ""))
    if span < now / 2:
        return keys, span
    rounds = study.config.training.rounds
    fewer = max(1, int(rounds * enough / now))
    return (f"--set training.rounds={fewer}", now * fewer / rounds) if fewer < rounds else None


def alternatives(study: Study) -> Iterator[tuple[str, Study]]:
    """Smaller networks for these images, then images of half the side."""
    config, spec, side, channels = (
        study.config,
        study.spec,
        study.blueprint.image_size,
        study.blueprint.channels,
    )
    # Pretrained weights are of one network.
    known = spec.name in NETWORKS and not config.model.pretrained
    later = NETWORKS[NETWORKS.index(spec.name) + 1 :] if known else ()
    for name in later:
        chosen = replace(config, model=replace(config.model, network=name))
        try:
            blueprint = Blueprint.of(chosen, side, channels, spec.num_classes)
        except ConfigError:
            continue  # it does not take images of this side
        yield f"--set model.network={name}", replace(study, blueprint=blueprint)
    half = side // 2
    try:
        blueprint = Blueprint.of(config, half, channels, spec.num_classes)
    except ConfigError:
        return
    train = study.dataset.train
    # For timing any pixels do; only as many as a trial takes are looked at.
    shrunk = Split(train.images[: timing.CHUNK_SIZE * 2, : 2 * half : 2, : 2 * half : 2], train.labels)
    smaller = Dataset(study.dataset.name, shrunk, study.dataset.test, study.dataset.class_names)
    yield f"--set data.image_size={half}", replace(study, blueprint=blueprint, dataset=smaller)
