"""What a site lets happen, whatever the hub asks: checked at the site, for every task, before its images are read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from osmotic import pieces
from osmotic.config.keys import key
from osmotic.config.schema import Config
from osmotic.federation import feature_sums
from osmotic.methods import METHODS
from osmotic.protocol.participation import asked


@dataclass(frozen=True, kw_only=True)
class Policy:
    """The section [policy] of a site's file. An empty list allows all that osmotic has."""

    methods: tuple[str, ...] = key((), "exchanges that are allowed; [] allows all")
    pieces: tuple[str, ...] = key((), "pieces of the learning rule that are allowed; [] allows all")
    codecs: tuple[str, ...] = key((), "codecs that are allowed; [] allows all")
    least_clients: int = key(
        2, "clients asked in a round, at least: the mean of fewer tells more of each", 1, 1_000_000
    )
    own_model: bool = key(
        False, "a model trained on this site's images alone may leave it; it can be made to repeat them"
    )
    synthetic_images: bool = key(False, "images drawn from this site's own model may leave it")
    encoders: tuple[str, ...] = key(
        (),
        "hashes of feature networks whose sums over this site's images may leave, for scores; osmotic encoder tells the hash",
    )
    kernel_distances: bool = key(
        False,
        "KID of this site's images to features that the hub names may leave, too; a hub that asks often enough learns features of single images",
    )
    most_passes: float = key(
        100.0,
        "passes over the images in one task, at most: time, and many make a change like a model of one's own",
        0,
    )
    largest_side: int = key(256, "side in pixels that the images may be asked for", 1, 1024)
    most_megabytes: float = key(0.0, "bytes that leave in one answer, at most, in MB; 0 sets no bound", 0)
    most_state_gigabytes: float = key(
        20.0, "private states of all runs together, at most, in GB: a hub must not fill this site's disk", 0
    )

    def objection(self, config: Config, header: Mapping[str, Any]) -> str | None:
        """Why a task of such a run is not done here; None if it may be. Names the key of the policy, and nothing else of the site.

        Args:
            config: the run's, as the hub sent it.
            header: of the task's packet; of a question before the run, that of a round's task.
        """
        action, method = header.get("action"), METHODS[config.method.name]
        chain = pieces.make(config).pieces
        for rule, allowed, found in (
            ("methods", self.methods, [config.method.name]),
            ("pieces", self.pieces, list(chain)),
            ("codecs", self.codecs, [config.codec.up, config.codec.down]),
        ):
            if allowed and (refused := [name for name in found if name not in allowed]):
                return f"policy.{rule} does not allow {', '.join(dict.fromkeys(refused))}"
        passes = header.get("local_epochs", config.training.local_epochs)
        passes = config.training.local_epochs if passes is None else passes
        if isinstance(passes, bool) or not isinstance(passes, int | float) or not passes <= self.most_passes:
            return f"policy.most_passes = {self.most_passes:g}: this task asks for more"
        if config.data.image_size > self.largest_side:
            return f"policy.largest_side = {self.largest_side}: this run asks for {config.data.image_size} pixels"
        count = asked(config.training.fraction_train, config.data.clients)
        if count < self.least_clients:
            return f"policy.least_clients asks for {self.least_clients} clients in a round, and this run has {count}"
        if action in (feature_sums.ACTION, feature_sums.DISTANCE) and _encoder(header) not in self.encoders:
            return "policy.encoders does not have the feature network of these scores"
        if action == feature_sums.DISTANCE and not self.kernel_distances:
            return "policy.kernel_distances does not let KID of this site's images leave"
        made = chain.values()
        if not self.own_model and (action == "model" or any(piece.holds_models for piece in made)):
            return "policy.own_model does not let a model of this site's own leave"
        # Whatever the exchange is called, parts that it leaves at the sites are this site's own.
        shared = {*method.shared, *(("encoder",) if config.method.options.get("encoder_every") else ())}
        returns = header.get("returns") or ()
        if not self.own_model and not (
            isinstance(returns, list | tuple) and shared.issuperset(map(str, returns))
        ):
            return "policy.own_model does not let parts leave that the exchange does not share"
        if not self.synthetic_images and (action == "sample" or any(piece.draws_at_sites for piece in made)):
            return "policy.synthetic_images does not let images drawn from this site's own model leave"
        return None

    @staticmethod
    def too_few(images: int, width: int) -> str | None:
        """Why sums over so few images do not leave; None if they may.

        With fewer images than features, sums of products show in which directions the images lie, which is close to them.
        """
        need = feature_sums.least(width)
        return f"has {images} images, and sums of {width} features need {need}" if images < need else None

    def too_large(self, num_bytes: int) -> str | None:
        """Why an answer of so many bytes does not leave; None if it may."""
        if self.most_megabytes and num_bytes > self.most_megabytes * 1e6:
            return f"policy.most_megabytes = {self.most_megabytes:g}: the answer has {num_bytes / 1e6:.2f} MB"
        return None

    def too_full(self, num_bytes: int) -> str | None:
        """Why no task is done while private states take so many bytes; None if one may be."""
        if num_bytes > self.most_state_gigabytes * 1e9:
            return f"policy.most_state_gigabytes = {self.most_state_gigabytes:g}: private states of all runs fill it"
        return None


def _encoder(header: Mapping[str, Any]) -> Any:
    control = header.get("control")
    return control.get("encoder") if isinstance(control, Mapping) else None
