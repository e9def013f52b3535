"""A model of one's own from a finished run: what it starts from, what it writes, and images that do not go with it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from small_runs import SMALL, Silent

from osmotic.errors import ConfigError
from osmotic.federation.blueprint import Blueprint
from osmotic.runs import joining, launch, resolve
from osmotic.storage.folder import RunDir


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A finished run of one round, with a codec that remembers and a piece of its own: neither is wanted later."""
    sets = [
        *SMALL,
        "training.rounds=1",
        "training.quorum_clients=2",
        "codec.up=int8",
        "codec.error_feedback=true",
        "local.pieces=scaffold",
    ]
    return launch.start(
        resolve.load(sets=sets), tmp_path_factory.mktemp("joined") / "run", lambda r, c: Silent()
    )


def images(path: Path, count: int = 30, labels: Any = None, **more: Any) -> str:
    """A source of random 8x8 images of digits."""
    rng = np.random.default_rng(0)
    given = {"train_images": rng.integers(0, 256, (count, 8, 8), np.uint8)} | more
    if labels is not False:
        given["train_labels"] = np.arange(count) % 10 if labels is None else labels
    np.savez(path, **given)
    return f"npz:{path}"


def weights(folder: Path) -> dict[str, np.ndarray]:
    return load_file(folder / "unet/diffusion_pytorch_model.safetensors")


def test_it_starts_from_the_published_model_and_repeats_itself(run: RunDir, tmp_path: Path) -> None:
    data = images(tmp_path / "own.npz")
    sets = ["after.personalise.trains=decoder", "after.personalise.epochs=3"]
    found = joining.personalise(run, data, tmp_path / "one", sets=sets)
    assert (found["images"], found["watched"], found["held_out"]) == (24, 3, 3)
    assert found["loss_own"] > 0 and found["loss_published"] > 0 and found["kept_pass"] in range(4)
    joining.personalise(run, data, tmp_path / "two", sets=sets)
    published, own = weights(run.model), weights(tmp_path / "one")
    assert all(np.array_equal(w, weights(tmp_path / "two")[n]) for n, w in own.items())
    moved = {n for n, w in own.items() if not np.array_equal(w, published[n])}
    decoder = Blueprint.of(resolve.recorded(run.config), 8, 1, 10).part_names["decoder"]
    assert moved and moved <= set(decoder)


def test_a_test_split_of_ones_own_is_what_is_held_out(run: RunDir, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    more = {"test_images": rng.integers(0, 256, (7, 8, 8), np.uint8), "test_labels": np.arange(7)}
    found = joining.personalise(run, images(tmp_path / "own.npz", **more), tmp_path / "one")
    assert (found["images"], found["watched"], found["held_out"]) == (30, 4, 3)


def test_one_image_is_enough_and_nothing_is_claimed_of_it(run: RunDir, tmp_path: Path) -> None:
    found = joining.personalise(run, images(tmp_path / "own.npz", 1, [3]), tmp_path / "one")
    assert (found["images"], found["watched"], found["held_out"]) == (1, 0, 0)
    assert (
        found["loss_own"] is None
        and found["kept_pass"] is None
        and "no image was held out" in joining.text(found)
    )


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"labels": False}, "has no labels, and the run's network is told the class"),
        ({"labels": np.full(30, 12)}, "has the class '10', which the run does not have"),
    ],
)
def test_images_that_do_not_go_with_the_run_are_one_line(
    run: RunDir, tmp_path: Path, given: dict[str, Any], told: str
) -> None:
    with pytest.raises(ConfigError, match=told):
        joining.personalise(run, images(tmp_path / "own.npz", **given), tmp_path / "one")
    assert not (tmp_path / "one").exists()


