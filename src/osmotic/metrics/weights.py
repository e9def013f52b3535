"""Where encoders lie on disk: the files of pretrained ones. Imports no torch."""

from __future__ import annotations

import os
from pathlib import Path

from osmotic.config.keys import nearest
from osmotic.errors import ConfigError
from osmotic.storage.cache import cache_folder

INCEPTION_FILE = "inception-v3.safetensors"
DINOV2_FOLDER = "dinov2"
NAMES = ("classifier", "inception-v3", "dinov2")
PREFIX = "file:"  # before the path of one that `osmotic encoder` made

# The published file is a pickle, which osmotic never loads: the user converts it once, and is told how to the
# letter.
_CONVERT = (
    'python -c "import torch; from safetensors.torch import save_file; '
    "save_file({k: v.contiguous() for k, v in torch.load('pt_inception-2015-12-05-6726825d.pth', "
    f"weights_only=True).items()}}, '{INCEPTION_FILE}')\""
)
_HOW = {
    "inception-v3": (
        "get pt_inception-2015-12-05-6726825d.pth from "
        "https://github.com/mseitzer/pytorch-fid/releases/tag/fid_weights and convert it once with: "
        + _CONVERT
    ),
    "dinov2": (
        "put config.json and model.safetensors of a DINOv2 model in the layout of `transformers` there, "
        "e.g. dinov2-large of https://github.com/facebookresearch/dinov2"
    ),
}
_FILES = {
    "inception-v3": (INCEPTION_FILE,),
    "dinov2": (f"{DINOV2_FOLDER}/config.json", f"{DINOV2_FOLDER}/model.safetensors"),
}


def weights_folder() -> Path:
    """$OSMOTIC_WEIGHTS, else `weights` in the cache folder; it need not exist."""
    own = os.environ.get("OSMOTIC_WEIGHTS")
    return Path(own).expanduser() if own else cache_folder() / "weights"


def check_name(name: str) -> None:
    """Raises ConfigError for what is no encoder's name; its files need not be there."""
    if name not in NAMES and not name.startswith(PREFIX):
        rule = f"must be one of {', '.join(NAMES)}, or {PREFIX}PATH"
        raise ConfigError("score.encoder", name, rule, nearest(name, NAMES))


def require(name: str) -> list[Path]:
    """The files of a pretrained encoder, all of them there; nothing is read.

    Args:
        name: "inception-v3", "dinov2" or "file:PATH" ("classifier" needs no file and gives an empty list).
    Returns: their paths, in the order in which they are read.
    Raises: ConfigError that says which file is missing, where it belongs and where it comes from, or that there is no
        encoder of this name.
    """
    check_name(name)
    if name.startswith(PREFIX):
        if not (path := Path(name.removeprefix(PREFIX))).is_file():
            raise ConfigError("score.encoder", name, "names no file: osmotic encoder makes one")
        return [path]
    paths = [weights_folder() / part for part in _FILES.get(name, ())]
    for path in paths:
        if not path.is_file():
            raise ConfigError("score.encoder", name, f"needs the file {path}; {_HOW[name]}")
    return paths
