"""Rules between keys: combinations that cannot work are refused before any work, with the reason."""

from __future__ import annotations

import dataclasses
import re
import sys
import typing
from collections.abc import Mapping
from typing import Any

from osmotic import codecs
from osmotic.codecs import CODECS
from osmotic.config.keys import checked, nearest
from osmotic.config.schema import PIECE_SECTIONS, CodecConfig, Config
from osmotic.data import partition, sources
from osmotic.diffusion import compatibility as names
from osmotic.engines import WHERE
from osmotic.engines.quiet import require
from osmotic.errors import ConfigError
from osmotic.methods import METHODS, Method
from osmotic.metrics.registry import METRICS
from osmotic.models import NETWORKS
from osmotic.pieces import PIECES, Piece
from osmotic.protocol.participation import asked
from osmotic.runs import trackers

YOUR_OWN = "; one of your own needs --plugin FILE"


def check(config: Config, own_data: bool = False) -> None:
    """Raises ConfigError for the first value or combination that cannot work; reads no data.

    Args:
        own_data: images are handed over in Python, which the source "python" stands for.
    """
    # Names first: the other rules look things up by them.
    _names(config)
    _method(config)
    _codecs(config)
    _adapter(config)
    _latents(config)
    _process(config)
    _training(config)
    _engine(config)
    if not own_data and config.data.source == "python":
        rule = "are images handed over in Python: osmotic.run(data=...), osmotic.load(DIR).resume(data=...)"
        raise ConfigError("data.source", "python", rule)
    if not own_data and config.engine.name != "sites":
        sources.check(config.data)
    partition.validate_name(config.data.partition)
    trackers.check(config.track.backends)
    # Now, and not when the first round is scored: hours may lie between.
    from osmotic.metrics import weights

    weights.require(config.score.encoder)


def _names(config: Config) -> None:
    one_of("method.name", config.method.name, METHODS, YOUR_OWN)
    one_of("codec.up", config.codec.up, CODECS, YOUR_OWN)
    one_of("codec.down", config.codec.down, CODECS, YOUR_OWN)
    one_of("model.network", config.model.network, ("auto", *NETWORKS), YOUR_OWN)
    one_of("model.target", config.model.target, names.TARGETS)
    one_of("model.schedule", config.model.schedule, names.SCHEDULES)
    one_of("score.sampler", config.score.sampler, names.SAMPLERS)
    one_of("engine.name", config.engine.name, WHERE)
    for metric in config.score.metrics:
        if metric not in METRICS:
            rule = "must be registered with osmotic.register, in a file that --plugin names"
            raise ConfigError("score.metrics", metric, rule, nearest(metric, METRICS))


def one_of(key: str, value: str, valid: Any, hint: str = "") -> None:
    """Raises ConfigError with the nearest valid name unless `value` is one of `valid`."""
    if value not in valid:
        raise ConfigError(key, value, "must be one of " + ", ".join(valid) + hint, nearest(value, valid))


def _method(config: Config) -> None:
    name = config.method.name
    made = owned_options(METHODS[name], name, "method", config.method.options, METHODS)
    # An option without effect is refused: who sets it believes that it has one.
    coded = config.codec.up != "fp32" or config.codec.down != "fp32" or config.codec.error_feedback
    if coded and not made.travels:
        raise ConfigError(
            "codec",
            f"up {config.codec.up}, down {config.codec.down}",
            f"method {name} sends nothing: use fp32",
        )
    if config.codec.changed_only and not made.travels:
        raise ConfigError("codec.changed_only", True, f"method {name} sends nothing: leave this key out")
    for key in ("first_contact", "up_sends"):
        given = getattr(config.codec, key)
        if given != getattr(CodecConfig(), key) and not made.travels:
            raise ConfigError(f"codec.{key}", given, f"method {name} sends nothing: leave this key out")
    if config.codec.up_sends == "weights" and bool(getattr(made, "encoder_every", False)):
        rule = (
            "with method.encoder_every clients return a part that they were not sent: leave one of them out"
        )
        raise ConfigError("codec.up_sends", "weights", rule)
    _pieces(config, made)


