"""Inception-v3 and DINOv2: shapes, the published size, and what is said when weights are missing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from metric_stand_ins import bars, dataset
from safetensors.torch import save_file

from osmotic.errors import ConfigError
from osmotic.metrics import encoder, pretrained, weights

DATA = dataset("bars", bars(4), bars(4), ("top", "left"))


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OSMOTIC_WEIGHTS", str(tmp_path))
    return tmp_path


def test_the_network_has_the_published_number_of_parameters():
    # torchvision's inception_v3 without its auxiliary head has 23,834,568 parameters, of which the classifier
    # has 2048 * 1000 + 1000 = 2,049,000: 21,785,568 are left.
    with torch.device("meta"):
        network = pretrained.Inception()
    assert sum(p.numel() for p in network.parameters()) == 21_785_568


def test_random_weights_in_the_published_layout_give_2048_features(folder: Path):
    torch.manual_seed(0)
    state = dict(pretrained.Inception().state_dict())
    state["fc.weight"], state["fc.bias"] = torch.zeros(1008, 2048), torch.zeros(1008)
    save_file(state, folder / "inception-v3.safetensors")
    found = encoder.get(DATA, "inception-v3")
    features = found.features(bars(2, side=16, channels=3).images)
    assert features.shape == (2, 2048)
    assert np.isfinite(features).all()
    assert (found.name, found.test_accuracy, found.classes_of(features)) == ("inception-v3", None, None)
    assert found.num_classes == 0


def test_grey_is_the_same_as_colour_with_equal_channels():
    grey = bars(2).images
    assert torch.equal(
        pretrained.prepare_inception(grey), pretrained.prepare_inception(grey.repeat(3, axis=3))
    )
    assert pretrained.prepare_inception(grey).shape == (2, 3, 299, 299)


def test_black_and_white_become_the_ends_of_each_network_s_range():
    ends = np.stack([np.zeros((8, 8, 1), np.uint8), np.full((8, 8, 1), 255, np.uint8)])
    x = pretrained.prepare_inception(ends)
    # Bilinear weights add up to 1 within float32 rounding, 1.2e-7, doubled by the range.
    assert (x[0] + 1).abs().max() < 1e-6
    assert (x[1] - 1).abs().max() < 1e-6
    # Red: (0 - 0.485) / 0.229 = -2.1179 and (1 - 0.485) / 0.229 = 2.2489.
    y = pretrained.prepare_dinov2(ends)
    assert y.shape == (2, 3, 224, 224)
    assert y[0, 0, 0, 0].item() == pytest.approx(-2.1179, abs=1e-4)
    assert y[1, 0, 100, 100].item() == pytest.approx(2.2489, abs=1e-4)


@pytest.mark.parametrize(
    ("name", "file"), [("inception-v3", "inception-v3.safetensors"), ("dinov2", "config.json")]
)
def test_missing_weights_name_the_file_its_place_and_its_source(folder: Path, name: str, file: str):
    with pytest.raises(ConfigError) as caught:
        encoder.get(DATA, name)
    message = str(caught.value)
    assert caught.value.key == "score.encoder"
    assert str(folder) in message
    assert file in message
    assert "https://github.com/" in message


def test_weights_of_another_network_are_refused(folder: Path):
    save_file({"a": torch.zeros(1)}, folder / "inception-v3.safetensors")
    with pytest.raises(ConfigError, match="does not fit"):
        encoder.get(DATA, "inception-v3")


def test_a_torn_file_is_refused(folder: Path):
    (folder / "inception-v3.safetensors").write_bytes(b"\x08\x00\x00")
    with pytest.raises(ConfigError, match="cannot be read"):
        encoder.get(DATA, "inception-v3")


def test_an_unknown_encoder_is_refused():
    with pytest.raises(ConfigError, match="inception-v3"):
        encoder.get(DATA, "vgg")


def test_the_folders_follow_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.delenv("OSMOTIC_WEIGHTS")
    monkeypatch.delenv("OSMOTIC_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert weights.weights_folder() == tmp_path / "xdg" / "osmotic" / "weights"
    monkeypatch.setenv("OSMOTIC_CACHE", str(tmp_path / "own"))
    assert weights.weights_folder() == tmp_path / "own" / "weights"
    assert weights.require("classifier") == []


def test_dinov2_gives_its_class_token(folder: Path):
    transformers = pytest.importorskip("transformers")
    config = transformers.Dinov2Config(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14
    )
    transformers.Dinov2Model(config).save_pretrained(folder / "dinov2", safe_serialization=True)
    features = encoder.get(DATA, "dinov2").features(DATA.test.images)
    assert features.shape == (4, 32)
    assert np.isfinite(features).all()
