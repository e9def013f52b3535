"""The space of a latent model (arXiv 2112.10752): an autoencoder's latents in the place of pixels."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from osmotic.diffusion.space import Pixels
from osmotic.models import autoencoder_file

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

# Images that go through the autoencoder together. Torch computes a batch of few images in another way, with other last
# bits, so an encoder always gets whole ones: what an image's latent is must not hang on whose images stand beside it.
ENCODED, DECODED = 16, 64


@dataclass(frozen=True)
class Latents:
    """Latents [N, C, H, W] of images [N, c, h, w], times one factor that brings their standard deviation near 1.

    The mean of what the encoder gives is taken, so that an image has one latent.

    Args:
        described: the autoencoder; it is loaded when it is first needed.
        image_size: side of the images in pixels.
        device: where it computes.
    """

    described: autoencoder_file.Described
    image_size: int
    device: str = "cpu"
    _lock: threading.Lock = field(default_factory=threading.Lock, compare=False, repr=False)

    range = None  # unbounded: samplers clip nothing

    @property
    def shape(self) -> tuple[int, int, int]:
        """The lengths C, H, W of the latents."""
        return self.described.latent_shape(self.image_size)

    def prepare(self, images: np.ndarray) -> np.ndarray:
        """Latents of images [N, h, w, c], uint8 or float32 in [0, 1]: float32 [N, H, W, C]. Computed once, then kept."""
        pixels = Pixels((self.described.channels, self.image_size, self.image_size))
        found = np.empty((len(images), *self.shape[1:], self.shape[0]), np.float32)
        model = self._model()
        for start in range(0, len(images), ENCODED):
            part = images[start : start + ENCODED]
            batch = np.zeros((ENCODED, *part.shape[1:]), part.dtype)
            batch[: len(part)] = part
            with torch.no_grad():
                seen = pixels.encode(torch.from_numpy(np.ascontiguousarray(batch.transpose(0, 3, 1, 2))))
                seen = seen.contiguous(memory_format=torch.channels_last).to(self.device)
                drawn = model.encode(seen).latent_dist.mean * self.described.scale
            found[start : start + ENCODED] = drawn[: len(part)].cpu().permute(0, 2, 3, 1).numpy()
        return found

    def encode(self, pixels: Tensor) -> Tensor:
        """What `prepare` gave, [N, C, H, W], as it is: the network sees latents."""
        return pixels

    def decode(self, values: Tensor) -> np.ndarray:
        """Images of latents [N, C, H, W], uint8 [N, h, w, c], on the CPU."""
        pixels = Pixels((self.described.channels, self.image_size, self.image_size))
        model, found = self._model(), []
        with torch.no_grad():
            for part in values.split(DECODED):
                latents = (part / self.described.scale).to(self.device, memory_format=torch.channels_last)
                found.append(pixels.decode(model.decode(latents).sample))
        return np.concatenate(found)

    def contract(self) -> dict[str, Any]:
        """What server and clients must agree on: the factor, and the autoencoder's hash."""
        return {"latent_scale": self.described.scale, "autoencoder": self.described.sha256}

    def _model(self) -> AutoencoderKL:
        key = (self.described.sha256, self.device)
        with self._lock:
            if key not in _loaded:
                _loaded.clear()  # one run has one
                model = autoencoder_file.load(self.described).to(self.device)
                _loaded[key] = model.to(memory_format=torch.channels_last)
            return _loaded[key]


_loaded: dict[tuple[str, str], Any] = {}
