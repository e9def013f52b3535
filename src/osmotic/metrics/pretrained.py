"""Encoders trained elsewhere, read from weights on disk: the Inception-v3 of FID, and DINOv2.

Sources: the FID weights of github.com/mseitzer/pytorch-fid (arXiv:1706.08500; architecture arXiv:1512.00567),
which average without padding and max-pool in the last block; DINOv2 (arXiv:2304.07193), its class token
(arXiv:2306.04675). Only safetensors are read; `weights.require` says which files and how to get them.
"""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from osmotic.errors import ConfigError
from osmotic.metrics.features import THREADS, Encoder, to_unit, weights_sha256
from osmotic.metrics.weights import require

# Of ImageNet in [0, 1], red, green, blue: what DINOv2 was trained with.
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def load(name: str, device: str = "cpu", threads: int = THREADS) -> Encoder:
    """The pretrained encoder `name`.

    Args:
        name: "inception-v3" (features [N, 2048]) or "dinov2" ([N, hidden size]).
        device, threads: as `encoder.get`.
    Raises: ConfigError if weights are missing or do not fit, or if DINOv2 lacks the package `transformers`.
    """
    if name not in ("inception-v3", "dinov2"):
        raise ConfigError("score.encoder", name, "must be one of classifier, inception-v3, dinov2")
    paths = require(name)
    network = _inception(paths[0]) if name == "inception-v3" else _dinov2(paths[0].parent)
    network.eval().requires_grad_(False)
    weights = {k: v for k, v in network.state_dict().items() if v.is_floating_point()}
    return Encoder(
        name=name,
        sha256=weights_sha256(name, weights),
        test_accuracy=None,
        network=network,
        head=None,
        prepare=prepare_inception if name == "inception-v3" else prepare_dinov2,
        batch_size=32,
        threads=threads,
        device=device,
    )


def prepare_inception(images: np.ndarray) -> Tensor:
    """The input of Inception-v3, as pytorch-fid makes it: bilinear without antialiasing, grey repeated.

    Args:
        images: uint8, or float32 in [0, 1], [N, H, W, C] with C of 1 or 3.
    Returns: float32 in [-1, 1], [N, 3, 299, 299].
    Raises: ValueError for other channels.
    """
    # Antialiasing would be better resizing and another score: published FIDs are taken without it.
    x = functional.interpolate(_colour(images), size=(299, 299), mode="bilinear", align_corners=False)
    return 2.0 * x - 1.0


def prepare_dinov2(images: np.ndarray) -> Tensor:
    """The input of DINOv2: bicubic, grey repeated, normalised by ImageNet's mean and standard deviation.

    Args:
        images: uint8, or float32 in [0, 1], [N, H, W, C] with C of 1 or 3.
    Returns: float32 [N, 3, 224, 224].
    Raises: ValueError for other channels.
    """
    # Bicubic overshoots at edges, so it is cut back to [0, 1] before it is normalised.
    x = functional.interpolate(_colour(images), size=(224, 224), mode="bicubic", antialias=True).clamp(0, 1)
    return (x - torch.tensor(_IMAGENET_MEAN)[:, None, None]) / torch.tensor(_IMAGENET_STD)[:, None, None]


def _colour(images: np.ndarray) -> Tensor:
    """Images [N, H, W, C] as float32 [N, 3, H, W] in [0, 1]."""
    if images.shape[-1] not in (1, 3):
        raise ValueError(f"images must have 1 or 3 channels, got shape {images.shape}")
    return to_unit(images).expand(-1, 3, -1, -1)  # a view: grey is not copied twice


def _inception(path: Path) -> nn.Module:
    from safetensors.torch import load_file

    network = Inception()
    try:
        state = load_file(path)
    except Exception as error:  # safetensors has its own error types for a torn file
        raise ConfigError("score.encoder", "inception-v3", f"{path} cannot be read: {error}") from None
    # Strict loading apart from two things: step counters, which some publications left out and evaluation
    # never reads, and the classifier layers of either publication, which are not part of the features.
    state = {k: v for k, v in state.items() if not k.startswith(("fc.", "AuxLogits."))}
    counters = {k: v for k, v in network.state_dict().items() if k.endswith("num_batches_tracked")}
    try:
        network.load_state_dict({**counters, **state})
    except RuntimeError as error:
        raise ConfigError("score.encoder", "inception-v3", f"{path} does not fit: {error}") from None
    return network


