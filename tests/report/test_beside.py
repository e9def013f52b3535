"""Clients' own models beside a global one: told on page, card and terminal, and never mistaken for the global model."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

from osmotic.report import card, gallery, narrative, page, reading, tables, tiles

MakeRun = Callable[..., Path]

# Clients of 100, 101, 102 images with FD 10, 11, 12 against all images: mean 11, weighted (1000 + 1111 + 1224) / 303 =
# 11.0066, worst 12. Own images score 1 higher; KID is a hundredth of FD, its own a hundredth higher.
ROWS = [
    ("FD against all clients' images", "11.00", "11.01", "12.00"),
    ("FD against own images", "12.00", "12.01", "13.00"),
    ("KID against all clients' images", "0.1100", "0.1101", "0.1200"),
    ("KID against own images", "0.1200", "0.1201", "0.1300"),
]


def flat(text: str) -> str:
    return " ".join(re.sub(r"<style>.*?</style>|<[^>]*>", " ", text, flags=re.S).split())


def test_mean_weighted_and_worst_stand_in_one_table(beside_folder: MakeRun) -> None:
    run = reading.read(beside_folder())
    assert narrative.personal_rows(run.quality) == ROWS
    text = flat(page.render(run)).replace("&#39;", "'")
    assert "Clients’ own models beside the global one Over 3 clients' own models." in text
    assert " ".join(" ".join(row) for row in ROWS) in text


def test_the_first_screen_keeps_to_the_global_model(beside_folder: MakeRun) -> None:
    run = reading.read(beside_folder())
    assert tiles.tiles(run)[0].value == "6.300" and not narrative.is_personal(run.quality)
    assert "merging" not in flat(page.render(run)).replace("for scoring, merging and personalising", "")


def test_the_terminal_has_words_for_both_kinds_of_own_models(
    beside_folder: MakeRun, personal_folder: MakeRun, run_folder: MakeRun
) -> None:
    figures = "mean 11.00, weighted by images 11.01, worst 12.00"
    both, alone = (reading.read(make()).quality for make in (beside_folder, personal_folder))
    assert narrative.own_words(both) == f"FD of 3 clients' own models: {figures}"
    assert narrative.own_words(alone) == (
        f"FD of 3 clients' own models, before the last average is merged: {figures}"
    )
    none = reading.read(run_folder("none", rounds=5)).quality
    assert narrative.own_words(none) == "" and narrative.personal_rows(none) == []
    assert narrative.personal_rows(alone) == []  # they are the result, not something beside it


def test_scores_that_were_not_measured_make_no_row(beside_folder: MakeRun) -> None:
    quality = dict(reading.read(beside_folder()).quality)
    own = {group: {"fd_all": 1.0, "fd_own": None} for group in ("mean", "worst")}
    assert narrative.personal_rows({**quality, "personal": own}) == [(ROWS[0][0], "1.000", "—", "1.000")]
    assert narrative.personal_rows({**quality, "personal": None}) == []


def test_every_pipeline_folder_is_found_and_has_a_card(beside_folder: MakeRun) -> None:
    path = beside_folder()
    folders = ["model", "personal/client-000", "personal/client-001", "personal/client-002"]
    assert narrative.model_folders(reading.read(path)) == folders
    assert card.write(path) == [path / folder / "README.md" for folder in folders]
    html = page.render(reading.read(path))
    assert "a pipeline of the global model, and in personal/ 3 of clients’ own models" in flat(html)
    assert "from_pretrained(&#34;model&#34;" in html


def test_the_cards_tell_whose_scores_they_hold(beside_folder: MakeRun) -> None:
    whole, _, second, _ = (path.read_text() for path in card.write(beside_folder()))
    assert "| FD, lower is better | 6.300 |" in whole
    for row in ROWS:
        assert f"| {' | '.join(row)} |" in whole
    assert "client-001's own model, beside the global model" in second
    assert "| FD against all clients' images, lower is better | 11.00 |\n" in second
    assert "6.300" not in second and "| mean |" not in second and "merging" not in second
    assert "SHA-256 of the global model's weights" in second and "SHA-256 of these weights" in whole


def test_cards_say_that_own_models_left_their_clients_to_be_saved(
    beside_folder: MakeRun, personal_folder: MakeRun, run_folder: MakeRun
) -> None:
    claim = "own models that stand in the run folder left their clients too, and images that they drew"
    for path in (beside_folder(), personal_folder("alone", method="local")):
        assert all(claim in readme.read_text() for readme in card.write(path))
    assert "left their clients too" not in card.write(run_folder("none", rounds=5))[0].read_text()


def test_a_client_whose_model_was_not_scored_has_a_card_without_scores(beside_folder: MakeRun) -> None:
    path = beside_folder()
    summary = json.loads((path / "summary.json").read_text())
    summary["quality"]["personal"]["per_client"].pop(1)
    (path / "summary.json").write_text(json.dumps(summary))
    text = card.render(reading.read(path), "personal/client-001")
    assert "This client's own model was not scored." in text and "6.300" not in text
    assert tables.scores_of(reading.read(path).quality, "client-001") == []


def test_scores_of_a_later_phase_are_no_round_of_the_curves(beside_folder: MakeRun) -> None:
    path = beside_folder()
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    lines.append({"round": 6, "phase": "anything", "quality": {**lines[-1]["quality"], "fd": 99.0}})
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert [r.number for r in reading.read(path).scored_rounds] == [5]


def test_grids_of_both_kinds_have_sections_and_captions_of_their_own(beside_folder: MakeRun) -> None:
    path = beside_folder()
    grid = (path / "samples" / "round-0005.png").read_bytes()
    (path / "samples" / "round-0004.png").write_bytes(grid)
    for k in range(3):
        (path / "samples" / f"round-0006-client-{k:03d}.png").write_bytes(grid)
    run = reading.read(path)
    assert [row[0][0] for row in gallery.own_pictures(run)] == [
        f"client-{k:03d}, after the rounds" for k in range(3)
    ]
    html = page.render(run)
    ids = re.findall(r'\bid="([^"]*)"', html)
    assert {"samples", "own-samples"} <= set(ids) and len(ids) == len(set(ids))


# --- what own models' scores must be read with ---


def held_out(fd: float) -> dict[str, float]:
    return {
        **{"fd": fd, "kid": fd / 100, "precision": 0.5, "recall": 0.25},
        **{"images": 360, "samples": 1000, "floor": 3.25},
    }


def near_copies(share: float) -> dict[str, float]:
    return {"features": share, "pixels": 0.02, "expected": 0.01, "images": 1000, "held_out": 360}


def with_own_evidence(path: Path) -> Path:
    """Client k scores a held-out FD of 20 + k; 10, 40 and 77 % of what its model draws are near-copies. Of the global one 0.1 %."""
    summary = json.loads((path / "summary.json").read_text())
    quality = summary["quality"]
    quality |= {"near_copies": near_copies(0.001), "held_out": held_out(7.5)}
    entries = quality["personal"]["per_client"] if "personal" in quality else quality["per_client"]
    for k, entry in enumerate(entries[:3]):
        entry |= {"held_out": held_out(20 + k), "near_copies": near_copies((0.1, 0.4, 0.77)[k])}
    (path / "summary.json").write_text(json.dumps(summary))
    return path


def test_a_client_s_card_tells_its_own_near_copies_and_held_out_scores(
    beside_folder: MakeRun, personal_folder: MakeRun
) -> None:
    both, alone = with_own_evidence(beside_folder()), with_own_evidence(personal_folder("alone", "local"))
    for path, folder in ((both, "personal"), (alone, "model")):
        text = card.render(reading.read(path), f"{folder}/client-002")
        assert "Near-copies of training images: 77.0 % of the generated images by features, 2.0 %" in text
        assert "far more than expected" in text and "no more than chance" not in text
        assert "Reference: the training images, and beside them held-out ones." in text
        assert "| FD against held-out images, lower is better | 22.00 |" in text
        assert "| FD of real images against these (floor) | 3.250 |" in text
        assert "| KID against held-out images, lower is better | 0.2200 |" in text
        assert "| recall against held-out images, higher is better | 0.2500 |" in text
    whole = card.render(reading.read(both))
    assert "Near-copies of training images: 0.1 % of" in whole and "no more than chance" in whole


def test_a_card_of_a_merged_run_tells_the_near_copies_of_the_weights_that_it_holds(
    personal_folder: MakeRun,
) -> None:
    path = with_own_evidence(personal_folder())  # the entries of before merging
    text = card.render(reading.read(path), "model/client-001")
    assert "| FD against held-out images, lower is better | 21.00 | — |" in text
    assert "Near-copies of training images: 40.0 % of" in text
    over = {name: (was, became) for name, was, became in tables.over_clients(reading.read(path).quality)}
    assert over["FD against held-out images, worst"] == ("22.00", "—")
    # (0.1 + 0.4 + 0.77) / 3; by 100, 101 and 102 images (10 + 40.4 + 78.54) / 303.
    assert over["near-copies of training images, mean"] == ("42.3 %", "—")
    assert over["near-copies of training images, mean weighted by images"] == ("42.6 %", "—")


def test_a_client_that_was_not_looked_at_has_no_other_s_near_copies(beside_folder: MakeRun) -> None:
    path = with_own_evidence(beside_folder())
    summary = json.loads((path / "summary.json").read_text())
    summary["quality"]["personal"]["per_client"][1] |= {"near_copies": None, "held_out": None}
    (path / "summary.json").write_text(json.dumps(summary))
    text = card.render(reading.read(path), "personal/client-001")
    assert "Whether this model repeats training images was not measured in this run." in text
    assert "held-out" not in text and "0.1 %" not in text


def test_the_page_tells_them_for_each_client_and_over_all(beside_folder: MakeRun) -> None:
    run = reading.read(with_own_evidence(beside_folder()))
    more = [
        ("FD against held-out images", "21.00", "21.01", "22.00"),
        ("near-copies of training images", "42.3 %", "42.6 %", "77.0 %"),
    ]
    assert narrative.personal_rows(run.quality) == ROWS + more
    headings, rows = tables.client_table(*tables.own_columns(tables.client_rows(run), run.quality))
    assert headings == ["FD all", "FD own", "KID all", "KID own", "FD held-out", "near-copies"]
    assert rows[2] == ("client-002", ["12.00", "13.00", "0.1200", "0.1300", "22.00", "77.0 %"])
    text = flat(page.render(run)).replace("&#39;", "'")
    assert "near-copies of training images 42.3 % 42.6 % 77.0 %" in text
    assert "client-002 12.00 13.00 0.1200 0.1300 22.00 77.0 %" in text
    assert "3 of 3 own models drew far more near-copies of training images than expected." in text


def test_the_page_tells_what_fine_tuning_gained_each_client(beside_folder: MakeRun) -> None:
    path = beside_folder()
    summary = json.loads((path / "summary.json").read_text())
    for k, entry in enumerate(summary["quality"]["personal"]["per_client"]):
        entry |= {"loss_published": 0.25 + k, "loss_own": 0.125 + k, "kept_pass": k}
    (path / "summary.json").write_text(json.dumps(summary))
    run = reading.read(path)
    headings, rows = tables.client_table(*tables.own_columns(tables.client_rows(run), run.quality))
    at = headings.index("Loss on held-out images, global model")
    assert headings[at : at + 3] == ["Loss on held-out images, global model", "own model", "Pass kept"]
    assert rows[0][1][at : at + 3] == ["0.2500", "0.1250", "0"] and rows[1][1][at + 2] == "1"
    assert "Pass kept" in page.render(run)


def test_the_pictures_of_nearest_images_say_whose_they_are(
    beside_folder: MakeRun, personal_folder: MakeRun, run_folder: MakeRun
) -> None:
    both, alone, one = beside_folder(), personal_folder("alone", "local"), run_folder("one", rounds=5)
    for path in (both, alone, one):
        grid = next((path / "samples").glob("round-*.png")).read_bytes()
        (path / "samples" / "nearest.png").write_bytes(grid)
    (both / "samples" / "round-0006-client-000.png").write_bytes(grid)
    (both / "samples" / "nearest-client-000.png").write_bytes(grid)
    told = [flat(page.render(reading.read(path))) for path in (both, alone, one)]
    assert "Of the global model: the generated images closest to a training image" in told[0]
    assert "Of client-000’s own model, and of no other: the generated images closest" in told[0]
    assert "Of the first client’s own model, and of no other: the generated images closest" in told[1]
    assert "The generated images closest to a training image" in told[2]


def test_of_many_clients_the_page_tells_quantiles_of_their_own_models(beside_folder: MakeRun) -> None:
    run = reading.read(beside_folder(clients=120))
    # FD 10 to 129 of 120 clients: the 60th has 69, the least at or above half of them.
    text = flat(page.render(run))
    assert "FD all 120 10.00 15.00 39.00 69.00 99.00 123.0 129.0" in text
    assert "client-060 " not in text.partition("beside the global one")[2].partition("Further scores")[0]
