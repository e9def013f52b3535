"""Curves over the rounds: nothing is drawn of what is not known, and what has but a name is drawn under it."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree

import pytest

from osmotic.report import curves
from osmotic.report.reading import Traffic


def test_empty_inputs_give_no_curve() -> None:
    assert curves.loss([]) is None
    assert curves.score([], "fd", "FD") is None
    assert curves.own_scores([], "fd_all", "FD") is None
    assert curves.traffic([]) is None
    assert curves.metric([], "any", 0) is None
    assert curves.overlay([("a", [], [])], "rounds", "FD") is None


def test_traffic_counts_training_rounds_only() -> None:
    def entry(number: int, phase: str, direction: str, size: int) -> Traffic:
        return Traffic(number, phase, "client-000", direction, 0, size, "counted", 0, 0, 0)

    # Up: 1000 + 1500 = 2.50 kB; the 9000 of scoring stay out. Down: 4.00 kB.
    up = [entry(1, "train", "up", 1000), entry(2, "train", "up", 1500), entry(2, "score", "up", 9000)]
    svg = curves.traffic([*up, entry(1, "train", "down", 4000)])
    assert svg is not None and "up 2.50 kB" in svg and "down 4.00 kB" in svg


def texts(svg: str | None) -> set[str]:
    assert svg is not None
    return {"".join(node.itertext()).strip() for node in ElementTree.fromstring(svg).iter("text")}


def test_a_metric_is_drawn_with_its_name_and_last_figure() -> None:
    found = texts(curves.metric([(1, 0.5), (2, 0.25)], "server/adam/second_moment", 0))
    assert {"server/adam/second_moment", "0.250", "round"} <= found


def test_a_metric_of_one_phase_is_a_dot_with_its_figure() -> None:
    assert {"personalise/epochs", "2.00", "3"} <= texts(curves.metric([(3, 2.0)], "personalise/epochs", 0))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_left_out_of_a_metric(bad: float) -> None:
    assert curves.metric([(1, bad)], "diverged", 0) is None
    assert "7.00" in texts(curves.metric([(1, 7.0), (2, bad)], "diverged", 0))


def test_tiny_metrics_are_labelled_in_full_beside_the_title() -> None:
    # matplotlib would write 1, 2, 3 on the axis and the power of ten over the title.
    found = texts(curves.metric([(1, 1e-9), (2, 3e-9)], "variance", 0))
    assert "3.00e-09" in found and not any("1e" in text and text.startswith(("×", "1e")) for text in found)