def _dinov2(folder: Path) -> nn.Module:
    try:
        transformers = importlib.import_module("transformers")  # an optional package
    except ImportError:
        raise ConfigError("score.encoder", "dinov2", "needs `pip install transformers`") from None
    # local_files_only: a score must never wait for, or leak its model's name to, a hub.
    try:
        model = transformers.Dinov2Model.from_pretrained(folder, local_files_only=True, use_safetensors=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise ConfigError("score.encoder", "dinov2", f"{folder} cannot be read: {error}") from None
    return _ClassToken(model.float())


class _ClassToken(nn.Module):
    """DINOv2's class token alone, as arXiv:2306.04675 takes it for scores."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(pixel_values=x).pooler_output  # class token after the last norm, [B, D]


class Conv(nn.Module):
    """Convolution without bias, batch norm, ReLU: [B, inputs, H, W] to [B, outputs, H', W']."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int | tuple[int, int],
        stride: int = 1,
        padding: int | tuple[int, int] = 0,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=1e-3)  # as published; torch's own default is 1e-5

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] to [B, outputs, H', W'], >= 0."""
        return functional.relu(self.bn(self.conv(x)))


def _flat(inputs: int, outputs: int, length: int) -> Conv:
    return Conv(inputs, outputs, (1, length), padding=(0, length // 2))


def _tall(inputs: int, outputs: int, length: int) -> Conv:
    return Conv(inputs, outputs, (length, 1), padding=(length // 2, 0))


def _chain(x: Tensor, *layers: nn.Module) -> Tensor:
    for layer in layers:
        x = layer(x)
    return x


def _average(x: Tensor) -> Tensor:
    # Padding is left out of the mean: TensorFlow's way, with which the FID weights were trained
    # (pytorch-fid's patch).
    return functional.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


class BlockA(nn.Module):
    """35 x 35 grid: 1x1, 5x5 and double 3x3 branches and a pooled one (arXiv:1512.00567, fig. 5)."""

    def __init__(self, inputs: int, pooled: int) -> None:
        super().__init__()
        self.branch1x1 = Conv(inputs, 64, 1)
        self.branch5x5_1, self.branch5x5_2 = Conv(inputs, 48, 1), Conv(48, 64, 5, padding=2)
        self.branch3x3dbl_1, self.branch3x3dbl_2 = Conv(inputs, 64, 1), Conv(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = Conv(96, 96, 3, padding=1)
        self.branch_pool = Conv(inputs, pooled, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, 35, 35] to [B, 224 + pooled, 35, 35]."""
        five = _chain(x, self.branch5x5_1, self.branch5x5_2)
        three = _chain(x, self.branch3x3dbl_1, self.branch3x3dbl_2, self.branch3x3dbl_3)
        return torch.cat([self.branch1x1(x), five, three, self.branch_pool(_average(x))], 1)


class BlockB(nn.Module):
    """35 x 35 to 17 x 17, by strides instead of pooling first (arXiv:1512.00567, fig. 10)."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.branch3x3 = Conv(inputs, 384, 3, stride=2)
        self.branch3x3dbl_1, self.branch3x3dbl_2 = Conv(inputs, 64, 1), Conv(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = Conv(96, 96, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, 35, 35] to [B, 480 + inputs, 17, 17]."""
        three = _chain(x, self.branch3x3dbl_1, self.branch3x3dbl_2, self.branch3x3dbl_3)
        return torch.cat([self.branch3x3(x), three, functional.max_pool2d(x, 3, stride=2)], 1)


class BlockC(nn.Module):
    """17 x 17 grid: 7x7 convolutions as 1x7 and 7x1, once and twice (arXiv:1512.00567, fig. 6)."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.branch1x1 = Conv(inputs, 192, 1)
        self.branch7x7_1, self.branch7x7_2 = Conv(inputs, width, 1), _flat(width, width, 7)
        self.branch7x7_3 = _tall(width, 192, 7)
        self.branch7x7dbl_1, self.branch7x7dbl_2 = Conv(inputs, width, 1), _tall(width, width, 7)
        self.branch7x7dbl_3, self.branch7x7dbl_4 = _flat(width, width, 7), _tall(width, width, 7)
        self.branch7x7dbl_5 = _flat(width, 192, 7)
        self.branch_pool = Conv(inputs, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, 17, 17] to [B, 768, 17, 17]."""
        once = _chain(x, self.branch7x7_1, self.branch7x7_2, self.branch7x7_3)
        twice = _chain(x, self.branch7x7dbl_1, self.branch7x7dbl_2, self.branch7x7dbl_3)
        twice = _chain(twice, self.branch7x7dbl_4, self.branch7x7dbl_5)
        return torch.cat([self.branch1x1(x), once, twice, self.branch_pool(_average(x))], 1)


