"""Images from noise, with diffusers' schedulers as samplers and noise that belongs to the image, not to the batch.

Sources: ddpm arXiv:2006.11239, ddim 2010.02502, dpm-solver++ (2M) 2211.01095, unipc 2302.04867, edm 2206.00364,
guidance 2207.12598. Clipping: images lie in [-1, 1], hence so does the mean of all images that could have given a
noisy one; so ddpm, ddim, dpm-solver++ and unipc clip their estimate of x0 to [-1, 1] at every step, which an ideal
network never notices. The EDM samplers follow their paper and clip only the end result.
"""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from osmotic.diffusion import facts
from osmotic.diffusion import schedule as schedules
from osmotic.diffusion.process import Denoiser, Process

CHUNK_SIZE = 125
# torch.quantile, which diffusers' thresholding calls, takes no larger tensor.
LARGEST_CHUNK_VALUES = 16_000_000
PREDICTION_TYPES = {"epsilon": "epsilon", "v": "v_prediction", "sample": "sample"}
# Starting where log(alpha / sigma) is below this multiplies the network's error by more than 160 and changes the
# images by less than 1 %; it is diffusers' advice for the cosine schedule, and the linear one ends just above it.
SMALLEST_LAMBDA = -5.1
# Of 1, 1.25, 1.5, 1.75, 2 and 2.5 the best compromise with the ideal denoiser of the digits at 10, 20 and 40 steps:
# 0.3 to 1.2 of the error of even spacing (1).
SPACING_POWER = 1.5


@dataclass(frozen=True)
class _Job:
    """What all chunks of one call share."""

    process: Process
    shape: tuple[int, ...]  # [C, H, W]
    sampler: str
    steps: int
    seed: tuple[int, ...]
    guidance: float
    device: torch.device


def sample(
    model: Denoiser,
    process: Process,
    labels: Tensor | None,
    shape: Sequence[int],
    sampler: str,
    steps: int,
    seed: int | Sequence[int],
    guidance: float = 1.0,
    batch_size: int = 250,
    device: torch.device | str = "cpu",
) -> tuple[Tensor, int]:
    """Generated images in [-1, 1], [N, C, H, W], float32, on the CPU, and the network evaluations per image.

    The noise of image i depends on `seed` and i alone, that of ddpm's steps included, so neither `batch_size` nor N
    changes an image by more than the network's own rounding.
    Args:
        model: the network; a module is in eval mode while this runs.
        process: what it was trained with.
        labels: class of each image, int64 [N]; None samples without label.
        shape: (N, C, H, W).
        sampler: a key of `facts.SAMPLERS`.
        steps: sampler steps, >= 1.
        seed: non-negative integers for `np.random.SeedSequence`; the image's index is appended.
        guidance: classifier-free guidance scale; 1 is off, else the network is evaluated twice per step.
        batch_size: images side by side, fewer where images are very large.
        device: where the network is.
    Raises: ValueError if sampler, target, steps, labels and guidance do not fit each other.
    """
    job, given = _checked(process, labels, shape, sampler, steps, seed, guidance, device)
    with _evaluating([model]):
        parts = [_chunk(model, job, given, indices) for indices in _chunks(shape, batch_size)]
    return torch.cat(parts), facts.nfe(steps, guidance)


