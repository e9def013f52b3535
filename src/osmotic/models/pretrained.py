"""Weights that a run starts from in the place of drawn ones: those of a pipeline folder, or of one that the hub has."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from osmotic.errors import ConfigError
from osmotic.models import weights_file

KEY = "model.pretrained"
FILE = "diffusion_pytorch_model.safetensors"
OWN = "weights.safetensors"  # of a network that diffusers does not know


def sha256_of(place: str) -> str:
    """The hash of the weights there, whatever network they are of. Raises: ConfigError as `read`."""
    return sha256(_load(place))


def read(place: str, layout: Mapping[str, tuple[int, ...]], agreed: str = "") -> dict[str, np.ndarray]:
    """The weights there, name -> float32 [...], if they are of this layout.

    Args:
        place: a pipeline folder (with `unet/`), a folder of one network, or a name on the Hugging Face hub.
        agreed: the hash that they must have; "" for any.
    Raises: ConfigError in one line for what holds no weights, those of another network, or others than those agreed on.
    """
    found = _load(place)
    if odd := sorted(found.keys() ^ layout.keys()):
        whose = "has no" if odd[0] in layout else "has besides"
        raise ConfigError(KEY, place, f"is another network: it {whose} {odd[0]} ({len(odd)} differ)")
    for name, shape in layout.items():
        if found[name].shape != tuple(shape):
            rule = f"is another network: {name} is {list(found[name].shape)} there, and {list(shape)} here"
            raise ConfigError(KEY, place, rule)
    if agreed and (here := sha256(found)) != agreed:
        raise ConfigError(KEY, place, f"has the hash {here}, and what was agreed on {agreed}")
    return {name: np.ascontiguousarray(found[name]) for name in sorted(layout)}


def on_hub(place: str) -> bool:
    """Whether it is a name on the hub, and no folder here. Raises: ConfigError for what is neither."""
    folder = Path(place).expanduser()
    if "\0" not in place and folder.is_dir():
        return False
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", place) or folder.is_absolute():
        raise ConfigError(KEY, place, "is no folder, and no name on a hub, ORGANISATION/NAME")
    return True


def sha256(weights: Mapping[str, np.ndarray]) -> str:
    """Hash of weights, name -> float32 [...], 64 hexadecimal digits: what everybody who takes part agrees on."""
    total = hashlib.sha256()
    for name in sorted(weights):
        total.update(f"{name} {weights[name].shape}".encode())
        total.update(np.ascontiguousarray(weights[name], "<f4").data)
    return total.hexdigest()


def _load(place: str) -> dict[str, np.ndarray]:
    try:
        return weights_file.read(_file(place))
    except ValueError as error:
        raise ConfigError(KEY, place, str(error)) from None


def _file(place: str) -> Path:
    folder = _downloaded(place) if on_hub(place) else Path(place).expanduser()
    for file in (folder / "unet" / FILE, folder / FILE, folder / OWN):
        if file.is_file():
            return file
    raise ConfigError(KEY, place, f"holds no {FILE}, neither itself nor in unet/, and no {OWN}")


def _downloaded(name: str) -> Path:
    try:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(name, allow_patterns=[f"unet/{FILE}", FILE]))
    except Exception as error:  # no network, no such name, no access: the library has a class for each
        told = str(error).partition("\n")[0]
        raise ConfigError(KEY, name, f"is no folder, and cannot be had from the hub ({told})") from None
