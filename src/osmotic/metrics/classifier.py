"""The data's own feature network: a small CNN, trained once on the training split, hashed and cached.

It learns the classes or, for images without labels, which of four rotations it sees (arXiv:1803.07728,
sec. 2). Features are what its last average pooling gives, so they change smoothly with the image.
"""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from osmotic.data.dataset import Dataset, Split
from osmotic.metrics.features import Encoder, op_threads, to_unit, weights_sha256
from osmotic.storage import atomic
from osmotic.storage.cache import cache_folder

# Part of the cache key: raise it whenever anything below changes what is learnt.
RECIPE = "cnn-2"
NUM_FEATURES = 96
MAX_SIDE = 64
# One seed for every data set and run: scores of two runs are comparable only through the same encoder.
_SEED = 20_231_014
_BATCH = 500  # images, when the test accuracy is taken


def get(
    dataset: Dataset,
    cache: bool,
    threads: int,
    device: str,
    stepped: Callable[[], object] = lambda: None,
) -> Encoder:
    """The classifier of this data set, from the cache or trained now.

    Args:
        dataset: train and held-out images, [N, H, W, C] each; without labels rotations are learnt.
        cache, threads, device, stepped: as `encoder.get`.
    Raises: ValueError without training images.
    """
    found = trained(dataset, cache, threads, stepped)
    shape = dataset.train.images.shape[1:]  # [H, W, C]
    rotations = dataset.train.labels is None
    network, head = _load(found)
    return Encoder(
        name=label(dataset),
        sha256=found.sha256,
        test_accuracy=found.test_accuracy,
        network=network,
        head=None if rotations else head,  # four rotations are no classes of the data
        prepare=lambda images: _prepare(images, shape[-1]),
        batch_size=_BATCH,
        threads=threads,
        device=device,
    )


def trained(
    dataset: Dataset, cache: bool, threads: int, stepped: Callable[[], object] = lambda: None
) -> Trained:
    """The weights of `get`'s network; arguments and errors as there."""
    if len(dataset.train.images) == 0:
        raise ValueError("train.images must hold at least one image to train an encoder on")
    path = _cached(dataset, threads)
    found = _read(path) if cache else None
    if found is None:
        found = _train(dataset, threads, stepped)
        if cache:
            _write(path, found)
    return found


def label(dataset: Dataset) -> str:
    """What scores by the classifier of this data set are labelled with."""
    # The stem alone: a path would carry the user's folders into summaries and reports.
    stem = re.sub(r"[^a-z0-9]+", "-", Path(dataset.name).stem.lower()).strip("-") or "images"
    rotations = "-rotations" if dataset.train.labels is None else ""
    return f"classifier-{stem}-{max(dataset.train.images.shape[1:3])}{rotations}"


def elsewhere(found: Trained, name: str, threads: int, device: str) -> Encoder:
    """A classifier that was trained on other images, as it is: its classes are not those of the images it is shown.

    Args:
        name: what scores are labelled with.
        threads, device: as `encoder.get`.
    """
    return Encoder(
        name=name,
        sha256=found.sha256,
        test_accuracy=found.test_accuracy,
        network=_load(found)[0],
        head=None,
        prepare=lambda images: _prepare(images, found.channels, found.side),
        batch_size=_BATCH,
        threads=threads,
        device=device,
    )


def steps_to_train(dataset: Dataset, threads: int) -> int:
    """Optimiser steps that `get` will take: none where the cache has the encoder."""
    if _cached(dataset, threads).with_suffix(".json").exists():
        return 0
    epochs, _, steps = _schedule(len(dataset.train.images))
    return epochs * steps


