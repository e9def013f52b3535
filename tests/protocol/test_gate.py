"""The gate, rule by rule: what is written down for a task, and what a reply is held against."""

from __future__ import annotations

import re

import numpy as np
import pytest

from osmotic.config.schema import TrainingConfig
from osmotic.protocol.gate import Expectation, Gate, Refused
from osmotic.protocol.messages import Client, Spec, Task

EXPECTED = {"model/w": Spec((2, 3)), "image/x": Spec((None, 4), "uint8")}


def gate(
    tensors: dict[str, np.ndarray],
    expected: dict[str, Spec],
    num_examples: object,
    announced: int,
    max_abs: float,
) -> int:
    """The weight of a reply that passes; changes are expected as the gate writes them down, the rest as extras."""
    changes = {n: s for n, s in expected.items() if n.startswith("model/")}
    extras = {n: s for n, s in expected.items() if n not in changes}
    return Expectation(changes, extras, announced, max_abs, 0, 0).check(tensors, num_examples)


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


# --- what is written down when a task is posted ---

LAYOUT = {"conv_in.weight": (6, 4), "mid_block.bias": (3,), "conv_out.weight": (2, 5)}
PART_NAMES = {"encoder": ["conv_in.weight"], "bottleneck": ["mid_block.bias"], "decoder": ["conv_out.weight"]}
TRAINING = TrainingConfig(batch_size=4, local_epochs=2.0, max_abs_update=3.0)


def expect(task: Task) -> Expectation:
    return Gate(LAYOUT, PART_NAMES, TRAINING).expect(task)


CLIENT = Client(0, "client-000", 10)
EXTRAS = {
    "piece/far": Spec((2,), max_abs=100.0),
    "piece/coded": Spec((7,), wire="codec", counts=True),
    "piece/variate": Spec((5,), counts=True),
    "piece/images": Spec((4, None), "uint8"),
}


def test_the_changes_of_the_parts_asked_for_are_expected_and_no_others() -> None:
    expected = expect(Task(CLIENT, "train", returns=("encoder", "decoder")))
    assert {n: s.shape for n, s in expected.tensors.items()} == {
        "model/conv_in.weight": (6, 4),
        "model/conv_out.weight": (2, 5),
    }
    assert expected.announced == 10 and expected.weights == 6 * 4 + 2 * 5


def test_changes_and_what_asks_for_it_go_through_the_codec_and_the_rest_as_it_is() -> None:
    expected = expect(Task(CLIENT, "train", returns=("bottleneck",), expects=EXTRAS))
    assert set(expected.coded) == {"model/mid_block.bias", "piece/coded"}
    assert set(expected.exact) == {"piece/far", "piece/variate", "piece/images"}
    assert set(expected.tensors) == {*expected.coded, *expected.exact}
    # 3 of the bottleneck, 7 and 5 of extras that count; images and what does not count are no weights.
    assert expected.weights == 3 + 7 + 5


def test_a_spec_with_a_range_of_its_own_has_that_one_and_the_others_the_configurations() -> None:
    expected = expect(Task(CLIENT, "train", expects=EXTRAS))
    good = {n: np.zeros([k or 1 for k in s.shape], s.dtype) for n, s in EXTRAS.items()}
    assert expected.check({**good, "piece/far": np.full(2, -100, np.float32)}, 10) == 10
    for name, size in (("piece/far", 101.0), ("piece/variate", 3.5)):
        with pytest.raises(Refused, match=f"{name} holds {size:g}, outside") as caught:
            expected.check({**good, name: np.full_like(good[name], size)}, 10)
        assert caught.value.kind == "range"


def test_a_change_of_a_larger_norm_than_allowed_is_refused_and_extras_are_no_part_of_it() -> None:
    from osmotic.flat import Flat, FlatLayout

    training = TrainingConfig(batch_size=4, local_epochs=2.0, max_update_norm=5.0)
    task = Task(
        CLIENT, "train", returns=("bottleneck", "decoder"), expects={"piece/far": Spec((2,), max_abs=1e3)}
    )
    expected = Gate(LAYOUT, PART_NAMES, training).expect(task)
    far = np.full(2, 900, np.float32)
    bias, weight = np.array([3, 0, 0], np.float32), np.zeros((2, 5), np.float32)
    weight[1, 4] = 4.0
    good = {"model/mid_block.bias": bias, "model/conv_out.weight": weight, "piece/far": far}
    assert expected.check(good, 10) == 10, "3, 4, 5: just so much"
    weight[0, 0] = 0.1
    with pytest.raises(Refused, match=r"the change has norm 5\.001, above 5") as caught:
        expected.check(good, 10)
    assert caught.value.kind == "range"
    # As a whole buffer, too, which is looked at in one pass.
    task = Task(CLIENT, "train", returns=("bottleneck", "decoder"))
    layout = FlatLayout(LAYOUT, PART_NAMES).of_parts(task.returns).named("model/")
    whole = Flat.of(layout, {n: good[n] for n in ("model/mid_block.bias", "model/conv_out.weight")})
    with pytest.raises(Refused, match="the change has norm"):
        Gate(LAYOUT, PART_NAMES, training).expect(task).check(whole, 10)
    assert (
        Gate(LAYOUT, PART_NAMES, TRAINING)
        .expect(task)
        .check(Flat.of(layout, {n: np.ones_like(t) for n, t in whole.items()}), 10)
    ), "off by default"


@pytest.mark.parametrize(("epochs", "steps"), [(None, 6), (0.5, 2), (5.0, 15)])
def test_no_more_work_may_be_claimed_than_the_task_is(epochs: float | None, steps: int) -> None:
    # 10 images in batches of 4 are 3 steps a pass; the configuration says 2 passes.
    expected = expect(Task(CLIENT, "train", local_epochs=epochs))
    most = {"steps": steps, "images": steps * 4}
    assert expected.check_metrics({**most, "loss": -0.5}) == {**most, "loss": -0.5}
    for name, value in most.items():
        for bad in (value + 1, -1, 1.5):
            with pytest.raises(Refused, match=f"metric {name} is {bad}, not a whole number in 0..{value}"):
                expected.check_metrics({name: bad})


@pytest.mark.parametrize("metrics", [None, [], {"loss": float("nan")}, {"loss": float("inf")}, {"loss": "1"}])
@pytest.mark.parametrize("beside", [{}, {"images": 4}])
def test_figures_that_are_no_finite_numbers_are_bad(metrics: object, beside: dict[str, int]) -> None:
    asked = {**metrics, **beside} if isinstance(metrics, dict) else metrics
    with pytest.raises(Refused) as caught:
        expect(Task(CLIENT, "train")).check_metrics(asked)
    assert caught.value.kind == "bad"


@pytest.mark.parametrize("value", [True, False])
def test_a_truth_value_is_no_figure(value: bool) -> None:
    with pytest.raises(Refused, match="metric steps is not a finite number"):
        expect(Task(CLIENT, "train")).check_metrics({"steps": value})


@pytest.mark.parametrize("digest", ["", "a" * 63, "a" * 65, "G" * 64, "A" * 64, 7, None])
def test_the_hash_of_a_state_is_64_hexadecimal_digits(digest: object) -> None:
    expected = expect(Task(CLIENT, "train"))
    good = {"state_sha256": "0123456789abcdef" * 4}
    assert expected.check_metrics(good) == good
    with pytest.raises(Refused, match="metric state_sha256"):
        expected.check_metrics({"state_sha256": digest})
