"""A finished run's models, read back from its folder without executing anything that lies there.

A folder may come from anybody. Of its `model/` only weights (safetensors) and numbers (JSON) are read; network,
scheduler and pipeline are classes of this package and of diffusers, made from the run's configuration.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from diffusers import ModelMixin
from torch import nn

from osmotic import plugins
from osmotic.config import keys
from osmotic.config.schema import Config
from osmotic.data.strata import apportion
from osmotic.errors import ConfigError
from osmotic.federation.blueprint import Blueprint
from osmotic.models import NetworkSpec, autoencoder_file, construct, pipeline, weights_file
from osmotic.runs import resolve
from osmotic.storage import strict_json
from osmotic.storage.folder import RunDir
from osmotic.tensors import Tensors

MIXTURE = "mixture"  # in the place of a client's name: all clients' models as one
INDEX = ("model_index.json", "config.json")  # of a diffusers folder, and of an own network's
MOST_SIDE = 4096  # pixels; what says that it draws larger images would take all memory


@dataclass(frozen=True)
class Described:
    """What a model's folder says of its network: numbers alone; sides and channels are those of the images."""

    image_size: int
    channels: int
    num_classes: int
    weights: Path
    autoencoder: Path | None = None


def model_folder(run: RunDir, client: str | None) -> Path:
    """Where the asked model lies: the global one, or that of a client.

    Raises: ConfigError for a client that has no model of its own, or where one must be named.
    """
    whole, own = is_model(run.model), run.personal if is_model(run.model) else run.model
    clients = sorted(p.name for p in own.glob("*") if is_model(p))
    if whole and client is None:
        return run.model
    if whole and not clients:
        raise ConfigError("--client", client, "this run has one global model: leave it out")
    if client is None or client not in clients:
        near = keys.nearest(client or "", clients)
        raise ConfigError("--client", client, "must be one of " + ", ".join(clients), near)
    return own / client


def is_model(folder: Path) -> bool:
    """Whether a folder holds a model."""
    return any((folder / name).is_file() for name in INDEX)


@dataclass(frozen=True)
class Weights:
    """A run's model as it lies on disk: what it says of its network, and its weights, name -> array [...]."""

    described: Described
    tensors: Tensors


def weights(run: RunDir, client: str | None = None) -> Weights:
    """The weights of a run's model; whether they are those of its network is for whoever puts them there.

    Raises: ConfigError for a client that there is none of, or a file that cannot be read.
    """
    plugins.load_installed()  # the network may be of one
    described = _described(model_folder(run, client))
    try:
        return Weights(described, weights_file.read(described.weights))
    except ValueError as error:
        raise ConfigError(str(described.weights.parent), None, str(error)) from None


def load(run: RunDir, client: str | None = None) -> Any:
    """The pipeline of a run's model, as diffusers would load it, made from this package's own classes.

    Raises: ConfigError for a client that there is none of, an own network that is not registered, or a folder that
        does not hold the weights of the run's network.
    """
    found = weights(run, client)
    described = found.described
    # Its own copy: the folder that it was trained with may be elsewhere now, or gone.
    config = in_space(resolve.recorded(run.config), described)
    blueprint = Blueprint.of(config, described.image_size, described.channels, described.num_classes)
    spec = blueprint.spec
    try:
        model = construct.with_weights(spec, found.tensors)
    except RuntimeError:
        raise ConfigError(
            str(described.weights), None, f"does not hold the weights of network {spec.name}"
        ) from None
    defaults = {
        "class_names": class_names(run) if spec.num_classes else [],
        "default_steps": config.score.steps,
        "default_guidance": blueprint.guidance,
    }
    known = model if isinstance(model, ModelMixin) else OwnModule(model, spec)
    vae = None if blueprint.autoencoder is None else autoencoder_file.load(blueprint.autoencoder)
    return pipeline.assemble(spec, known, blueprint.process.contract(), defaults, vae)