def build(channels: int, num_outputs: int, side: int) -> tuple[nn.Sequential, nn.Linear]:
    """Untrained network [B, C, side, side] to [B, 96], and its linear head to [B, num_outputs].

    The first convolution strides by 1, 2 or 4, so that 8 to 64 pixels all meet the second one as 8 to 27.

    Args:
        channels: C, 1 or 3.
        num_outputs: classes, or the 4 rotations.
        side: pixels, 1 to 64.
    """

    def block(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
        conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
        return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())

    stride = 1 if side < 28 else 2 if side < 56 else 4
    # On "meta" no layer draws its own start from the global generator, which belongs to the run and not to
    # its scores.
    with torch.device("meta"):
        network = nn.Sequential(
            block(channels, 32, kernel=5, stride=stride),  # [B, 32, S, S]
            block(32, 64),
            nn.MaxPool2d(2, ceil_mode=True),  # [B, 64, S / 2, S / 2]; ceil_mode: a side of 1 stays 1
            block(64, NUM_FEATURES),
            block(NUM_FEATURES, NUM_FEATURES),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),  # [B, 96]
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
class Trained:
    """Enough to build the network again, and to see that nothing was altered.

    Args:
        channels: of the images, 1 or 3.
        num_outputs: classes, or the 4 rotations.
        side: of the images in pixels, 1 to 64.
        test_accuracy: as `Encoder`.
        weights: name -> float32 [...], of the network and its head.
    """

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


def _prepare(images: np.ndarray, channels: int, side: int | None = None) -> Tensor:
    """[B, H, W, C] as [B, C, S, S] in [-1, 1], square, of this side; None takes the images' own, at most 64 pixels."""
    if images.shape[-1] != channels:
        raise ValueError(f"images must have {channels} channels like the training split, got {images.shape}")
    x = to_unit(images)
    side = side or _side(images)
    if x.shape[2:] != (side, side):
        x = functional.interpolate(x, size=(side, side), mode="bilinear", antialias=True)
    return (2.0 * x - 1.0).contiguous(memory_format=torch.channels_last)  # as the network; bits depend on it


def _side(images: np.ndarray) -> int:
    return min(max(images.shape[1:3]), MAX_SIDE)


def _schedule(num_images: int) -> tuple[int, int, int]:
    """Passes, batch size, steps of a pass: few images are shown often, many three times or more; about the same work."""
    batch_size = min(64 if num_images < 10_000 else 128, num_images)
    return int(np.clip(round(240_000 / num_images), 3, 24)), batch_size, num_images // batch_size


def _train(dataset: Dataset, threads: int, stepped: Callable[[], object]) -> Trained:
    """Cross entropy, AdamW, one-cycle learning rate (arXiv:1708.07120), a few passes; one generator."""
    images, labels = dataset.train.images, dataset.train.labels
    side, channels = _side(images), images.shape[-1]
    # Names may outnumber the labels seen, and labels may come without names; cross entropy needs two outputs.
    num_outputs = 4 if labels is None else max(int(labels.max()) + 1, len(dataset.class_names), 2)
    epochs, batch_size, steps = _schedule(len(images))
    generator = torch.Generator().manual_seed(_SEED)
    with op_threads(threads):
        network, head = build(channels, num_outputs, side)
        model = nn.Sequential(network, head).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.01, fused=True)
        # Rates before the first and after the last step are both counted: one more than there are steps.
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=epochs * steps + 1)
        for _ in range(epochs):
            order = torch.randperm(len(images), generator=generator).numpy()
            # The remainder of a pass is dropped: batch norms of a few left-over images would be noise.
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
                stepped()
        accuracy = _accuracy(model.eval(), dataset.test, rotations=labels is None)
    weights = {f"network.{name}": value for name, value in network.state_dict().items()}
    weights |= {f"head.{name}": value for name, value in head.state_dict().items()}
    # Only a counter of steps, never read at this momentum, and no float.
    kept = {name: value.contiguous() for name, value in weights.items() if value.is_floating_point()}
    return Trained(channels, num_outputs, side, accuracy, kept)


def _rotated(x: Tensor, quarters: Tensor) -> Tensor:
    """[B, C, S, S], each turned by its number of quarters, int64 [B] in 0..3 (arXiv:1803.07728, sec. 2.1)."""
    turned = torch.stack([torch.rot90(x, k, dims=(2, 3)) for k in range(4)])  # [4, B, C, S, S]
    return turned[quarters, torch.arange(len(x))].contiguous(memory_format=torch.channels_last)


