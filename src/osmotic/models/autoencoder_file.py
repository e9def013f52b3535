"""An autoencoder from a folder of diffusers, read as data: numbers and weights, no code of the folder's."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from osmotic.errors import ConfigError
from osmotic.models import weights_file
from osmotic.storage import strict_json

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

CONFIG, WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"
KEY = "model.autoencoder"
# What the form of `AutoencoderKL` follows from; anything else in the file is not looked at.
NUMBERS = ("in_channels", "out_channels", "layers_per_block", "latent_channels", "norm_num_groups")
FLAGS = ("mid_block_add_attention", "use_quant_conv", "use_post_quant_conv")
BLOCKS = ("DownEncoderBlock2D", "UpDecoderBlock2D")
MOST_LEVELS, MOST_WIDTH, MOST_LAYERS = 8, 4096, 16


@dataclass(frozen=True)
class Described:
    """What a folder says of its autoencoder, and what of it everybody must agree on.

    Args:
        folder: where it lies.
        form: arguments of `AutoencoderKL`.
        channels: of images, 1 or 3.
        latent_channels: of latents.
        factor: by which a side is divided.
        scale: by which latents are multiplied to have a standard deviation near 1.
        sha256: of form, factor and weights, 64 hexadecimal digits.
        parameters: its weights.
    """

    folder: Path
    form: dict[str, Any]
    channels: int
    latent_channels: int
    factor: int
    scale: float
    sha256: str
    parameters: int

    def latent_shape(self, image_size: int) -> tuple[int, int, int]:
        """Lengths C, H, W of the latents of an image of this side. Raises: ConfigError for a side that it cannot take."""
        if image_size % self.factor:
            rule = f"must be a multiple of {self.factor} pixels for this autoencoder"
            raise ConfigError("data.image_size", image_size, rule)
        side = image_size // self.factor
        return self.latent_channels, side, side


def describe(folder: Path | str) -> Described:
    """An autoencoder's form, from its folder. Raises: ConfigError, in one line, for a folder that is none."""
    folder = Path(folder).expanduser()
    folder = folder if "\0" in str(folder) else folder.resolve()
    if "\0" in str(folder) or not (folder / CONFIG).is_file():
        raise ConfigError(
            KEY, str(folder), f"holds no {CONFIG} of an AutoencoderKL: osmotic autoencoder makes one"
        )
    table = strict_json.read_table(folder / CONFIG)
    if table.get("_class_name", "AutoencoderKL") != "AutoencoderKL":
        raise ConfigError(KEY, str(folder), "is not an AutoencoderKL")
    form: dict[str, Any] = {}
    for name in NUMBERS:
        most = MOST_LAYERS if name == "layers_per_block" else MOST_WIDTH
        form[name] = _number(folder, name, table.get(name), most)
    for name in FLAGS:
        if type(value := table.get(name, True)) is not bool:
            raise ConfigError(KEY, str(folder), f"{name} must be true or false")
        form[name] = value
    widths = table.get("block_out_channels")
    if not isinstance(widths, list) or not 0 < len(widths) <= MOST_LEVELS:
        raise ConfigError(KEY, str(folder), f"block_out_channels must be 1 to {MOST_LEVELS} numbers")
    form["block_out_channels"] = tuple(_number(folder, "block_out_channels", w, MOST_WIDTH) for w in widths)
    for name, block in zip(("down_block_types", "up_block_types"), BLOCKS, strict=True):
        if table.get(name) != [block] * len(widths):
            raise ConfigError(KEY, str(folder), f"{name} must be {len(widths)} times {block}")
        form[name] = (block,) * len(widths)
    if form["in_channels"] != form["out_channels"] or form["in_channels"] not in (1, 3):
        raise ConfigError(KEY, str(folder), "must take and give images of 1 or of 3 channels")
    if any(width % form["norm_num_groups"] for width in form["block_out_channels"]):
        raise ConfigError(KEY, str(folder), "norm_num_groups must divide all of block_out_channels")
    if table.get("shift_factor") or table.get("latents_mean"):
        raise ConfigError(KEY, str(folder), "shifts its latents, which is not known here")
    if table.get("act_fn", "silu") != "silu":
        raise ConfigError(KEY, str(folder), "act_fn must be silu")
    # What diffusers takes where the file says nothing.
    scale = table.get("scaling_factor", 0.18215)
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not 1e-6 < scale < 1e6:
        raise ConfigError(KEY, str(folder), "scaling_factor must be a number above 0")
    form["scaling_factor"] = float(scale)
    known = repr(sorted(form.items())).encode()
    digest = hashlib.sha256(known)
    held = _weights(folder)
    factor = 2 ** (len(widths) - 1)
    _try(folder, _filled(folder, form, held), 2 * factor)
    for name, weight in sorted(held.items()):
        digest.update(f"{name} {weight.shape}".encode())
        digest.update(np.ascontiguousarray(weight, "<f4").data)
    return Described(
        folder,
        form,
        form["in_channels"],
        form["latent_channels"],
        factor,
        float(scale),
        digest.hexdigest(),
        sum(weight.size for weight in held.values()),
    )


def load(described: Described) -> AutoencoderKL:
    """The autoencoder in evaluation mode, nothing of it to be trained. Raises: ConfigError for weights of another form."""
    return _filled(described.folder, described.form, _weights(described.folder))


def _filled(folder: Path, form: dict[str, Any], held: dict[str, np.ndarray]) -> AutoencoderKL:
    """An autoencoder of this form, and these weights in it. Raises: ConfigError for weights of another form."""
    import torch
    from diffusers import AutoencoderKL

    with torch.device("meta"):  # without memory for weights of its own
        model = AutoencoderKL(**form)
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if {name: weight.shape for name, weight in held.items()} != wanted:
        raise ConfigError(KEY, str(folder), f"{WEIGHTS} does not hold the weights that {CONFIG} tells of")
    model.load_state_dict({name: torch.from_numpy(weight) for name, weight in held.items()}, assign=True)
    return model.eval().requires_grad_(False)


def _try(folder: Path, model: AutoencoderKL, side: int) -> None:
    """Raises ConfigError for one that a plain image drives out of all bounds: its clients would each find out for themselves."""
    import torch

    with torch.no_grad():
        latents = model.encode(
            torch.linspace(-1, 1, side).expand(1, model.config["in_channels"], side, side)
        ).latent_dist
        if not all(t.isfinite().all() for t in (latents.mean, model.decode(latents.mean).sample)):
            raise ConfigError(KEY, str(folder), "gives values that are no finite numbers for a plain image")


def _weights(folder: Path) -> dict[str, np.ndarray]:
    try:
        return weights_file.read(folder / WEIGHTS)
    except ValueError as error:
        raise ConfigError(KEY, str(folder), str(error)) from None


def _number(folder: Path, name: str, value: Any, most: int) -> int:
    if type(value) is not int or not 0 < value <= most:
        raise ConfigError(KEY, str(folder), f"{name} must be a whole number from 1 to {most}")
    return value
