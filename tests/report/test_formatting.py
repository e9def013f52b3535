"""Figures as text."""

from __future__ import annotations

import pytest

from osmotic.report import formatting


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "—"),
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (56_220_240, "56.2 MB"),
        (999_999, "1.00 MB"),
    ],
)
def test_bytes_are_decimal_with_three_digits(value: int | None, text: str) -> None:
    assert formatting.size(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "—"),
        (0, "0"),
        (6.3, "6.300"),
        (0.021, "0.02100"),
        (12345.6, "12,346"),
        (1e-7, "1.000e-07"),
        (float("nan"), "not finite"),
        (-2.5, "-2.500"),
    ],
)
def test_figures_have_four_significant_digits(value: float | None, text: str) -> None:
    assert formatting.figure(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "—"), (4.24, "4.2 s"), (59.96, "1 min 00 s"), (187, "3 min 07 s"), (7500, "2 h 05 min")],
)
def test_durations(seconds: float | None, text: str) -> None:
    assert formatting.duration(seconds) == text


@pytest.mark.parametrize(
    ("encoder", "name"), [("inception-v3", "FID"), ("classifier-digits", "FD"), (None, "FD")]
)
def test_only_inception_features_give_an_fid(encoder: str | None, name: str) -> None:
    assert formatting.fd_name(encoder) == name