@torch.inference_mode()
def _accuracy(model: nn.Module, test: Split, rotations: bool) -> float | None:
    """Share told right, in [0, 1]; for rotations every image counts four times. None without images."""
    if len(test.images) == 0 or (not rotations and test.labels is None):
        return None
    right, asked = 0, 0
    for start in range(0, len(test.images), _BATCH):
        images = test.images[start : start + _BATCH]
        x = _prepare(images, images.shape[-1])
        # All four in turn, not one at random: the accuracy is then no matter of a draw.
        for quarters in range(4 if rotations else 1):
            if rotations:
                y = torch.full((len(x),), quarters)
            else:
                assert test.labels is not None
                y = torch.from_numpy(test.labels[start : start + _BATCH].astype(np.int64))
            right += int((model(_rotated(x, y) if rotations else x).argmax(1) == y).sum())
            asked += len(x)
    return right / asked


def _load(trained: Trained) -> tuple[nn.Sequential, nn.Linear]:
    """The trained network and head, in evaluation mode."""
    network, head = build(trained.channels, trained.num_outputs, trained.side)
    for module, prefix in ((network, "network."), (head, "head.")):
        state = {k.removeprefix(prefix): v for k, v in trained.weights.items() if k.startswith(prefix)}
        # The counters were not stored; their own are given back, so that strict loading still finds a missing
        # weight.
        counters = {k: v for k, v in module.state_dict().items() if not v.is_floating_point()}
        module.load_state_dict({**state, **counters})
        module.eval().requires_grad_(False)
    return network, head


def _cached(dataset: Dataset, threads: int) -> Path:
    """Where this data set's encoder lies once it is trained."""
    return cache_folder() / "encoders" / f"{_cache_key(dataset, threads)}.safetensors"


def _cache_key(dataset: Dataset, threads: int) -> str:
    """Changes with every pixel, label and setting that the encoder or its test accuracy depends on."""
    digest = hashlib.sha256(f"{RECIPE}/{threads}/{len(dataset.class_names)}".encode())
    for split in (dataset.train, dataset.test):
        for array in (split.images, split.labels):
            if array is None:
                digest.update(b"none")
                continue
            # dtype and shape too: the same bytes can be other images.
            digest.update(f"{array.dtype}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data if array.size else b"")
    return digest.hexdigest()


def _write(path: Path, trained: Trained) -> None:
    """Weights first, then the JSON that vouches for them; what cannot be written is only warned of."""
    from safetensors.torch import save

    facts = {name: getattr(trained, name) for name in ("channels", "num_outputs", "side", "test_accuracy")}
    text = json.dumps({"schema": 1, "recipe": RECIPE, **facts, "sha256": trained.sha256}, indent=1)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic.write_bytes(path, save(dict(trained.weights)))
        atomic.write_bytes(path.with_suffix(".json"), text.encode())
    except OSError as error:
        warnings.warn(f"{path.parent}: the encoder could not be cached ({error})", stacklevel=4)


def _read(path: Path) -> Trained | None:
    """The cached encoder; None if there is none, or, with a warning, if its files are damaged."""
    from safetensors.torch import load

    # No JSON is no encoder: a writer that was killed between the two files has left weights alone.
    if not path.with_suffix(".json").exists():
        return None
    try:
        facts = json.loads(path.with_suffix(".json").read_bytes())
        weights = load(path.read_bytes())
        trained = Trained(
            facts["channels"], facts["num_outputs"], facts["side"], facts["test_accuracy"], weights
        )
        if trained.sha256 != facts["sha256"]:
            raise ValueError("the weights do not match their hash")
        _load(trained)  # a hash that fits vouches for the weights, not for this version's network
    except Exception as error:  # whatever a torn or altered file can cause
        warnings.warn(f"{path}: damaged, the encoder is trained again ({error})", stacklevel=4)
        return None
    return trained
