"""The feature network of the scores: a small CNN, trained once on the training split, hashed and kept in a cache.

It learns the classes or, for images without labels, which of four rotations it sees (arXiv:1803.07728). Features are
what its last average pooling gives, so they change smoothly with the image.
"""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from osmotic.metrics.weights import cache_folder
from osmotic.storage import atomic

# Part of the cache key: raise it whenever anything below changes what is learnt.
RECIPE = "cnn-2"
NUM_FEATURES = 96
MAX_SIDE = 64
# Bits depend on it, so it is fixed; more than one thread on such small layers stalls badly where cores are shared.
THREADS = 1
_SEED = 20_231_014
_BATCH = 500


class SplitLike(Protocol):
    """Images uint8 or float32 in [0, 1], [N, H, W, C], and their classes, int64 [N]: data.sources.Split."""

    @property
    def images(self) -> np.ndarray: ...
    @property
    def labels(self) -> np.ndarray | None: ...


class DatasetLike(Protocol):
    """What an encoder is trained and tested on: data.sources.Dataset."""

    @property
    def name(self) -> str: ...
    @property
    def train(self) -> SplitLike: ...
    @property
    def test(self) -> SplitLike: ...
    @property
    def class_names(self) -> tuple[str, ...]: ...


@dataclass
class Encoder:
    """Images to features, the same bits every time on one machine.

    Args:
        name: what scores are labelled with, e.g. "classifier-digits-8" or "inception-v3".
        sha256: hash of weights and architecture.
        test_accuracy: share of held-out images (for rotations: of held-out rotated images) told right, in [0, 1];
            None for pretrained networks and without held-out images.
        network: [B, C, H, W] to features [B, D].
        head: features to class scores [B, num_classes]; None where no classes were learnt.
        prepare: uint8 or float32 [B, H, W, C] to the network's input.
    """

    name: str
    sha256: str
    test_accuracy: float | None
    network: nn.Module
    head: nn.Linear | None
    prepare: Callable[[np.ndarray], Tensor]
    batch_size: int = _BATCH
    threads: int = THREADS
    device: str = "cpu"
    _known: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list, repr=False)

    @property
    def num_classes(self) -> int:
        """Classes it tells apart; 0 where no classes were learnt."""
        return 0 if self.head is None else int(self.head.out_features)

    def features(self, images: np.ndarray) -> np.ndarray:
        """Features, float32 [N, D], of images uint8 or float32 in [0, 1], [N, H, W, C]."""
        with op_threads(self.threads), torch.inference_mode():
            network = self.network.eval().to(self.device)
            batches = [network(x.to(self.device)).float().cpu().numpy() for x in self._batches(images)]
        return np.concatenate(batches)

    def features_once(self, images: np.ndarray) -> np.ndarray:
        """`features`, remembered for this very array: for real images, which are asked for at every score."""
        for known, features in self._known:
            if known is images:
                return features
        features = self.features(images)
        self._known = [*self._known[-3:], (images, features)]
        return features

    def classify(self, images: np.ndarray) -> np.ndarray | None:
        """Most likely class, int64 [N]; None where no classes were learnt."""
        return None if self.head is None else self.classes_of(self.features(images))

    def classes_of(self, features: np.ndarray) -> np.ndarray | None:
        """Most likely class, int64 [N], of images with these features [N, D]; None where no classes were learnt."""
        if self.head is None:
            return None
        with op_threads(self.threads), torch.inference_mode():
            return self.head.cpu()(torch.from_numpy(features)).argmax(1).numpy()

    def _batches(self, images: np.ndarray) -> Iterator[Tensor]:
        if images.ndim != 4 or len(images) == 0:
            raise ValueError(f"images must be [N, H, W, C] with N >= 1, got shape {images.shape}")
        for start in range(0, len(images), self.batch_size):
            yield self.prepare(images[start : start + self.batch_size])