def sample_chunks(
    models: Sequence[Denoiser],
    process: Process,
    labels: Tensor | None,
    shape: Sequence[int],
    sampler: str,
    steps: int,
    seed: int | Sequence[int],
    guidance: float = 1.0,
    chunk_size: int = CHUNK_SIZE,
    threads: int = 1,
    device: torch.device | str = "cpu",
) -> tuple[Tensor, int]:
    """As `sample`, with one worker thread per model; the same bits for any number of models.

    Chunks are cut before they are handed out and each runs with `threads` operator threads, so the network sees the
    same batches on the same number of threads however many workers there are.
    Args:
        models: replicas of one network, one per worker; they may not share buffers that a forward pass writes.
        chunk_size: images side by side in a worker; results depend on it in the last bits.
        threads: operator threads of each worker.
        Others as `sample`.
    Raises: ValueError as `sample`, and if there is no model.
    """
    if not models:
        raise ValueError("models must hold at least one network")
    job, given = _checked(process, labels, shape, sampler, steps, seed, guidance, device)
    idle: queue.SimpleQueue[Denoiser] = queue.SimpleQueue()
    for model in models:
        idle.put(model)

    def work(indices: range) -> Tensor:
        torch.set_num_threads(threads)
        model = idle.get()
        try:
            return _chunk(model, job, given, indices)
        finally:
            idle.put(model)

    threads_before = torch.get_num_threads()
    with _evaluating(models), ThreadPoolExecutor(max_workers=len(models)) as pool:
        try:
            parts = list(pool.map(work, _chunks(shape, chunk_size)))
        finally:
            # A worker's setting is also the default of threads that start later.
            torch.set_num_threads(threads_before)
    return torch.cat(parts), facts.nfe(steps, guidance)


def image_generators(seed: Sequence[int], indices: range) -> list[torch.Generator]:
    """One CPU generator per image, from SeedSequence([*seed, index])."""
    generators = []
    for index in indices:
        (word,) = np.random.SeedSequence([*seed, index]).generate_state(1, np.uint64)
        generators.append(torch.Generator().manual_seed(int(word)))
    return generators


def stops(process: Process, sampler: str, steps: int) -> list[int]:
    """The timesteps that ddpm, ddim or dpm-solver++ visits: `steps` of them, strictly falling, >= 0.

    ddpm and ddim: evenly spaced ("trailing", arXiv:2305.08891, Table 2), from the noisiest timestep, which the network
    has seen, to one stride above clean. dpm-solver++: from the end of the usable part, closer together towards the
    clean end, where pixels of small variance are settled (cf. the quadratic spacing of arXiv:2010.02502, app. D.2).
    """
    if sampler != "dpm-solver++":
        return [round(stop) - 1 for stop in np.linspace(process.timesteps, 0, steps, endpoint=False).tolist()]
    usable = usable_timesteps(process, steps)
    above = 0
    rising = []
    for index in range(1, steps + 1):
        # Rounding near the clean end must not make two stops one.
        above = max(above + 1, round(usable * (index / steps) ** SPACING_POWER))
        rising.append(above - 1)
    return rising[::-1]


def usable_timesteps(process: Process, at_least: int) -> int:
    """Length of the schedule without the end where the network's error is blown up; `at_least` are kept."""
    usable = int((schedules.snr(process.alpha_bar).log() / 2 >= SMALLEST_LAMBDA).sum())
    return max(usable, at_least)


def build_scheduler(process: Process, sampler: str, steps: int, device: torch.device | str = "cpu") -> Any:
    """A diffusers scheduler set to `steps` steps.

    ddim is the first-order DPM-Solver++, which is the same update (arXiv:2211.01095, sec. 4.1): diffusers' own DDIM
    scheduler loses its place where the steps do not divide the timesteps. unipc takes no list of timesteps and keeps
    diffusers' "linspace" stops over the usable part of the schedule. No Karras sigmas: they fall between timesteps,
    and diffusers then tells the network a rounded one. The last step always goes to zero noise.
    """
    import diffusers

    if sampler == "edm-euler" or sampler == "edm-dpm-solver++":
        cls = (
            diffusers.EDMEulerScheduler
            if sampler == "edm-euler"
            else diffusers.EDMDPMSolverMultistepScheduler
        )
        scheduler = cls(
            sigma_min=facts.SIGMA_MIN,
            sigma_max=facts.SIGMA_MAX,
            sigma_data=facts.SIGMA_DATA,
            prediction_type="epsilon",  # the sign of c_out in Table 1
            final_sigmas_type="zero",
        )
        scheduler.set_timesteps(steps, device=device)
        return scheduler
    common: dict[str, Any] = {
        "num_train_timesteps": process.timesteps,
        "beta_schedule": schedules.DIFFUSERS_NAMES[process.schedule],
        "beta_start": schedules.BETA_START,
        "beta_end": schedules.BETA_END,
        "prediction_type": PREDICTION_TYPES[process.target],
    }
    if sampler == "ddpm":
        scheduler = diffusers.DDPMScheduler(**common, clip_sample=True, clip_sample_range=1.0)
        scheduler.set_timesteps(timesteps=stops(process, sampler, steps), device=device)
        return scheduler
    # With a largest value of 1 diffusers' dynamic thresholding is a plain clip to [-1, 1].
    common |= {"thresholding": True, "sample_max_value": 1.0, "final_sigmas_type": "zero"}
    if sampler == "unipc":
        usable = usable_timesteps(process, steps + 1)
        cut = schedules.betas(process.schedule, process.timesteps)[:usable].tolist()
        common |= {"num_train_timesteps": usable, "trained_betas": cut, "timestep_spacing": "linspace"}
        scheduler = diffusers.UniPCMultistepScheduler(**common, solver_order=2)
        scheduler.set_timesteps(steps, device=device)
        return scheduler
    order = facts.SAMPLERS[sampler].order
    scheduler = diffusers.DPMSolverMultistepScheduler(**common, solver_order=order)
    scheduler.set_timesteps(timesteps=stops(process, sampler, steps), device=device)
    return scheduler


