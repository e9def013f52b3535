"""Rules between keys: combinations that cannot work are refused before any work, with the reason."""

from __future__ import annotations

import dataclasses
import re
import typing
from typing import Any

from osmotic.runs import trackers
from osmotic.codecs import CODECS
from osmotic.config.keys import checked, nearest
from osmotic.config.schema import Config
from osmotic.data import partition, sources
from osmotic.diffusion import facts
from osmotic.errors import ConfigError
from osmotic.methods import METHODS
from osmotic.models import PRESETS as NETWORKS


def check(config: Config) -> None:
    """Raises ConfigError for the first value or combination that cannot work; reads no data."""
    _names(config)
    _method(config)
    _process(config)
    _training(config)
    sources.check(config.data)
    partition.validate_name(config.data.partition)
    trackers.check(config.track.backends)
    if config.score.encoder != "classifier":
        from osmotic.metrics import weights

        weights.require(config.score.encoder)


def _names(config: Config) -> None:
    one_of("method.name", config.method.name, METHODS)
    one_of("codec.up", config.codec.up, CODECS)
    one_of("codec.down", config.codec.down, CODECS)
    one_of("model.network", config.model.network, ("auto", *NETWORKS))


def one_of(key: str, value: str, valid: Any) -> None:
    """Raises ConfigError with the nearest valid name unless `value` is one of `valid`."""
    if value not in valid:
        raise ConfigError(key, value, "must be one of " + ", ".join(valid), nearest(value, valid))


def _method(config: Config) -> None:
    cls, name = METHODS[config.method.name], config.method.name
    known = {f.name: f for f in dataclasses.fields(cls)}
    for option, value in config.method.options.items():
        key = f"method.{option}"
        if option not in known:
            rule = (
                f"method {name} has the keys " + ", ".join(known)
                if known
                else f"method {name} has no keys of its own"
            )
            if owners := [m for m, c in METHODS.items() if option in {f.name for f in dataclasses.fields(c)}]:
                rule = f"is a key of {', '.join(owners)}; {rule}"
            raise ConfigError(key, value, rule, nearest(option, known))
        checked(key, value, typing.get_type_hints(cls)[option], known[option].metadata)
    try:
        made = cls(**config.method.options)
    except (TypeError, ValueError) as error:
        raise ConfigError("method", dict(config.method.options), str(error)) from None
    coded = config.codec.up != "fp32" or config.codec.down != "fp32" or config.codec.error_feedback
    if coded and not made.travels:
        raise ConfigError(
            "codec",
            f"up {config.codec.up}, down {config.codec.down}",
            f"method {name} sends nothing: use fp32",
        )
    if config.codec.changed_only and not made.travels:
        raise ConfigError("codec.changed_only", True, f"method {name} sends nothing: leave this key out")
    down = CODECS[config.codec.down]()
    if down.remembers:
        rule = "remembers earlier packets, which clients that missed one cannot follow; use it for codec.up"
        raise ConfigError("codec.down", config.codec.down, rule)
    if down.trained and config.codec.up != config.codec.down:
        raise ConfigError(
            "codec.down", config.codec.down, "is trained on what clients send: codec.up must be the same"
        )
    if config.codec.error_feedback and config.codec.up == "fp32":
        raise ConfigError(
            "codec.error_feedback", True, "needs a codec.up that loses something; fp32 is exact"
        )


def _process(config: Config) -> None:
    target, sampler, steps = config.model.target, config.score.sampler, config.score.steps
    if target == "edm":
        default = type(config.model)()
        by = "" if config.recipe.name == "default" else f"; recipe {config.recipe.name} sets it"
        for key in ("schedule", "timesteps"):
            if getattr(config.model, key) != getattr(default, key):
                raise ConfigError(
                    f"model.{key}",
                    getattr(config.model, key),
                    "target edm has no schedule: leave this key out" + by,
                )
        if config.recipe.loss != "mse":
            rule = "target edm weighs squared errors: use mse" + by
            raise ConfigError("recipe.loss", config.recipe.loss, rule)
    if reason := facts.compatible(target, sampler):
        raise ConfigError("score.sampler", sampler, reason)
    if reason := facts.steps_fit(sampler, steps, config.model.timesteps):
        raise ConfigError("score.steps", steps, reason)
    if config.score.guidance not in (1.0, "auto") and config.model.conditional is False:
        raise ConfigError("score.guidance", config.score.guidance, "needs a conditional model")
    if config.score.guidance not in (1.0, "auto") and config.recipe.label_dropout == 0:
        raise ConfigError(
            "score.guidance", config.score.guidance, "needs recipe.label_dropout > 0 in training"
        )


def _training(config: Config) -> None:
    lives = config.recipe.ema_half_lives
    if len(set(lives)) != len(lives):
        raise ConfigError("recipe.ema_half_lives", list(lives), "must all differ")
    asked = max(1, round(config.training.fraction_train * config.data.clients))
    federated = not METHODS[config.method.name].pools_data and not config.data.partition.startswith("by:")
    if federated and config.training.quorum_clients > asked:
        rule = f"must be at most the {asked} clients asked each round"
        raise ConfigError("training.quorum_clients", config.training.quorum_clients, rule)
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", config.engine.device):
        rule, known = "must be auto, cpu, cuda or cuda:N", ("auto", "cpu", "cuda")
        raise ConfigError("engine.device", config.engine.device, rule, nearest(config.engine.device, known))
