"""Images from noise, with noise that belongs to the image and not to the batch; `solvers.py` has the samplers.

Source of guidance: arXiv:2207.12598. Clipping: images lie in [-1, 1], hence so does the mean of all images that could
have given a noisy one; so ddpm, ddim, dpm-solver++ and unipc clip their estimate of x0 to [-1, 1] at every step, which
an ideal network never notices. The EDM samplers follow their paper and clip only the end result.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from osmotic.diffusion import compatibility
from osmotic.diffusion.process import Denoiser, Process
from osmotic.diffusion.solvers import SAMPLERS
from osmotic.diffusion.space import Pixels, Space

BATCH_SIZE = 250
CHUNK_SIZE = 125
# torch.quantile, which diffusers' thresholding calls, takes no larger tensor.
LARGEST_CHUNK_VALUES = 16_000_000
# diffusers imports its classes when they are first asked for, and two threads that ask at once can fail.
_importing = threading.Lock()

Seed = int | Sequence[int]


class NotFinite(ArithmeticError):
    """A network drew what is no image: values that are not finite numbers, which would be shown as black."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How images [N, C, H, W] are drawn from networks of one process: what stays the same from pool to pool.

    Args:
        process: what the networks were trained with.
        space: what they work in.
        sampler: a key of `solvers.SAMPLERS`.
        steps: sampler steps, >= 1.
        guidance: classifier-free guidance scale; 1 is off, else the network is evaluated twice per step.
    Raises: ValueError if sampler, target, steps and space do not fit each other.
    """

    process: Process
    space: Space
    sampler: str
    steps: int
    guidance: float = 1.0

    def __post_init__(self) -> None:
        shape, bounds = self.space.shape, self.space.range
        reason = compatibility.compatible(self.process.target, self.sampler)
        if reason is None and min(self.steps, *shape) < 1:
            reason = f"steps and shape must be >= 1, got {self.steps} and {shape}"
        reason = reason or compatibility.steps_fit(self.sampler, self.steps, self.process.timesteps)
        # diffusers' schedulers clip estimates to [-1, 1] or not at all, see `solvers.PLAIN_CLIP`.
        if bounds not in ((-1.0, 1.0), None):
            reason = reason or f"range of the space must be (-1.0, 1.0) or None, got {bounds}"
        if reason:
            raise ValueError(reason)

    @property
    def nfe(self) -> int:
        """Network evaluations per image."""
        return compatibility.nfe(self.steps, self.guidance)

    def draw(
        self,
        model: Denoiser,
        labels: Tensor | None,
        num_images: int,
        seed: Seed,
        *,
        batch_size: int = BATCH_SIZE,
        device: torch.device | str = "cpu",
        drawn: Callable[[float], object] = lambda images: None,
    ) -> Tensor:
        """Generated images in the bounds of the space, [N, C, H, W], float32, on the CPU.

        The noise of image i depends on `seed` and i alone, that of ddpm's steps included, so neither `batch_size` nor
        `num_images` changes an image by more than the network's own rounding.
        Args:
            model: the network; a module is in eval mode while this runs.
            labels: class of each image, int64 [N]; None samples without label.
            num_images: N, >= 1.
            seed: non-negative integers for `np.random.SeedSequence`; the image's index is appended.
            batch_size: images side by side, fewer where images are very large.
            device: where the network is.
            drawn: told after every sampler step how many images' worth of work it was; all steps of an image make 1.
        Raises: ValueError if labels, guidance and `num_images` do not fit each other or the process; NotFinite if an
            image holds a value that is not finite.
        """
        given = self._labels(labels, num_images)
        with _evaluating([model]):
            chunks = _chunks((num_images, *self.space.shape), batch_size)
            return torch.cat([self._chunk(model, given, indices, seed, device, drawn) for indices in chunks])

    def draw_chunks(
        self,
        models: Sequence[Denoiser],
        labels: Tensor | None,
        num_images: int,
        seed: Seed,
        *,
        chunk_size: int = CHUNK_SIZE,
        threads: int = 1,
        device: torch.device | str = "cpu",
        drawn: Callable[[float], object] = lambda images: None,
    ) -> Tensor:
        """As `draw`, [N, C, H, W], with one worker thread per model; the same bits for any number of models.

        Chunks are cut before they are handed out and each runs with `threads` operator threads, so the network sees
        the same batches on the same number of threads however many workers there are.
        Args:
            models: replicas of one network, one per worker; they may not share buffers that a forward pass writes.
            labels, num_images, seed, device: as `draw`.
            drawn: as `draw`, from any of the workers' threads.
            chunk_size: images side by side in a worker; results depend on it in the last bits.
            threads: operator threads of each worker.
        Raises: ValueError and NotFinite as `draw`, ValueError if there is no model.
        """
        if not models:
            raise ValueError("models must hold at least one network")
        given = self._labels(labels, num_images)
        idle: queue.SimpleQueue[Denoiser] = queue.SimpleQueue()
        for model in models:
            idle.put(model)

        def work(indices: range) -> Tensor:
            # The setting is per thread, and a pool's threads are born with the process's own.
            torch.set_num_threads(threads)
            model = idle.get()
            try:
                return self._chunk(model, given, indices, seed, device, drawn)
            finally:
                idle.put(model)

        threads_before = torch.get_num_threads()
        with _evaluating(models), ThreadPoolExecutor(max_workers=len(models)) as pool:
            try:
                chunks = _chunks((num_images, *self.space.shape), chunk_size)
                return torch.cat(list(pool.map(work, chunks)))
            finally:
                # A worker's setting is also the default of threads that start later.
                torch.set_num_threads(threads_before)

    def _labels(self, labels: Tensor | None, num_images: int) -> Tensor | None:
        """Labels to draw with, int64 [N]; None for an unconditional network."""
        if num_images < 1:
            raise ValueError(f"num_images must be >= 1, got {num_images}")
        if labels is not None and self.process.num_classes == 0:
            raise ValueError("labels were given to an unconditional process (num_classes is 0)")
        if labels is None and self.guidance != 1:
            raise ValueError("guidance needs labels")
        if labels is not None and len(labels) != num_images:
            raise ValueError(f"labels must have one entry per image: {len(labels)} for {num_images} images")
        if labels is None and self.process.num_classes:
            return torch.full((num_images,), self.process.null_class, dtype=torch.int64)
        return labels

    def scheduler(self, device: torch.device | str = "cpu") -> Any:
        """A fresh diffusers scheduler, set to the steps of this sampling; from any thread."""
        clip = self.space.range is not None
        with _importing:
            return SAMPLERS[self.sampler].scheduler(self.process, self.steps, clip=clip, device=device)

    def _chunk(
        self,
        model: Denoiser,
        labels: Tensor | None,
        indices: range,
        seed: Seed,
        device: torch.device | str,
        drawn: Callable[[float], object],
    ) -> Tensor:
        """The images of these indices, [len(indices), C, H, W]."""
        entry, bounds = SAMPLERS[self.sampler], self.space.range
        # A fresh scheduler for each chunk: they remember earlier steps, and chunks run side by side.
        scheduler = self.scheduler(device)
        if hasattr(scheduler, "set_begin_index"):
            # Otherwise it looks the first timestep up in its table, which on a GPU waits for the device.
            scheduler.set_begin_index(0)
        generators = image_generators((seed,) if isinstance(seed, int) else seed, indices)
        # On the CPU, whatever the device: generators of different devices draw different numbers from one seed.
        noise = torch.stack([torch.randn(self.space.shape, generator=generator) for generator in generators])
        x = noise.to(device) * scheduler.init_noise_sigma
        given = None if labels is None else labels[indices.start : indices.stop].to(device)
        predict = self._guided(model, given)
        extra = {"generator": generators} if entry.ancestral else {}
        with torch.no_grad():
            for timestep in scheduler.timesteps:
                output = predict(scheduler.scale_model_input(x, timestep), timestep)
                x = scheduler.step(output, timestep, x, return_dict=False, **extra)[0]
                drawn(len(indices) / len(scheduler.timesteps))
        broken = int((~x.isfinite()).flatten(1).any(dim=1).sum())
        if broken:
            raise NotFinite(f"{broken} of {len(x)} images drawn by the model hold values that are not finite")
        # The EDM samplers have clipped nothing yet, and the others' last step may round past the end.
        return (x if bounds is None else x.clamp(*bounds)).cpu()

    def _guided(self, model: Denoiser, labels: Tensor | None) -> Callable[[Tensor, Tensor], Tensor]:
        """The network's output, without label + guidance * (with label - without) (arXiv:2207.12598, eq. 6)."""

        def call(x: Tensor, timestep: Tensor, given: Tensor | None) -> Tensor:
            output: Tensor = model(x, timestep.expand(len(x)), class_labels=given, return_dict=False)[0]
            # Sums over steps stay float32 where the network runs in bfloat16.
            return output.float()

        if self.guidance == 1 or labels is None:
            return lambda x, timestep: call(x, timestep, labels)
        both = torch.cat([labels, torch.full_like(labels, self.process.null_class)])  # [2 N]

        def guided(x: Tensor, timestep: Tensor) -> Tensor:
            with_label, without = call(torch.cat([x, x]), timestep, both).chunk(2)
            return without + self.guidance * (with_label - without)

        return guided