def _chunk(model: Denoiser, job: _Job, labels: Tensor | None, indices: range) -> Tensor:
    scheduler = build_scheduler(job.process, job.sampler, job.steps, job.device)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)
    generators = image_generators(job.seed, indices)
    noise = torch.stack([torch.randn(job.shape, generator=generator) for generator in generators])
    x = noise.to(job.device) * scheduler.init_noise_sigma
    given = None if labels is None else labels[indices.start : indices.stop].to(job.device)
    predict = _guided(model, job, given)
    extra = {"generator": generators} if facts.SAMPLERS[job.sampler].ancestral else {}
    with torch.no_grad():
        for timestep in scheduler.timesteps:
            output = predict(scheduler.scale_model_input(x, timestep), timestep)
            x = scheduler.step(output, timestep, x, return_dict=False, **extra)[0]
    return x.clamp(-1.0, 1.0).cpu()


def _guided(model: Denoiser, job: _Job, labels: Tensor | None) -> Callable[[Tensor, Tensor], Tensor]:
    """The network's output, without label + guidance * (with label - without) (arXiv:2207.12598, eq. 6)."""

    def call(x: Tensor, timestep: Tensor, given: Tensor | None) -> Tensor:
        output: Tensor = model(x, timestep.expand(len(x)), class_labels=given, return_dict=False)[0]
        return output.float()

    if job.guidance == 1 or labels is None:
        return lambda x, timestep: call(x, timestep, labels)
    both = torch.cat([labels, torch.full_like(labels, job.process.null_class)])

    def guided(x: Tensor, timestep: Tensor) -> Tensor:
        with_label, without = call(torch.cat([x, x]), timestep, both).chunk(2)
        return without + job.guidance * (with_label - without)

    return guided


def _checked(
    process: Process,
    labels: Tensor | None,
    shape: Sequence[int],
    sampler: str,
    steps: int,
    seed: int | Sequence[int],
    guidance: float,
    device: torch.device | str,
) -> tuple[_Job, Tensor | None]:
    reason = facts.compatible(process.target, sampler)
    if reason is None and min(steps, *shape) < 1:
        reason = f"steps and shape must be >= 1, got {steps} and {tuple(shape)}"
    reason = reason or facts.steps_fit(sampler, steps, process.timesteps)
    if labels is not None and process.num_classes == 0:
        reason = reason or "labels were given to an unconditional process (num_classes is 0)"
    if labels is None and guidance != 1:
        reason = reason or "guidance needs labels"
    if labels is not None and len(labels) != shape[0]:
        reason = reason or f"labels must have one entry per image: {len(labels)} for {shape[0]} images"
    if reason:
        raise ValueError(reason)
    if labels is None and process.num_classes:
        labels = torch.full((shape[0],), process.null_class, dtype=torch.int64)
    words = (seed,) if isinstance(seed, int) else tuple(seed)
    job = _Job(process, tuple(shape[1:]), sampler, steps, words, guidance, torch.device(device))
    return job, labels


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