def get(
    dataset: DatasetLike,
    name: str = "classifier",
    cache: bool = True,
    threads: int = THREADS,
    device: str = "cpu",
) -> Encoder:
    """The encoder that `score.encoder` names, trained now if it is the data's own and not in the cache.

    Args:
        dataset: train and held-out images; a pretrained encoder ignores it.
        name: "classifier", "inception-v3" or "dinov2".
        cache: look for a trained encoder in the cache folder and leave a new one there.
        threads: operator threads for training and features; the bits depend on it.
        device: where features are computed; training always runs on the CPU, so that the hash is one.
    Raises: ConfigError if a pretrained encoder's weights are not on disk; ValueError without training images.
    """
    if name != "classifier":
        from osmotic.metrics import pretrained

        return pretrained.load(name, device=device, threads=threads)
    if len(dataset.train.images) == 0:
        raise ValueError("train.images must hold at least one image to train an encoder on")
    path = cache_folder() / "encoders" / f"{_cache_key(dataset, threads)}.safetensors"
    trained = _read(path) if cache else None
    if trained is None:
        trained = _train(dataset, threads)
        if cache:
            _write(path, trained)
    shape = dataset.train.images.shape[1:]
    label = re.sub(r"[^a-z0-9]+", "-", Path(dataset.name).stem.lower()).strip("-") or "images"
    rotations = dataset.train.labels is None
    network, head = _load(trained)
    return Encoder(
        name=f"classifier-{label}-{max(shape[:2])}" + ("-rotations" if rotations else ""),
        sha256=trained.sha256,
        test_accuracy=trained.test_accuracy,
        network=network,
        head=None if rotations else head,
        prepare=lambda images: _prepare(images, shape[-1]),
        threads=threads,
        device=device,
    )


@contextmanager
def op_threads(threads: int) -> Iterator[None]:
    """Runs its body with so many operator threads and restores what was set before."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def weights_sha256(architecture: str, weights: Mapping[str, Tensor]) -> str:
    """SHA-256 over the architecture's name and all weights: sorted names, then fp32 little-endian values."""
    digest = hashlib.sha256(architecture.encode())
    for name in sorted(weights):
        digest.update(name.encode())
        digest.update(weights[name].detach().cpu().float().numpy().astype("<f4").tobytes())
    return digest.hexdigest()


def build(channels: int, num_outputs: int, side: int) -> tuple[nn.Sequential, nn.Linear]:
    """Untrained network [B, C, side, side] to [B, 96], and its linear head to [B, num_outputs].

    The first convolution strides by 1, 2 or 4, so that 8 to 64 pixels all meet the second one as 8 to 27.
    """

    def block(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
        conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
        return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())

    stride = 1 if side < 28 else 2 if side < 56 else 4
    with torch.device("meta"):
        network = nn.Sequential(
            block(channels, 32, kernel=5, stride=stride),
            block(32, 64),
            nn.MaxPool2d(2, ceil_mode=True),
            block(64, NUM_FEATURES),
            block(NUM_FEATURES, NUM_FEATURES),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        head = nn.Linear(NUM_FEATURES, num_outputs)
    network.to_empty(device="cpu")
    head.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(_SEED)
    for module in [*network.modules(), head]:
        if isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()  # ones and zeros: draws nothing
        elif isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_uniform_(module.weight, nonlinearity="relu", generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return network.to(memory_format=torch.channels_last), head  # type: ignore[call-overload]  # missing in torch's stubs


@dataclass(frozen=True)
class _Trained:
    """What the cache holds: enough to build the network again, and to see that nothing was altered."""

    channels: int
    num_outputs: int
    side: int
    test_accuracy: float | None
    weights: Mapping[str, Tensor]

    @property
    def architecture(self) -> str:
        return f"{RECIPE}/{self.channels}/{self.num_outputs}/{self.side}"

    @property
    def sha256(self) -> str:
        return weights_sha256(self.architecture, self.weights)


def to_unit(images: np.ndarray) -> Tensor:
    """Images uint8 [N, H, W, C], or floats in [0, 1], as float32 [N, C, H, W] in [0, 1]."""
    scale = 255.0 if images.dtype == np.uint8 else 1.0
    return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / scale


def _prepare(images: np.ndarray, channels: int) -> Tensor:
    """[-1, 1], square, at most 64 pixels wide."""
    if images.shape[-1] != channels:
        raise ValueError(f"images must have {channels} channels like the training split, got {images.shape}")
    x = to_unit(images)
    side = _side(images)
    if x.shape[2:] != (side, side):
        x = functional.interpolate(x, size=(side, side), mode="bilinear", antialias=True)
    return (2.0 * x - 1.0).contiguous(memory_format=torch.channels_last)


def _side(images: np.ndarray) -> int:
    return min(max(images.shape[1:3]), MAX_SIDE)


def _train(dataset: DatasetLike, threads: int) -> _Trained:
    """Cross entropy, AdamW, one-cycle learning rate (arXiv:1708.07120), a few passes; every draw from one generator."""
    images, labels = dataset.train.images, dataset.train.labels
    side, channels = _side(images), images.shape[-1]
    num_outputs = 4 if labels is None else max(int(labels.max()) + 1, len(dataset.class_names), 2)
    # Few images are shown often, many are shown three times or more: about the same work for all.
    epochs = int(np.clip(round(240_000 / len(images)), 3, 24))
    batch_size = min(64 if len(images) < 10_000 else 128, len(images))
    steps = len(images) // batch_size
    generator = torch.Generator().manual_seed(_SEED)
    with op_threads(threads):
        network, head = build(channels, num_outputs, side)
        model = nn.Sequential(network, head).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.01, fused=True)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=epochs * steps + 1)
        for _ in range(epochs):
            order = torch.randperm(len(images), generator=generator).numpy()
            for picked in np.array_split(order[: steps * batch_size], steps):
                x = _prepare(images[picked], channels)
                if labels is None:
                    y = torch.randint(0, 4, (len(x),), generator=generator)
                    x = _rotated(x, y)
                else:
                    y = torch.from_numpy(labels[picked].astype(np.int64))
                loss = functional.cross_entropy(model(x), y)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
        accuracy = _accuracy(model.eval(), dataset.test, rotations=labels is None)
    weights = {f"network.{name}": value for name, value in network.state_dict().items()}
    weights |= {f"head.{name}": value for name, value in head.state_dict().items()}
    # Only a counter of steps, never read at this momentum, and no float.
    kept = {name: value.contiguous() for name, value in weights.items() if value.is_floating_point()}
    return _Trained(channels, num_outputs, side, accuracy, kept)


