"""Presets and recipes: named sets of configuration keys, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A named set of choices; `exchanges` says in a few words what travels, `paper` is an arXiv id or ''."""

    keys: Mapping[str, Any] = field(default_factory=dict)
    exchanges: str = ""
    paper: str = ""


PRESETS: dict[str, Preset] = {
    "fedavg": Preset(
        keys={"method.name": "fedavg"},
        exchanges="all weights down, all changes up, every round",
        paper="1602.05629",
    ),
    "usplit": Preset(
        keys={"method.name": "usplit"},
        exchanges="all weights down, changes of one or two parts of the network up, by lot",
        paper="2406.12575",
    ),
    "ulatdec": Preset(
        keys={"method.name": "ulatdec"},
        exchanges="bottleneck and decoder both ways; the encoder stays on its client",
        paper="2406.12575",
    ),
    "udec": Preset(
        keys={"method.name": "udec"},
        exchanges="the decoder both ways; encoder and bottleneck stay on their client",
        paper="2406.12575",
    ),
    "feddiffuse-full": Preset(
        keys={"method.name": "fedavg", "recipe.name": "feddiffuse"},
        exchanges="as fedavg, with the network and recipe of FedDiffuse",
        paper="2406.12575",
    ),
    "feddiffuse-usplit": Preset(
        keys={"method.name": "usplit", "recipe.name": "feddiffuse"},
        exchanges="as usplit, with the network and recipe of FedDiffuse",
        paper="2406.12575",
    ),
    "feddiffuse-ulatdec": Preset(
        keys={"method.name": "ulatdec", "recipe.name": "feddiffuse"},
        exchanges="as ulatdec, with the network and recipe of FedDiffuse",
        paper="2406.12575",
    ),
    "feddiffuse-udec": Preset(
        keys={"method.name": "udec", "recipe.name": "feddiffuse"},
        exchanges="as udec, with the network and recipe of FedDiffuse",
        paper="2406.12575",
    ),
    "fedprox": Preset(
        keys={"method.name": "fedavg", "local.pieces": ("prox",)},
        exchanges="as fedavg; clients are pulled towards the weights of the round",
        paper="1812.06127",
    ),
    "scaffold": Preset(
        keys={"method.name": "fedavg", "local.pieces": ("scaffold",)},
        exchanges="as fedavg, and a control variate for every weight both ways",
        paper="1910.06378",
    ),
    "fedavgm": Preset(
        keys={"method.name": "fedavg", "server.pieces": ("momentum",)},
        exchanges="as fedavg; the server has momentum",
        paper="1909.06335",
    ),
    "fednesterov": Preset(
        keys={"method.name": "fedavg", "server.pieces": ("nesterov",)},
        exchanges="as fedavg; the server has Nesterov momentum",
        paper="2311.08105",
    ),
    "fedadam": Preset(
        keys={"method.name": "fedavg", "server.pieces": ("adam",)},
        exchanges="as fedavg; the server's optimiser is Adam",
        paper="2003.00295",
    ),
    "fedyogi": Preset(
        keys={"method.name": "fedavg", "server.pieces": ("yogi",)},
        exchanges="as fedavg; the server's optimiser is Yogi",
        paper="2003.00295",
    ),
    "fedadagrad": Preset(
        keys={"method.name": "fedavg", "server.pieces": ("adagrad",)},
        exchanges="as fedavg; the server's optimiser is Adagrad",
        paper="2003.00295",
    ),
    "central": Preset(
        keys={"method.name": "central"},
        exchanges="nothing: one trainer holds all images (upper baseline)",
    ),
    "local": Preset(
        keys={"method.name": "local"},
        exchanges="nothing: every client trains alone (lower baseline)",
    ),
}

# Keys a recipe sets beneath preset, file and --set. One recipe serves all methods, so that a comparison compares methods.
RECIPES: dict[str, Mapping[str, Any]] = {
    "default": {},
    # arXiv:2406.12575 and its code. The sampler is not part of it: 1000 ancestral steps are two keys away, under [score].
    "feddiffuse": {
        "model.network": "convnext-unet",
        "model.conditional": False,
        "model.target": "epsilon",
        "model.schedule": "linear",
        "recipe.loss": "huber",
        "recipe.min_snr": 0.0,
        "recipe.ema_half_lives": (),
        "training.batch_size": 128,
        "training.optimizer": "adam",
        "training.learning_rate": 1e-4,
        "training.grad_clip": 0.0,
    },
}
