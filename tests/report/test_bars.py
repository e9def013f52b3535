"""Bars and heat map: nothing is drawn of what is not known, and names are text and nothing else."""

from __future__ import annotations

import pytest

from osmotic.report import bars, svg
from osmotic.report.reading import PartitionTable


def test_empty_inputs_give_no_bars() -> None:
    assert bars.client_scores([{"name": "a", "stage": "before", "fd_all": None}]) is None
    assert bars.partition(PartitionTable((), (), (), (), ())) is None
    assert bars.class_histogram([], []) is None
    assert bars.class_histogram([0, 0], [1, 1]) is None
    assert bars.failures([], 3) is None


def test_dollar_signs_in_class_names_are_no_formula() -> None:
    svg = bars.class_histogram([1, 1], [1, 1], ["$a$", "$b_"])
    assert svg is not None and "$a$" in svg and "$b_" in svg


@pytest.mark.filterwarnings("error")
def test_names_in_other_scripts_are_drawn_without_a_warning() -> None:
    svg = bars.class_histogram([1, 1], [1, 1], ["数字", "ספרה"])
    assert svg is not None and "数字" in svg


def test_no_bar_is_longer_than_its_axis(monkeypatch: pytest.MonkeyPatch) -> None:
    # Own scores are the longer ones here, and their row is drawn below that of the scores against all images.
    figures = []
    draw = svg.element
    monkeypatch.setattr(
        svg, "element", lambda paint, *rest: draw(lambda fig: (figures.append(fig), paint(fig)), *rest)
    )
    scores = {"fd_all": 36.0, "fd_own": 47.0, "kid_all": -0.2, "kid_own": 1.7}
    assert bars.client_scores([{"name": "a", "stage": "after", **scores}])
    for ax in figures[0].axes:
        low, high = ax.get_xlim()
        assert all(
            low <= edge <= high for bar in ax.patches for edge in (bar.get_x(), bar.get_x() + bar.get_width())
        )
