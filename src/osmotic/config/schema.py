"""A run as a value: frozen dataclasses, one per concern, and their way to and from plain tables."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from osmotic.config.keys import checked, key, nearest
from osmotic.config.presets import RECIPES
from osmotic.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What images there are and who holds which."""

    source: str = key("digits", "digits, mnist, fashion-mnist, cifar10, npz:PATH, folder:PATH or hf:NAME")
    partition: str = key(
        "auto",
        "iid, dirichlet, shards, pathological, l-skew, q-skew, linear, exponential or by:COLUMN; "
        "auto is dirichlet where there are labels, else iid",
    )
    dirichlet_alpha: float = key(
        0.5, "concentration of dirichlet, l-skew and q-skew; small means more skewed", 0, above=True
    )
    clients: int = key(10, "number of clients", 1, 100_000)
    image_size: int = key(
        0,
        "side in pixels to resize to; 0 keeps the native size, or, where images are not all square and of one size, "
        "takes 8, 16, 24 or 32: the largest within the median shorter side",
        0,
        1024,
    )
    fit: Literal["crop", "pad", "refuse"] = key(
        "crop", "images that are not square: crop to the middle, pad with the background, or refuse"
    )
    channels: int = key(0, "1 grey, 3 colour; 0 keeps the native channels, colour where they are mixed", 0, 3)
    background: str = key(
        "white", "colour behind transparency and beside padded images: white, grey, black or #rrggbb"
    )
    value_range: tuple[float, ...] | Literal["full", "auto"] = key(
        "full",
        "values of the files that become black and white, e.g. [0, 4095] for 12 bits in files of 16; full is that of "
        "their type, auto the quantiles 0.1 % and 99.9 % of the training images",
    )
    flip: bool = key(False, "training images are mirrored left to right at even odds")
    max_images: int = key(0, "use at most so many training images; 0 means all", 0)
    holdout: float = key(0.0, "share of each client's images kept for its own test", 0, 0.9)
    partition_seed: int = key(0, "seed of the split over clients", 0, 2**32 - 1)
    classes_per_client: int = key(2, "classes each client holds (pathological)", 1)
    shards_per_client: int = key(2, "label-sorted shards each client holds (shards)", 1)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The network and the diffusion process."""

    network: str = key("auto", "auto, unet-8, unet-28, unet-32, convnext-unet or autoencoder")
    autoencoder: str = key(
        "",
        "folder of an autoencoder (diffusers' AutoencoderKL), in whose latents the network works; empty works in pixels",
    )
    pretrained: str = key(
        "",
        "weights to start from: a pipeline folder, or a name on the Hugging Face hub; empty draws them from the seed",
    )
    pretrained_sha256: str = key(
        "", "their hash, which everybody agrees on; empty takes that of what is there"
    )
    conditional: bool | Literal["auto"] = key(
        "auto", "true, false, or auto: conditional where there are labels"
    )
    target: str = key("v", "what the network predicts")
    schedule: str = key("cosine", "noise schedule")
    timesteps: int = key(1000, "steps of the noise schedule; linear takes 21 or more", 2, 10_000)
    sigma_data: float = key(
        0.5,
        "standard deviation of the images in [-1, 1] that target edm expects; agreed upon, never measured",
        0.01,
        10,
    )


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """A low-rank adapter (LoRA) of the pretrained network, which alone is trained and sent; rank 0 trains the network itself."""

    rank: int = key(0, "rank of the adapter; 0 has none", 0, 1024)
    alpha: float = key(8.0, "the product of its factors is multiplied by alpha / rank", 0, 10_000, above=True)
    targets: tuple[str, ...] = key(
        ("to_q", "to_k", "to_v", "to_out.0", "conv1", "conv2"),
        "layers that are adapted, by the end of their names",
    )
    trains: Literal["b", "both"] = key(
        "b", "b: A is drawn once and frozen, and the average of clients is exact; both: A and B are averaged"
    )


@dataclass(frozen=True, kw_only=True)
class RecipeConfig:
    """How the network is trained, alike for every method and for the centralised baseline."""

    name: str = key("default", "named bundle of model, recipe and training keys: " + ", ".join(RECIPES))
    loss: Literal["mse", "huber"] = key("mse", "distance between prediction and target")
    min_snr: float = key(5.0, "gamma of the min-SNR weight; 0 gives every timestep the same weight", 0)
    label_dropout: float = key(0.1, "share of labels dropped in training, for classifier-free guidance", 0, 1)
    dropout: float = key(0.0, "dropout inside the network", 0, 0.9)
    ema_half_lives: tuple[float, ...] = key(
        (5_000.0, 20_000.0), "half-lives in images; the first one is scored; [] is off", 0, above=True
    )


@dataclass(frozen=True, kw_only=True)
class MethodConfig:
    """The exchange: which parts of the network go to whom and come back. Its own keys stand beside `name` in the file."""

    name: str = key("fedavg", "an exchange")
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class LocalConfig:
    """What bends local training: pieces of the learning rule, in this order. Options: `local.PIECE.KEY`."""

    pieces: tuple[str, ...] = key((), "pieces in order")
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """What the server does with the mean change: pieces, in this order. Options: `server.PIECE.KEY`."""

    pieces: tuple[str, ...] = key((), "pieces in order")
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class AfterConfig:
    """What follows the rounds: pieces, in this order. Options: `after.PIECE.KEY`."""

    pieces: tuple[str, ...] = key((), "pieces in order")
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Rounds, local work and the quorum of a round."""

    rounds: int = key(20, "federated rounds", 1, 1_000_000)
    fraction_train: float = key(1.0, "share of clients asked each round", 0, 1, above=True)
    local_epochs: float = key(2.0, "passes over a client's images per round", 0, 10_000, above=True)
    batch_size: int = key(16, "images per optimiser step", 1)
    learning_rate: float = key(2e-3, "step size", 0, 100, above=True)
    optimizer: Literal["adamw", "adam", "sgd"] = key("adamw", "local optimiser")
    optimizer_state: Literal["reset", "keep"] = key("reset", "moments at the start of a client's round")
    lr_schedule: Literal["constant", "cosine"] = key("constant", "learning rate over the rounds")
    grad_clip: float = key(1.0, "largest gradient norm; 0 is off", 0)
    quorum_clients: int = key(1, "a round counts only with at least so many good answers", 1)
    quorum_weight: float = key(0.0, "and only with at least this share of the asked images", 0, 1)
    max_abs_update: float = key(
        8.0, "largest change of one weight in a round; more is refused as `range`", 1e-6, 1e6
    )
    max_update_norm: float = key(
        0.0, "largest Euclidean norm of a client's change in a round; more is refused as `range`; 0 is off", 0
    )