def owned_options(
    cls: Any, owner: str, prefix: str, options: Mapping[str, Any], others: Mapping[str, Any]
) -> Any:
    """An exchange, piece or codec made with these options, each checked for its type and range.

    Args:
        cls: a dataclass whose fields are its keys.
        prefix: what stands before them in the configuration.
        others: the registry it is of, to say whose key a foreign one is.
    Raises: ConfigError for an unknown or bad option, and for what its __post_init__ refuses.
    """
    known = {f.name: f for f in dataclasses.fields(cls)} if dataclasses.is_dataclass(cls) else {}
    kind = prefix.split(".")[0] if prefix == "method" else "piece" if prefix.count(".") else prefix
    for option, value in options.items():
        key = f"{prefix}.{option}"
        if option not in known:
            rule = (
                f"{kind} {owner} has the keys " + ", ".join(known)
                if known
                else f"{kind} {owner} has no keys of its own"
            )
            # A key of another owner is a likelier slip than a misspelt one of this.
            owners = [
                m
                for m, c in others.items()
                if dataclasses.is_dataclass(c) and option in {f.name for f in dataclasses.fields(c)}
            ]
            if owners:
                rule = f"is a key of {', '.join(owners)}; {rule}"
            raise ConfigError(key, value, rule, nearest(option, known))
        checked(key, value, typing.get_type_hints(cls)[option], known[option].metadata)
    try:
        return cls(**options)
    # TypeError: an option without a default is missing.
    except (TypeError, ValueError) as error:
        raise ConfigError(prefix, dict(options), str(error)) from None


def _pieces(config: Config, method: Method) -> None:
    """Every piece stands in its own section, once, with its own options, and works with the exchange."""
    seen: set[str] = set()
    named = [piece for name in PIECE_SECTIONS for piece in getattr(config, name).pieces if piece in PIECES]
    if method.server_trains and not any(PIECES[piece].after is not Piece.after for piece in named):
        rule = "needs a piece that trains on the server, such as server.pieces = correction"
        raise ConfigError("method.name", config.method.name, rule)
    for name in PIECE_SECTIONS:
        section = getattr(config, name)
        for piece in section.pieces:
            key = f"{name}.pieces"
            if piece not in PIECES:
                here = [p for p, cls in PIECES.items() if cls.section == name]
                rule = "must be of " + ", ".join(here) + "; a piece of your own needs --plugin FILE"
                raise ConfigError(key, piece, rule, nearest(piece, here))
            # The section says when a piece acts; in another one it would read as something that it is not.
            if PIECES[piece].section != name:
                raise ConfigError(key, piece, f"belongs to {PIECES[piece].section}.pieces")
            if piece in seen:
                raise ConfigError(key, piece, "is named twice")
            seen.add(piece)
            made = owned_options(
                PIECES[piece], piece, f"{name}.{piece}", section.options.get(piece, {}), PIECES
            )
            reason = made.misfit(method)
            # `after` is the one hook of the server that has something to do where no client trains.
            bends = type(made).change is not Piece.change and type(made).after is Piece.after
            if reason is None and method.server_trains and bends:
                reason = "no client trains in its rounds: there is no mean change"
            if reason:
                raise ConfigError(key, piece, f"cannot work with method {config.method.name}: {reason}")
            if made.needs_encoder and config.engine.name == "sites" and config.score.encoder == "classifier":
                rule = "needs an encoder, and images are at their sites: name one that is not trained on them, such as score.encoder = dinov2"
                raise ConfigError(f"{name}.{piece}", None, rule)
            if reason := made.idle(config.training.rounds):
                raise ConfigError(f"{name}.{piece}", None, reason)
            if method.server_trains and made.draws_at_sites:
                _nothing_coded(config)
        for owner, options in section.options.items():
            # Options of a piece that does not run: a comparison would be of two runs that are the same.
            if owner not in section.pieces:
                key, value = f"{name}.{owner}.{next(iter(options), '')}", next(iter(options.values()), None)
                if owner not in PIECES:
                    raise ConfigError(key, value, "unknown key", nearest(owner, PIECES))
                raise ConfigError(key, value, f"is of a piece that {name}.pieces does not name: add it there")


