"""Rules between keys: what cannot work together is refused with key, value and reason before any work."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from osmotic import methods
from osmotic.errors import ConfigError
from osmotic.methods.fedavg import FedAvg
from osmotic.runs import rules
from osmotic.runs.resolve import load


def refused(*sets: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load(sets=sets)
    assert len(str(caught.value).splitlines()) == 1
    return caught.value


IMPOSSIBLE = [
    (["model.target=edm"], "score.sampler", "dpm-solver++", "edm"),
    (["score.sampler=edm-euler"], "score.sampler", "edm-euler", "target v"),
    (["model.target=edm", "score.sampler=edm-euler", "model.schedule=linear"], "model.schedule", "linear", "no schedule"),
    (["model.target=edm", "score.sampler=edm-euler", "model.timesteps=100"], "model.timesteps", 100, "no schedule"),
    (["model.target=edm", "score.sampler=edm-euler", "recipe.loss=huber"], "recipe.loss", "huber", "mse"),
    (["model.timesteps=10"], "score.steps", 20, "at most 10 steps"),
    (["model.sigma_data=0.7"], "model.sigma_data", 0.7, "is a key of target edm"),
    (["model.schedule=linear", "model.timesteps=20"], "model.timesteps", 20, "linear takes 21 timesteps or more"),
    (["model.timesteps=20", "score.sampler=unipc"], "score.steps", 20, "at most 19 steps"),
    (["score.guidance=2", "model.conditional=false"], "score.guidance", 2.0, "conditional"),
    (["score.guidance=2", "recipe.label_dropout=0"], "score.guidance", 2.0, "label_dropout"),
    (["codec.error_feedback=true"], "codec.error_feedback", True, "exact"),
    (["method.name=local", "codec.up=int8"], "codec", "up int8, down fp32", "sends nothing"),
    (["method.name=central", "codec.down=fp16"], "codec", "up fp32, down fp16", "sends nothing"),
    (["method.name=central", "codec.error_feedback=true"], "codec", "up fp32, down fp32", "sends nothing"),
    (["data.channels=2"], "data.channels", 2, "3 (colour)"),
    (["recipe.ema_half_lives=[100.0, 100.0]"], "recipe.ema_half_lives", None, ""),
]  # fmt: skip


@pytest.mark.parametrize(("sets", "key", "value", "reason"), IMPOSSIBLE)
def test_an_impossible_combination_is_told_with_the_reason(
    sets: list[str], key: str, value: object, reason: str
):
    error = refused(*sets)
    assert error.key == key
    assert value is None or error.value == value
    assert reason in error.rule


POSSIBLE = [
    ["model.target=edm", "score.sampler=edm-euler"],
    ["model.target=edm", "score.sampler=edm-dpm-solver++", "score.steps=5000"],
    ["model.timesteps=20"],
    ["model.timesteps=21", "score.sampler=unipc"],
    ["score.guidance=2"],
    ["score.guidance=1", "model.conditional=false", "recipe.label_dropout=0"],
    ["codec.up=int8", "codec.down=fp16", "codec.error_feedback=true"],
    ["method.name=local"],
    ["data.partition=by:hospital", "data.source=npz:x.npz"],
    ["track.backends=[]"],
]


@pytest.mark.parametrize("sets", POSSIBLE)
def test_its_possible_neighbour_is_accepted(sets: list[str]):
    load(sets=sets)


NAMES = [
    ("method.name", "fedavgg", "fedavg"),
    ("codec.up", "int88", "int8"),
    ("codec.down", "fp23", "fp32"),
    ("model.network", "unet-9", "unet-8"),
    ("data.source", "digit", "digits"),
    ("data.source", "nzp:x.npz", "npz:x.npz"),
    ("data.partition", "dirichlett", "dirichlet"),
    ("data.partition", "by:", None),
    ("track.backends", "['tensorbord']", "tensorboard"),
]


@pytest.mark.parametrize(("key", "value", "near"), NAMES)
def test_a_name_in_no_registry_is_told_with_the_nearest_one(key: str, value: str, near: str | None):
    error = refused(f"{key}={value}")
    assert error.key == key
    assert str(error.value) in value
    assert "must be one of" in error.rule
    assert near is None or error.nearest == near


def test_an_option_of_a_method_without_options_is_refused():
    error = refused("method.mu=0.1")
    assert (error.key, error.value) == ("method.mu", 0.1)
    assert "fedavg has no keys of its own" in error.rule


@dataclass(frozen=True, kw_only=True)
class Pull(FedAvg):
    mu: float = 0.5

    def __post_init__(self) -> None:
        if self.mu < 0:
            raise ValueError(f"mu must be >= 0, got {self.mu}")


@pytest.fixture
def pull(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(methods.METHODS, "pull", Pull)


def test_a_method_checks_its_own_options(pull: None):
    assert load(sets=["method.name=pull", "method.mu=0.25"]).method.options == {"mu": 0.25}
    error = refused("method.name=pull", "method.nu=1")
    assert (error.key, error.nearest) == ("method.nu", "mu")
    assert "mu must be >= 0, got -1" in refused("method.name=pull", "method.mu=-1").rule
    assert refused("method.name=pull", "method.mu=much").key.startswith("method")


def test_options_are_dropped_with_the_method_they_were_written_for(pull: None, tmp_path: Path):
    path = tmp_path / "run.toml"
    path.write_text('[method]\nname = "pull"\nmu = 0.25\n')
    assert load(path).method.options == {"mu": 0.25}
    assert load(path, sets=["method.name=fedavg"]).method.options == {}
    assert load(path, sets=["method.name=pull"]).method.options == {"mu": 0.25}


def test_a_pretrained_encoder_without_its_weights_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("OSMOTIC_WEIGHTS", str(tmp_path))
    error = refused("score.encoder=inception-v3")
    assert (error.key, error.value) == ("score.encoder", "inception-v3")
    assert str(tmp_path) in error.rule


def test_a_quorum_that_no_round_can_reach_is_refused():
    # 0.2 of 10 clients are 2 a round: 5 good answers can never come.
    assert (
        refused("training.quorum_clients=5", "training.fraction_train=0.2").key == "training.quorum_clients"
    )


def test_a_device_of_no_known_kind_is_refused_before_any_work():
    assert refused("engine.device=abacus").key == "engine.device"


def test_one_of_names_all_that_is_valid():
    with pytest.raises(ConfigError, match=r"k = 'c': must be one of aa, bb"):
        rules.one_of("k", "c", ("aa", "bb"))