def _rotated(x: Tensor, quarters: Tensor) -> Tensor:
    turned = torch.stack([torch.rot90(x, k, dims=(2, 3)) for k in range(4)])  # [4, B, C, H, W]
    return turned[quarters, torch.arange(len(x))].contiguous(memory_format=torch.channels_last)


@torch.inference_mode()
def _accuracy(model: nn.Module, test: SplitLike, rotations: bool) -> float | None:
    """Share told right, in [0, 1]; for rotations every image counts four times. None if nothing is held out."""
    if len(test.images) == 0 or (not rotations and test.labels is None):
        return None
    right, asked = 0, 0
    for start in range(0, len(test.images), _BATCH):
        images = test.images[start : start + _BATCH]
        x = _prepare(images, images.shape[-1])
        for quarters in range(4 if rotations else 1):
            if rotations:
                y = torch.full((len(x),), quarters)
            else:
                assert test.labels is not None
                y = torch.from_numpy(test.labels[start : start + _BATCH].astype(np.int64))
            right += int((model(_rotated(x, y) if rotations else x).argmax(1) == y).sum())
            asked += len(x)
    return right / asked


def _load(trained: _Trained) -> tuple[nn.Sequential, nn.Linear]:
    """The trained network and head, in evaluation mode."""
    network, head = build(trained.channels, trained.num_outputs, trained.side)
    for module, prefix in ((network, "network."), (head, "head.")):
        state = {k.removeprefix(prefix): v for k, v in trained.weights.items() if k.startswith(prefix)}
        counters = {k: v for k, v in module.state_dict().items() if not v.is_floating_point()}
        module.load_state_dict({**state, **counters})
        module.eval().requires_grad_(False)
    return network, head


def _cache_key(dataset: DatasetLike, threads: int) -> str:
    """Changes with every pixel, label and setting that the trained encoder or its test accuracy depends on."""
    digest = hashlib.sha256(f"{RECIPE}/{threads}/{len(dataset.class_names)}".encode())
    for split in (dataset.train, dataset.test):
        for array in (split.images, split.labels):
            if array is None:
                digest.update(b"none")
                continue
            digest.update(f"{array.dtype}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data if array.size else b"")
    return digest.hexdigest()


def _write(path: Path, trained: _Trained) -> None:
    """Weights first, then the JSON that vouches for them; a cache that cannot be written is only a warning."""
    from safetensors.torch import save

    facts = {name: getattr(trained, name) for name in ("channels", "num_outputs", "side", "test_accuracy")}
    text = json.dumps({"schema": 1, "recipe": RECIPE, **facts, "sha256": trained.sha256}, indent=1)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic.write_bytes(path, save(dict(trained.weights)))
        atomic.write_bytes(path.with_suffix(".json"), text.encode())
    except OSError as error:
        warnings.warn(f"{path.parent}: the encoder could not be cached ({error})", stacklevel=3)


def _read(path: Path) -> _Trained | None:
    """The cached encoder; None if there is none, or, with a warning, if its files are damaged."""
    from safetensors.torch import load

    if not path.with_suffix(".json").exists():
        return None
    try:
        facts = json.loads(path.with_suffix(".json").read_bytes())
        weights = load(path.read_bytes())
        trained = _Trained(
            facts["channels"], facts["num_outputs"], facts["side"], facts["test_accuracy"], weights
        )
        if trained.sha256 != facts["sha256"]:
            raise ValueError("the weights do not match their hash")
        _load(trained)
    except Exception as error:  # whatever a torn or altered file can cause
        warnings.warn(f"{path}: damaged, the encoder is trained again ({error})", stacklevel=3)
        return None
    return trained