@dataclass(frozen=True, kw_only=True)
class CodecConfig:
    """How weights are written to bytes, up and down. A codec's own keys: `codec.NAME.KEY`."""

    up: str = key("fp32", "codec of what clients send")
    down: str = key("fp32", "codec of what the server sends")
    error_feedback: bool = key(False, "clients keep what the up codec lost and add it next time")
    feedback_decay: float = key(1.0, "share of what is kept that stays from round to round", 0, 1, above=True)
    feedback_flush: int = key(
        0, "every so many rounds clients send all that is owed, in int8; 0 is never", 0, 1_000_000
    )
    first_contact: Literal["weights", "seed"] = key(
        "weights",
        "how a client gets the initial weights: weights sends them; seed lets it draw them itself and prove it by hash, else "
        "they are sent",
    )
    up_sends: Literal["change", "weights"] = key(
        "change",
        "what clients write with the up codec; weights is for comparisons: lossy codecs do far worse on them",
    )
    changed_only: bool = key(
        False, "send a client only the parts that moved since it was last sent them; it keeps the others"
    )
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Where clients run."""

    name: str = key("inprocess", "where clients run")
    workers: int = key(0, "clients side by side; 0 means one per core", 0, 1024)
    processes: bool | Literal["auto"] = key(
        "auto",
        "clients in processes of their own: true, false (threads), or auto: on Linux, where two or more work on a CPU, in "
        "runs of 1,000 optimiser steps or more; what is registered from Python and not by a plugin's file needs threads",
    )
    batched_clients: int = key(
        1,
        "clients that a worker trains as one computation, which pays for small batches; results are those of 1, one by one, "
        "but for float rounding",
        1,
        1024,
    )
    threads: int = key(1, "operator threads per client; results depend on it in the last bits", 1, 1024)
    device: str = key("auto", "auto, cpu, cuda or cuda:N")
    precision: Literal["fp32", "bf16"] = key(
        "fp32",
        "arithmetic of training: bf16 takes products and convolutions in bfloat16, weights and loss stay float32; "
        "faster on GPUs that have it",
    )
    deterministic: bool = key(True, "same bits every time, also on CUDA")
    deadline_seconds: float = key(
        0.0,
        "longest wait for the answers of a phase; who is later is a failure `late`; 0 waits for all, with engine sites for an hour",
        0,
    )


@dataclass(frozen=True, kw_only=True)
class ScoreConfig:
    """How images are sampled and scored."""

    every: int | Literal["auto"] = key(
        "auto",
        "score every so many rounds, and always the last; 0 means the last only, auto gives five scores or more",
        0,
    )
    samples: int | Literal["auto"] = key(
        "auto",
        "generated images per score; auto is as many as training images, from 50 to 1000; of clients with models of their own, "
        "20,000 of all together, and 100 of each at least",
        2,
    )
    sampler: str = key("dpm-solver++", "sampler")
    steps: int = key(20, "sampler steps", 1, 10_000)
    encoder: str = key(
        "classifier",
        "feature network: classifier (of the run's own images), inception-v3, dinov2, or file:PATH of one that osmotic encoder made",
    )
    metrics: tuple[str, ...] = key((), "further metrics by name, of those that a plugin registered")
    guidance: float | Literal["auto"] = key(
        "auto",
        "classifier-free guidance scale; 1 is off, auto is 1.5 where the model is told the class",
        0,
        100,
    )


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When the server's state goes to disk."""

    every: int = key(1, "rounds between checkpoints; the last phase always has one", 1)
    keep: int = key(2, "checkpoints kept", 1)