def test_a_model_of_another_network_is_one_line(run: RunDir, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(run.path, tmp_path / "copy")
    copy = RunDir.existing(tmp_path / "copy")
    file = copy.model / "unet/diffusion_pytorch_model.safetensors"
    table = weights(copy.model)
    for broken in (
        {n: w for n, w in table.items() if n != "conv_in.bias"},
        table | {"conv_in.bias": np.zeros(3, np.float32)},
    ):
        save_file(broken, file)
        with pytest.raises(ConfigError, match="does not hold the weights of network unet-8"):
            joining.personalise(copy, images(tmp_path / "own.npz"), tmp_path / "one")
    save_file(table | {"conv_in.bias": np.full_like(table["conv_in.bias"], np.nan)}, file)
    with pytest.raises(ConfigError, match=r"conv_in\.bias holds values that are no finite numbers"):
        joining.personalise(copy, images(tmp_path / "own.npz"), tmp_path / "one")
    file.write_bytes(b"nothing")
    with pytest.raises(ConfigError, match="cannot be read"):
        joining.personalise(copy, images(tmp_path / "own.npz"), tmp_path / "one")


def test_weights_in_half_precision_are_taken(run: RunDir, tmp_path: Path) -> None:
    import shutil

    import torch
    from safetensors.torch import save_file as save_tensors

    shutil.copytree(run.path, tmp_path / "copy")
    copy = RunDir.existing(tmp_path / "copy")
    half = {n: torch.from_numpy(w).bfloat16() for n, w in weights(copy.model).items()}
    save_tensors(half, copy.model / "unet/diffusion_pytorch_model.safetensors")
    joining.personalise(copy, images(tmp_path / "own.npz"), tmp_path / "one")
    assert weights(tmp_path / "one")["conv_in.bias"].dtype == np.float32


@pytest.mark.parametrize(
    "text",
    ["after.pieces=[]", "data.channels=3", "model.target=epsilon", "training.rounds=5", "data.source=digits"],
)
def test_a_key_of_the_runs_own_is_not_set_anew(run: RunDir, tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match="is the run's own here, or of no effect") as refused:
        joining.personalise(run, images(tmp_path / "own.npz"), tmp_path / "one", sets=[text])
    assert refused.value.key == text.partition("=")[0]


def test_a_run_that_kept_what_its_rounds_made_is_joined_as_any_other(tmp_path: Path) -> None:
    sets = [*SMALL, "training.rounds=1", "after.pieces=personalise", "after.personalise.when=rounds"]
    begun = launch.start(resolve.load(sets=sets), tmp_path / "run", lambda r, c: Silent())
    data = images(tmp_path / "own.npz")
    found = joining.personalise(begun, data, tmp_path / "one", sets=["after.personalise.epochs=3"])
    assert found["watched"] == 3


def test_options_of_what_the_run_trained_are_not_those_of_who_trains_otherwise(tmp_path: Path) -> None:
    own = "after.personalise"
    kept = [f"{own}.trains=adapter", f"{own}.rank=2", f"{own}.rate=2"]
    sets = [*SMALL, "training.rounds=1", "after.pieces=personalise", *kept]
    begun = launch.start(resolve.load(sets=sets), tmp_path / "run", lambda r, c: Silent())
    data, published = images(tmp_path / "own.npz"), weights(begun.model)
    joining.personalise(begun, data, tmp_path / "same")
    for trains in ("all", "decoder", "embedding"):
        joining.personalise(begun, data, tmp_path / trains, sets=[f"{own}.trains={trains}"])
    name = "conv_in.weight"
    change = (weights(tmp_path / "same")[name] - published[name]).reshape(len(published[name]), -1)
    assert np.linalg.matrix_rank(change, tol=1e-5 * np.linalg.norm(change)) == 2, "the run's own rank"
    for kind, rate in (("same", 2), ("decoder", 0.3)):  # a rate was chosen for what the run has trained
        trains = "adapter" if kind == "same" else kind
        told = [f"{own}.trains={trains}", f"{own}.rate={rate}"]
        joining.personalise(begun, data, tmp_path / f"{kind}-told", sets=told)
        before, after = weights(tmp_path / kind), weights(tmp_path / f"{kind}-told")
        assert all(np.array_equal(before[n], after[n]) for n in before), kind
    with pytest.raises(ConfigError, match="rank: is of trains = adapter"):
        joining.personalise(begun, data, tmp_path / "one", sets=[f"{own}.trains=all", f"{own}.rank=3"])


def test_a_place_that_cannot_be_is_told_of_before_any_work_and_its_neighbours_are_left_alone(
    run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = images(tmp_path / "own.npz")
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for neighbour in (".one.old", ".one.new"):
        (tmp_path / neighbour).mkdir()
        (tmp_path / neighbour / "precious").write_text("")
    before = sorted(p.name for p in tmp_path.iterdir())
    with monkeypatch.context() as patch:
        patch.setattr("osmotic.runs.joining._trained", lambda *_: pytest.fail("has begun to work"))
        for place, told in (("file/one", "cannot be made"), ("link", "is there already")):
            with pytest.raises(ConfigError, match=told):
                joining.personalise(run, data, tmp_path / place)
    joining.personalise(run, data, tmp_path / "one")
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*before, "one"])
    assert (tmp_path / ".one.old/precious").exists() and (tmp_path / ".one.new/precious").exists()


def test_training_that_breaks_is_one_line_and_leaves_nothing(
    run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from osmotic import cli
    from osmotic.errors import RunStopped

    def broken(*args: Any, **more: Any) -> Any:
        raise RuntimeError("no")

    monkeypatch.setattr("osmotic.federation.client.fit", broken)
    data = images(tmp_path / "own.npz")
    with pytest.raises(RunStopped, match="could not train: RuntimeError"):
        joining.personalise(run, data, tmp_path / "one")
    words = ["osmotic", "personalise", str(run.path), "--data", data, "--out", str(tmp_path / "one")]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    told = capsys.readouterr().err
    assert ended.value.code == 1 and "osmotic: error: could not train: RuntimeError" in told
    assert "Traceback" not in told.split("could not train")[1] and not (tmp_path / "one").exists()


def test_the_command(run: RunDir, tmp_path: Path) -> None:
    data = images(tmp_path / "own.npz")
    command = [
        sys.executable,
        "-m",
        "osmotic",
        "personalise",
        run.path,
        "--data",
        data,
        "--out",
        tmp_path / "one",
    ]
    done = subprocess.run(
        [*command, "--set", "after.personalise.epochs=1", "--json"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["images"] == 24 and (tmp_path / "one/model_index.json").is_file()
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and "is there already" in done.stderr and len(done.stderr.splitlines()) == 1
