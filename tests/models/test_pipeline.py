"""Saved pipelines: plain diffusers loads them, and on data whose ideal denoiser is known they draw the right images."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from osmotic import models
from osmotic.models import NetworkSpec, pipeline
from osmotic.models.class_conditional_pipeline import ClassConditionalPipeline
from osmotic.models.construct import with_weights

PLAIN, TOLD = NetworkSpec("unet-8", 8, 1), NetworkSpec("unet-8", 8, 3, 2)
EDM = {
    "target": "edm",
    "schedule": None,
    "timesteps": None,
    "sigma_data": 0.5,
    "sigma_min": 0.002,
    "sigma_max": 80.0,
}


def discrete(target: str, schedule: str = "cosine", timesteps: int = 1000) -> dict[str, Any]:
    return {"target": target, "schedule": schedule, "timesteps": timesteps}


def silent(spec: NetworkSpec) -> dict[str, np.ndarray]:
    """Weights of a network that always answers zero."""
    weights = models.initial(spec, 0)
    return {name: value * (not name.startswith("conv_out")) for name, value in weights.items()}


LOADER = """
import json, sys, torch
from diffusers import DDIMPipeline, DDPMPipeline, DiffusionPipeline
base, seen = sys.argv[1], {}

def draw(pipe, **arguments):
    pipe.set_progress_bar_config(disable=True)
    images = pipe(num_inference_steps=3, generator=torch.Generator().manual_seed(0), **arguments).images
    return [[type(pipe).__name__, image.mode, list(image.size)] for image in images]

for name in ("v", "epsilon"):
    for cls in (DDIMPipeline, DDPMPipeline, DiffusionPipeline):
        seen[f"{name} {cls.__name__}"] = draw(cls.from_pretrained(f"{base}/{name}"), batch_size=2)
for name in ("classes", "edm", "edm-classes"):
    folder = f"{base}/{name}"
    for way, custom in {"folder": folder, "file": f"{folder}/class_conditional_pipeline.py", "none": None}.items():
        pipe = DiffusionPipeline.from_pretrained(folder, custom_pipeline=custom, trust_remote_code=True)
        asked = {"class_labels": [1, "cat"], "guidance_scale": 2.0} if "classes" in name else {"batch_size": 2}
        seen[f"{name} {way}"] = draw(pipe, **asked)
        seen[f"{name} names"] = pipe.config.class_names
