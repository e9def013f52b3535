"""Reports of many clients: quantiles worked out by hand, names at both ends, and a page that does not grow with them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest

from osmotic.report import card, crowds, page, reading, tables
from osmotic.report.reading import PartitionTable, Round

MakeRun = Callable[..., Path]


def test_a_quantile_is_the_figure_of_a_client() -> None:
    # Of 20 values 1 to 20: 5 % have at most the first, 25 % at most the fifth, half at most the tenth, ...
    assert crowds.quantiles(range(20, 0, -1)) == [1, 5, 10, 15, 19]
    assert crowds.quantiles([3.0, None, math.nan, math.inf, 1.0], (0.0, 0.5, 0.51, 1.0)) == [
        1.0,
        1.0,
        3.0,
        3.0,
    ]
    assert crowds.quantiles([None]) == []


def test_a_hundred_clients_have_a_row_each_and_one_more_has_none(run_folder: MakeRun) -> None:
    few, many = (page.render(reading.read(run_folder(f"c{n}", clients=n, rounds=1))) for n in (100, 101))
    assert '<th scope="row">client-057</th>' in few and "too many for a row each" not in few
    assert '<th scope="row">client-057</th>' not in many and "101 clients are too many for a row each" in many


def test_a_page_does_not_grow_with_the_clients(run_folder: MakeRun) -> None:
    sizes = {}
    for clients in (200, 4000):
        run = run_folder(f"c{clients}", clients=clients, rounds=2)
        sizes[clients] = len(page.write(run).read_bytes())
    # Longer numbers, and a curve's digits: nothing that there is one of for every client.
    assert sizes[4000] < sizes[200] + 2_000 and sizes[4000] < 300_000


def test_the_lowest_and_the_highest_are_named(run_folder: MakeRun) -> None:
    path = run_folder(clients=120, rounds=1)
    line = json.loads((path / "metrics.jsonl").read_text())
    line["client_loss"] = {f"client-{i:03d}": 0.5 + (i * 7 % 120) / 1000 for i in range(120)}
    (path / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    run = reading.read(path)
    found = {name: (low, high) for name, low, high in crowds.ends(tables.client_rows(run), run.quality)}
    # 7 i mod 120 is 0, 1, 2 for i = 0, 103, 86, and 119, 118, 117 for i = 17, 34, 51.
    assert found["Last loss"] == (
        ["client-000 0.5000", "client-103 0.5010", "client-086 0.5020"],
        ["client-017 0.6190", "client-034 0.6180", "client-051 0.6170"],
    )
    assert "client-103 0.5010; client-086 0.5020" in page.render(run)
    assert "Images" not in found  # nobody's outcome


def test_the_table_tells_how_many_clients_have_a_figure(run_folder: MakeRun) -> None:
    path = run_folder(clients=120, rounds=1)
    line = json.loads((path / "metrics.jsonl").read_text())
    line["client_loss"] = {"client-007": 0.25, "client-008": 0.75}
    (path / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    run = reading.read(path)
    clients = tables.client_rows(run)
    headings, rows = crowds.quantile_table(clients, tables.columns(clients, run.quality))
    assert headings == ["Clients", "least", "5 %", "25 %", "50 %", "75 %", "95 %", "greatest"]
    assert dict(rows)["Last loss"] == [
        "2",
        "0.2500",
        "0.2500",
        "0.2500",
        "0.2500",
        "0.7500",
        "0.7500",
        "0.7500",
    ]
    assert dict(rows)["Images"][0] == "120"


@pytest.mark.parametrize("labelled", [True, False])
def test_drawings_over_many_clients_have_no_mark_for_each(labelled: bool) -> None:
    def drawn(clients: int) -> str:
        names, counts = tuple(map(str, range(clients))), tuple((k % 5, 3) for k in range(clients))
        table = PartitionTable(names, ("a", "b"), counts if labelled else (), tuple(map(sum, counts)), ())
        return crowds.partition(table) or ""

    assert ("Images of each class" in drawn(200)) == labelled
    assert len(drawn(5000)) < len(drawn(200)) + 200


def test_losses_are_drawn_where_rounds_have_several_and_scores_where_there_are_any() -> None:
    def of(**losses: float) -> Round:
        return Round(1, "train", 0.5, losses, 1, 1, 0, 1.0, 1.0, False, None, {})

    assert crowds.losses([of(a=0.5)]) is None
    assert "Loss over clients" in (crowds.losses([of(a=0.5, b=0.7, c=math.nan)]) or "")
    few = {"name": "client-1", "stage": "after", "fd_own": None, "kid_own": None}
    assert crowds.client_scores([few], scopes=("own",)) is None
    assert "FID, own images" in (crowds.client_scores([few | {"fd_own": 3.0}], "FID", scopes=("own",)) or "")


def test_failures_beyond_a_hundred_are_counted_not_listed(run_folder: MakeRun) -> None:
    lost = [{"round": 1, "client_id": i, "kind": "lost", "reason": f"reason {i}"} for i in range(250)]
    html = page.render(reading.read(run_folder(clients=300, rounds=1, failures=lost)))
    assert "The first 100 of 250 are shown" in html
    assert "reason 99<" in html and "reason 100<" not in html


def test_cards_of_many_own_models_read_the_clients_once(
    run_folder: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, calls = run_folder(clients=4, rounds=1, method="local"), list[reading.Run]()
    (path / "model" / "model_index.json").rename(path / "index.json")
    for i in range(4):
        (path / "model" / f"client-{i:03d}").mkdir()
        (path / "model" / f"client-{i:03d}" / "model_index.json").write_text(
            (path / "index.json").read_text()
        )
    rows = tables.client_rows
    monkeypatch.setattr(tables, "client_rows", lambda run: (calls.append(run), rows(run))[1])
    assert len(card.write(path)) == 4
    assert len(calls) == 1
