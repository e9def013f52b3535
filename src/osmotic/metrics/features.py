"""What an encoder is: images to features, the same bits every time on one machine.

The lowest file of the encoders: `classifier.py` and `pretrained.py` build on it, `encoder.py` chooses between
them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

# Bits depend on it, so it is fixed; more than one thread on such small layers stalls badly where cores are
# shared.
THREADS = 1


@dataclass
class Encoder:
    """Images [N, H, W, C] to features [N, D].

    Args:
        name: what scores are labelled with, e.g. "classifier-digits-8" or "inception-v3".
        sha256: hash of weights and architecture, as `weights_sha256` gives it.
        test_accuracy: share of held-out images (for rotations: of held-out rotated images) told right, in
            [0, 1]; None for pretrained networks and without held-out images.
        network: [B, C, H, W], as `prepare` gives them, to features [B, D].
        head: features [B, D] to class scores [B, num_classes]; None where no classes were learnt.
        prepare: uint8 or float32 in [0, 1], [B, H, W, C], to the network's input.
        batch_size: images per call of the network, >= 1; it moves features in their last bits.
        threads: operator threads, >= 1; the bits depend on it.
        device: where the network runs, as torch names it.
        looked: told after every batch how many images it held.
    """

    name: str
    sha256: str
    test_accuracy: float | None
    network: nn.Module
    head: nn.Linear | None
    prepare: Callable[[np.ndarray], Tensor]
    batch_size: int = 500
    threads: int = THREADS
    device: str = "cpu"
    looked: Callable[[int], object] = lambda images: None
    _known: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list, repr=False)

    @property
    def num_classes(self) -> int:
        """Classes it tells apart; 0 where no classes were learnt."""
        return 0 if self.head is None else int(self.head.out_features)

    def features(self, images: np.ndarray) -> np.ndarray:
        """Features of images.

        Args:
            images: uint8, or float32 in [0, 1], [N, H, W, C] with N >= 1.
        Returns: float32 [N, D].
        Raises: ValueError if images have other axes, none are there, or `prepare` refuses them.
        """
        # inference_mode and not no_grad: it also spares version counters, and features are never trained
        # through.
        exact = nullcontext() if torch.device(self.device).type == "cpu" else without_tf32()
        with op_threads(self.threads), torch.inference_mode(), exact:
            network = self.network.eval().to(self.device)
            # float32 leaves the device batch by batch: N images of Inception would not fit beside the
            # generator.
            batches = []
            for x in self._batches(images):
                batches.append(network(x.to(self.device)).float().cpu().numpy())
                self.looked(len(x))
        return np.concatenate(batches)  # [N, D]

    def features_once(self, images: np.ndarray) -> np.ndarray:
        """`features`, remembered for this very array: for real images, which are asked for at every score.

        Args:
            images: as `features`; must not be written to afterwards.
        Returns: float32 [N, D], the same object for the same array.
        Raises: ValueError as `features`.
        """
        # By identity, not by content: hashing 60,000 images at every score would take longer than it saves.
        for known, features in self._known:
            if known is images:
                return features
        features = self.features(images)
        # Four are enough for training and held-out images of a run; the array is kept too, so that its
        # identity cannot pass to another array at the same address.
        self._known = [*self._known[-3:], (images, features)]
        return features

    def classes_of(self, features: np.ndarray) -> np.ndarray | None:
        """Most likely class of images with these features.

        Args:
            features: float32 [N, D].
        Returns: int64 [N] in 0..num_classes-1; None where no classes were learnt.
        """
        if self.head is None:
            return None
        with op_threads(self.threads), torch.inference_mode():
            return self.head.cpu()(torch.from_numpy(features)).argmax(1).numpy()

    def _batches(self, images: np.ndarray) -> Iterator[Tensor]:
        """The network's inputs, [B, ...] each, B <= batch_size."""
        if images.ndim != 4 or len(images) == 0:
            raise ValueError(f"images must be [N, H, W, C] with N >= 1, got shape {images.shape}")
        for start in range(0, len(images), self.batch_size):
            yield self.prepare(images[start : start + self.batch_size])


@contextmanager
def op_threads(threads: int) -> Iterator[None]:
    """Runs its body with so many operator threads, >= 1, and restores what was set before."""
    # The setting outlives this body: what trains next on this thread must find its own again.
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def without_tf32() -> Iterator[None]:
    """Inside, convolutions on a GPU keep all bits of their factors; TF32 leaves 10, and a score may not hang on where it was taken."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def weights_sha256(architecture: str, weights: Mapping[str, Tensor]) -> str:
    """SHA-256 over the architecture's name and all weights: sorted names, then float32 little-endian values.

    Args:
        architecture: what tells networks apart whose weights could be the same.
        weights: by name, of any shape and floating type.
    Returns: 64 hexadecimal digits.
    """
    digest = hashlib.sha256(architecture.encode())
    # Sorted: the order of a file's entries is its writer's choice and says nothing about the network.
    for name in sorted(weights):
        digest.update(name.encode())
        digest.update(weights[name].detach().cpu().float().numpy().astype("<f4").tobytes())
    return digest.hexdigest()


def to_unit(images: np.ndarray) -> Tensor:
    """Images as a network takes them, before its own normalisation.

    Args:
        images: uint8, or floats in [0, 1], [N, H, W, C].
    Returns: float32 [N, C, H, W] in [0, 1].
    """
    scale = 255.0 if images.dtype == np.uint8 else 1.0
    # A copy also of what may not be written to, as images on disk: torch knows no such tensors.
    return torch.from_numpy(np.require(images, requirements=["C", "W"])).permute(0, 3, 1, 2).float() / scale