def sample(
    model: Denoiser,
    process: Process,
    labels: Tensor | None,
    shape: Sequence[int],
    sampler: str,
    steps: int,
    seed: Seed,
    guidance: float = 1.0,
    batch_size: int = BATCH_SIZE,
    device: torch.device | str = "cpu",
) -> tuple[Tensor, int]:
    """`Sampling.draw` of pixels in one call: images in [-1, 1], [N, C, H, W], and the network evaluations per image.

    Args: shape is (N, C, H, W); the others as `Sampling` and `Sampling.draw`.
    Raises: ValueError as these two.
    """
    sampling = _pixels(process, shape, sampler, steps, guidance)
    images = sampling.draw(model, labels, shape[0], seed, batch_size=batch_size, device=device)
    return images, sampling.nfe


def sample_chunks(
    models: Sequence[Denoiser],
    process: Process,
    labels: Tensor | None,
    shape: Sequence[int],
    sampler: str,
    steps: int,
    seed: Seed,
    guidance: float = 1.0,
    chunk_size: int = CHUNK_SIZE,
    threads: int = 1,
    device: torch.device | str = "cpu",
) -> tuple[Tensor, int]:
    """`Sampling.draw_chunks` of pixels in one call: images, [N, C, H, W], and the network evaluations per image.

    Args: shape is (N, C, H, W); the others as `Sampling` and `Sampling.draw_chunks`.
    Raises: ValueError as these two.
    """
    sampling = _pixels(process, shape, sampler, steps, guidance)
    images = sampling.draw_chunks(
        models, labels, shape[0], seed, chunk_size=chunk_size, threads=threads, device=device
    )
    return images, sampling.nfe


