"""Presets and recipes: named sets of configuration keys, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A named set of choices. `exchanges` (what travels, in a few words) and `paper` (arXiv id) are those of its exchange and pieces if empty.

    `needs` is a key that it cannot know, and that must be given.
    """

    keys: Mapping[str, Any] = field(default_factory=dict)
    exchanges: str = ""
    paper: str = ""
    needs: str = ""


PRESETS: dict[str, Preset] = {
    "fedavg": Preset(keys={"method.name": "fedavg"}),
    "usplit": Preset(keys={"method.name": "usplit"}),
    "ulatdec": Preset(keys={"method.name": "ulatdec"}),
    "udec": Preset(keys={"method.name": "udec"}),
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
    "feddm-vanilla": Preset(keys={"method.name": "fedavg"}, exchanges="as fedavg", paper="2407.14730"),
    "feddm-prox": Preset(
        keys={"method.name": "fedavg", "local.pieces": ("prox",)},
        exchanges="as fedprox",
        paper="2407.14730",
    ),
    "feddm-quant": Preset(
        keys={"method.name": "fedavg", "codec.up": "int8"},
        exchanges="as fedavg, changes up in 8 bits",
        paper="2407.14730",
    ),
    "feddm-learned": Preset(
        keys={
            "method.name": "fedavg",
            "codec.up": "learned",
            "codec.down": "learned",
            "codec.error_feedback": True,
        },
        exchanges="as fedavg, changes as codes of a learned network, both ways",
        paper="2407.14730",
    ),
    "feddm-personal": Preset(
        keys={"method.name": "fedavg", "after.pieces": ("personalise",)},
        exchanges="as fedavg; after the rounds every client fine-tunes a model of its own",
        paper="2407.14730",
    ),
    "feddm": Preset(
        keys={
            "method.name": "fedavg",
            "codec.up": "learned",
            "codec.down": "learned",
            "codec.error_feedback": True,
            "after.pieces": ("personalise",),
        },
        exchanges="as feddm-learned and feddm-personal together",
        paper="2407.14730",
    ),
    "feddm-latent": Preset(
        keys={"method.name": "fedavg"},
        exchanges="as fedavg, with a network that works in an autoencoder's latents",
        paper="2407.14730",
        needs="model.autoencoder",
    ),
    "autoencoder": Preset(
        keys={"method.name": "fedavg", "model.network": "autoencoder", "score.every": 0},
        exchanges="as fedavg; what is trained is the autoencoder of latent models",
        paper="2112.10752",
    ),
    "fedprox": Preset(keys={"method.name": "fedavg", "local.pieces": ("prox",)}),
    "scaffold": Preset(keys={"method.name": "fedavg", "local.pieces": ("scaffold",)}),
    "fedavgm": Preset(keys={"method.name": "fedavg", "server.pieces": ("momentum",)}),
    "fednesterov": Preset(keys={"method.name": "fedavg", "server.pieces": ("nesterov",)}),
    "fedadam": Preset(keys={"method.name": "fedavg", "server.pieces": ("adam",)}),
    "fedyogi": Preset(keys={"method.name": "fedavg", "server.pieces": ("yogi",)}),
    "fedadagrad": Preset(keys={"method.name": "fedavg", "server.pieces": ("adagrad",)}),
    "fedddpm": Preset(
        keys={"method.name": "fedavg", "server.pieces": ("correction",)},
        exchanges="as fedavg; before the rounds sites send images that models of their own draw, and the server trains on them after every average",
    ),
    "fedddpm+": Preset(
        keys={
            "method.name": "fedavg",
            "server.pieces": ("correction",),
            "server.correction.when": "slow",
            "server.correction.passes": 4.0,
        },
        exchanges="as fedddpm; the server trains only when learning has become slow",
    ),
    "fedddpm-upload": Preset(
        keys={
            "method.name": "fedavg",
            "server.pieces": ("correction",),
            "server.correction.images": "upload",
        },
        exchanges="as fedddpm, with the sites' own models uploaded, as in the paper, instead of images",
    ),
    "oneshot": Preset(
        keys={"method.name": "oneshot", "server.pieces": ("correction",)},
        exchanges="once, images that models of the sites' own draw; one model learns from them on the server",
    ),
    "central": Preset(keys={"method.name": "central"}),
    "local": Preset(keys={"method.name": "local"}),
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
