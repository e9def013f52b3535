"""The trained encoder: what it learns, that it repeats itself, and its cache."""

from __future__ import annotations

import ast
import graphlib
import json
import os
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from metric_stand_ins import bars, dataset, unlabelled

from osmotic.data.dataset import Split
from osmotic.metrics import classifier, encoder, features

TWO_BARS = dataset("npz:/somewhere/Two Bars.npz", bars(96, seed=0), bars(32, seed=1), ("top", "left"))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OSMOTIC_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "encoders"


@pytest.fixture(scope="module")
def trained() -> encoder.Encoder:
    return encoder.get(TWO_BARS, cache=False, threads=1)


def test_two_easy_classes_are_told_apart(trained: encoder.Encoder):
    assert trained.test_accuracy == 1.0
    classes = trained.classes_of(trained.features(TWO_BARS.test.images))
    assert classes is not None
    assert classes.dtype == np.int64
    assert classes.tolist() == TWO_BARS.test.labels.tolist()


def test_the_name_says_data_and_size_and_no_path(trained: encoder.Encoder):
    assert trained.name == "classifier-two-bars-8"


def test_features_are_96_numbers_an_image_in_any_batch(trained: encoder.Encoder):
    found = trained.features(TWO_BARS.test.images)
    assert found.shape == (32, 96)
    assert found.dtype == np.float32
    np.testing.assert_allclose(trained.features(TWO_BARS.test.images[5:7]), found[5:7], rtol=1e-4, atol=1e-5)


def test_the_same_images_train_the_same_weights_whatever_the_global_generator(trained: encoder.Encoder):
    torch.manual_seed(77)
    state, threads = torch.random.get_rng_state(), torch.get_num_threads()
    again = encoder.get(TWO_BARS, cache=False, threads=1)
    assert again.sha256 == trained.sha256
    assert np.array_equal(again.features(TWO_BARS.test.images), trained.features(TWO_BARS.test.images))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.get_num_threads() == threads


def test_one_other_pixel_trains_another_encoder(trained: encoder.Encoder):
    images = TWO_BARS.train.images.copy()
    images[0, 0, 0, 0] ^= 255
    other = dataset("bars", Split(images, TWO_BARS.train.labels), TWO_BARS.test, TWO_BARS.class_names)
    assert encoder.get(other, cache=False, threads=1).sha256 != trained.sha256


def test_floats_in_unit_range_are_the_same_images_as_bytes(trained: encoder.Encoder):
    as_float = TWO_BARS.test.images.astype(np.float32) / 255
    np.testing.assert_allclose(
        trained.features(as_float), trained.features(TWO_BARS.test.images), rtol=1e-4, atol=1e-5
    )


def test_without_labels_rotations_are_learnt():
    data = dataset("bars", unlabelled(bars(200, seed=0)), unlabelled(bars(32, seed=1)))
    # All bars on top: each rotation looks different, so all four can be told.
    data = dataset("bars", Split(data.train.images[::2], None), Split(data.test.images[::2], None))
    found = encoder.get(data, cache=False, threads=1)
    assert found.name == "classifier-bars-8-rotations"
    features = found.features(data.test.images)
    assert features.shape == (16, 96)
    assert found.classes_of(features) is None
    assert found.test_accuracy >= 0.9


def test_without_held_out_images_the_accuracy_is_none():
    data = dataset("bars", bars(20), Split(bars(1).images[:0], np.zeros(0, dtype=np.int64)), ("a", "b"))
    assert encoder.get(data, cache=False, threads=1).test_accuracy is None


@pytest.mark.parametrize(
    "shape", [(8, 8, 3), (16, 16, 1), (28, 28, 1), (32, 32, 3), (64, 64, 3), (100, 70, 1)]
)
def test_grey_and_colour_of_8_to_64_pixels_and_larger(shape: tuple[int, int, int]):
    images = np.random.default_rng(0).integers(0, 255, (6, *shape), dtype=np.uint8)
    data = dataset("noise", Split(images, np.arange(6) % 3), Split(images[:2], np.arange(2)), ("a", "b", "c"))
    found = encoder.get(data, cache=False, threads=1)
    assert found.features(images).shape == (6, 96)
    assert found.name == f"classifier-noise-{max(shape[:2])}"


