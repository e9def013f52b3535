"""Comparisons rank only what was scored alike."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from osmotic.errors import ConfigError
from osmotic.report import compare, reading

MakeRun = Callable[..., Path]


def with_quality(path: Path, **scores: Any) -> Path:
    summary = json.loads((path / "summary.json").read_text())
    summary["quality"].update(scores)
    (path / "summary.json").write_text(json.dumps(summary))
    return path


def printed(comparison: compare.Comparison) -> str:
    console = Console(width=220, record=True, file=io.StringIO())
    console.print(comparison.table())
    return console.export_text()


def test_runs_scored_alike_are_ranked_by_fd_with_unscored_last(run_folder: MakeRun) -> None:
    none = with_quality(run_folder("none", rounds=2), fd=None)
    worse, better = run_folder("worse", rounds=2), with_quality(run_folder("better", rounds=2), fd=5.0)
    result = compare.compare([none, worse, better])
    assert result.comparable and [row.name for row in result.ranked()] == ["better", "worse", "none"]
    assert "best first" in printed(result)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"encoder": "dinov2"}, "encoders differ (classifier-digits, dinov2)"),
        ({"encoder_sha256": "00"}, "other weights"),
        ({"num_samples": 500}, "sample counts differ (1000, 500)"),
    ],
)
def test_runs_scored_differently_are_shown_but_not_ranked(
    run_folder: MakeRun, tmp_path: Path, change: dict, reason: str
) -> None:
    result = compare.compare([run_folder("one"), with_quality(run_folder("two"), fd=1.0, **change)])
    assert not result.comparable and result.drawings() == []
    assert [row.name for row in result.shown()] == ["one", "two"]  # as given, though two has the lower FD
    with pytest.raises(ConfigError, match="scored differently"):
        result.ranked()
    html = result.write_html(tmp_path / "compare.html").read_text()
    for text in (html, " ".join(printed(result).split())):
        assert "Not comparable" in text and reason in text


def test_another_sampler_is_a_caution_and_not_a_bar(run_folder: MakeRun) -> None:
    result = compare.compare([run_folder("one"), with_quality(run_folder("two"), nfe=50)])
    assert result.comparable and "samplers differ" in result.notes()[0]


def test_no_run_and_a_folder_that_is_none_are_refused(run_folder: MakeRun, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="at least one"):
        compare.compare([])
    with pytest.raises(ConfigError, match="no such folder"):
        compare.compare([run_folder(), tmp_path / "nowhere"])


def test_curves_run_over_images_bytes_and_rounds(run_folder: MakeRun) -> None:
    run = reading.read(run_folder(clients=2, rounds=10))
    rounds, fd = compare.curve(run, "rounds")
    assert rounds == [5, 10] and len(fd) == 2
    # 2 clients, both directions, 2811324 bytes, 5 and 10 rounds.
    assert compare.curve(run, "bytes")[0] == [2 * 2 * 5 * 2_811_324, 2 * 2 * 10 * 2_811_324]
    assert compare.curve(run, "images")[0] == [r.images_seen for r in run.scored_rounds]


def test_the_page_is_self_contained_and_safe(run_folder: MakeRun, tmp_path: Path) -> None:
    one = run_folder("one", preset="<script>x</script>")
    html = compare.compare([one, run_folder("two")]).write_html(tmp_path / "c.html").read_text()
    assert "<script" not in html and "http:" not in html and "https:" not in html
    assert html.count("<svg") == 3


def test_runs_of_one_name_are_told_by_their_folders(run_folder: MakeRun) -> None:
    a, b = run_folder("a/run", rounds=2), run_folder("b/run", rounds=2)
    assert [row.name for row in compare.compare([a, b]).rows] == [str(a), str(b)]


def test_json_rows_hold_the_exact_figures(run_folder: MakeRun) -> None:
    out = compare.compare([run_folder()]).as_dicts()
    assert out["comparable"] is True and out["runs"][0]["bytes_up"] == 562_264_800
    json.dumps(out)


def test_models_of_the_clients_own_beside_a_global_one_have_columns(
    beside_folder: MakeRun, run_folder: MakeRun, tmp_path: Path
) -> None:
    both = beside_folder()
    summary = json.loads((both / "summary.json").read_text())
    for entry in summary["quality"]["personal"]["per_client"]:
        entry |= {"own_images": 60, "fd_own_floor": 2.5}
    (both / "summary.json").write_text(json.dumps(summary))
    plain = run_folder("plain", rounds=5)
    result = compare.compare([both, plain])
    cells = {heading: [cell(row) for row in result.shown()] for heading, cell in result.columns()}
    assert cells["models scored"] == ["global, 3 own beside", "global"]
    assert cells["FD"] == ["6.300", "6.300"]  # ranked is the global model
    # 10, 11, 12 against all clients' images, one more against own ones.
    assert cells["FD of own models beside, mean"] == ["11.00", "—"]
    own = "12.00 (3 of 3 clients, 60 real images each, floor 2.500 (mean))"
    assert cells["FD of own models beside on own images, mean"] == [own, "—"]
    assert "FD, worst model" not in cells
    assert own in result.write_html(tmp_path / "c.html").read_text()
    told = result.as_dicts()["groups"][0]
    assert told["fd_personal"]["mean"] == 11.0 and told["fd_personal_own"]["mean"] == 12.0
    alone = {heading for heading, _ in compare.compare([plain]).columns()}
    assert not any("own models beside" in heading for heading in alone) and "models scored" not in alone


def test_an_adapter_is_no_smaller_network(run_folder: MakeRun) -> None:
    whole, small = (
        run_folder("whole", rounds=5),
        run_folder("small", rounds=5, parameters=3712, parameters_whole=702_753),
    )
    config = (small / "config.toml").read_text().replace("rank = 0", "rank = 2")
    (small / "config.toml").write_text(config)
    assert not any("networks differ" in told for told in compare.compare([whole, small]).cautions)