def in_space(config: Config, described: Described) -> Config:
    """A run's configuration for the model as it lies there: whole, with the autoencoder beside it."""
    place = "" if described.autoencoder is None else str(described.autoencoder)
    # An adapter is in its weights already.
    model = replace(config.model, autoencoder=place, pretrained="", pretrained_sha256="")
    return replace(config, model=model, adapter=type(config.adapter)())


def autoencoder_of(run: RunDir, config: Config) -> str:
    """The folder of the autoencoder that lies with a run's models; "" where they work in pixels. Raises: ConfigError where it is gone."""
    found = sorted(run.model.glob("vae")) + sorted(run.model.glob("*/vae"))
    if config.model.autoencoder and not found:
        raise ConfigError(str(run.model), None, "the autoencoder of its latents, vae/, is gone")
    return str(found[0]) if found else ""


def class_names(run: RunDir) -> list[str]:
    """The names of the classes of the run's images, by label."""
    names = strict_json.read_table(run.partition).get("class_names")
    if not isinstance(names, list):
        raise ConfigError(str(run.partition), None, "does not name the classes")
    return [str(name) for name in names]


def draw(
    run: RunDir,
    count: int,
    label: str | int | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    seed: int = 0,
    client: str | None = None,
    quiet: bool = True,
) -> tuple[np.ndarray, list[int] | None]:
    """Images of a run's model, uint8 [count, H, W, C], and their labels; None where the model is not told any.

    Args:
        label: class name or number; None takes all classes in turn.
        steps: sampler steps; None takes the pipeline's own.
        guidance: classifier-free guidance scale, 1 is off; None takes that of the scores.
        seed: of the noise; image i is the same whatever `count` is.
        client: whose model, where clients have their own; "mixture" draws from all of them, by their number of images.
        quiet: show no bar, which is else shown on a terminal.
    Raises: ConfigError for a label or client that there is none of, for images that are not finite, and as `load`.
    """
    if client == MIXTURE and not is_model(run.model) and not is_model(run.model / MIXTURE):
        return _draw_mixture(run, count, label, steps, guidance, seed, quiet)
    pipe = load(run, client)
    names = class_names(run) if getattr(pipe, "num_classes", 0) else []
    labels = _labels(label, names, count)
    return _drawn(run, pipe, labels, range(count), steps, guidance, seed, quiet), labels


def _draw_mixture(
    run: RunDir,
    count: int,
    label: str | int | None,
    steps: int | None,
    guidance: float | None,
    seed: int,
    quiet: bool,
) -> tuple[np.ndarray, list[int] | None]:
    """As `draw`, from all clients' models as one: of each by its number of images, in its own class mix.

    Of one class, by the clients' images of it. Sorted by client, so an image hangs on `count`.
    """
    clients = sorted(p.name for p in run.model.glob("*") if is_model(p))
    held = strict_json.read_table(run.partition)
    try:
        rows = [held["clients"].index(name) for name in clients]
        sizes = np.array([int(held["sizes"][row]) for row in rows])
        first = load(run, clients[0])
        names = class_names(run) if getattr(first, "num_classes", 0) else []
        counts = np.array([[int(n) for n in held["counts"][row]] for row in rows]) if names else None
    except (KeyError, IndexError, TypeError, ValueError):
        rule = "does not say who holds how many images"
        raise ConfigError(str(run.partition), None, rule) from None
    asked = None if label is None else _labels(label, names, 1)
    shares = sizes if asked is None or counts is None else counts[:, asked[0]]
    if not shares.sum():
        raise ConfigError("--label", label, "is held by no client")
    numbers = np.bincount(apportion(shares, count), minlength=len(clients))
    images: list[np.ndarray] = []
    labels: list[int] = []
    for k, name in enumerate(clients):
        if not numbers[k]:
            continue
        own = None
        if counts is not None:
            own = asked * int(numbers[k]) if asked else apportion(counts[k], int(numbers[k])).tolist()
            labels += own
        places = range(int(numbers[:k].sum()), int(numbers[: k + 1].sum()))
        images.append(_drawn(run, load(run, name), own, places, steps, guidance, seed, quiet))
    return np.concatenate(images), labels if counts is not None else None