def test_other_channels_than_in_training_are_refused(trained: encoder.Encoder):
    with pytest.raises(ValueError, match="1 channels"):
        trained.features(bars(4, channels=3).images)


def test_no_images_are_refused(trained: encoder.Encoder):
    with pytest.raises(ValueError, match="N >= 1"):
        trained.features(TWO_BARS.test.images[:0])


def test_the_cache_gives_back_the_same_encoder_without_training(cache: Path, monkeypatch: pytest.MonkeyPatch):
    first = encoder.get(TWO_BARS, threads=1)
    assert sorted(path.suffix for path in cache.iterdir()) == [".json", ".safetensors"]
    monkeypatch.setattr(classifier, "_train", None)  # a second training would fail
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        second = encoder.get(TWO_BARS, threads=1)
    assert (second.sha256, second.test_accuracy) == (first.sha256, first.test_accuracy)
    assert np.array_equal(second.features(TWO_BARS.test.images), first.features(TWO_BARS.test.images))


@pytest.mark.parametrize("damage", ["cut", "flip", "json", "gone"])
def test_a_damaged_cache_is_noticed_and_mended(cache: Path, damage: str):
    first = encoder.get(TWO_BARS, threads=1)
    weights = next(cache.glob("*.safetensors"))
    if damage == "cut":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif damage == "flip":
        data = bytearray(weights.read_bytes())
        data[-50] ^= 1
        weights.write_bytes(bytes(data))
    elif damage == "json":
        next(cache.glob("*.json")).write_text("{")
    else:
        os.unlink(weights)
    with pytest.warns(UserWarning, match="damaged"):
        second = encoder.get(TWO_BARS, threads=1)
    assert second.sha256 == first.sha256
    facts = json.loads(next(cache.glob("*.json")).read_text())
    assert facts["sha256"] == first.sha256
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encoder.get(TWO_BARS, threads=1)


def test_a_cache_that_cannot_be_written_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("OSMOTIC_CACHE", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="could not be cached"):
        assert encoder.get(TWO_BARS, threads=1).test_accuracy == 1.0


def test_real_features_are_computed_once_for_one_array(trained: encoder.Encoder):
    images = TWO_BARS.test.images
    assert trained.features_once(images) is trained.features_once(images)
    assert trained.features_once(images.copy()) is not trained.features_once(images)


def test_the_files_of_the_room_import_each_other_one_way():
    room = Path(encoder.__file__).parent
    names = {path.stem for path in room.glob("*.py")}
    graph = {}
    for path in room.glob("*.py"):
        nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
        whole = {f"{node.module}.{alias.name}" for node in nodes for alias in node.names}
        graph[path.stem] = {n for n in names for w in whole if f"{w}.".startswith(f"osmotic.metrics.{n}.")}
    order = list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError, also for lazy imports
    assert order.index("features") < order.index("pretrained") < order.index("encoder")


@pytest.mark.slow
def test_digits_are_told_apart_at_97_percent():
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)[..., None]
    a, b, c, d = train_test_split(
        images, digits.target, test_size=0.2, stratify=digits.target, random_state=0
    )
    data = dataset("digits", Split(a, c), Split(b, d), tuple("0123456789"))
    assert encoder.get(data, cache=False).test_accuracy >= 0.97


class Watching(torch.nn.Module):
    """A network that notes where it runs, and with what precision."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.seen = torch.nn.Parameter(torch.ones(1)), []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append((x.device.type, self.weight.device.type, torch.backends.cudnn.allow_tf32))
        return torch.zeros(len(x), 3)


@pytest.mark.parametrize(("device", "tf32"), [("meta", False), ("cpu", True)])
def test_network_and_images_meet_on_the_device_and_a_gpu_keeps_all_bits(device: str, tf32: bool) -> None:
    network, before = Watching(), torch.backends.cudnn.allow_tf32
    assert before, "torch's default"
    watched = features.Encoder("watching", "0" * 64, None, network, None, features.to_unit, 2, device=device)
    assert watched.features(np.zeros((5, 4, 4, 1), np.uint8)).shape == (5, 3)
    assert network.seen == [(device, device, tf32)] * 3
    assert torch.backends.cudnn.allow_tf32 == before