def image_generators(seed: Sequence[int], indices: range) -> list[torch.Generator]:
    """One CPU generator per image, from SeedSequence([*seed, index]); `indices` are the images' own, >= 0."""
    generators = []
    for index in indices:
        (word,) = np.random.SeedSequence([*seed, index]).generate_state(1, np.uint64)
        generators.append(torch.Generator().manual_seed(int(word)))
    return generators


def _pixels(process: Process, shape: Sequence[int], sampler: str, steps: int, guidance: float) -> Sampling:
    channels, height, width = shape[1:]
    space = Pixels((channels, height, width))
    return Sampling(process=process, space=space, sampler=sampler, steps=steps, guidance=guidance)


def _chunks(shape: Sequence[int], size: int) -> list[range]:
    """Runs of image indices; a run holds `size` images, or fewer where these would be too many values."""
    size = max(1, min(size, LARGEST_CHUNK_VALUES // int(np.prod(shape[1:]))))
    return [range(start, min(start + size, shape[0])) for start in range(0, shape[0], size)]


@contextmanager
def _evaluating(models: Sequence[Denoiser]) -> Iterator[None]:
    """Modules in eval mode inside, and back in the mode they had."""
    training = [m for m in models if isinstance(m, torch.nn.Module) and m.training]
    for module in training:
        module.eval()
    try:
        yield
    finally:
        for module in training:
            module.train()