@dataclass(frozen=True, kw_only=True)
class TrackConfig:
    """Which trackers are told the figures of each round."""

    backends: tuple[str, ...] = key(("tensorboard",), "any of tensorboard, mlflow, wandb, trackio")


@dataclass(frozen=True, kw_only=True)
class Config:
    """A whole run. `preset` is only a label: its keys are already resolved into the sections."""

    seed: int = key(0, "seed of everything but the split", 0, 2**63 - 1)
    preset: str = key("", "name of the preset the run was started from")
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    adapter: AdapterConfig = AdapterConfig()
    recipe: RecipeConfig = RecipeConfig()
    method: MethodConfig = MethodConfig()
    local: LocalConfig = LocalConfig()
    server: ServerConfig = ServerConfig()
    after: AfterConfig = AfterConfig()
    training: TrainingConfig = TrainingConfig()
    codec: CodecConfig = CodecConfig()
    engine: EngineConfig = EngineConfig()
    score: ScoreConfig = ScoreConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    track: TrackConfig = TrackConfig()


PIECE_SECTIONS = ("local", "server", "after")
NESTED = (
    *PIECE_SECTIONS,
    "codec",
)  # sections in which a piece or codec has keys of its own: section.NAME.key

SECTIONS: dict[str, Any] = {
    f.name: type(f.default) for f in dataclasses.fields(Config) if dataclasses.is_dataclass(f.default)
}