def _nothing_coded(config: Config) -> None:
    """Raises ConfigError for a key of what is coded on its way up, where sites are asked for images alone."""
    for key in ("up", "error_feedback", "up_sends"):
        if (given := getattr(config.codec, key)) != getattr(CodecConfig(), key):
            rule = f"method {config.method.name} asks sites for images alone, which are not coded: leave this key out"
            raise ConfigError(f"codec.{key}", given, rule)


def _codecs(config: Config) -> None:
    down = codecs.make(config.codec.down)
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
    if not config.codec.error_feedback:
        unused = CodecConfig()
        for key in ("feedback_decay", "feedback_flush"):
            if getattr(config.codec, key) != getattr(unused, key):
                raise ConfigError(
                    f"codec.{key}", getattr(config.codec, key), "is of codec.error_feedback: set it to true"
                )
    elif config.codec.up_sends == "weights":
        rule = "has no error feedback: what is lost of weights is not owed to the next ones"
        raise ConfigError("codec.up_sends", "weights", rule)
    for name, options in config.codec.options.items():
        if name not in (config.codec.up, config.codec.down):
            key, value = f"codec.{name}.{next(iter(options), '')}", next(iter(options.values()), None)
            if name not in CODECS:
                raise ConfigError(key, value, "unknown key", nearest(name, CODECS))
            raise ConfigError(key, value, "is of a codec that neither codec.up nor codec.down names")
        owned_options(CODECS[name], name, f"codec.{name}", options, CODECS)


def _adapter(config: Config) -> None:
    chosen, default = config.adapter, type(config.adapter)()
    if not chosen.rank:
        for name in ("alpha", "targets", "trains"):
            if (given := getattr(chosen, name)) != getattr(default, name):
                raise ConfigError(f"adapter.{name}", given, "is of an adapter: set adapter.rank")
        return
    if not config.model.pretrained:
        rule = "adapts a pretrained network, and model.pretrained names none"
        raise ConfigError("adapter.rank", chosen.rank, rule)
    own = config.after.options.get("personalise", {}).get("trains")
    if "personalise" in config.after.pieces and own in ("adapter", "embedding"):
        rule = "is of a whole network, and this run trains an adapter: all trains that"
        raise ConfigError("after.personalise.trains", own, rule)
    if config.model.network == "autoencoder":
        raise ConfigError("adapter.rank", chosen.rank, "is of a denoiser: an autoencoder is trained itself")
    if config.engine.batched_clients > 1:
        rule = "trains networks side by side, and knows no adapters: use 1"
        raise ConfigError("engine.batched_clients", config.engine.batched_clients, rule)


def _latents(config: Config) -> None:
    if config.model.network == "autoencoder" and "correction" in config.server.pieces:
        rule = "trains on images that a denoiser draws, and an autoencoder draws none: leave it out"
        raise ConfigError("server.pieces", "correction", rule)
    if not config.model.autoencoder:
        return
    if config.model.network == "autoencoder":
        rule = "an autoencoder works in pixels: leave model.autoencoder out"
        raise ConfigError("model.autoencoder", config.model.autoencoder, rule)
    if config.data.flip:
        rule = (
            "latents are computed once, and a mirrored latent is not that of the mirrored image: leave it out"
        )
        raise ConfigError("data.flip", True, rule)


