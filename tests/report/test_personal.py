"""Runs without a global model: every page tells whose scores they are, and keeps those of after merging apart."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from osmotic.config import schema, toml
from osmotic.data import partition
from osmotic.report import card, compare, curves, gallery, narrative, page, reading, tables, tiles
from osmotic.runs import commands
from osmotic.storage.folder import RunDir

MakeRun = Callable[..., Path]


def flat(text: str) -> str:
    """The words of a page or of a printed table, one blank between them."""
    return " ".join(re.sub(r"<style>.*?</style>|<[^>]*>|[│┃┏┗┓┛━─]", " ", text, flags=re.S).split())


def test_the_first_tile_is_the_mean_with_worst_weighted_and_merged(personal_folder: MakeRun) -> None:
    # Clients of 100, 101, 102 images with FD 10, 11, 12: mean 11, weighted (1000 + 1111 + 1224) / 303 = 11.0066.
    tile = tiles.tiles(reading.read(personal_folder()))[0]
    assert tile.value == "11.00" and tile.beside == "worst 12.00 · weighted by images 11.01"
    assert tile.detail.startswith("Mean over 3 clients' own models, before the last average is merged")
    assert "after merging: mean 7.000, worst 8.000" in tile.detail  # 4 less each
    assert "encoder classifier-digits" in tile.detail and "not measured" not in tile.detail


def test_a_baseline_that_merges_nothing_does_not_speak_of_merging(personal_folder: MakeRun) -> None:
    path = personal_folder(method="local")
    found = tiles.tiles(reading.read(path))
    assert found[0].value == "11.00" and "3 clients' own models, each against" in found[0].detail
    assert not any("merg" in tile.detail for tile in found)
    html = flat(page.write(path).read_text())
    assert "FD own" in html and "FD own, " not in html and "personalising stands" in html
    assert "hollow" not in html.lower() and "before merging" not in html.lower()


def test_a_client_without_a_model_is_not_counted(personal_folder: MakeRun) -> None:
    path = personal_folder()
    summary = json.loads((path / "summary.json").read_text())
    entries = summary["quality"]["per_client"]  # three as trained, then three merged
    assert entries.pop(1)["stage"] == "before"
    (path / "summary.json").write_text(json.dumps(summary))
    assert "Mean over 2 clients' own models" in tiles.tiles(reading.read(path))[0].detail


def test_merging_is_no_further_round_of_a_curve(personal_folder: MakeRun) -> None:
    run = reading.read(personal_folder())
    assert [r.number for r in run.scored_rounds] == [5, 10] and run.merge_round == 11
    # Means of (10, 11, 12): 22 at twice the score, then 11; the 7 of after merging is not a point.
    assert compare.curve(run, "rounds") == ([5, 10], [22.0, 11.0])
    svg = curves.own_scores(run.scored_rounds, "fd_all", "FD", run.quality["after"])
    assert svg is not None and all(t in svg for t in (">mean<", ">worst<", ">after merging<", ">11.0<"))
    assert ">7.00<" in svg
    alone = curves.own_scores(run.scored_rounds, "fd_all", "FD")
    assert alone is not None and "after merging" not in alone and ">7.00<" not in alone
    assert curves.own_scores(run.scored_rounds[:1], "fd_all", "FD") is None


def test_the_page_draws_fd_and_kid_of_own_models(personal_folder: MakeRun) -> None:
    html = page.write(personal_folder()).read_text()
    for title in ("FD", "KID"):
        assert f"{title} over the clients&#x27; own models by round" in html
    assert "FD by round" not in html
    for panel in ("FD, all clients' images", "FD, its own images", "FD and KID of every client"):
        assert panel in html
    assert "personalising" not in html.replace("merging and personalising", "")


def test_grids_stand_in_pairs_of_client_and_stage(personal_folder: MakeRun) -> None:
    run = reading.read(personal_folder())
    assert run.samples == ()
    captions = [[caption for caption, _ in row] for row in gallery.own_pictures(run)]
    assert captions[0] == ["client-000, round 10, before merging", "client-000, after merging"]
    assert [row[0][:10] for row in captions] == ["client-000", "client-001", "client-002"]
    html = page.write(run.path).read_text()
    assert html.count("<img") == 1 + 2 * 3 and '<a href="#own-samples">' in html


def test_of_many_clients_some_grids_are_shown_and_the_page_says_so(personal_folder: MakeRun) -> None:
    path = personal_folder(method="local", clients=9)
    rows = gallery.own_pictures(reading.read(path))
    assert [row[0][0] for row in rows][:: len(rows) - 1] == ["client-000, round 10", "client-008, round 10"]
    assert len(rows) == 6 and "6 of 9 clients are shown" in flat(page.write(path).read_text())


def test_a_global_run_has_no_grids_of_clients(run_folder: MakeRun) -> None:
    path = run_folder(rounds=5, clients=2)
    assert reading.read(path).own_grids == ()
    assert "own models" not in page.write(path).read_text()


def test_groups_before_and_after_stand_side_by_side(personal_folder: MakeRun) -> None:
    q = reading.read(personal_folder()).quality
    rows = {name: values for name, *values in tables.over_clients(q)}
    assert len(rows) == 4 * 3
    assert rows["FD against all clients' images, mean"] == ["11.00", "7.000"]
    assert rows["FD against own images, worst"] == ["13.00", "9.000"]
    assert [name for name, _ in tables.further_scores(q) if "over clients" in name] == []


def test_headings_name_the_stage_only_where_there_are_two(
    personal_folder: MakeRun, run_folder: MakeRun
) -> None:
    mine, alone = reading.read(personal_folder()).quality, reading.read(run_folder()).quality
    assert tables.score_heading("fd_own before", mine) == "FD own, before merging"
    assert tables.score_heading("kid_all after", mine) == "KID all, after merging"
    assert tables.score_heading("fd_own before", alone) == "FD own"
    assert tables.score_heading("fd_own after", {**mine, "after": None}) == "FD own, after personalising"


def test_the_card_tells_its_own_clients_scores_and_which_weights_it_holds(personal_folder: MakeRun) -> None:
    texts = [path.read_text() for path in card.write(personal_folder())]
    assert "client-001's own model, as it left its last training" in texts[1]
    assert "| FD against all clients' images, lower is better | 11.00 | 7.000 |" in texts[1]
    assert "| FD against all clients' images, lower is better | 12.00 | 8.000 |" in texts[2]
    assert "What is averaged is the decoder" in texts[1] and "SHA-256 of all clients' weights" in texts[1]
    assert "| recall |" not in texts[1] and "floor" not in texts[1]
    local = card.write(personal_folder("alone", method="local"))[0].read_text()
    assert "| FD against own images, lower is better | 11.00 |\n" in local and "merg" not in local


@pytest.mark.parametrize(
    ("method", "claim"),
    [
        ("usplit", "together on digits with usplit, each returning a part of it, for"),
        ("ulatdec", "of its own on digits with ulatdec, for 2 rounds: they share bottleneck and decoder, the rest"),
        ("udec", "of its own on digits with udec, for 2 rounds: they share the decoder, the rest is personal"),
        ("local", "alone on its own part of digits"),
    ],
)  # fmt: skip
def test_the_sentence_tells_what_is_shared(run_folder: MakeRun, method: str, claim: str) -> None:
    told = narrative.sentence(reading.read(run_folder(rounds=2, method=method)))
    assert claim in told
    assert ("together" in told) == (method == "usplit")


def test_every_partition_has_its_words(run_folder: MakeRun) -> None:
    assert set(narrative.PARTITIONS) == set(partition.NAMES)
    path = run_folder(rounds=2)
    for name, claim in (("l-skew", "capped Dirichlet(0.5)"), ("q-skew", "sizes of a Dirichlet(0.5)")):
        made = schema.build({"data.partition": name})
        (path / "config.toml").write_text(toml.to_toml(made))
        assert claim in narrative.partition_phrase(reading.read(path))


def test_the_terminal_tells_mean_weighted_and_worst_before_and_after(
    personal_folder: MakeRun, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    assert commands.publish(RunDir.existing(personal_folder()), json=False)
    told = flat(capsys.readouterr().out)
    assert "3 clients' own models, before merging: mean, weighted, worst" in told
    assert "guidance —) 11.00, 11.01, 12.00 after merging 7.000, 7.007, 8.000" in told
    assert "KID 0.1100, 0.1101, 0.1200" in told and "recall" not in told
    assert "round-0010-client-000.png (the model of client-000, one of 3, before merging;" in told
    assert commands.publish(RunDir.existing(personal_folder("alone", method="local")), json=False)
    told = flat(capsys.readouterr().out)
    assert "3 clients' own models: mean, weighted, worst" in told and "merging" not in told


def test_the_terminal_tells_a_global_model_as_ever(
    run_folder: MakeRun, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    commands.publish(RunDir.existing(run_folder(rounds=5, clients=2)), json=False)
    told = flat(capsys.readouterr().out)
    assert "guidance —) 6.300" in told and "precision, recall 0.8100, 0.7000" in told
    assert "own models" not in told and "merging" not in told and "samples/round-0005.png" in told


def test_an_evaluation_says_whose_scores_and_of_which_stage(personal_folder: MakeRun) -> None:
    told = {"guidance": 1.0, "half_life": 0.0}
    mine = reading.read(personal_folder()).quality
    before = commands.quality_text({**mine, **told})
    assert before.startswith("FD of 3 clients' own models, before the last average is merged: mean 11.00, ")
    local = commands.quality_text({**reading.read(personal_folder("alone", method="local")).quality, **told})
    assert local.startswith("FD of 3 clients' own models: mean 11.00, weighted by images 11.01, worst 12.00")


def test_runs_with_and_without_a_global_model_are_ranked_and_marked(
    personal_folder: MakeRun, run_folder: MakeRun, tmp_path: Path
) -> None:
    far = run_folder("far", rounds=10)
    summary = json.loads((far / "summary.json").read_text())
    summary["quality"]["fd"] = 20.0
    (far / "summary.json").write_text(json.dumps(summary))
    alone = personal_folder("alone", method="local")
    result = compare.compare([far, personal_folder(), alone, run_folder("avg", rounds=10)])
    # FD 6.3 and 20 of the global models, 11 in the mean of both others, which stay in the order given.
    assert [row.name for row in result.ranked()] == ["avg", "mine", "alone", "far"]
    cells = {heading: [cell(row) for row in result.shown()] for heading, cell in result.columns()}
    assert cells["models scored"] == ["global", "3 own", "3 own", "global"]
    assert cells["FD"] == ["6.300", "11.00 mean", "11.00 mean", "20.00"]
    assert cells["FD after merging"] == ["—", "7.000 mean", "—", "—"]
    assert cells["FD, worst model"] == ["6.300", "12.00", "12.00", "20.00"]
    assert cells["KID"] == ["0.02100", "0.1100 mean", "0.1100 mean", "0.02100"]
    html = result.write_html(tmp_path / "c.html").read_text()
    assert "“Mean” is over the clients&#39; own models" in html and "mine, mean of 3 models" in html
    assert result.as_dicts()["runs"][1]["fd"] is None and result.as_dicts()["runs"][1]["fd_clients"] == 11.0


def test_runs_with_global_models_alone_need_no_mark(run_folder: MakeRun) -> None:
    result = compare.compare([run_folder("a", rounds=5), run_folder("b", rounds=5)])
    assert not {"models scored", "FD after merging", "FD, worst model"} & {h for h, _ in result.columns()}
    assert not any("Mean" in note for note in result.notes())


def test_what_left_beside_training_is_told_beside_what_training_sent(personal_folder: MakeRun) -> None:
    path = personal_folder()
    line = {"round": 12, "phase": "models", "client": "client-000", "parameters": 9, "status": "counted"}
    more = {
        **line,
        "direction": "up",
        "bytes": 4_820_000,
        "total": False,
        "images": 0,
        "steps": 0,
        "flops": 0,
    }
    before = {tile.name: tile.detail for tile in tiles.tiles(reading.read(path))}
    ledger = path / "ledger.jsonl"
    ledger.write_text(ledger.read_text() + json.dumps(more) + "\n")
    after = {tile.name: tile.detail for tile in tiles.tiles(reading.read(path))}
    assert after["Sent up in training"] != before["Sent up in training"]
    assert "more beside training" in after["Sent up in training"]
    assert after["Sent down in training"] == before["Sent down in training"]
    card_text = flat(card.write(path)[0].read_text())
    assert (
        "images that they drew, whenever they were scored" in card_text and "After training" not in card_text
    )