def flatten(tables: Mapping[str, Any]) -> dict[str, Any]:
    """`{"data": {"clients": 3}}` as `{"data.clients": 3}`; a section that is no table is an error."""
    flat: dict[str, Any] = {}
    for name, value in tables.items():
        if name in SECTIONS:
            if not isinstance(value, dict):
                raise ConfigError(name, value, f"is a section: write [{name}]")
            for leaf, entry in value.items():
                if name in NESTED and isinstance(entry, dict):
                    flat.update({f"{name}.{leaf}.{k}": v for k, v in entry.items()})
                else:
                    flat[f"{name}.{leaf}"] = entry
        elif isinstance(value, dict):
            raise ConfigError(name, None, "unknown section", nearest(name, SECTIONS))
        else:
            flat[name] = value
    return flat


def valid_keys() -> list[str]:
    """Every fixed key, as `section.key`; a method's own keys are checked by the method."""
    top = [f.name for f in dataclasses.fields(Config) if f.name not in SECTIONS]
    return top + [
        f"{s}.{f.name}" for s, cls in SECTIONS.items() for f in dataclasses.fields(cls) if f.name != "options"
    ]


def build(flat: Mapping[str, Any]) -> Config:
    """A Config from flat keys; unknown keys, wrong types and values out of range are errors.

    Keys of exchanges, pieces and codecs are taken as they are: their owners are known to `runs/rules.py`, not here.
    """
    sections: dict[str, dict[str, Any]] = {name: {} for name in SECTIONS}
    top: dict[str, Any] = {}
    options: dict[str, Any] = {"method": {}} | {name: {} for name in NESTED}
    for name, value in flat.items():
        section, _, leaf = name.partition(".")
        owner, dot, option = leaf.partition(".")
        if section == "method" and leaf and leaf != "name":
            options[section][leaf] = value
        elif section in NESTED and dot and option:
            options[section].setdefault(owner, {})[option] = value
        elif name not in valid_keys():
            raise ConfigError(name, value, "unknown key", _meant(name))
        elif leaf:
            sections[section][leaf] = checked(
                name, value, _hints(SECTIONS[section])[leaf], _meta(SECTIONS[section], leaf)
            )
        else:
            top[name] = checked(name, value, _hints(Config)[name], _meta(Config, name))
    for section, given in options.items():
        sections[section]["options"] = given
    made: dict[str, Any] = {name: cls(**sections[name]) for name, cls in SECTIONS.items()}
    return Config(**top, **made)


def _meant(name: str) -> str | None:
    """The key that was probably meant: one of the same section with this ending, else the one that looks most like it."""
    section, _, leaf = name.partition(".")
    same = [known for known in valid_keys() if known.startswith(f"{section}.") and known.endswith(f"_{leaf}")]
    return same[0] if len(same) == 1 else nearest(name, valid_keys())


def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _meta(cls: type, leaf: str) -> Mapping[str, Any]:
    return next(f.metadata for f in dataclasses.fields(cls) if f.name == leaf)


def to_dict(config: Config) -> dict[str, Any]:
    """Nested plain dict in file order; options stand beside the name of the exchange, piece or codec that they belong to."""
    out: dict[str, Any] = {"seed": config.seed, "preset": config.preset}
    for name in SECTIONS:
        section = getattr(config, name)
        out[name] = _plain(
            {f.name: getattr(section, f.name) for f in dataclasses.fields(section) if f.name != "options"}
        )
    out["method"].update(_plain(config.method.options))
    for name in NESTED:
        out[name].update({owner: _plain(keys) for owner, keys in getattr(config, name).options.items()})
    return out


def _plain(table: Mapping[str, Any]) -> dict[str, Any]:
    """Tuples as lists, as they come back from a file."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in table.items()}


# What may change between the parts of a run without changing its result.
FREE = ("engine.name", "engine.workers", "engine.processes", "track.", "checkpoint.")


def refuse_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raises ConfigError for the first key of a resumed run that differs from the run's beginning (`to_dict` tables)."""
    # A key that the run's version did not have yet stood at what is its default now.
    old, new = flatten(to_dict(Config())) | flatten(before), flatten(now)
    for name in sorted(old.keys() | new.keys()):
        if old.get(name) != new.get(name) and not name.startswith(FREE):
            raise ConfigError(
                name, new.get(name), f"was {old.get(name)!r} when this run began; start a new run"
            )