def _process(config: Config) -> None:
    target, sampler, steps = config.model.target, config.score.sampler, config.score.steps
    if target == "edm":
        default = type(config.model)()
        by = "" if config.recipe.name == "default" else f"; recipe {config.recipe.name} sets it"
        for key in ("schedule", "timesteps"):
            # What was written cannot be told from a default, unless its value differs.
            if getattr(config.model, key) != getattr(default, key):
                raise ConfigError(
                    f"model.{key}",
                    getattr(config.model, key),
                    "target edm has no schedule: leave this key out" + by,
                )
        if config.recipe.loss != "mse":
            rule = "target edm weighs squared errors: use mse" + by
            raise ConfigError("recipe.loss", config.recipe.loss, rule)
    elif config.model.sigma_data != type(config.model)().sigma_data:
        raise ConfigError("model.sigma_data", config.model.sigma_data, "is a key of target edm: leave it out")
    if reason := names.compatible(target, sampler):
        raise ConfigError("score.sampler", sampler, reason)
    if reason := names.timesteps_fit(config.model.schedule, config.model.timesteps):
        raise ConfigError("model.timesteps", config.model.timesteps, reason)
    if reason := names.steps_fit(sampler, steps, config.model.timesteps):
        raise ConfigError("score.steps", steps, reason)
    if config.score.guidance not in (1.0, "auto") and config.model.conditional is False:
        raise ConfigError("score.guidance", config.score.guidance, "needs a conditional model")
    if config.score.guidance not in (1.0, "auto") and config.recipe.label_dropout == 0:
        raise ConfigError(
            "score.guidance", config.score.guidance, "needs recipe.label_dropout > 0 in training"
        )


def _engine(config: Config) -> None:
    if config.engine.name != "inprocess":
        _flower(config)
    together = config.engine.batched_clients
    if together == 1:
        return
    if METHODS[config.method.name].pools_data:
        rule = f"method {config.method.name} has one client: leave this key out"
        raise ConfigError("engine.batched_clients", together, rule)
    if config.model.network == "autoencoder":
        rule = "the loss of an autoencoder is of a whole batch, which would mix clients: use 1"
        raise ConfigError("engine.batched_clients", together, rule)
    # auto takes none of these.
    if config.model.network != "auto" and NETWORKS[config.model.network].own:
        rule = f"network {config.model.network} may mix images of a batch, and so clients: use 1"
        raise ConfigError("engine.batched_clients", together, rule)


def _flower(config: Config) -> None:
    from osmotic import plugins

    name = config.engine.name
    if config.engine.batched_clients > 1:
        rule = f"are clients trained in one thread, and those of engine {name} have a process each: use 1"
        raise ConfigError("engine.batched_clients", config.engine.batched_clients, rule)
    if config.engine.processes != "auto":
        rule = f"is of engine inprocess; clients of engine {name} always have processes of their own: leave this key out"
        raise ConfigError("engine.processes", config.engine.processes, rule)
    if name == "sites":
        needed = ["flwr"]
        if METHODS[config.method.name].pools_data:
            rule = f"method {config.method.name} trains on all images in one place, and sites keep theirs"
            raise ConfigError("engine.name", name, rule)
    elif sys.platform == "linux":
        needed = ["flwr", "ray"]
    else:
        raise ConfigError("engine.name", name, "needs Linux; inprocess runs everywhere, with the same bits")
    require("engine.name", name, *needed)
    if (reason := plugins.registered_here(config)) is not None:
        raise ConfigError("engine.name", name, reason)


def _training(config: Config) -> None:
    lives = config.recipe.ema_half_lives
    if len(set(lives)) != len(lives):
        raise ConfigError("recipe.ema_half_lives", list(lives), "must all differ")
    most = asked(config.training.fraction_train, config.data.clients)
    # How many clients `by:COLUMN` makes is not known before the data are read.
    federated = not METHODS[config.method.name].pools_data and not config.data.partition.startswith("by:")
    if federated and config.training.quorum_clients > most:
        rule = f"must be at most the {most} clients asked each round"
        raise ConfigError("training.quorum_clients", config.training.quorum_clients, rule)
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", config.engine.device):
        rule, known = "must be auto, cpu, cuda or cuda:N", ("auto", "cpu", "cuda")
        raise ConfigError("engine.device", config.engine.device, rule, nearest(config.engine.device, known))
