"""Figures that have a name and nothing else: a piece's own ones and the user's, kept, drawn and tabled unknown."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from osmotic.federation import bookkeeping
from osmotic.report import card, curves, page, reading, tables

MakeRun = Callable[..., Path]


def with_metrics(path: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """Applies `change` to every line of metrics.jsonl."""
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        change(line)
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def with_own(path: Path, **values: Any) -> Path:
    """Gives every scored round and the summary these own metrics."""
    with_metrics(path, lambda line: line["quality"] and line["quality"].update(metrics=values))
    summary = json.loads((path / "summary.json").read_text())
    summary["quality"]["metrics"] = values
    (path / "summary.json").write_text(json.dumps(summary))
    return path


def test_a_round_keeps_every_number_under_an_unknown_name(run_folder: MakeRun) -> None:
    extra = {"server/adam/second_moment": 0.5, "count": 3, "flag": True, "why": "because", "none": None}
    path = with_metrics(run_folder(rounds=2, clients=2), lambda line: line.update(extra))
    for r in reading.read(path).rounds:
        # Neither a truth value nor a text is a figure, and the standard keys have their own fields.
        assert r.metrics == {"server/adam/second_moment": 0.5, "count": 3.0}
    assert all(r.metrics == {} for r in reading.read(run_folder("plain", rounds=2)).rounds)


def test_the_standard_keys_are_those_that_the_bookkeeping_writes() -> None:
    # A key that is standard there and unknown here would be drawn as a figure of the learning rule.
    written = re.findall(r'^ +"(\w+)":', inspect.getsource(bookkeeping.line), flags=re.M)
    assert set(written) == set(reading.STANDARD) and len(written) > 10


def test_points_are_gathered_by_name_over_the_rounds(run_folder: MakeRun) -> None:
    path = with_metrics(
        run_folder(rounds=3, clients=2),
        lambda line: line.update({"late": 7} if line["round"] == 3 else {"early": line["round"] / 2}),
    )
    found = curves.points_by_name(reading.read(path).rounds, lambda r: r.metrics)
    assert found == {"early": [(1, 0.5), (2, 1.0)], "late": [(3, 7.0)]}


def test_the_page_draws_each_metric_under_its_own_name(run_folder: MakeRun) -> None:
    path = with_metrics(
        run_folder(rounds=3, clients=2),
        lambda line: line.update({"server/adam/second_moment": 0.5, "server/adam-second_moment": 0.1}),
    )
    html = page.render(reading.read(path))
    assert "Figures of the learning rule" in html and '<a href="#metrics">' in html
    for name in ("server/adam/second_moment", "server/adam-second_moment"):
        assert f"{name} by round</title>" in html
    ids = re.findall(r'\bid="([^"]*)"', html)
    assert len(ids) == len(set(ids))


def test_metrics_of_a_phase_after_the_rounds_are_drawn_too(run_folder: MakeRun) -> None:
    path = run_folder(rounds=2, clients=2)
    with (path / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"round": 3, "phase": "later", "later/epochs": 2.0}) + "\n")
    assert "later/epochs by round</title>" in page.render(reading.read(path))


def test_a_run_without_further_figures_has_no_section_of_them(run_folder: MakeRun) -> None:
    html = page.render(reading.read(run_folder(rounds=2, clients=2)))
    assert 'id="metrics"' not in html and "#metrics" not in html and "Own metrics" not in html


def test_of_too_many_metrics_some_are_drawn_and_the_page_says_so(run_folder: MakeRun) -> None:
    many = {f"per-client/{k:03d}": 1.0 for k in range(30)}
    html = page.render(
        reading.read(with_metrics(run_folder(rounds=1, clients=2), lambda line: line.update(many)))
    )
    assert html.count(" by round</title>") - html.count("bytes up and down by round</title>") >= 24
    assert "24 of 30 are shown" in html and "per-client/023 by" in html and "per-client/024 by" not in html


def test_own_metrics_are_drawn_tabled_and_on_the_card(run_folder: MakeRun) -> None:
    path = with_own(run_folder(rounds=10, clients=2), sharpness=0.25, lost=None)
    run = reading.read(path)
    assert tables.own_metrics(run.quality) == [("sharpness", "0.2500"), ("lost", "—")]
    html = page.render(run)
    assert "sharpness by round</title>" in html and "lost by round</title>" not in html
    assert '<th scope="row">sharpness</th><td>0.2500</td>' in html
    assert '<th scope="row">lost</th><td><span class="null"' in html
    text = card.render(run)
    assert "| sharpness | 0.2500 |\n| lost | — |\n" in text


def test_own_metrics_of_runs_without_a_global_model_are_on_their_cards(personal_folder: MakeRun) -> None:
    path = with_own(personal_folder(), sharpness=0.25)
    assert "| sharpness | 0.2500 |" in card.render(reading.read(path), "model/client-001")


def test_names_of_metrics_cannot_inject_markup(run_folder: MakeRun) -> None:
    evil = '"><script>alert(1)</script>'
    path = with_metrics(run_folder(rounds=5, clients=2), lambda line: line.update({evil: 1.0}))
    html = page.render(reading.read(with_own(path, **{evil: 2.0})))
    assert "<script" not in html and html.count("&lt;script&gt;alert(1)&lt;/script&gt; by round") == 2
