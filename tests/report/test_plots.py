"""Plots: nothing is drawn of what is not known, and drawing leaves no trace in matplotlib."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import matplotlib
import pytest

from osmotic.report import plots
from osmotic.report.reading import PartitionTable, Traffic


def test_empty_inputs_give_no_plot() -> None:
    assert plots.loss([]) is None
    assert plots.score([], "fd", "FD") is None
    assert plots.traffic([]) is None
    assert plots.client_scores([{"name": "a", "stage": "before", "fd_all": None}]) is None
    assert plots.partition(PartitionTable((), (), (), (), ())) is None
    assert plots.class_histogram([], []) is None
    assert plots.class_histogram([0, 0], [1, 1]) is None
    assert plots.failures([], 3) is None
    assert plots.overlay([("a", [], [])], "rounds", "FD") is None


def test_a_plot_is_titled_well_formed_and_themed() -> None:
    svg = plots.class_histogram([1, 3], [2, 2], ["a & b", "<c>"])
    assert svg is not None
    root = ElementTree.fromstring(svg)
    assert root[0].tag == "title" and "Share of each class" in str(root[0].text)
    texts = {"".join(node.itertext()).strip() for node in root.iter("text")}
    assert {"a & b", "<c>"} <= texts
    assert "var(--c0, #0072b2)" in svg and "metadata" not in svg


def test_drawing_changes_no_global_setting() -> None:
    before = dict(matplotlib.rcParams)
    plots.class_histogram([1], [1])
    assert dict(matplotlib.rcParams) == before


def test_traffic_counts_training_rounds_only() -> None:
    def entry(number: int, phase: str, direction: str, size: int) -> Traffic:
        return Traffic(number, phase, "client-000", direction, 0, size, "counted", 0, 0, 0)

    # Up: 1000 + 1500 = 2.50 kB; the 9000 of scoring stay out. Down: 4.00 kB.
    up = [entry(1, "train", "up", 1000), entry(2, "train", "up", 1500), entry(2, "score", "up", 9000)]
    svg = plots.traffic([*up, entry(1, "train", "down", 4000)])
    assert svg is not None and "up: 2.50 kB" in svg and "down: 4.00 kB" in svg


def test_dollar_signs_in_class_names_are_no_formula() -> None:
    svg = plots.class_histogram([1, 1], [1, 1], ["$a$", "$b_"])
    assert svg is not None and "$a$" in svg and "$b_" in svg


@pytest.mark.filterwarnings("error")
def test_names_in_other_scripts_are_drawn_without_a_warning() -> None:
    svg = plots.class_histogram([1, 1], [1, 1], ["数字", "ספרה"])
    assert svg is not None and "数字" in svg
