"""Configuration: precedence, TOML in and out, and every check on what a user typed."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from osmotic.config import presets, schema
from osmotic.config.schema import Config
from osmotic.config.toml import to_toml
from osmotic.errors import ConfigError
from osmotic.runs.resolve import load, parse_set


def write(folder: Path, text: str) -> Path:
    path = folder / "run.toml"
    path.write_text(text, encoding="utf-8")
    return path


def refused(**arguments: Any) -> ConfigError:
    """The one line a user would see."""
    with pytest.raises(ConfigError) as caught:
        load(**arguments)
    assert len(str(caught.value).splitlines()) == 1
    return caught.value


@pytest.fixture
def layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A recipe and a preset that set the same keys to values of their own."""
    recipe = {"training.batch_size": 11, "training.rounds": 11, "score.steps": 11, "score.samples": 11}
    preset = presets.Preset(
        keys={"method.name": "local", "training.rounds": 12, "score.steps": 12, "score.samples": 12}
    )
    monkeypatch.setitem(presets.RECIPES, "eleven", recipe)
    monkeypatch.setitem(presets.PRESETS, "twelve", preset)


def test_each_layer_wins_over_the_one_before(layers: None, tmp_path: Path):
    # batch_size: default 16, recipe 11. rounds: recipe 11, preset 12. steps: preset 12, file 13. samples: file 13, set 14.
    path = write(
        tmp_path, 'preset = "twelve"\n[recipe]\nname = "eleven"\n[score]\nsteps = 13\nsamples = 13\n'
    )
    got = load(path, sets=["score.samples=14"])
    assert got.data.clients == 10
    assert got.training.batch_size == 11
    assert got.training.rounds == 12
    assert got.score.steps == 13
    assert got.score.samples == 14
    assert got.method.name == "local"
    assert got.preset == "twelve"


def test_a_set_recipe_still_lies_below_the_preset(layers: None):
    got = load(preset="twelve", sets=["recipe.name=eleven"])
    assert (got.training.batch_size, got.training.rounds) == (11, 12)


def test_data_wins_over_the_file_and_set_over_data(tmp_path: Path):
    path = write(tmp_path, '[data]\nsource = "mnist"\n')
    assert load(path).data.source == "mnist"
    assert load(path, data="cifar10").data.source == "cifar10"
    assert load(path, data="cifar10", sets=["data.source=digits"]).data.source == "digits"


def test_the_last_of_two_sets_wins():
    assert load(sets=["seed=3", "seed=4"]).seed == 4


def test_without_a_preset_the_label_is_the_method():
    assert load().preset == "fedavg"
    assert load(sets=["method.name=central"]).preset == "central"


def test_every_preset_loads_and_carries_its_own_keys():
    for name, preset in presets.PRESETS.items():
        got = load(preset=name, keys={preset.needs: "somewhere"} if preset.needs else None)
        tables = schema.to_dict(got)
        assert got.preset == name
        for key, value in preset.keys.items():
            *sections, leaf = key.split(".")
            table = tables
            for section in sections:
                table = table[section]
            assert table[leaf] == (list(value) if isinstance(value, tuple) else value)


def test_a_preset_asked_for_by_set_is_not_ignored():
    try:
        got = load(sets=["preset=local"])
    except ConfigError as error:
        assert error.key == "preset"
    else:
        assert got.method.name == "local"


def test_defaults_are_those_of_the_documented_keys():
    c = load()
    assert (c.data.source, c.data.partition, c.data.dirichlet_alpha, c.data.clients) == (
        "digits",
        "auto",
        0.5,
        10,
    )
    assert (c.training.rounds, c.training.local_epochs, c.training.batch_size) == (20, 2.0, 16)
    assert (c.codec.up, c.codec.down, c.codec.error_feedback) == ("fp32", "fp32", False)
    assert (c.engine.workers, c.engine.threads, c.engine.deterministic) == (0, 1, True)
    assert (c.score.every, c.score.samples, c.score.sampler, c.score.steps) == (
        "auto",
        "auto",
        "dpm-solver++",
        20,
    )


