"""The gate, rule by rule, and the contract that server and clients share."""

from __future__ import annotations

import re

import numpy as np
import pytest

from osmotic.protocol.messages import Packet, Refused, Spec, contract_hash, gate

EXPECTED = {"model/w": Spec((2, 3)), "image/x": Spec((None, 4), "uint8")}


def reply() -> dict[str, np.ndarray]:
    return {"model/w": np.zeros((2, 3), np.float32), "image/x": np.zeros((5, 4), np.uint8)}


def refused(tensors: dict[str, np.ndarray], num_examples: object = 10, announced: int = 10) -> Refused:
    with pytest.raises(Refused) as caught:
        gate(tensors, EXPECTED, num_examples, announced, 8.0)
    assert len(str(caught.value).splitlines()) == 1
    return caught.value


def test_a_good_reply_passes_with_its_weight():
    assert gate(reply(), EXPECTED, 10, 10, 8.0) == 10
    assert gate(reply(), EXPECTED, 1, 10, 8.0) == 1
    assert gate({}, {}, 3, 10, 8.0) == 3


@pytest.mark.parametrize("weight", [11, 0, -1, True, False, 5.0, "5", None, 2**70, float("nan"), [5]])
def test_a_weight_that_is_no_whole_number_up_to_the_announced_is_refused(weight: object):
    error = refused(reply(), weight)
    assert error.kind == "bad"
    assert str(error) == f"weight {weight!r} is not a whole number in 1..10"


def test_a_missing_tensor_is_refused_by_name():
    error = refused({"image/x": reply()["image/x"]})
    assert (error.kind, str(error)) == ("bad", "model/w is missing (1 in all)")


def test_a_tensor_that_was_not_asked_for_is_refused_by_name():
    error = refused({**reply(), "model/z": np.zeros(1, np.float32), "model/y": np.zeros(1, np.float32)})
    assert (error.kind, str(error)) == ("bad", "model/y was not asked for (2 in all)")


@pytest.mark.parametrize("shape", [(3, 2), (6,), (1, 3), (2, 1), (1, 1), (), (2, 3, 1), (1, 2, 3), (2, 4)])
def test_another_shape_is_refused_also_one_that_would_broadcast(shape: tuple[int, ...]):
    error = refused({**reply(), "model/w": np.zeros(shape, np.float32)})
    assert error.kind == "bad"
    assert f"model/w is float32 {list(shape)}, not float32 [2, 3]" in str(error)


@pytest.mark.parametrize("dtype", ["float64", "float16", "int32", "bool"])
def test_another_dtype_is_refused(dtype: str):
    error = refused({**reply(), "model/w": np.zeros((2, 3), dtype)})
    assert error.kind == "bad"
    assert f"model/w is {dtype} [2, 3], not float32" in str(error)


def test_an_open_axis_takes_any_length_and_the_others_do_not():
    for rows in (0, 1, 99):
        assert gate({**reply(), "image/x": np.zeros((rows, 4), np.uint8)}, EXPECTED, 1, 10, 8.0) == 1
    assert refused({**reply(), "image/x": np.zeros((5, 3), np.uint8)}).kind == "bad"
    assert refused({**reply(), "image/x": np.zeros(4, np.uint8)}).kind == "bad"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [(0, 0), (1, 2)])
def test_a_value_that_is_not_finite_is_bad(value: float, place: tuple[int, int]):
    tensors = reply()
    tensors["model/w"][place] = value
    error = refused(tensors)
    assert (error.kind, str(error)) == ("bad", "model/w holds a value that is not finite")


def test_not_finite_is_told_before_out_of_range():
    tensors = reply()
    tensors["model/w"][0] = (100, np.nan, -100)
    assert refused(tensors).kind == "bad"


@pytest.mark.parametrize("value", [8.5, -8.5])
def test_a_value_beyond_the_range_is_refused_as_range(value: float):
    tensors = reply()
    tensors["model/w"][1, 1] = value
    error = refused(tensors)
    assert (error.kind, str(error)) == ("range", f"model/w holds {value:g}, outside +-8")


def test_the_ends_of_the_range_pass():
    tensors = reply()
    tensors["model/w"][0, :2] = (8.0, -8.0)
    assert gate(tensors, EXPECTED, 1, 10, 8.0) == 1


def test_whole_numbers_have_no_range():
    tensors = {**reply(), "image/x": np.full((1, 4), 255, np.uint8)}
    assert gate(tensors, EXPECTED, 1, 10, 8.0) == 1


def test_an_empty_float_tensor_passes():
    assert gate({"e": np.zeros((0, 3), np.float32)}, {"e": Spec((0, 3))}, 1, 10, 8.0) == 1


def test_a_client_without_images_can_never_count():
    assert re.search(r"1\.\.0", str(refused(reply(), 0, announced=0)))


def test_the_contract_does_not_depend_on_the_order_of_its_keys_but_on_every_value():
    contract = {"parameters": {"a": [1, 2], "b": [3]}, "norm_groups": 8, "process": {"target": "v"}}
    turned = dict(reversed(contract.items()))
    assert contract_hash(contract) == contract_hash(turned)
    others = [
        {**contract, "norm_groups": 16},
        {**contract, "process": {"target": "epsilon"}},
        {**contract, "parameters": {"a": [2, 1], "b": [3]}},
        {**contract, "parameters": {"a": [1, 2], "c": [3]}},
        {**contract, "extra": None},
    ]
    assert len({contract_hash(c) for c in (contract, *others)}) == 6


def test_a_packet_counts_its_blobs_alone():
    assert Packet({"long": "header"}, (b"abc", b"", b"de")).num_bytes == 5
