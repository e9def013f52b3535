"""A site's own side of a task: what it allows, its images, its private state. All that comes from the hub is data.

Flower starts a process for every message, so nothing here outlives one.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from osmotic import methods, pieces, seeds
from osmotic.codecs import described
from osmotic.codecs.base import BadPacket
from osmotic.config.schema import FREE, Config, flatten, to_dict
from osmotic.data import partition, sources
from osmotic.data.dataset import Dataset, Split
from osmotic.errors import ConfigError, plain
from osmotic.federation import feature_sums
from osmotic.federation.blueprint import Blueprint
from osmotic.federation.client import Site, Worker
from osmotic.federation.feature_sums import Sums
from osmotic.federation.own_models import GIVE, KEEP
from osmotic.metrics import encoder as encoders
from osmotic.metrics.kid import kernel_distance
from osmotic.metrics.weights import PREFIX
from osmotic.models import autoencoder_file, pretrained
from osmotic.pieces import Chain
from osmotic.protocol.messages import ADDRESS, Client, Packet, contract_hash
from osmotic.runs import resolve
from osmotic.runs.study import choose_device, is_conditional, set_aside
from osmotic.runs.summary import save_pipeline
from osmotic.sites.folder import SiteFolder
from osmotic.storage import strict_json
from osmotic.storage.atomic import write_text
from osmotic.storage.store import Store
from osmotic.training.images import Images

log = logging.getLogger("osmotic.site")

MAX_SPEC = 2**20  # characters
NO_AUTOENCODER = "has no autoencoder, and this run works in the latents of one"
# Keys that may change while a run goes on, or that are this site's own.
CHANGE = (
    *FREE,
    "training.rounds",
    "score.",
    "data.source",
    "data.max_images",
    "data.partition",
    "engine.device",
    # Where they lie; what they are is in the contract.
    "model.autoencoder",
    "model.pretrained",
)


class Declined(Exception):
    """This site does not take part in what it was asked for: one line that says why, and nothing of its images."""


@dataclass(frozen=True)
class Spec:
    """A run as the hub tells it to its sites: everything of it but images.

    Args:
        config: tables of the configuration.
        image: [side, channels]; None before the sites were asked.
        classes: names of the classes; None as `image`.
    """

    config: Mapping[str, Any]
    image: tuple[int, int] | None = None
    classes: tuple[str, ...] | None = None

    def text(self) -> str:
        """As it travels."""
        return json.dumps({"config": self.config, "image": self.image, "classes": self.classes})

    @classmethod
    def of(cls, text: str) -> Spec:
        """Raises: Declined for what is none."""
        try:
            found = json.loads(text) if len(text) <= MAX_SPEC else {}
            config, image, classes = found["config"], found["image"], found["classes"]
            fits = isinstance(config, dict) and (image is None) == (classes is None)
            if fits and image is not None:
                fits = [type(n) for n in image] == [int, int] and all(isinstance(c, str) for c in classes)
            if fits:
                return cls(
                    config,
                    None if image is None else tuple(image),
                    None if classes is None else tuple(classes),
                )
        except (ValueError, TypeError, KeyError, RecursionError):
            pass
        raise Declined("is told no run: hub and site may be of different versions")


class SiteDesk:
    """What a site does with a message of the hub's.

    Args:
        folder: the site's.
    """

    def __init__(self, folder: SiteFolder) -> None:
        self.folder, self.name = folder, folder.config.name

    def hello(self, spec_text: str) -> Packet:
        """Who this site is, how many images it would train on, and of what shape and classes; or why it does not take part."""
        told: dict[str, Any] = {"name": self.name, "version": metadata.version("osmotic")}
        try:
            config = self.configuration(Spec.of(spec_text))
            self._allow(config, {"action": "train"})
            dataset = self._dataset(config)
            rows, held_out = self._rows(config, dataset)
            holds_out = bool(config.data.holdout or len(dataset.test))
            scored = _aside(dataset, held_out, pieces.make(config))[1]
            latents, begun = self._autoencoder(config), self._pretrained(config)
        except Declined as error:
            log.warning("does not take part: %s", error)
            return Packet(told | {"declines": str(error)})
        except Exception as error:  # its text may name a path or hold a value of the site's own data
            log.warning("could not say who this site is", exc_info=True)
            return Packet(told | {"declines": f"cannot take part ({type(error).__name__})"})
        side, channels = dataset.train.images.shape[1], dataset.train.images.shape[3]
        return Packet(
            told
            | {
                "num_examples": len(rows),
                "held_out": len(scored) if holds_out else None,
                "image": [side, channels],
                "classes": list(dataset.class_names),
                "encoders": list(self.folder.config.policy.encoders),
                "kernel_distances": self.folder.config.policy.kernel_distances,
                "own_model": self.folder.config.policy.own_model,
                "synthetic_images": self.folder.config.policy.synthetic_images,
                "autoencoder": latents,
                "pretrained": begun,
                "torch": torch.__version__.partition("+")[0],
            }
        )

    def serve(self, spec_text: str, packet: Packet) -> Packet:
        """The answer to one task, or the site's word that it declines, as a failure `refused`."""
        try:
            return self._serve(Spec.of(spec_text), packet)
        except Declined as error:
            return self._failed(packet, "refused", str(error))
        except Exception as error:  # Flower would send its text, which may name a path or hold a value
            log.warning("could not do its task", exc_info=True)
            return self._failed(packet, "raised", type(error).__name__)

    def _failed(self, packet: Packet, kind: str, reason: str) -> Packet:
        address = {name: packet.header.get(name) for name in ADDRESS}
        return Packet({**address, "client": self.name, "failure": [kind, reason]})

    def _serve(self, spec: Spec, packet: Packet) -> Packet:
        config = self.configuration(spec)
        self._allow(config, packet.header)
        if spec.image is None or spec.classes is None:
            raise Declined("is told neither shape nor classes of the images")
        dataset = self._dataset(config)
        rows, held_out = self._rows(config, dataset)
        side, channels = spec.image
        if dataset.train.images.shape[1:] != (side, side, channels):
            raise Declined("has images of another shape than the run")
        conditional = is_conditional(config, len(spec.classes))
        labels = _renamed(dataset, spec.classes) if conditional else None
        blueprint = Blueprint.of(config, side, channels, len(spec.classes) if conditional else 0)
        if config.engine.threads > (os.cpu_count() or 1):
            raise Declined("has fewer processors than engine.threads asks for")
        torch.set_num_threads(config.engine.threads)
        device = choose_device(self.folder.config.device)
        if device.type == "cuda" and config.engine.deterministic:
            torch.use_deterministic_algorithms(True)
        if (reason := self.folder.config.policy.too_full(self.folder.states()[1])) is not None:
            log.warning("declined: %s; those of runs that are over may be deleted", reason)
            raise Declined(reason)
        try:
            state = self.folder.state(packet.header.get("run"))
        except ValueError as error:
            raise Declined(str(error)) from None
        self._hold_to(state.with_name(f"{state.name}.json"), config, spec.classes, dataset, rows)
        images = Images.of(
            blueprint.space.prepare(dataset.train.images),
            labels,
            device,
            blueprint.space,
            rows=rows,
            flip=config.data.flip,
        )
        watched = self._watched(spec, dataset, held_out, blueprint, device)
        site = Site(Client(0, self.name, len(rows)), images, Store(state), watched)
        worker = Worker(
            blueprint, blueprint.model(device), blueprint.initial(), contract_hash(blueprint.contract())
        )
        if packet.header.get("action") in (feature_sums.ACTION, feature_sums.DISTANCE):
            compared = (dataset.train, rows)
            control, distance = packet.header["control"], packet.header["action"] == feature_sums.DISTANCE
            if control.get(feature_sums.HELD_OUT) or (
                distance and (config.data.holdout or len(dataset.test))
            ):
                compared = _aside(dataset, held_out, blueprint.chain())[:2]
            answer = self._looked_at(spec, packet, dataset, compared, len(rows), conditional)
        else:
            answer = self._served(spec.classes, worker, site, packet)
        if (reason := self.folder.config.policy.too_large(answer.num_bytes)) is not None:
            raise Declined(reason)
        return answer

    def _served(self, classes: tuple[str, ...], worker: Worker, site: Site, packet: Packet) -> Packet:
        """The answer of a worker. Once a state has counted that is this site's own model, it stands here as a folder, whether it leaves or not.

        Raises: OSError as the file system gives it.
        """
        asked, own = packet.header.get("action"), worker.chain.personal or not worker.method.global_model
        if asked == KEEP:
            packet = Packet({**packet.header, "action": GIVE}, packet.blobs)
        answer = worker.serve(site, packet)
        if asked not in (GIVE, KEEP) or "failure" in answer.header:
            return answer
        if (
            own and packet.header["counted_round"] is not None
        ):  # else it never trained, and these are round 0's weights
            folder = self.folder.model(packet.header["run"])
            save_pipeline(worker.blueprint, classes, folder, dict(worker.network.copy()))
            told = _card(self.name, folder.name, worker.config, packet.header["counted_round"], asked == GIVE)
            write_text(folder / "README.md", told)
        # Told to keep it: of the model nothing goes back, and of what came with it neither.
        return Packet({**answer.header, "metrics": {}}) if asked == KEEP else answer

    def _watched(
        self, spec: Spec, dataset: Dataset, held_out: np.ndarray, blueprint: Blueprint, device: torch.device
    ) -> Images | None:
        """Images that this site holds out for what training watches: of its own test split, where it has one; None where there are none."""
        split, _, rows = _aside(dataset, held_out, blueprint.chain())
        if not len(rows):
            return None
        labels = _renamed(dataset, spec.classes or (), split) if blueprint.spec.num_classes else None
        return Images.of(blueprint.space.prepare(split.images), labels, device, blueprint.space, rows=rows)

    def _looked_at(
        self,
        spec: Spec,
        packet: Packet,
        dataset: Dataset,
        compared: tuple[Split, np.ndarray],
        num_examples: int,
        conditional: bool,
    ) -> Packet:
        """What this site's images are by the feature network whose hash the hub tells and the policy allows: sums, or KID to drawn ones.

        Args:
            compared: a split, and positions in it: those trained on, or those held out.
            num_examples: images that it trains on.
            conditional: whether the run's classes are told.
        """
        split, rows = compared
        labels = _renamed(dataset, spec.classes or (), split) if conditional else None
        features = self._features(spec, packet, dataset, split.images[rows])
        if (reason := self.folder.config.policy.too_few(*features.shape)) is not None:
            raise Declined(reason)
        told: Mapping[str, np.ndarray]
        if packet.header["action"] == feature_sums.DISTANCE:
            told = {
                feature_sums.KID: np.array([kernel_distance(features, _drawn(packet, features.shape[1]))])
            }
        else:
            sums = Sums.of(features, None if labels is None else labels[rows], len(spec.classes or ()))
            told = sums.tensors()
        address = {k: packet.header.get(k) for k in ADDRESS} | {"client": self.name}
        header = address | {"num_examples": num_examples, "metrics": {}}
        return Packet(header, (described.encode(told),))

    def _features(self, spec: Spec, packet: Packet, dataset: Dataset, images: np.ndarray) -> np.ndarray:
        """Features [N, D] of images [N, H, W, C] of this site."""
        score = spec.config.get("score")
        name = str(score.get("encoder") if isinstance(score, Mapping) else None)
        if name.startswith(PREFIX):
            name = f"{PREFIX}{self.folder.encoder}"
        try:
            if name == "classifier":
                raise ConfigError("score.encoder", name, "would be trained on this site's images alone")
            encoder = encoders.get(dataset, name, device=str(choose_device(self.folder.config.device)))
        except ConfigError as error:
            log.warning("no sums of features: %s", error)
            raise Declined("does not have the feature network of these scores") from None
        if encoder.sha256 != packet.header["control"]["encoder"]:
            raise Declined("has another feature network than these scores ask for")
        return encoder.features(images)

    def _hold_to(
        self, file: Path, config: Config, classes: tuple[str, ...], dataset: Dataset, rows: np.ndarray
    ) -> None:
        """Holds hub and site to what a run was when its first task came: what is private was kept under those rules.

        Args:
            file: where that is written down.
            rows: positions trained on, int64 [n].
        Raises: Declined for a task of another run under this run's id, or where this site's images are others now.
        """
        tables = {k: v for k, v in flatten(to_dict(config)).items() if not k.startswith(CHANGE)}
        images = hashlib.sha256(np.ascontiguousarray(dataset.train.images[rows]).data)
        if dataset.train.labels is not None:
            images.update(np.ascontiguousarray(dataset.train.labels[rows], "<i8").data)
        now = {
            "rules": hashlib.sha256(json.dumps([tables, classes], sort_keys=True).encode()).hexdigest(),
            "images": images.hexdigest(),
        }
        if not file.exists():
            write_text(file, strict_json.dumps(now) + "\n")
            return
        begun = strict_json.read_table(file)
        if begun.get("rules") != now["rules"]:
            raise Declined("is told other rules than those that this run began with here")
        if begun.get("images") != now["images"]:
            raise Declined("has other images than when this run began here")

    def configuration(self, spec: Spec) -> Config:
        """The run's configuration with this site's own images in the place of the hub's, held to every rule.

        Raises: Declined for one that cannot be here.
        """
        try:
            held = self.folder.autoencoder, self.folder.pretrained
            model, adapter = spec.config.get("model"), spec.config.get("adapter")
            if held[0] is None and isinstance(model, Mapping) and model.get("autoencoder"):
                raise Declined(NO_AUTOENCODER)
            if held[1] is None and isinstance(adapter, Mapping) and adapter.get("rank"):
                raise Declined("does not have the pretrained network that this run adapts")
            places = ("" if place is None else str(place) for place in held)
            config = resolve.received(spec.config, self.folder.config.data, *places)
            begins = isinstance(model, Mapping) and model.get("pretrained")
            if begins and held[1] is None and _begins_alone(config):
                raise Declined(
                    "does not have the pretrained weights, and this exchange does not send all of them"
                )
            return replace(config, engine=replace(config.engine, device=self.folder.config.device))
        except ConfigError as error:
            # A rule of the run's keys; one about this site's own images stays in its log.
            log.warning("declined: %s", error)
            # Which file of weights is missing, say, is the site's own business.
            private = error.key.startswith("data.source") or os.sep in error.rule
            raise Declined(
                f"cannot take part: {plain(error.key if private else f'{error.key}: {error.rule}')}"
            ) from None

    @staticmethod
    def _autoencoder(config: Config) -> str:
        """Hash of the autoencoder here; "" for a run in pixels. Raises: Declined for a folder that holds none."""
        if not config.model.autoencoder:
            return ""
        try:
            return autoencoder_file.describe(config.model.autoencoder).sha256
        except ConfigError as error:  # it names the folder
            log.warning("no autoencoder: %s", error)
            raise Declined("its autoencoder cannot be read") from None

    @staticmethod
    def _pretrained(config: Config) -> str:
        """Hash of the pretrained weights here; "" where there are none, or none are asked for. Raises: Declined for a folder that holds none."""
        if not config.model.pretrained:
            return ""
        try:
            return pretrained.sha256_of(config.model.pretrained)
        except ConfigError as error:  # it names the folder
            log.warning("no pretrained weights: %s", error)
            raise Declined("its pretrained weights cannot be read") from None

    def _allow(self, config: Config, header: Mapping[str, Any]) -> None:
        if (reason := self.folder.config.policy.objection(config, header)) is not None:
            raise Declined(reason)

    def _dataset(self, config: Config) -> Dataset:
        try:
            return sources.load(config.data, keep_all=True)
        except (ConfigError, OSError) as error:
            log.warning("images cannot be read: %s", error)
            raise Declined("its images cannot be read: osmotic site check says why, there") from None

    def _rows(self, config: Config, dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
        """Positions that this site trains on, and that it holds out; a test split of its own is held out already."""
        everything = np.arange(len(dataset.train))
        if config.data.holdout == 0 or len(dataset.test):
            return everything, everything[:0]
        seed = seeds.integer(config.data.partition_seed, seeds.HOLDOUT, 0, self.name)
        return partition.hold_out(everything, config.data.holdout, dataset.train.labels, seed)


def _aside(dataset: Dataset, held_out: np.ndarray, chain: Chain) -> tuple[Split, np.ndarray, np.ndarray]:
    """The split of what a site holds out, and positions there: those for scores, and those that training watches; of a test split of its own, where it has one."""
    if len(dataset.test):
        return dataset.test, *set_aside(np.arange(len(dataset.test)), chain)
    return dataset.train, *set_aside(held_out, chain)


def _card(name: str, run: str, config: Config, server_round: int, given: bool) -> str:
    """README.md beside a site's own model.

    Args:
        server_round: after which it stood so.
        given: whether it went to the hub, too.
    """
    rule = " with ".join([config.method.name, *pieces.make(config).pieces])
    left = (
        "It was given to the hub, as `policy.own_model` of site.toml lets it."
        if given
        else "It has not left this site."
    )
    return f"""# The model of {name} alone

Made by osmotic in the run {run} ({rule}), as it stood after phase {server_round}. It was last trained on this site's images alone and can
repeat some of them: it is as private as they are. {left}

```python
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained("this folder", trust_remote_code=True)
```
"""


def _begins_alone(config: Config) -> bool:
    """Whether sites begin with weights that the exchange never sends: those must be their own."""
    method = methods.make(config.method.name, dict(config.method.options))
    return not method.travels or bool(method.keep())


def _drawn(packet: Packet, width: int) -> np.ndarray:
    """Features [M, width] of drawn images, as the hub sent them. Raises: Declined for anything else."""
    try:
        found = described.decode(packet.blobs[-1])[feature_sums.MADE]
    except (BadPacket, KeyError, IndexError):
        raise Declined("is sent no features to compare its images with") from None
    if found.dtype != np.float32 or found.ndim != 2 or found.shape[1] != width:
        raise Declined("is sent features of another form than its own")
    if not 2 <= len(found) <= feature_sums.MOST_MADE or not np.isfinite(found).all():
        raise Declined("is sent features that no images have")
    return found


def _renamed(dataset: Dataset, classes: tuple[str, ...], split: Split | None = None) -> np.ndarray:
    """Labels int64 [N] of the site's training images, or of another split, by the run's classes. Raises: Declined for a class that the run does not have."""
    labels = (split or dataset.train).labels
    if labels is None:
        raise Declined("has images without labels, and the run's have some")
    if unknown := [name for name in dataset.class_names if name not in classes]:
        raise Declined(f"has {len(unknown)} classes that the run does not have")
    return np.array([classes.index(name) for name in dataset.class_names], np.int64)[labels]


def hello(folder: str, spec: str) -> Packet:
    """What the site in a folder says of itself; errors as `SiteDesk.hello`."""
    try:
        desk = SiteDesk(SiteFolder.read(Path(folder)))
    except ConfigError as error:  # it names the folder, which Flower would send
        log.warning("%s", error)
        return Packet({"name": None, "declines": "has a mistake in its own file"})
    return desk.hello(spec)


def serve(folder: str, spec: str, packet: Packet) -> Packet:
    """The answer to a task of the site in a folder; errors as `SiteDesk.serve`."""
    try:
        desk = SiteDesk(SiteFolder.read(Path(folder)))
    except ConfigError as error:
        log.warning("%s", error)
        address = {name: packet.header.get(name) for name in ADDRESS}
        return Packet({**address, "failure": ["raised", "ConfigError"]})
    return desk.serve(spec, packet)
