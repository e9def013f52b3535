"""Every drawing: titled, well formed, in the colours of the page, and without a trace in matplotlib."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import matplotlib

from osmotic.report import bars


def test_a_plot_is_titled_well_formed_and_themed() -> None:
    svg = bars.class_histogram([1, 3], [2, 2], ["a & b", "<c>"])
    assert svg is not None
    root = ElementTree.fromstring(svg)
    assert root[0].tag == "title" and "Share of each class" in str(root[0].text)
    texts = {"".join(node.itertext()).strip() for node in root.iter("text")}
    assert {"a & b", "<c>"} <= texts
    assert "var(--c0, #0072b2)" in svg and "metadata" not in svg


def test_drawing_changes_no_global_setting() -> None:
    before = dict(matplotlib.rcParams)
    bars.class_histogram([1], [1])
    assert dict(matplotlib.rcParams) == before