def test_set_values_are_toml_and_bare_words_are_texts():
    assert parse_set("training.rounds=5") == ("training.rounds", 5)
    assert parse_set(" training.rounds = 5 ") == ("training.rounds", 5)
    assert parse_set("engine.deterministic=false") == ("engine.deterministic", False)
    assert parse_set("recipe.ema_half_lives=[1.5, 2]") == ("recipe.ema_half_lives", [1.5, 2])
    assert parse_set("codec.up=int8") == ("codec.up", "int8")
    assert parse_set('data.source="npz:a=b.npz"') == ("data.source", "npz:a=b.npz")
    assert parse_set("data.source=npz:a=b.npz") == ("data.source", "npz:a=b.npz")


@pytest.mark.parametrize(
    "text",
    ["adam", "[adam]", "momentum,adam", " momentum , adam ", "[momentum, adam]", "['momentum', 'adam']"],
)
def test_a_list_of_names_may_be_written_as_bare_words(text: str):
    pieces = load(sets=[f"server.pieces={text}"]).server.pieces
    assert pieces == (("momentum", "adam") if "momentum" in text else ("adam",))


@pytest.mark.parametrize("text", ["training.rounds", "=5", ""])
def test_a_set_without_key_or_value_is_refused(text: str):
    error = refused(sets=[text])
    assert error.key == "--set"
    assert error.value == text


def test_a_whole_number_serves_where_a_number_is_wanted_but_not_the_other_way():
    assert load(sets=["training.local_epochs=3"]).training.local_epochs == 3.0
    assert refused(sets=["training.rounds=3.0"]).rule == "must be a whole number"


UNKNOWN = [
    ("training.roundz=5", "training.rounds"),
    ("trainig.rounds=5", "training.rounds"),
    ("rounds=5", "training.rounds"),
    ("model.batch_size=5", "training.batch_size"),
    ("sed=5", "seed"),
]


@pytest.mark.parametrize(("text", "near"), UNKNOWN)
def test_an_unknown_key_is_told_with_the_nearest_one(text: str, near: str):
    error = refused(sets=[text])
    assert error.key == text.split("=")[0]
    assert error.value == 5
    assert error.rule == "unknown key"
    assert error.nearest == near
    assert near in str(error)


def test_an_unknown_section_is_told_with_the_nearest_one(tmp_path: Path):
    error = refused(path=write(tmp_path, "[trainig]\nrounds = 3\n"))
    assert (error.key, error.rule, error.nearest) == ("trainig", "unknown section", "training")


def test_a_section_written_as_a_value_is_refused(tmp_path: Path):
    error = refused(path=write(tmp_path, "training = 3\n"))
    assert (error.key, error.value) == ("training", 3)
    assert "[training]" in error.rule


WRONG_TYPES = [
    ("training.rounds=many", "training.rounds", "many", "a whole number"),
    ("training.rounds=true", "training.rounds", True, "a whole number"),
    ("training.learning_rate=fast", "training.learning_rate", "fast", "a number"),
    ("training.learning_rate=true", "training.learning_rate", True, "a number"),
    ("engine.deterministic=1", "engine.deterministic", 1, "true or false"),
    ("data.source=3", "data.source", 3, "a text"),
    ("method.name=[1]", "method.name", [1], "a text"),
    ("model.conditional=1", "model.conditional", 1, "auto"),
    ("model.conditional=maybe", "model.conditional", "maybe", "auto"),
    ("recipe.ema_half_lives=3", "recipe.ema_half_lives", 3, "a list"),
    ("recipe.ema_half_lives=['a']", "recipe.ema_half_lives", "a", "a number"),
    ("track.backends=3", "track.backends", 3, "a list"),
    ("track.backends=[3]", "track.backends", 3, "a text"),
    ("training={rounds=3}", "training", {"rounds": 3}, "unknown key"),
    ("recipe.name=[1]", "recipe.name", [1], "must be"),
]


@pytest.mark.parametrize(("text", "key", "value", "rule"), WRONG_TYPES)
def test_a_wrong_type_is_told_with_key_value_and_rule(text: str, key: str, value: Any, rule: str):
    error = refused(sets=[text])
    assert error.key == key
    assert error.value == value
    assert rule in error.rule
    assert repr(value) in str(error)


