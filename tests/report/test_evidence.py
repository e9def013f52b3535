"""What scores must be read with: floors, held-out images, near-copies, and how many clients and images are behind them."""

from __future__ import annotations

import json
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from osmotic.report import evidence, page, reading, tables, tiles

MakeRun = Callable[..., Path]


class Parsed(HTMLParser):
    """A page as its tables (rows of cells), its images by what they show, and its text by section."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.images: list[str] = []
        self.charts: list[str] = []
        self.sections: dict[str, str] = {}
        self._section, self._cell, self._title = "", False, False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if tag == "section":
            self._section = found.get("id") or ""
        elif tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("th", "td"):
            self.tables[-1][-1].append("")
        elif tag == "img":
            self.images.append(str(found["alt"]))
        self._cell = tag in ("th", "td") or (self._cell and tag in ("span", "code"))
        self._title = tag == "title" and str(found.get("id")).endswith("-title")

    def handle_endtag(self, tag: str) -> None:
        self._cell = self._cell and tag not in ("th", "td")
        self._title = False
        self._section = "" if tag == "section" else self._section

    def handle_data(self, data: str) -> None:
        words = " ".join(data.split())
        if self._title:
            self.charts.append(words)
        elif self._cell:
            self.tables[-1][-1][-1] += words
        if words:
            self.sections[self._section] = f"{self.sections.get(self._section, '')} {words}".strip()


def parsed(path: Path) -> Parsed:
    return Parsed(page.render(reading.read(path)))


def edit(path: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    summary = json.loads((path / "summary.json").read_text())
    change(summary["quality"])
    (path / "summary.json").write_text(json.dumps(summary))
    return path


def test_held_out_scores_stand_beside_those_against_training_images(full_folder: MakeRun) -> None:
    path = edit(full_folder(), lambda q: q.update(fd_at_floor=6.75, floor_samples=360))
    (table,) = [t for t in parsed(path).tables if "against held-out images" in t[0]]
    rows = {row[0]: row[1:] for row in table}
    assert rows["FD, lower is better"] == ["6.300", "7.500"]
    assert rows["FD of other real images (floor)"] == ["2.870", "3.250"]
    assert rows["FD of as many generated images as the floor has (360)"][0] == "6.750"
    assert rows["recall, higher is better"] == ["0.700", "0.620"]
    assert rows["generated images"] == ["1,000", "1,000"]
    # The training images of all clients together: 1,393 as the fixture draws them.
    assert rows["real images"] == ["1,393", "360"]


def test_real_images_and_nearest_neighbours_stand_beside_the_last_samples(full_folder: MakeRun) -> None:
    images = parsed(full_folder()).images
    assert images[:3] == [
        "Grid of generated images after round 20",
        "Grid of real training images",
        "Generated images, each over its nearest real training images",
    ]


def test_a_page_with_training_images_says_how_private_it_is(
    full_folder: MakeRun, run_folder: MakeRun
) -> None:
    words = "as private as they are"
    assert words in parsed(full_folder()).sections[""] and words not in parsed(run_folder()).sections[""]


def test_own_models_have_held_out_scores_and_near_copies_of_their_own(personal_folder: MakeRun) -> None:
    path = personal_folder(method="local")

    def add(quality: dict[str, Any]) -> None:
        quality |= {"held_out": None, "near_copies": None}
        for k, client in enumerate(quality["per_client"]):
            client |= {"held_out": {"fd": 20.0 + k}, "near_copies": {"features": 0.01 * k}}

    (table,) = [t for t in parsed(edit(path, add)).tables if t[0][0] == "Client"]
    at = table[0].index("FD held-out"), table[0].index("near-copies")
    assert [[row[k] for k in at] for row in table[1:]] == [
        ["20.00", "0.0 %"],
        ["21.00", "1.0 %"],
        ["22.00", "2.0 %"],
    ]


@pytest.mark.parametrize("value", [None, "missing"])
def test_a_run_from_before_these_scores_has_none_of_their_words(run_folder: MakeRun, value: Any) -> None:
    path = run_folder()
    if value is None:
        edit(path, lambda q: q.update(held_out=None, near_copies=None))
    found = parsed(path)
    assert "scores" not in found.sections
    assert not any(word in " ".join(found.sections.values()) for word in ("Near-copies", "held-out images"))
    assert found.images[0] == "Grid of generated images after round 20" and not any(
        "eal" in i for i in found.images
    )


def test_many_near_copies_are_said_plainly_and_few_are_not_made_much_of(full_folder: MakeRun) -> None:
    path = full_folder()
    assert (
        "no more than chance shows among images that were copied from nowhere"
        in parsed(path).sections["scores"]
    )
    edit(path, lambda q: q["near_copies"].update(features=0.3))
    told = parsed(path).sections["scores"]
    assert "30.0 % of the generated images" in told and "far more than expected" in told


@pytest.mark.parametrize(
    ("share", "expected", "images", "held_out", "many"),
    [
        (0.019, 0.01, 1000, 10**6, False),  # under twice of what is expected
        (0.021, 0.01, 1000, 10**6, True),  # over twice, and over 0.01 + 3 * sqrt(0.01 * 0.99 / 1000) = 0.0194
        (0.021, 0.01, 1000, 360, False),  # 0.01 + 3 * sqrt(0.01 * 0.99 * (1 / 1000 + 1 / 360)) = 0.0283
        (0.03, 0.01, 1000, 360, True),
        (0.0, 0.0, 100, 1000, False),
        (0.02, 0.0, 100, 10**6, False),  # two of a hundred, where one in a hundred cannot be told from none
        (0.5, None, 100, 1000, False),
    ],
)
def test_far_above_is_twice_the_expected_share_and_beyond_chance(
    share: float, expected: float | None, images: int, held_out: int, many: bool
) -> None:
    assert evidence.far_above(share, expected, images, held_out) is many


def test_own_scores_are_told_with_clients_images_and_floor() -> None:
    entries = [
        {"stage": "after", "fd_own": 9.0, "own_images": 60, "fd_own_floor": 4.0},
        {"stage": "after", "fd_own": 7.0, "own_images": 180, "fd_own_floor": 2.0},
        {"stage": "after", "fd_own": None, "own_images": 20, "fd_own_floor": None},
    ]
    basis = evidence.own_basis({"per_client": entries})
    assert basis is not None
    # The floor is (4 + 2) / 2; the client with 20 images has no score and counts for neither.
    assert basis.words == "2 of 3 clients, 60 to 180 real images each, floor 3.000 (mean)"
    assert evidence.own_basis({"per_client": entries[2:]}) is None
    alone = evidence.own_basis({"per_client": [{**entries[0], "fd_own_floor": None}, entries[1]]})
    assert alone is not None and alone.words.endswith("floor 2.000 (mean of 1)")


def test_own_scores_of_older_runs_still_say_how_many_clients(run_folder: MakeRun) -> None:
    basis = evidence.own_basis(reading.read(run_folder()).quality)
    assert basis is not None and basis.words == "10 of 10 clients"


def test_clients_with_two_stages_are_counted_once(personal_folder: MakeRun) -> None:
    run = reading.read(personal_folder(clients=4))
    tile = next(t for t in tiles.tiles(run) if "own images" in t.name)
    assert tile.detail.startswith("mean over 4 of 4 clients; worst")


def test_of_one_model_the_clients_show_only_what_differs(run_folder: MakeRun) -> None:
    found = parsed(run_folder())
    (table,) = [t for t in found.tables if t[0][0] == "Client"]
    assert "FD own" in table[0] and "FD all" not in table[0] and "KID all" not in table[0]
    # A column that tells nothing is no column: nobody holds images out here.
    assert "Held out" not in table[0] and "Failures" in table[0]
    keys = tables.score_keys(tables.client_rows(reading.read(run_folder("b"))), {"fd": 6.3})
    assert keys == ["fd_own before", "kid_own before"]


def test_every_client_has_a_chart_of_its_loss_up_to_a_number_that_is_said(run_folder: MakeRun) -> None:
    few = parsed(run_folder("few", clients=3, rounds=4))
    drawn = [c for c in few.charts if c.startswith("Training loss of ")]
    assert drawn == [f"Training loss of client-{k:03d} by round" for k in range(3)]
    many = parsed(run_folder("many", clients=30, rounds=2))
    assert sum(c.startswith("Training loss of ") for c in many.charts) == 24
    assert "The first 24 of 30 clients are drawn" in many.sections["curves"]


def test_the_page_of_a_simulation_says_so(run_folder: MakeRun) -> None:
    told = parsed(run_folder()).sections[""]
    assert "This run is a simulation: all clients share one machine" in told
    assert "stayed where" not in told and "10 simulated clients on one machine" in told


def test_a_page_with_everything_stays_under_two_megabytes(full_folder: MakeRun) -> None:
    assert len(page.render(reading.read(full_folder(clients=130, rounds=5)))) < 2_000_000