pipe.save_pretrained(f"{base}/again")
again = DiffusionPipeline.from_pretrained(f"{base}/again", trust_remote_code=True)
seen["again"] = draw(again, class_labels="dog")
assert "osmotic" not in sys.modules
print(json.dumps(seen))
"""


def test_plain_diffusers_loads_and_samples_every_kind_in_a_fresh_process(tmp_path: Path) -> None:
    plain, told, names = models.initial(PLAIN, 0), models.initial(TOLD, 0), ("cat", "dog")
    pipeline.save(tmp_path / "v", PLAIN, plain, discrete("v"))
    pipeline.save(tmp_path / "epsilon", PLAIN, plain, discrete("epsilon", "linear", 100))
    pipeline.save(tmp_path / "classes", TOLD, told, discrete("v"), names)
    pipeline.save(tmp_path / "edm", PLAIN, plain, EDM)
    pipeline.save(tmp_path / "edm-classes", TOLD, told, EDM, names)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", LOADER, str(tmp_path)],
        capture_output=True,
        text=True,
        env=environment,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    grey, colour = ["L", [8, 8]], ["RGB", [8, 8]]
    for name in ("v", "epsilon"):
        assert seen[f"{name} DDIMPipeline"] == [["DDIMPipeline", *grey]] * 2
        assert seen[f"{name} DDPMPipeline"] == [["DDPMPipeline", *grey]] * 2
        assert seen[f"{name} DiffusionPipeline"] == [["DDIMPipeline", *grey]] * 2
    for way in ("folder", "file", "none"):
        assert seen[f"edm {way}"] == [["ClassConditionalPipeline", *grey]] * 2
        assert seen[f"classes {way}"] == [["ClassConditionalPipeline", *colour]] * 2
        assert seen[f"edm-classes {way}"] == [["ClassConditionalPipeline", *colour]] * 2
    assert seen["classes names"] == seen["edm-classes names"] == ["cat", "dog"] and seen["edm names"] == []
    assert seen["again"] == [["ClassConditionalPipeline", *colour]]


def test_the_cosine_schedule_is_that_of_the_paper() -> None:
    # arXiv:2102.09672, eq. 17: alpha_bar(t) = f(t) / f(0), f(t) = cos((t/T + 0.008) / 1.008 * pi/2)^2; only the last
    # steps differ, where beta is held at 0.999.
    def f(t: np.ndarray) -> np.ndarray:
        return np.cos((t / 1000 + 0.008) / 1.008 * np.pi / 2) ** 2

    wanted = f(np.arange(1, 991)) / f(np.zeros(1))
    for stock in (True, False):
        found = pipeline.scheduler(discrete("v"), stock=stock).alphas_cumprod.numpy()
        np.testing.assert_allclose(found[:990], wanted, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("timesteps, scale", [(1000, 1), (500, 2)])
def test_the_linear_schedule_runs_from_1e_4_to_0_02_times_1000_over_its_length(
    timesteps: int, scale: int
) -> None:
    found = pipeline.scheduler(discrete("epsilon", "linear", timesteps), stock=True)
    wanted = np.linspace(1e-4 * scale, 0.02 * scale, timesteps)
    np.testing.assert_allclose(found.betas.numpy(), wanted, rtol=1e-5)


@pytest.mark.parametrize("target,name", [("epsilon", "epsilon"), ("v", "v_prediction"), ("sample", "sample")])
def test_the_scheduler_knows_the_target_and_clips(target: str, name: str) -> None:
    stock, ours = (pipeline.scheduler(discrete(target), stock=stock).config for stock in (True, False))
    assert stock.prediction_type == ours.prediction_type == name
    assert stock.clip_sample and stock.clip_sample_range == 1.0
    assert ours.thresholding and ours.sample_max_value == 1.0


def quiet(spec: NetworkSpec, contract: dict[str, Any]) -> ClassConditionalPipeline:
    pipe = ClassConditionalPipeline(
        unet=with_weights(spec, silent(spec)), scheduler=pipeline.scheduler(contract, stock=False)
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("contract,scale", [(EDM, 0.5), (discrete("v"), 1.0)], ids=["edm", "v"])
def test_a_silent_network_draws_the_gaussian_it_stands_for(contract: dict[str, Any], scale: float) -> None:
    # EDM: F = 0 leaves D(x) = x sigma_data^2 / (sigma^2 + sigma_data^2), ideal for data N(0, sigma_data^2), whose ODE
    # turns noise at sigma_max into noise * sigma_data (sqrt((80^2 + 1) / (80^2 + 0.25)) is 1.0001).
    # v = 0 leaves x0 = sqrt(alpha_bar) x, ideal for data N(0, 1), whose ODE moves nothing. Images end at 1, and x0 is clipped there.
    pipe = quiet(PLAIN, contract)
    noise = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    images = pipe(
        batch_size=4,
        num_inference_steps=200,
        output_type="pt",
        generator=torch.Generator().manual_seed(0),
    ).images
    inside = (noise * scale).abs() < 0.8
    assert inside.sum() > 100
    torch.testing.assert_close((2 * images - 1)[inside], (noise * scale)[inside], rtol=0.02, atol=0.01)


def test_guidance_is_a_step_from_the_null_class_through_the_asked_one() -> None:
    pipe = ClassConditionalPipeline(
        unet=with_weights(TOLD, models.initial(TOLD, 0)),
        scheduler=pipeline.scheduler(discrete("v"), stock=False),
    )
    x, t = torch.ones(2, 3, 8, 8), torch.tensor(500)
    labels, null = torch.tensor([0, 1]), torch.tensor([2, 2])
    with torch.no_grad():
        told, untold = (pipe._predict(x, t, y, 1.0) for y in (labels, null))
        torch.testing.assert_close(pipe._predict(x, t, labels, 3.0), untold + 3.0 * (told - untold))
        torch.testing.assert_close(pipe._predict(x, t, labels, 0.0), untold)


@pytest.mark.parametrize("label", [2, -1, "bird"])
def test_a_label_that_the_model_does_not_know_is_refused(label: int | str) -> None:
    pipe = quiet(TOLD, discrete("v"))
    with pytest.raises(ValueError, match=r"class label .*: must be one of 0\.\.1"):
        pipe(class_labels=label, num_inference_steps=1)


def test_a_label_for_a_model_without_classes_is_refused() -> None:
    with pytest.raises(ValueError, match="knows no classes"):
        quiet(PLAIN, EDM)(class_labels=0, num_inference_steps=1)


def test_weights_survive_saving_and_no_pickle_is_written(tmp_path: Path) -> None:
    from diffusers import UNet2DModel

    weights = models.initial(TOLD, 3)
    pipeline.save(tmp_path / "model", TOLD, weights, discrete("v"), ("cat", "dog"), steps=7, guidance=1.5)
    loaded = UNet2DModel.from_pretrained(tmp_path / "model" / "unet", low_cpu_mem_usage=False).state_dict()
    assert loaded.keys() == weights.keys()
    assert all(np.array_equal(loaded[name].numpy(), weights[name]) for name in weights)
    suffixes = {path.suffix for path in (tmp_path / "model").rglob("*") if path.is_file()}
    assert suffixes == {".json", ".safetensors", ".py"}
    index = json.loads((tmp_path / "model" / "model_index.json").read_text())
    assert (index["default_steps"], index["default_guidance"]) == (7, 1.5)


def test_saving_replaces_the_older_model_as_a_whole(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "model"
    pipeline.save(folder, TOLD, models.initial(TOLD, 0), discrete("v"))
    (tmp_path / "run" / ".model.new").mkdir()  # left by a crash
    pipeline.save(folder, PLAIN, models.initial(PLAIN, 0), discrete("v"))
    assert not (folder / "class_conditional_pipeline.py").exists()
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


def test_every_byte_is_on_the_disk_before_the_folder_takes_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[Path] = []
    fsync = os.fsync

    def recorded(handle: int) -> None:
        synced.append(Path(os.readlink(f"/proc/self/fd/{handle}")))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", recorded)
    folder = pipeline.save(tmp_path / "model", PLAIN, models.initial(PLAIN, 0), discrete("v"))
    fresh = tmp_path / ".model.new"
    below = {fresh / path.relative_to(folder) for path in folder.rglob("*")}
    # The folder above names the model, so it comes last, after the rename.
    assert {*below, fresh} <= set(synced[:-1]) and synced[-1] == tmp_path


def test_a_failed_save_leaves_the_older_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusers import DDIMPipeline

    folder = tmp_path / "model"
    pipeline.save(folder, PLAIN, models.initial(PLAIN, 0), discrete("v"))
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    def full(self: object, directory: str, **_: object) -> None:
        Path(directory).mkdir()
        raise OSError("no space left")

    monkeypatch.setattr(DDIMPipeline, "save_pretrained", full)
    with pytest.raises(OSError, match="no space left"):
        pipeline.save(folder, PLAIN, models.initial(PLAIN, 1), discrete("v"))
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_class_names_must_fit_and_unknown_processes_are_refused(tmp_path: Path) -> None:
    weights = models.initial(TOLD, 0)
    with pytest.raises(ValueError, match="class_names: must be 2 names, got 1"):
        pipeline.save(tmp_path / "m", TOLD, weights, discrete("v"), ("cat",))
    with pytest.raises(ValueError, match="target 'x0': must be one of epsilon, v, sample, edm"):
        pipeline.save(tmp_path / "m", TOLD, weights, discrete("x0"))
    with pytest.raises(ValueError, match="schedule 'sigmoid': must be one of linear, cosine"):
        pipeline.save(tmp_path / "m", TOLD, weights, discrete("v", "sigmoid"))
    assert not list(tmp_path.iterdir())