OUT_OF_RANGE = [
    ("training.rounds", "0", ">= 1"),
    ("data.clients", "0", ">= 1"),
    ("data.holdout", "0.95", "<= 0.9"),
    ("data.dirichlet_alpha", "0", "> 0"),
    ("training.fraction_train", "0", "> 0"),
    ("training.fraction_train", "1.01", "<= 1"),
    ("training.learning_rate", "-1e-3", "> 0"),
    ("training.learning_rate", "nan", "> 0"),
    ("data.dirichlet_alpha", "inf", "finite"),
    ("recipe.ema_half_lives", "[5000, 0]", "> 0"),
    ("seed", "-1", ">= 0"),
    ("checkpoint.keep", "0", ">= 1"),
    ("score.samples", "1", ">= 2"),
    ("engine.threads", "0", ">= 1"),
    ("training.learning_rate", "9" * 400, "must be"),
]


@pytest.mark.parametrize(("key", "value", "rule"), OUT_OF_RANGE)
def test_a_value_out_of_range_is_told_with_the_range(key: str, value: str, rule: str):
    error = refused(sets=[f"{key}={value}"])
    assert error.key == key
    assert rule in error.rule


@pytest.mark.parametrize(
    ("key", "edge"),
    [
        ("data.clients", 1),
        ("data.clients", 100_000),
        ("data.holdout", 0.9),
        ("training.fraction_train", 1.0),
        ("recipe.label_dropout", 1.0),
        ("recipe.label_dropout", 0.0),
        ("score.steps", 1),
        ("seed", 2**63 - 1),
    ],
)
def test_the_ends_of_a_closed_range_are_accepted(key: str, edge: float):
    section, _, leaf = key.rpartition(".")
    tables = schema.to_dict(load(sets=[f"{key}={edge}"]))
    assert (tables[section] if section else tables)[leaf] == edge


CHOICES = [
    ("model.target", "epsilom", "epsilon"),
    ("training.optimizer", "adanw", "adamw"),
    ("score.sampler", "dpm-solver", "dpm-solver++"),
    ("engine.name", "in-process", "inprocess"),
    ("recipe.name", "defualt", "default"),
]


@pytest.mark.parametrize(("key", "value", "near"), CHOICES)
def test_a_name_that_is_no_choice_is_told_with_the_nearest_one(key: str, value: str, near: str):
    error = refused(sets=[f"{key}={value}"])
    assert (error.key, error.value, error.nearest) == (key, value, near)


def test_an_unknown_preset_is_told_with_the_nearest_one(tmp_path: Path):
    error = refused(preset="fedavgg")
    assert (error.key, error.value, error.nearest) == ("preset", "fedavgg", "fedavg")
    error = refused(path=write(tmp_path, 'preset = "centrall"\n'))
    assert (error.key, error.nearest) == ("preset", "central")


def test_half_lives_named_twice_are_refused():
    assert refused(sets=["recipe.ema_half_lives=[5000, 5000]"]).key == "recipe.ema_half_lives"


def test_a_file_that_is_not_there_not_toml_or_not_text_is_named(tmp_path: Path):
    missing = tmp_path / "none.toml"
    assert refused(path=missing).key == str(missing)
    torn = write(tmp_path, "[data\n")
    assert "not valid TOML" in refused(path=torn).rule
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe\x00")
    assert "UTF-8" in refused(path=binary).rule
    assert refused(path=tmp_path).key == str(tmp_path)


def test_a_message_is_one_line_with_key_value_rule_and_nearest():
    error = ConfigError("a.b", "x\ny", "must be\n1", "a.c")
    assert str(error) == "a.b = 'x\\ny': must be 1 (nearest valid key: a.c)"
    assert str(ConfigError("a.b", None, "unknown section")) == "a.b: unknown section"


def test_the_default_resolved_file_repeats_itself(tmp_path: Path):
    first = load()
    again = load(write(tmp_path, to_toml(first)))
    assert again == first
    assert to_toml(again) == to_toml(first)


def test_a_resolved_file_keeps_a_preset_whose_keys_were_overridden(tmp_path: Path):
    first = load(preset="local", sets=["method.name=fedavg", "codec.up=int8", "codec.error_feedback=true"])
    assert first.method.name == "fedavg"
    assert load(write(tmp_path, to_toml(first))) == first


TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)