class BlockD(nn.Module):
    """17 x 17 to 8 x 8."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.branch3x3_1, self.branch3x3_2 = Conv(inputs, 192, 1), Conv(192, 320, 3, stride=2)
        self.branch7x7x3_1 = Conv(inputs, 192, 1)
        self.branch7x7x3_2 = _flat(192, 192, 7)
        self.branch7x7x3_3 = _tall(192, 192, 7)
        self.branch7x7x3_4 = Conv(192, 192, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, 17, 17] to [B, 512 + inputs, 8, 8]."""
        three = _chain(x, self.branch3x3_1, self.branch3x3_2)
        seven = _chain(x, self.branch7x7x3_1, self.branch7x7x3_2, self.branch7x7x3_3, self.branch7x7x3_4)
        return torch.cat([three, seven, functional.max_pool2d(x, 3, stride=2)], 1)


class BlockE(nn.Module):
    """8 x 8 grid: branches that end in 1x3 beside 3x1 (arXiv:1512.00567, fig. 7).

    Args:
        inputs: channels.
        max_pool: whether the pooled branch takes the largest value: in the last block, where the FID weights
            want it.
    """

    def __init__(self, inputs: int, max_pool: bool) -> None:
        super().__init__()
        self.max_pool = max_pool
        self.branch1x1 = Conv(inputs, 320, 1)
        self.branch3x3_1 = Conv(inputs, 384, 1)
        self.branch3x3_2a = _flat(384, 384, 3)
        self.branch3x3_2b = _tall(384, 384, 3)
        self.branch3x3dbl_1, self.branch3x3dbl_2 = Conv(inputs, 448, 1), Conv(448, 384, 3, padding=1)
        self.branch3x3dbl_3a = _flat(384, 384, 3)
        self.branch3x3dbl_3b = _tall(384, 384, 3)
        self.branch_pool = Conv(inputs, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, 8, 8] to [B, 2048, 8, 8]."""
        three = self.branch3x3_1(x)
        double = _chain(x, self.branch3x3dbl_1, self.branch3x3dbl_2)
        pooled = functional.max_pool2d(x, 3, stride=1, padding=1) if self.max_pool else _average(x)
        ends = [self.branch3x3_2a(three), self.branch3x3_2b(three)]
        ends += [self.branch3x3dbl_3a(double), self.branch3x3dbl_3b(double)]
        return torch.cat([self.branch1x1(x), *ends, self.branch_pool(pooled)], 1)


class Inception(nn.Module):
    """Inception-v3 up to the last average pool: [B, 3, 299, 299] in [-1, 1] to [B, 2048].

    Parameters are named as published, so that the FID weights load by name.
    """

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3, self.Conv2d_2a_3x3 = Conv(3, 32, 3, stride=2), Conv(32, 32, 3)
        self.Conv2d_2b_3x3 = Conv(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1, self.Conv2d_4a_3x3 = Conv(64, 80, 1), Conv(80, 192, 3)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = BlockA(192, 32), BlockA(256, 64), BlockA(288, 64)
        self.Mixed_6a = BlockB(288)
        self.Mixed_6b, self.Mixed_6c = BlockC(768, 128), BlockC(768, 160)
        self.Mixed_6d, self.Mixed_6e = BlockC(768, 160), BlockC(768, 192)
        self.Mixed_7a = BlockD(768)
        self.Mixed_7b, self.Mixed_7c = BlockE(1280, max_pool=False), BlockE(2048, max_pool=True)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, 299, 299] in [-1, 1] to [B, 2048]."""
        x = _chain(x, self.Conv2d_1a_3x3, self.Conv2d_2a_3x3, self.Conv2d_2b_3x3)
        x = _chain(functional.max_pool2d(x, 3, stride=2), self.Conv2d_3b_1x1, self.Conv2d_4a_3x3)
        x = functional.max_pool2d(x, 3, stride=2)  # [B, 192, 35, 35]
        x = _chain(x, self.Mixed_5b, self.Mixed_5c, self.Mixed_5d, self.Mixed_6a)  # [B, 768, 17, 17]
        x = _chain(x, self.Mixed_6b, self.Mixed_6c, self.Mixed_6d, self.Mixed_6e)
        x = _chain(x, self.Mixed_7a, self.Mixed_7b, self.Mixed_7c)  # [B, 2048, 8, 8]
        return x.mean(dim=(2, 3))