def _drawn(
    run: RunDir,
    pipe: Any,
    labels: list[int] | None,
    places: range,
    steps: int | None,
    guidance: float | None,
    seed: int,
    quiet: bool,
) -> np.ndarray:
    """Images of one pipeline, uint8 [n, H, W, C], with the noise of these places in the pool; the others as of `draw`."""
    if guidance is not None and not getattr(pipe, "num_classes", 0):
        raise ConfigError("--guidance", guidance, "needs a conditional model")
    # None: shown where stderr is a terminal.
    pipe.set_progress_bar_config(disable=True if quiet else None, desc="drawing", leave=False)
    generators = [
        torch.Generator().manual_seed(int(np.random.SeedSequence([seed, i]).generate_state(1)[0]))
        for i in places
    ]
    options: dict[str, Any] = {"num_inference_steps": steps} if steps is not None else {}
    if hasattr(pipe, "num_classes"):  # of our own class, which knows more than a stock one
        options |= {"class_labels": labels} | ({"guidance_scale": guidance} if guidance is not None else {})
    images = np.asarray(
        pipe(batch_size=len(places), generator=generators, output_type="np", **options).images
    )
    if not np.isfinite(images).all():
        rule = "the model draws values that are not finite: no images can be made of them"
        raise ConfigError(str(run.path), None, rule)
    pixels = np.round(images * 255).astype(np.uint8)
    return pixels[..., None] if pixels.ndim == 3 else pixels


class OwnModule(nn.Module):
    """An own network with the little that pipelines ask of a diffusers model."""

    def __init__(self, model: nn.Module, spec: NetworkSpec) -> None:
        super().__init__()
        self.model = model
        self.config = SimpleNamespace(
            sample_size=spec.image_size,
            in_channels=spec.channels,
            num_class_embeds=spec.num_classes + 1 if spec.num_classes else None,
        )

    @property
    def dtype(self) -> torch.dtype:
        """That of its weights."""
        return next(self.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """That of its weights."""
        return next(self.parameters()).device

    def forward(self, *arguments: Any, **named: Any) -> Any:
        return self.model(*arguments, **named)


def _labels(label: str | int | None, names: list[str], count: int) -> list[int] | None:
    if not names:
        if label is not None:
            raise ConfigError("--label", label, "needs a conditional model")
        return None
    if label is None:
        return [i % len(names) for i in range(count)]
    text = str(label)
    if text in names:
        return [names.index(text)] * count
    if text.isdigit() and int(text) < len(names):
        return [int(text)] * count
    raise ConfigError("--label", label, "must be one of " + ", ".join(names), keys.nearest(text, names))


def _described(folder: Path) -> Described:
    if (folder / INDEX[0]).is_file():
        found = strict_json.read_table(folder / "unet" / "config.json")
        rows = found.get("num_class_embeds") or 1  # the last row is "no class"
        numbers = (
            found.get("sample_size"),
            found.get("in_channels"),
            rows - 1 if type(rows) is int else None,
        )
        weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    else:
        found = strict_json.read_table(folder / INDEX[1])
        if found.get("_class_name") == "AutoencoderKL":
            raise ConfigError(str(folder), None, "holds an autoencoder, which draws no images by itself")
        numbers = (found.get("image_size"), found.get("channels"), found.get("num_classes"))
        weights = folder / "weights.safetensors"
    size, channels, classes = (number if type(number) is int else -1 for number in numbers)
    vae = folder / "vae"
    if vae.is_dir():
        own = autoencoder_file.describe(vae)
        if channels != own.latent_channels:
            raise ConfigError(
                str(folder), None, "holds a network and an autoencoder that do not fit each other"
            )
        size, channels = size * own.factor, own.channels
    elif channels not in (1, 3) and channels > 0:
        rule = f"its network works in latents of {channels} channels, and their autoencoder, vae/, is gone"
        raise ConfigError(str(folder), None, rule)
    if not (0 < size <= MOST_SIDE and channels in (1, 3) and classes >= 0):
        raise ConfigError(str(folder), None, "does not describe a network: sides, channels, classes")
    return Described(size, channels, classes, weights, vae if vae.is_dir() else None)
