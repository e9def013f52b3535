"""A trained network as a pipeline folder that plain diffusers loads, without this package.

Unconditional networks become a stock `DDIMPipeline` (`DDPMPipeline` loads it too); class-conditional ones, and those
with the target `edm`, come with `class_conditional_pipeline.py`, loaded with `custom_pipeline=folder,
trust_remote_code=True`. A network that diffusers does not know brings its file along, in the folder `unet`; it too needs
`trust_remote_code=True`, with stock pipelines as well. Weights are safetensors.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from osmotic.models import NetworkSpec

PREDICTION_TYPES = {"epsilon": "epsilon", "v": "v_prediction", "sample": "sample"}
BETA_SCHEDULES = {"linear": "linear", "cosine": "squaredcos_cap_v2"}


def save(
    folder: Path | str,
    spec: NetworkSpec,
    weights: Mapping[str, np.ndarray],
    process_contract: Mapping[str, Any],
    class_names: Sequence[str] = (),
    *,
    steps: int = 20,
    guidance: float = 1.0,
) -> Path:
    """Writes the pipeline folder and returns its path; an older one there is replaced as a whole.

    Args:
        folder: where to; written beside it first and renamed, so that a crash never leaves half a model there.
        spec: the network.
        weights: its weights by parameter name, any float dtype; stored as float32.
        process_contract: how it was trained: `target`, and `schedule` and `timesteps`, or for the target `edm`
            `sigma_data`, `sigma_min` and `sigma_max`.
        class_names: names of the classes by label, or () if they have none.
        steps, guidance: defaults of our own pipeline; stock pipelines have their own.
    Raises: ValueError if the class names do not fit the network or the contract is unknown; RuntimeError if the
        weights do not fit the network.
    """
    if class_names and len(class_names) != spec.num_classes:
        raise ValueError(f"class_names: must be {spec.num_classes} names, got {len(class_names)}")
    pipeline = _pipeline(spec, weights, process_contract, class_names, steps, guidance)
    folder = Path(folder).absolute()
    fresh, old = (folder.with_name(f".{folder.name}.{suffix}") for suffix in ("new", "old"))
    for leftover in (fresh, old):
        shutil.rmtree(leftover, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    pipeline.save_pretrained(str(fresh), safe_serialization=True)
    _flush(fresh)
    if folder.exists():
        folder.rename(old)
    fresh.rename(folder)
    _flush(folder.parent, files=False)
    shutil.rmtree(old, ignore_errors=True)
    return folder


def scheduler(process_contract: Mapping[str, Any], *, stock: bool) -> Any:
    """The diffusers scheduler that fits the training; all but EDM clip predicted images to [-1, 1] at every step.

    Args:
        process_contract: as in `save`.
        stock: DDIM, which the stock pipelines need, instead of DPM-Solver++ (2M), which needs fewer steps.
    Raises: ValueError for an unknown target or schedule.
    """
    from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EDMDPMSolverMultistepScheduler

    target, schedule = process_contract["target"], process_contract.get("schedule")
    if target == "edm":
        sigmas = {name: float(process_contract[name]) for name in ("sigma_data", "sigma_min", "sigma_max")}
        return EDMDPMSolverMultistepScheduler(**sigmas)
    if target not in PREDICTION_TYPES:
        raise ValueError(f"target {target!r}: must be one of {', '.join((*PREDICTION_TYPES, 'edm'))}")
    if schedule not in BETA_SCHEDULES:
        raise ValueError(f"schedule {schedule!r}: must be one of {', '.join(BETA_SCHEDULES)}")
    common = {
        "num_train_timesteps": int(process_contract["timesteps"]),
        "beta_schedule": BETA_SCHEDULES[schedule],
        "beta_start": 1e-4,
        "beta_end": 0.02,
        "prediction_type": PREDICTION_TYPES[target],
        # Few steps must still begin at the noisiest timestep (arXiv:2305.08891, sec. 3.3).
        "timestep_spacing": "trailing",
    }
    if stock:
        return DDIMScheduler(**common, clip_sample=True)
    # With a largest value of 1, "dynamic" thresholding is plain clipping. Where less signal is left than this
    # log(alpha / sigma), the network's error is multiplied by more than 160: diffusers' advice for the cosine schedule.
    return DPMSolverMultistepScheduler(
        **common, thresholding=True, sample_max_value=1.0, lambda_min_clipped=-5.1
    )


def _pipeline(
    spec: NetworkSpec,
    weights: Mapping[str, np.ndarray],
    process_contract: Mapping[str, Any],
    class_names: Sequence[str],
    steps: int,
    guidance: float,
) -> Any:
    from diffusers import DDIMPipeline

    from osmotic.models.class_conditional_pipeline import ClassConditionalPipeline
    from osmotic.models.construct import with_weights

    stock = not spec.num_classes and process_contract["target"] != "edm"
    parts = {
        "unet": with_weights(spec, weights),
        "scheduler": scheduler(process_contract, stock=stock),
    }
    if stock:
        return DDIMPipeline(**parts)
    return ClassConditionalPipeline(
        **parts,
        class_names=[str(name) for name in class_names],
        default_steps=steps,
        default_guidance=guidance,
    )


def _flush(folder: Path, files: bool = True) -> None:
    """Makes what the folder holds survive a power cut: a rename may reach the disk before the bytes do."""
    below = [path for path in folder.rglob("*")] if files else []
    for path in (*below, folder):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
