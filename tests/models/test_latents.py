"""Latents: an autoencoder read as data, images on their way there and back, and whole runs in its space."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_autoencoder
import torch
from safetensors.numpy import load_file, save_file
from small_runs import SMALL, Crash, Silent, crash_at

from osmotic import models
from osmotic.diffusion.reconstruction import Reconstruction
from osmotic.errors import MAX_TEXT, ConfigError
from osmotic.federation.blueprint import Blueprint
from osmotic.federation.bookkeeping import Tally
from osmotic.models import autoencoder_file, construct
from osmotic.models.latents import Latents
from osmotic.protocol.messages import contract_hash
from osmotic.runs import commands, launch, plan, resolve, saved
from osmotic.runs.summary import weights_sha256


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_autoencoder.write(tmp_path_factory.mktemp("made") / "autoencoder")


def pictures(count: int = 70, side: int = 16) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, side, side, 1), np.uint8)


# --- the space ---


def test_images_go_there_and_back_as_diffusers_takes_them(folder: Path) -> None:
    from diffusers import AutoencoderKL

    space = Latents(autoencoder_file.describe(folder), 16)
    images = pictures()
    kept = space.prepare(images)
    assert kept.shape == (70, 4, 4, 4) and kept.dtype == np.float32 and space.shape == (4, 4, 4)
    theirs = AutoencoderKL.from_pretrained(str(folder))
    with torch.no_grad():
        seen = torch.from_numpy(images.transpose(0, 3, 1, 2)) / 127.5 - 1
        latents = theirs.encode(seen).latent_dist.mean * 2.0
        again = theirs.decode(latents / 2.0).sample
    np.testing.assert_allclose(kept.transpose(0, 3, 1, 2), latents.numpy(), atol=1e-5)
    stored = torch.from_numpy(kept.transpose(0, 3, 1, 2))
    assert space.encode(stored) is stored and space.range is None
    drawn = space.decode(stored)
    assert drawn.shape == images.shape and drawn.dtype == np.uint8
    expected = ((again.clamp(-1, 1) + 1) * 127.5).round().numpy().transpose(0, 2, 3, 1)
    assert np.abs(drawn.astype(int) - expected).max() <= 1


def test_floats_and_bytes_of_one_image_have_one_latent(folder: Path) -> None:
    space = Latents(autoencoder_file.describe(folder), 16)
    images = pictures(5)
    np.testing.assert_allclose(
        space.prepare(images), space.prepare((images / 255).astype(np.float32)), atol=1e-5
    )


def test_a_latent_does_not_hang_on_the_images_beside_it(folder: Path) -> None:
    """Sites encode their own images alone, a simulation all at once: their bits are to be the same."""
    spaces = [(Latents(autoencoder_file.describe(folder), side), pictures(40, side)) for side in (8, 16)]
    for space, images in spaces:
        whole = space.prepare(images)
        for start, end in ((0, 1), (1, 3), (3, 8), (8, 15), (15, 39), (39, 40)):
            assert np.array_equal(space.prepare(images[start:end]), whole[start:end]), (start, end)


def test_another_factor_or_another_weight_is_another_contract(folder: Path, tmp_path: Path) -> None:
    def contract(place: Path) -> str:
        config = resolve.load(keys={"model.autoencoder": str(place)})
        return contract_hash(Blueprint.of(config, 16, 1, 0).contract())

    one = contract(folder)
    shutil.copytree(folder, tmp_path / "copy")
    assert contract(tmp_path / "copy") == one, "where it lies is not agreed on"
    assert contract(small_autoencoder.write(tmp_path / "factor", scaling_factor=2.5)) != one
    assert contract(small_autoencoder.write(tmp_path / "weights", seed=1)) != one
    assert contract_hash(Blueprint.of(resolve.load(), 16, 1, 0).contract()) != one


def test_a_task_of_another_contract_is_refused_with_the_hash_of_the_autoencoder_here(
    make_server: Any, folder: Path
) -> None:
    server = make_server(f"model.autoencoder={folder}")
    own = autoencoder_file.describe(folder).sha256
    [task, *_] = server.method.tasks(server._view(), server.phases[0], server.engine.clients(1, 0.0))
    server.exchange.contract = "1" * 64
    [sent] = server.exchange.post(server.phases[0], [task], Tally())
    site = server.engine.sites[task.client.name]
    kind, told = server.engine._make_worker().serve(site, sent.packet).header["failure"]
    assert kind == "refused" and len(told) <= MAX_TEXT, "it is not cut on its way"
    assert f"({server.contract[:16]} here, {'1' * 16} asked for)" in told
    assert told.endswith(f"the autoencoder here is {own[:16]}")


# --- a folder is data ---


def change(place: Path, **keys: Any) -> None:
    file = place / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | keys))


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"_class_name": "VQModel"}, "is not an AutoencoderKL"),
        ({"in_channels": 3}, "1 or of 3 channels"),
        ({"latent_channels": "four"}, "latent_channels must be a whole number"),
        ({"layers_per_block": 10**9}, "layers_per_block must be a whole number"),
        ({"block_out_channels": []}, "block_out_channels must be 1 to 8"),
        ({"block_out_channels": [8, 8, 10**7]}, "block_out_channels must be a whole number"),
        ({"down_block_types": ["AttnDownBlock2D"] * 3}, "down_block_types must be 3 times"),
        ({"norm_num_groups": 3}, "norm_num_groups must divide"),
        ({"scaling_factor": 0}, "scaling_factor must be a number above 0"),
        ({"scaling_factor": None}, "scaling_factor must be a number above 0"),
        ({"shift_factor": 0.1}, "shifts its latents"),
        ({"act_fn": "gelu"}, "act_fn must be silu"),
        ({"layers_per_block": 100}, "layers_per_block must be a whole number from 1 to 16"),
        ({"mid_block_add_attention": "yes"}, "mid_block_add_attention must be true or false"),
        ({"latent_channels": 5}, "does not hold the weights"),
    ],
)
def test_a_folder_that_is_no_autoencoder_is_one_line(
    folder: Path, tmp_path: Path, keys: dict[str, Any], told: str
) -> None:
    shutil.copytree(folder, tmp_path / "broken")
    change(tmp_path / "broken", **keys)
    with pytest.raises(ConfigError, match=told) as refused:
        autoencoder_file.describe(tmp_path / "broken")
    assert "\n" not in str(refused.value)


def test_weights_that_are_torn_or_gone_and_a_folder_without_any_are_one_line(
    folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="osmotic autoencoder makes one"):
        autoencoder_file.describe(tmp_path)
    shutil.copytree(folder, tmp_path / "torn")
    file = tmp_path / "torn" / autoencoder_file.WEIGHTS
    table = load_file(file)
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ConfigError, match="cannot be read"):
        autoencoder_file.describe(tmp_path / "torn")
    save_file({n: w for n, w in table.items() if n != "encoder.conv_in.bias"}, file)
    with pytest.raises(ConfigError, match="does not hold the weights"):
        autoencoder_file.describe(tmp_path / "torn")
    name = max(table)
    save_file(table | {name: np.full_like(table[name], np.inf)}, file)
    with pytest.raises(ConfigError, match="holds values that are no finite numbers"):
        autoencoder_file.describe(tmp_path / "torn")
    # Finite ones, and what they make of an image is not.
    save_file({n: np.full_like(w, 1e30) for n, w in table.items()}, file)
    with pytest.raises(ConfigError, match="no finite numbers for a plain image"):
        autoencoder_file.describe(tmp_path / "torn")
    file.unlink()
    os.mkfifo(file)  # whoever opened it would wait for ever
    with pytest.raises(ConfigError, match="is no file"):
        autoencoder_file.describe(tmp_path / "torn")


@pytest.mark.parametrize(
    ("side", "channels", "keys", "told"),
    [
        (16, 3, {}, "takes grey images, and these are colour images: data.channels = 1 converts them"),
        (18, 1, {}, "must be a multiple of 4 pixels for this autoencoder"),
        (
            12,
            1,
            {"model.network": "unet-28"},
            "its latents have 3 pixels a side, and that must be a multiple of 4",
        ),
        (16, 1, {"model.network": "autoencoder"}, "an autoencoder works in pixels"),
        (
            16,
            1,
            {"model.autoencoder": "", "model.network": "autoencoder", "engine.batched_clients": 2},
            "would mix clients",
        ),
        (16, 1, {"model.autoencoder": "a\0b"}, "holds no config"),
        (16, 1, {"data.flip": True}, "a mirrored latent is not that of the mirrored image"),
    ],
)
def test_what_does_not_fit_an_autoencoder_is_one_line(
    folder: Path, side: int, channels: int, keys: dict[str, Any], told: str
) -> None:
    with pytest.raises(ConfigError, match=told):
        Blueprint.of(resolve.load(keys={"model.autoencoder": str(folder), **keys}), side, channels, 0)


def test_the_preset_asks_for_a_folder(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.autoencoder = '': must be given: preset feddm-latent"):
        resolve.load(preset="feddm-latent")
    assert (
        resolve.load(preset="feddm-latent", keys={"model.autoencoder": str(folder)}).preset == "feddm-latent"
    )


# --- runs ---

KINDS = {
    "plain": (),
    "codecs, own models, images drawn": (
        "codec.up=int8",
        "codec.error_feedback=true",
        "method.name=udec",
        "score.every=1",
    ),
    "synthetic images": (
        "server.pieces=correction",
        "server.correction.size=0.5",
        "server.correction.local_epochs=1",
        "server.correction.drop_outliers=0",
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_killed_and_resumed_in_latents_it_has_equal_bits_and_the_plans_bytes(
    make_server: Any, folder: Path, kind: str
) -> None:
    keys = (*KINDS[kind], f"model.autoencoder={folder}", "data.image_size=8", "model.network=unet-8")
    unbroken = make_server(*keys, name="unbroken")
    unbroken.run()
    assert not unbroken.state.failures and unbroken.blueprint.spec.channels == 4
    with pytest.raises(Crash):
        make_server(*keys, name="broken", at=crash_at(2, 1)).run()
    resumed = make_server(*keys, name="broken", resume=True)
    resumed.run()
    hashes = [weights_sha256(s.state.weights, s.state.state_hashes) for s in (unbroken, resumed)]
    assert hashes[0] == hashes[1]
    figures = plan.plan(unbroken.config)
    if kind != "synthetic images":  # which hang on who holds how many
        assert figures["bytes_up"] == unbroken.state.totals.bytes_up
        assert figures["bytes_down"] == unbroken.state.totals.bytes_down


def test_a_finished_run_draws_without_the_folder_it_was_trained_with(folder: Path, tmp_path: Path) -> None:
    from diffusers import AutoencoderKL, DiffusionPipeline

    shutil.copytree(folder, tmp_path / "gone")
    sets = [*SMALL, f"model.autoencoder={tmp_path / 'gone'}", "training.rounds=1", "data.image_size=8"]
    run = launch.start(resolve.load(sets=sets), tmp_path / "run", lambda r, c: Silent())
    assert json.loads(run.summary.read_text())["image_shape"] == [8, 8, 1]
    shutil.rmtree(tmp_path / "gone")
    images, labels = saved.draw(run, 3, seed=1)
    assert images.shape == (3, 8, 8, 1) and labels == [0, 1, 2]
    pipe = DiffusionPipeline.from_pretrained(
        str(run.model), custom_pipeline=str(run.model), trust_remote_code=True
    )
    assert isinstance(pipe.vae, AutoencoderKL)
    assert np.asarray(pipe(class_labels=[1], num_inference_steps=2, output_type="np").images).shape == (
        1,
        8,
        8,
        1,
    )
    (run.model / "vae/config.json").unlink()
    with pytest.raises(ConfigError, match=r"holds no config\.json"):
        saved.draw(run, 1)


def test_what_the_file_leaves_out_is_as_diffusers_has_it(folder: Path, tmp_path: Path) -> None:
    from diffusers import AutoencoderKL
    from safetensors.torch import load_file as load_tensors
    from safetensors.torch import save_file as save_tensors

    shutil.copytree(folder, tmp_path / "copy")
    file = tmp_path / "copy/config.json"
    keys = json.loads(file.read_text())
    del keys["scaling_factor"]
    file.write_text(json.dumps(keys))
    scale = AutoencoderKL.from_pretrained(str(tmp_path / "copy")).config.scaling_factor
    assert autoencoder_file.describe(tmp_path / "copy").scale == scale
    weights = tmp_path / "copy" / autoencoder_file.WEIGHTS
    save_tensors({n: w.bfloat16() for n, w in load_tensors(weights).items()}, weights)
    autoencoder_file.load(autoencoder_file.describe(tmp_path / "copy"))


def test_a_network_of_ones_own_in_latents_is_saved_and_read_back(folder: Path, tmp_path: Path) -> None:
    import tiny_network

    tiny_network.register()
    sets = [*SMALL, f"model.autoencoder={folder}", "model.network=tiny", "training.rounds=1"]
    run = launch.start(resolve.load(sets=sets), tmp_path / "run", lambda r, c: Silent())
    images, _ = saved.draw(run, 2)
    assert images.shape == (2, 8, 8, 1) and (run.model / "vae/config.json").is_file()


def test_a_run_is_scored_again_with_its_own_copy_of_the_autoencoder(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "place")
    sets = [*SMALL, f"model.autoencoder={tmp_path / 'place'}", "training.rounds=1", "score.samples=60"]
    run = launch.start(resolve.load(sets=sets), tmp_path / "run", lambda r, c: Silent())
    shutil.rmtree(tmp_path / "place")
    small_autoencoder.write(tmp_path / "place", seed=9, scaling_factor=7.0)
    again = commands.evaluate(run.path, [], None, quiet=True)
    assert again["fd"] == pytest.approx(json.loads(run.summary.read_text())["quality"]["fd"], rel=1e-6)
    shutil.rmtree(run.model / "vae")
    with pytest.raises(ConfigError, match="the autoencoder of its latents, vae/, is gone"):
        commands.evaluate(run.path, [], None, quiet=True)
    with pytest.raises(
        ConfigError, match="works in latents of 4 channels, and their autoencoder, vae/, is gone"
    ):
        saved.draw(run, 2)


# --- the autoencoder as a network ---


def test_its_parts_are_encoder_and_decoder_and_its_layout_is_that_of_the_module() -> None:
    spec = models.resolve("autoencoder", 16, 3, 0, 0.0)
    built = {n: tuple(p.shape) for n, p in construct.build(spec).named_parameters()}
    assert dict(models.layout(spec)) == built
    parts = spec.part_names()
    assert parts["encoder"] and parts["decoder"] and not parts["bottleneck"]
    assert all(n.startswith(("encoder.", "quant_conv.")) for n in parts["encoder"])
    with pytest.raises(ConfigError, match="multiple of 4"):
        models.resolve("autoencoder", 18, 1, 0, 0.0)


def test_its_loss_is_that_of_images_by_hand() -> None:
    spec = models.resolve("autoencoder", 8, 1, 0, 0.0)
    torch.manual_seed(0)
    model = construct.build(spec)
    process = Reconstruction(target="v", latent=(4, 2, 2))
    images = torch.rand(3, 1, 8, 8) * 2 - 1
    noise = torch.randn(3, 4, 2, 2, generator=torch.Generator().manual_seed(5))
    posterior = model.encode(images).latent_dist
    latents = posterior.mean + posterior.std * noise
    error = (model.decode(latents).sample - images).square().mean((1, 2, 3))
    kl = 0.5 * (posterior.mean**2 + posterior.var - 1 - posterior.logvar).mean((1, 2, 3))
    spread = (latents.mean((0, 2, 3)) ** 2 + (latents.var((0, 2, 3), unbiased=False).sqrt() - 1) ** 2).mean()
    found = process.image_losses(model, images, None, torch.Generator().manual_seed(5))
    torch.testing.assert_close(found, error + 1e-4 * kl + 1e-2 * spread)
    again = process.loss(model, images, None, torch.Generator().manual_seed(5))
    assert torch.equal(again, found.mean()), "all draws come from the generator"


def test_a_federation_for_an_autoencoder_leaves_a_folder_that_another_run_takes(tmp_path: Path) -> None:
    sets = [*SMALL, "training.rounds=2", "training.local_epochs=6", "training.learning_rate=0.001"]
    run = launch.start(resolve.load(preset="autoencoder", sets=sets), tmp_path / "run", lambda r, c: Silent())
    lines = [json.loads(line) for line in run.log("metrics").read_text().splitlines()]
    assert lines[1]["loss"] < lines[0]["loss"]
    found = autoencoder_file.describe(run.model)
    assert (found.channels, found.factor, found.scale) == (1, 4, 1.0)
    space = Latents(found, 8)
    assert space.decode(torch.from_numpy(space.prepare(pictures(3, 8)).transpose(0, 3, 1, 2))).shape == (
        3,
        8,
        8,
        1,
    )
    assert json.loads(run.summary.read_text())["quality"]["sampler"] == "decoder"
    commands.report(run.path)
    card = (run.model / "README.md").read_text()
    assert "trained an autoencoder of" in card and "diffusion model" not in card
    with pytest.raises(ConfigError, match="holds an autoencoder, which draws no images by itself"):
        saved.draw(run, 1)
