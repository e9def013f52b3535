"""Metrics of the user's own: what is measured, and what is refused by name."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from osmotic.metrics import METRICS, measure, register_metric

WHITE = np.full((3, 4, 4, 1), 255, np.uint8)
BLACK = np.zeros((2, 4, 4, 1), np.uint8)


@pytest.fixture(autouse=True)
def registry() -> Iterator[None]:
    before = dict(METRICS)
    yield
    METRICS.clear()
    METRICS.update(before)


def test_a_registered_function_is_given_both_sets_and_its_value_comes_back():
    # mean brightness, white less black, in [0, 255]: 255 - 0
    register_metric("brightness", lambda images, reference: images.mean() - reference.mean())
    register_metric("count", lambda images, reference: len(images) - len(reference))
    found = measure(["count", "brightness"], WHITE, BLACK)
    assert list(found.items()) == [("count", 1.0), ("brightness", 255.0)]
    assert all(type(value) is float for value in found.values())


def test_nothing_asked_is_nothing_measured():
    assert measure([], WHITE, BLACK) == {}


@pytest.mark.parametrize(
    "value", [0.5, 1, np.float32(0.5), np.int64(1), np.array(0.5), torch.tensor(0.5), torch.tensor(1)]
)
def test_one_number_of_any_library_is_a_value(value: Any):
    register_metric("own", lambda images, reference: value)
    assert measure(["own"], WHITE, BLACK) == {"own": float(value)}


@pytest.mark.parametrize(
    "value",
    [float("nan"), float("inf"), -np.inf, np.float32("nan"), torch.tensor(float("nan")), None, "0.5", True, np.True_,
     np.array([0.5, 0.5]), torch.ones(2), [0.5], 1j],
    ids=repr,
)  # fmt: skip
def test_a_result_that_is_not_one_finite_number_is_refused_by_name(value: Any):
    register_metric("own", lambda images, reference: value)
    with pytest.raises(ValueError, match="metric 'own' must give one finite number, got"):
        measure(["own"], WHITE, BLACK)


def test_an_unknown_metric_is_refused_before_any_is_measured():
    called = []
    register_metric("brightness", lambda images, reference: called.append(1) or 0.0)
    with pytest.raises(ValueError, match=r"no metric is called 'brightnes'.*nearest: brightness"):
        measure(["brightness", "brightnes"], WHITE, BLACK)
    assert called == []


def test_the_newer_of_two_functions_of_one_name_counts():
    register_metric("own", lambda images, reference: 1.0)
    register_metric("own", lambda images, reference: 2.0)
    assert measure(["own"], WHITE, BLACK) == {"own": 2.0}


@pytest.mark.parametrize("name", ["", "Own", "own metric", "1st", "own/x", "_own"])
def test_a_name_that_would_not_stand_in_a_summary_is_refused(name: str):
    with pytest.raises(ValueError, match="lower-case letters"):
        register_metric(name, lambda images, reference: 0.0)
    assert name not in METRICS


def test_what_is_no_function_is_refused():
    with pytest.raises(TypeError, match="'own' must be a function"):
        register_metric("own", 0.5)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("images", "reference", "message"),
    [
        (WHITE / 255, BLACK, r"images must be uint8 \[N, H, W, C\] with N >= 1, got float64 \[3, 4, 4, 1\]"),
        (WHITE, BLACK[..., 0], r"reference must be uint8 .* got uint8 \[2, 4, 4\]"),
        (WHITE[:0], BLACK, r"images must be .* got uint8 \[0, 4, 4, 1\]"),
        (WHITE.tolist(), BLACK, "images must be .* got list"),
        (WHITE, BLACK.repeat(3, axis=3), "must agree in height, width, channels"),
    ],
)
def test_images_of_another_form_are_refused(images: Any, reference: Any, message: str):
    register_metric("own", lambda images, reference: 0.0)
    with pytest.raises(ValueError, match=message):
        measure(["own"], images, reference)


def overwrite(images: np.ndarray, reference: np.ndarray) -> float:
    images[:] = 0
    return 0.0


def fail(images: np.ndarray, reference: np.ndarray) -> float:
    raise KeyError("own trouble")


@pytest.mark.parametrize(("function", "error"), [(overwrite, ValueError), (fail, KeyError)])
def test_an_error_inside_a_metric_is_its_own_with_a_note_of_the_name(
    function: Callable[..., float], error: type[Exception]
):
    register_metric("own", function)
    images = WHITE.copy()
    with pytest.raises(error) as caught:
        measure(["own"], images, BLACK)
    assert caught.value.__notes__ == ["while the metric 'own' was measured"]
    assert (images == 255).all() and images.flags.writeable, (
        "a metric sees a read-only view, the array stays as it is"
    )


def test_registering_imports_no_torch():
    code = "import sys; from osmotic.metrics import register_metric; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