def value_of(key: str) -> st.SearchStrategy[Any]:
    """Values of a key that the rules between keys leave alone."""
    section, _, leaf = key.rpartition(".")
    cls = schema.SECTIONS[section] if section else Config
    hint, meta = hint_of(key), schema._meta(cls, leaf)
    low, high = meta.get("low"), meta.get("high")
    match key:
        case "data.source":
            return TEXT.map("npz:{}".format)
        case "data.partition":
            return st.sampled_from(["iid", "dirichlet", "shards", "l-skew", "q-skew"]) | TEXT.map(
                "by:{}".format
            )
        case "data.channels":
            return st.sampled_from([0, 1, 3])
        case "score.steps":
            return st.integers(1, 999)
        case "engine.device":
            return st.sampled_from(["auto", "cpu"])
        case "recipe.ema_half_lives":
            return st.lists(st.floats(1e-6, 1e12), max_size=3, unique=True)
    if hint is int:
        return st.integers(int(low), int(high) if high is not None else 2**40)
    if hint is float:
        return st.floats(low, high if high is not None else 1e12, exclude_min=meta["above"])
    assert hint is bool, key
    return st.booleans()


DRAWN_APART = ("data.source", "data.partition", "engine.device", "recipe.ema_half_lives")
BOUND_TO_OTHERS = (
    "model.timesteps",
    "model.sigma_data",
    "adapter.rank",
    "adapter.alpha",
    "codec.error_feedback",
    "codec.feedback_decay",
    "codec.feedback_flush",
    "codec.changed_only",
    "score.guidance",
    "training.quorum_clients",
    "engine.batched_clients",
)


def hint_of(key: str) -> Any:
    section, _, leaf = key.rpartition(".")
    return schema._hints(schema.SECTIONS[section] if section else Config)[leaf]


FREE = [
    key
    for key in schema.valid_keys()
    if key in DRAWN_APART or (hint_of(key) in (int, float, bool) and key not in BOUND_TO_OTHERS)
]


@settings(max_examples=60, deadline=None)
@given(st.data(), st.lists(st.sampled_from(FREE), max_size=8, unique=True))
def test_the_resolved_file_of_any_configuration_gives_it_back(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, keys: list[str]
):
    flat = {key: data.draw(value_of(key), label=key) for key in keys}
    flat |= data.draw(
        st.sampled_from(
            [
                {"preset": "fedavg"},
                {"preset": "fedavg", "codec.up": "int8", "codec.error_feedback": True},
                {
                    "preset": "fedavg",
                    "codec.up": "int4",
                    "codec.error_feedback": True,
                    "codec.feedback_decay": 0.9,
                    "codec.feedback_flush": 5,
                    "codec.first_contact": "seed",
                },
                {"preset": "fedavg", "codec.up_sends": "weights"},
                {"preset": "central", "method.name": "central", "model.target": "epsilon"},
                {"preset": "local", "method.name": "local", "model.conditional": False},
                {"preset": "fedavg", "model.target": "edm", "score.sampler": "edm-euler"},
            ]
        )
    )
    first = schema.build(flat)
    path = tmp_path_factory.mktemp("config") / "config.toml"
    path.write_bytes(to_toml(first).encode())
    assert load(path) == first


def test_most_keys_take_part_in_the_round_trip():
    assert len(FREE) > 30


def test_a_configuration_is_a_value_that_nobody_changes():
    with pytest.raises(dataclasses.FrozenInstanceError):
        load().training.rounds = 3  # type: ignore[misc]


def test_a_key_that_a_run_did_not_know_yet_stood_at_its_default():
    from osmotic.config.schema import refuse_changes, to_dict

    before = to_dict(load())
    del before["codec"]["changed_only"]
    refuse_changes(before, to_dict(load()))
    with pytest.raises(ConfigError, match=r"codec\.changed_only = True: was False when this run began"):
        refuse_changes(before, to_dict(load(sets=["codec.changed_only=true"])))


@pytest.mark.parametrize("text", ["x = " + "[" * 5000, "seed = " + "9" * 5000, "[a]\nb = " + "{c=" * 5000])
def test_a_file_too_deep_or_with_a_number_too_long_is_told_in_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "deep.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match="is not valid TOML") as caught:
        load(path)
    assert len(str(caught.value)) < 600 and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    ["seed=" + "9" * 5000, "seed=0x" + "f" * 5000, "seed=" + "[" * 5000, "training.rounds=" + "9" * 5000],
)
def test_a_set_too_deep_or_too_long_is_told_in_one_line(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(sets=[text])
    assert len(str(caught.value)) < 600 and "\n" not in str(caught.value)


def test_a_value_that_no_file_can_hold_is_refused() -> None:
    with pytest.raises(ConfigError, match="UTF-8"):
        load(keys={"data.source": "npz:\udcff.npz"})
