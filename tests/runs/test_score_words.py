"""How scores are told on the command line."""

from __future__ import annotations

from typing import Any

import pytest

from osmotic.runs import commands

QUALITY: dict[str, Any] = {
    "encoder": "classifier-digits-8", "num_samples": 1000, "sampler": "dpm-solver++", "guidance": 1.5, "nfe": 40,
    "fd": 0.02, "kid": 0.0, "precision": 1.0, "recall": 0.9, "fd_floor": 0.2, "fd_at_floor": 0.08,
    "floor_samples": 360, "half_life": 5000.0,
    "held_out": {"fd": 0.22, "kid": 0.0, "precision": 0.9, "recall": 0.7, "images": 360, "floor": 0.19, "samples": 1000},
    "near_copies": {"features": 0.995, "pixels": 1.0, "expected": 3 / 361, "images": 1000, "held_out": 360},
}  # fmt: skip


def test_a_score_is_told_with_held_out_images_and_near_copies() -> None:
    text = commands.quality_text(QUALITY)
    assert "against 360 held-out images, and the floor of training images: 0.2200, 0.1900" in text
    assert (
        "near-copies of training images, by features and pixels: 99.5% and 100.0% (of fresh images 0.8%)"
        in text
    )


@pytest.mark.parametrize("missing", [{"held_out": None, "near_copies": None}, {}])
def test_what_was_not_measured_has_no_words(missing: dict[str, Any]) -> None:
    known = {k: v for k, v in QUALITY.items() if k not in ("held_out", "near_copies")}
    text = commands.quality_text(known | missing)
    assert "held-out" not in text and "copies" not in text


def test_own_scores_are_told_with_the_clients_behind_them() -> None:
    assert commands._own_count({"mean": {"fd_own": 9.5, "clients_own": 1, "clients": 4}}) == " (1 of 4)"
    none = {"mean": {"fd_own": None, "clients_own": 0, "clients": 4}}
    assert commands._own_count(none) == " (none of 4 has 50 images to compare)"
    assert commands._own_count({"mean": {"fd_own": 9.5}}) == commands._own_count({}) == ""


def test_a_metric_of_ones_own_is_told_by_its_name() -> None:
    assert "metric ink: 0.2500\n" in commands.quality_text(QUALITY | {"metrics": {"ink": 0.25}})
