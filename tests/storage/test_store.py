"""A client's private state: versions by round, the newest never ahead of what the server counted."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from osmotic.storage.store import StateLost, Store, digest, read_checked, read_with_notes, write_checked


def state(value: float) -> dict[str, np.ndarray]:
    return {"personal/w": np.full((2, 3), value, np.float32), "heard/encoder": np.array([7], np.int64)}


def rounds(store: Store) -> list[int]:
    return sorted(store._versions())


def equal(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return one.keys() == other.keys() and all(
        one[n].dtype == other[n].dtype and one[n].shape == other[n].shape and np.array_equal(one[n], other[n])
        for n in one
    )


def test_a_client_that_was_never_counted_starts_from_nothing(tmp_path: Path):
    assert Store(tmp_path / "none").load(None) == {}
    store = Store(tmp_path)
    store.save(state(1), 1, None)
    assert store.load(None) == {}
    assert rounds(store) == []


def test_the_state_of_the_counted_round_comes_back_and_newer_ones_are_dropped(tmp_path: Path):
    store = Store(tmp_path)
    for r in (-1, 1, 2, 3):
        store.save(state(r), r, None)
    assert equal(store.load(2), state(2))
    assert rounds(store) == [-1, 1, 2]
    assert equal(store.load(-1), state(-1))
    assert rounds(store) == [-1]


def test_loading_twice_gives_the_same(tmp_path: Path):
    store = Store(tmp_path)
    store.save(state(1), 1, None)
    assert equal(store.load(1), store.load(1))


def test_versions_before_the_durable_round_are_deleted_and_it_stays(tmp_path: Path):
    store = Store(tmp_path)
    for r in (1, 2, 3):
        store.save(state(r), r, None)
    store.save(state(4), 4, 2)
    assert rounds(store) == [2, 3, 4]
    assert equal(store.load(2), state(2))


def test_saving_a_round_again_replaces_it(tmp_path: Path):
    store = Store(tmp_path)
    first = store.save(state(1), 5, None)
    assert store.save(state(2), 5, None) != first
    assert equal(store.load(5), state(2))
    assert store.save(state(1), 5, None) == first


def test_a_missing_version_is_told(tmp_path: Path):
    store = Store(tmp_path)
    store.save(state(1), 1, None)
    with pytest.raises(StateLost, match="round 2 is missing"):
        store.load(2)


@pytest.mark.parametrize("length", [0, 1, 7, 8, 40, -30, -1])
def test_a_torn_version_is_told(tmp_path: Path, length: int):
    store = Store(tmp_path)
    store.save(state(1), 1, None)
    path = store._path(1)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(StateLost, match=re.escape(path.name)):
        store.load(1)


def test_an_altered_value_is_told(tmp_path: Path):
    store = Store(tmp_path)
    store.save(state(1), 1, None)
    data = bytearray(store._path(1).read_bytes())
    data[-1] ^= 1
    store._path(1).write_bytes(bytes(data))
    with pytest.raises(StateLost, match="checksum"):
        store.load(1)


SHAPES = {
    "scalar": np.array(3.5, np.float32),
    "one": np.array([3.5], np.float32),
    "empty": np.zeros((0, 2), np.float32),
    "bytes": np.array([[1, 255]], np.uint8),
    "long": np.array([-(2**62)], np.int64),
    "double": np.array([0.1]),
    "turned": np.arange(6, dtype=np.float32).reshape(2, 3).T,
}


@pytest.mark.parametrize("name", SHAPES)
def test_every_array_comes_back_with_dtype_shape_and_bits(tmp_path: Path, name: str):
    write_checked(tmp_path / "a", {name: SHAPES[name]})
    assert equal(read_checked(tmp_path / "a"), {name: SHAPES[name]})


def test_a_state_without_tensors_comes_back(tmp_path: Path):
    write_checked(tmp_path / "a", {}, {"note": "x"})
    assert read_with_notes(tmp_path / "a") == ({}, {"note": "x"})


def test_the_digest_tells_names_shapes_dtypes_and_values_apart():
    base = {"a": np.array([[1.0, 2.0]], np.float32)}
    others = [
        {"b": base["a"]},
        {"a": base["a"].T},
        {"a": base["a"].reshape(-1)},
        {"a": base["a"].view(np.int32)},
        {"a": base["a"] * 2},
        {**base, "b": np.zeros(0, np.float32)},
        {"a": np.array(1, np.float32)},
        {"a": np.array([1], np.float32)},
    ]
    assert len({digest(d) for d in (base, *others)}) == 1 + len(others)


def test_the_digest_does_not_depend_on_order_or_memory_layout():
    a, b = np.arange(6, dtype=np.float32).reshape(2, 3), np.zeros(2, np.int64)
    assert digest({"a": a, "b": b}) == digest({"b": b, "a": np.asfortranarray(a)})


def test_a_whole_state_that_is_not_the_counted_one_is_lost(tmp_path: Path):
    store, other = Store(tmp_path / "mine"), Store(tmp_path / "other")
    mine = store.save(state(1), 1, None)
    other.save(state(2), 1, None)
    assert equal(store.load(1, mine), state(1))
    store._path(1).write_bytes(other._path(1).read_bytes())
    with pytest.raises(StateLost, match="not the one that was counted"):
        store.load(1, mine)
    assert equal(store.load(1), state(2)), "without the hash nobody could tell"
