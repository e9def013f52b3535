"""The sentence of a run's traffic, and where it stands on the pages."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from osmotic.report import card, compare, page, reading, tiles, traffic


def table(factor: float | None, to_images: float | None = None, size: int = 5_200_000, sampled: Any = None):
    return {
        "bytes": size,
        "fp32_fedavg_bytes": round(size * (factor or 0)),
        "factor": factor,
        "images_bytes": None if to_images is None else round(size / to_images),
        "images_sampled": sampled,
        "to_images": to_images,
    }


@pytest.mark.parametrize(
    ("found", "told"),
    [
        (
            table(540.2, 0.6118),
            "5.20 MB: 540 times less than fp32 FedAvg; less than the pictures themselves, 0.61 of the "
            "compressed training images (8.50 MB)",
        ),
        (
            table(0.997, 1676.5, 285_000_000_000, sampled=1365),
            "285 GB, as much as fp32 FedAvg; 1,676 times the compressed training images (about 170 MB)",
        ),
        (table(0.5), "5.20 MB, 2.00 times as much as fp32 FedAvg"),
        (
            table(3.96, 1.25),
            "5.20 MB: 3.96 times less than fp32 FedAvg; 1.25 times the compressed training images (4.16 MB)",
        ),
        (table(None), ""),
        (None, ""),
    ],
)
def test_the_sentence(found: dict[str, Any] | None, told: str) -> None:
    assert traffic.words(found) == told


def test_an_upper_bound_is_told_as_one() -> None:
    assert traffic.words(table(3.96), "at most ").startswith("at most 5.20 MB: ")


def test_page_card_and_comparison_tell_it(run_folder: Callable[..., Path]) -> None:
    small = run_folder("small", traffic=table(540.2, 0.6118))
    told = next(t for t in tiles.tiles(reading.read(small)) if t.name == "Traffic in training")
    assert told.value == "5.20 MB"
    assert told.detail == (
        "540 times less than fp32 FedAvg · less than the pictures themselves, 0.61 of the compressed training images (8.50 MB)"
    )
    assert "less than the pictures themselves" in page.write(small).read_text()
    card.write(small)
    words = " ".join((small / "model" / "README.md").read_text().split())
    assert "Together 5.20 MB: 540 times less than fp32 FedAvg; less than the pictures" in words
    columns = dict(compare.compare([small]).columns())
    (row,) = compare.compare([small]).rows
    assert columns["times less than fp32 FedAvg"](row) == "540"
    assert columns["traffic over compressed images"](row) == "0.612"


def test_runs_of_earlier_versions_and_those_that_send_nothing_say_nothing_of_it(
    run_folder: Callable[..., Path],
) -> None:
    for name, found in (("old", {}), ("local", {"traffic": table(None, size=0)})):
        run = run_folder(name, **found)
        assert all(t.name != "Traffic in training" for t in tiles.tiles(reading.read(run)))
        headings = dict(compare.compare([run]).columns())
        assert not {"times less than fp32 FedAvg", "traffic over compressed images"} & set(headings)
        card.write(run)
        assert "Together" not in (run / "model" / "README.md").read_text()
