"""A client's private state as fields and as the store's table: the names of the table are a contract."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from osmotic.federation.memory import PREFIXES, ClientState
from osmotic.storage.store import Store, digest


def array(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


FULL = ClientState(
    personal={"conv_in.weight": array(1)},
    average={"conv_in.weight": array(2)},
    ema={"0/conv_in.weight": np.array([3.0])},
    ema_mass=np.array([0.5]),
    optimizer={"conv_in.weight|exp_avg": array(4), "conv_in.weight|step": np.array(7, np.float32)},
    residual={"residual/model/conv_in.weight": array(5)},
    codec={"scale": array(6)},
    pieces={"scaffold/conv_in.weight": array(7)},
    replica={"conv_out.weight": array(8)},
    heard={"decoder": 3, "encoder": -1},
)
# As runs of every version have them on disk: a resumed run must find its state again, and its hash must be the same.
TABLE = {
    "personal/conv_in.weight": array(1),
    "average/conv_in.weight": array(2),
    "ema/0/conv_in.weight": np.array([3.0]),
    "ema-mass": np.array([0.5]),
    "optimizer/conv_in.weight|exp_avg": array(4),
    "optimizer/conv_in.weight|step": np.array(7, np.float32),
    "memory/residual/model/conv_in.weight": array(5),
    "codec/scale": array(6),
    "piece/scaffold/conv_in.weight": array(7),
    "replica/conv_out.weight": array(8),
    "heard/decoder": np.array([3]),
    "heard/encoder": np.array([-1]),
}


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    """Equal names, dtypes, shapes and bits."""
    return one.keys() == other.keys() and digest(one) == digest(other)


def test_every_field_has_its_names_in_the_table() -> None:
    assert same(FULL.tensors(), TABLE)
    empty = [f.name for f in dataclasses.fields(FULL) if getattr(FULL, f.name) in ({}, None)]
    assert empty == [], "a new field needs its line here"


def test_every_name_of_the_table_comes_back_to_its_field() -> None:
    state = ClientState.of(TABLE)
    for field in dataclasses.fields(ClientState):
        found, expected = getattr(state, field.name), getattr(FULL, field.name)
        if field.name in ("heard", "ema_mass"):
            assert found == expected
        else:
            assert same(found, expected), field.name
    assert all(type(number) is int for number in state.heard.values())


def test_an_empty_state_is_an_empty_table() -> None:
    assert ClientState().tensors() == {}
    assert ClientState.of({}) == ClientState()


def test_no_name_of_one_field_can_be_read_as_anothers() -> None:
    prefixes = [f"{p}/" for p in PREFIXES.values()] + ["heard/", "ema-mass"]
    assert len(set(prefixes)) == len(prefixes) == len(dataclasses.fields(ClientState))
    assert not any(a != b and b.startswith(a) for a in prefixes for b in prefixes)


def test_what_no_field_has_a_name_for_is_passed_over() -> None:
    assert same(ClientState.of({**TABLE, "method/c": array(1), "personalised": array(1)}).tensors(), TABLE)


NAMES = st.text("abc./|-", min_size=1, max_size=8)
TENSORS = st.dictionaries(NAMES, st.floats(-1, 1, width=32).map(lambda x: array(x)), max_size=3)


@given(st.data())
def test_any_state_survives_the_way_to_the_table_and_back(data: st.DataObject) -> None:
    fields: dict[str, Any] = {name: data.draw(TENSORS, label=name) for name in PREFIXES}
    heard = data.draw(st.dictionaries(st.sampled_from(["encoder", "decoder"]), st.integers(-5, 2**40)))
    mass = data.draw(st.none() | st.just(np.array([0.25, 0.5])))
    state = ClientState(**fields, heard=heard, ema_mass=mass)
    again = ClientState.of(state.tensors())
    assert same(again.tensors(), state.tensors())
    assert again.heard == heard and (again.ema_mass is None) == (mass is None)
    assert all(same(getattr(again, name), fields[name]) for name in PREFIXES)


def test_the_store_keeps_it_bit_for_bit(tmp_path: Path) -> None:
    store = Store(tmp_path / "client")
    assert store.save(FULL.tensors(), 4, None) == digest(TABLE)
    assert same(ClientState.of(store.load(4)).tensors(), TABLE)


@pytest.mark.parametrize(
    ("personal", "average", "expected"), [({}, {}, None), ({"w": 1}, {}, 1), ({"w": 1}, {"w": 2}, 2)]
)
def test_a_clients_own_model_is_its_average_where_it_keeps_one(
    personal: dict[str, int], average: dict[str, int], expected: int | None
) -> None:
    state = ClientState(
        personal={n: array(v) for n, v in personal.items()}, average={n: array(v) for n, v in average.items()}
    )
    own = state.own_model()
    assert own == {} if expected is None else own["w"] == expected


# What a client keeps, by what makes it keep it; UDec has no global model, so clients average their own.
KEPT = {
    ("method.name=fedavg",): set(),
    ("method.name=udec",): {"personal", "average", "ema", "ema-mass"},
    ("method.name=udec", "recipe.ema_half_lives=[]"): {"personal"},
    ("method.name=local",): {"personal", "average", "ema", "ema-mass"},
    ("training.optimizer_state=keep",): {"optimizer"},
    ("codec.up=int8", "codec.error_feedback=true"): {"memory"},
    ("codec.down=int8",): {"replica", "heard"},
    ("codec.changed_only=true",): {"replica", "heard"},
    ("local.pieces=scaffold",): {"piece"},
}


@pytest.mark.parametrize("settings", KEPT, ids=" ".join)
def test_a_client_keeps_what_its_run_needs_and_nothing_else(
    make_server: Any, settings: tuple[str, ...]
) -> None:
    server = make_server("data.max_images=30", "training.rounds=1", *settings)
    server.run()
    for site in server.engine.sites.values():
        if not KEPT[settings]:
            assert not site.store.folder.exists(), "no file at all"
            continue
        table = site.store.load(1)
        assert {name.split("/")[0] for name in table} == KEPT[settings]
        assert same(ClientState.of(table).tensors(), table)
        assert server.state.state_hashes[site.client.name] == digest(table)
