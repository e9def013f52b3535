"""A trained network as a pipeline folder that plain diffusers loads, without this package.

Unconditional networks become a stock `DDIMPipeline` (`DDPMPipeline` loads it too); class-conditional ones, and those
with the target `edm`, come with `class_conditional_pipeline.py`, loaded with `custom_pipeline=folder,
trust_remote_code=True`. A network that diffusers does not know brings its file along, in the folder `unet`; it too needs
`trust_remote_code=True`, with stock pipelines as well. Weights are safetensors.

An own network that is no diffusers model cannot be loaded without the code that registers it: its folder holds
`weights.safetensors` and `config.json`, read back by `construct.with_weights`.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from osmotic.diffusion.schedule import SCHEDULES
from osmotic.diffusion.solvers import PLAIN_CLIP, SMALLEST_LAMBDA, scheduler_arguments
from osmotic.diffusion.target import TARGETS
from osmotic.models.spec import NetworkSpec
from osmotic.storage.atomic import sync_folder, sync_tree

if TYPE_CHECKING:
    from torch import nn

    from osmotic.models.autoencoder_file import Described


def save(
    folder: Path | str,
    spec: NetworkSpec,
    weights: Mapping[str, np.ndarray],
    process_contract: Mapping[str, Any],
    class_names: Sequence[str] = (),
    *,
    steps: int = 20,
    guidance: float = 1.0,
    autoencoder: Described | None = None,
) -> Path:
    """Writes the pipeline folder and returns its path; an older one there is replaced as a whole.

    Args:
        folder: where to; written beside it first and renamed, so that a crash never leaves half a model there.
        spec: the network.
        weights: name -> array [...] of any float dtype, shaped as in `layout(spec)`; stored as float32.
        process_contract: how it was trained: `target`, and `schedule` and `timesteps`, or for the target `edm`
            `sigma_data`, `sigma_min` and `sigma_max`.
        class_names: names of the classes by label, or () if they have none.
        steps, guidance: defaults of our own pipeline; stock pipelines have their own.
        autoencoder: in whose latents the network works; it is saved beside it.
    Raises: ValueError if the class names do not fit the network or the contract is unknown; RuntimeError if the
        weights do not fit the network; OSError as the file system gives it.
    """
    from diffusers import ModelMixin
    from safetensors import SafetensorError

    from osmotic.models import autoencoder_file
    from osmotic.models.autoencoder import Autoencoder
    from osmotic.models.construct import with_weights

    if class_names and len(class_names) != spec.num_classes:
        raise ValueError(f"class_names: must be {spec.num_classes} names, got {len(class_names)}")
    model = with_weights(spec, weights)
    defaults = {
        "class_names": [str(name) for name in class_names],
        "default_steps": steps,
        "default_guidance": guidance,
    }
    vae = None if autoencoder is None else autoencoder_file.load(autoencoder)
    pipeline: Any
    if isinstance(spec.network, Autoencoder):
        pipeline = model  # the folder is diffusers' own of an AutoencoderKL
    elif isinstance(model, ModelMixin):
        pipeline = assemble(spec, model, process_contract, defaults, vae)
    else:
        pipeline = None
    folder = Path(folder).absolute()
    fresh, old = (folder.with_name(f".{folder.name}.{suffix}") for suffix in ("new", "old"))
    for leftover in (fresh, old):
        shutil.rmtree(leftover, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        if pipeline is None:
            _save_plain(fresh, spec, weights, {"process": dict(process_contract), **defaults})
            if vae is not None:
                vae.save_pretrained(str(fresh / "vae"), safe_serialization=True)
        else:
            pipeline.save_pretrained(str(fresh), safe_serialization=True)
    except SafetensorError as error:  # its own words for a disk that is full
        raise OSError(f"{fresh} cannot be written ({error})") from None
    # A rename may reach the disk before the bytes do; and a full folder cannot be renamed over: the old one steps aside.
    sync_tree(fresh)
    if folder.exists():
        folder.rename(old)
    fresh.rename(folder)
    sync_folder(folder.parent)
    shutil.rmtree(old, ignore_errors=True)
    return folder


def scheduler(process_contract: Mapping[str, Any], *, stock: bool, clip: bool = True) -> Any:
    """The diffusers scheduler that fits the training; all but EDM clip predicted images to [-1, 1] at every step.

    Args:
        process_contract: as in `save`.
        clip: False for latents, which have no bounds.
        stock: DDIM, which the stock pipelines need, instead of DPM-Solver++ (2M), which needs fewer steps.
    Raises: ValueError for an unknown target or schedule.
    """
    from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EDMDPMSolverMultistepScheduler

    target, schedule = process_contract["target"], process_contract.get("schedule")
    if target not in TARGETS:
        raise ValueError(f"target {target!r}: must be one of {', '.join(TARGETS)}")
    if TARGETS[target].edm:
        sigmas = {name: float(process_contract[name]) for name in ("sigma_data", "sigma_min", "sigma_max")}
        return EDMDPMSolverMultistepScheduler(**sigmas)
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule {schedule!r}: must be one of {', '.join(SCHEDULES)}")
    common = scheduler_arguments(target, schedule, int(process_contract["timesteps"]))
    # Few steps must still begin at the noisiest timestep (arXiv:2305.08891, sec. 3.3).
    common["timestep_spacing"] = "trailing"
    if stock:
        return DDIMScheduler(**common, clip_sample=True)
    # A saved scheduler is asked for any number of steps, so it takes a rule and not the stops of `solvers.py`: steps of
    # equal log SNR (arXiv:2211.01095, app.), without which 20 steps would lose three quarters of a narrow variance.
    return DPMSolverMultistepScheduler(
        **common, **(PLAIN_CLIP if clip else {}), lambda_min_clipped=SMALLEST_LAMBDA, use_lu_lambdas=True
    )


def assemble(
    spec: NetworkSpec,
    model: nn.Module,
    process_contract: Mapping[str, Any],
    defaults: Mapping[str, Any],
    vae: Any = None,
) -> Any:
    """The pipeline of a network in memory: a stock one for a diffusers model without classes, else our own.

    Args:
        model: with the call of diffusers' U-Nets.
        process_contract: as in `save`.
        defaults: `class_names`, `default_steps` and `default_guidance` of our own pipeline.
        vae: the autoencoder of a latent model.
    Raises: ValueError as `scheduler`.
    """
    from diffusers import DDIMPipeline, ModelMixin

    from osmotic.models.class_conditional_pipeline import ClassConditionalPipeline

    stock = not spec.num_classes and process_contract["target"] != "edm" and isinstance(model, ModelMixin)
    if vae is not None:
        made = scheduler(process_contract, stock=False, clip=False)
        return ClassConditionalPipeline(unet=model, scheduler=made, vae=vae, **defaults)
    pieces = {"unet": model, "scheduler": scheduler(process_contract, stock=stock)}
    return DDIMPipeline(**pieces) if stock else ClassConditionalPipeline(**pieces, **defaults)


def _save_plain(
    folder: Path, spec: NetworkSpec, weights: Mapping[str, np.ndarray], described: Mapping[str, Any]
) -> None:
    """`weights.safetensors` and `config.json`: the spec's fields, and what else a sampler has to know."""
    from safetensors.numpy import save_file

    folder.mkdir()
    # safetensors writes an array's memory as it lies, so it must lie in order.
    save_file(
        {name: np.ascontiguousarray(value, np.float32) for name, value in weights.items()},
        folder / "weights.safetensors",
    )
    fields = {k: v for k, v in dataclasses.asdict(spec).items() if k != "adapter"}  # it is in the weights
    text = json.dumps({**fields, **described}, indent=2, sort_keys=True)
    (folder / "config.json").write_text(text + "\n", encoding="utf-8")
