"""The report page: self-contained, honest about what was not measured, safe and repeatable."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from osmotic.report import gallery, narrative, page, reading, tables, tiles

MakeRun = Callable[..., Path]


class Tags(HTMLParser):
    """Every tag with its attributes, and whether the tags close in order."""

    VOID = ("meta", "link", "img", "br", "use")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))


def edit(path: Path, file: str, change: Callable[[Any], None]) -> None:
    data = json.loads((path / file).read_text())
    change(data)
    (path / file).write_text(json.dumps(data))


def text_of(path: Path) -> str:
    return page.write(path).read_text(encoding="utf-8")


def test_the_page_names_network_and_version(run_folder: MakeRun) -> None:
    html = text_of(run_folder(network="unet-8", version="7.8.9"))
    assert "network unet-8" in html and "osmotic 7.8.9" in html


def test_the_page_needs_no_network_and_no_script(run_folder: MakeRun) -> None:
    html = text_of(run_folder())
    tags = Tags(html)
    assert tags.open == []
    for tag, attributes in tags.seen:
        assert tag not in ("script", "iframe", "object", "embed", "base")
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href", "xlink:href", "srcset", "action", "data"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:", "#")), (
                f"<{tag} {name}={value!r}> leaves the page"
            )
    assert "http:" not in html and "https:" not in html and "@import" not in html
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", html))


def test_ids_are_unique_and_every_reference_finds_one(run_folder: MakeRun) -> None:
    html = text_of(run_folder())
    ids = re.findall(r'\bid="([^"]*)"', html)
    assert len(ids) == len(set(ids))
    wanted = set(re.findall(r'href="#([^"]+)"', html)) | set(re.findall(r"url\(#([^)]+)\)", html))
    wanted |= set(re.findall(r'aria-labelledby="([^"]+)"', html))
    assert wanted and wanted <= set(ids)


def test_the_same_folder_gives_the_same_bytes(run_folder: MakeRun) -> None:
    path = run_folder()
    assert page.write(path).read_bytes() == page.write(path).read_bytes()


def test_the_score_is_told_with_encoder_samples_sampler_and_floor(run_folder: MakeRun) -> None:
    tile = tiles.tiles(reading.read(run_folder()))[0]
    assert tile.name.startswith("FD") and tile.value == "6.300"
    assert "2.870" in tile.beside
    assert tile.detail == "encoder classifier-digits · 1,000 samples · dpm-solver++, 20 evaluations each"


def test_the_floor_stands_beside_the_score_of_as_many_images(run_folder: MakeRun) -> None:
    path = run_folder(rounds=2, clients=2)
    edit(path, "summary.json", lambda s: s["quality"].update(fd_at_floor=7.5, floor_samples=360))
    assert tiles.tiles(reading.read(path))[0].detail.endswith("at the floor's 360 images: 7.500")


def test_fid_is_said_only_of_inception(run_folder: MakeRun) -> None:
    path = run_folder()
    assert "FID" not in text_of(path)
    edit(path, "summary.json", lambda s: s["quality"].update(encoder="inception-v3"))
    assert "FID, lower is better" in text_of(path)


def test_bytes_are_told_exactly_and_for_people(run_folder: MakeRun) -> None:
    # 10 clients, 20 rounds, 702753 * 4 + 312 = 2811324 bytes each: 562264800.
    html = text_of(run_folder())
    assert "562,264,800 bytes" in html and "562 MB" in html


def test_every_summary_field_may_be_null(run_folder: MakeRun) -> None:
    path = run_folder(rounds=2, clients=2)
    for file in ("metrics.jsonl", "ledger.jsonl", "partition.json"):
        (path / file).unlink()  # drawing takes time and is not the point
    full = json.loads((path / "summary.json").read_text())
    full["quality"]["per_client"] = []
    (path / "summary.json").write_text(json.dumps(full))
    known = text_of(path).count("not measured")
    for name in full:
        if name == "schema":
            continue
        (path / "summary.json").write_text(json.dumps(full | {name: None}))
        html = text_of(path)
        assert Tags(html).open == [], name
        if name.startswith(("bytes_", "parameters", "weights_", "scored_", "wall", "images", "quality")):
            assert html.count("not measured") > known, name


def test_every_score_may_be_null_or_missing(run_folder: MakeRun) -> None:
    path = run_folder(rounds=2, clients=2)
    edit(path, "summary.json", lambda s: s["quality"].update({k: None for k in s["quality"]}))
    html = text_of(path)
    assert "no global model was scored" in html and "floor of held-out real images —" in html
    edit(path, "summary.json", lambda s: s["quality"].clear())
    assert "not measured" in text_of(path)


def test_rounds_without_figures_are_drawn_as_far_as_known(run_folder: MakeRun) -> None:
    path = run_folder()
    lines = [{"round": n, "phase": "train"} for n in range(1, 4)]
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert "Training loss by round" not in text_of(path)


def test_a_summary_alone_still_makes_a_page(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text('{"schema": 1}')
    html = text_of(tmp_path)
    assert "not measured" in html and "nothing was sent" in html and Tags(html).open == []


@pytest.mark.parametrize(
    "evil", ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "$x_{$", "\x00\u202e"]
)
def test_names_cannot_inject_markup(run_folder: MakeRun, evil: str) -> None:
    path = run_folder()
    edit(
        path,
        "partition.json",
        lambda p: p.update(class_names=[evil] * 10, clients=[evil + n for n in p["clients"]]),
    )

    def poison(summary: dict) -> None:
        summary.update(preset=evil, method=evil, codec_up=evil)
        summary["quality"].update(encoder=evil, sampler=evil)
        for client in summary["quality"]["per_client"]:
            client["name"] = evil
        summary["failures"] = [{"round": 1, "client_id": 0, "kind": evil, "reason": evil}]

    edit(path, "summary.json", poison)
    tags = Tags(text_of(path))
    assert tags.open == []
    assert "script" not in {tag for tag, _ in tags.seen}
    assert not any("onerror" in attributes for _, attributes in tags.seen)


def test_the_ledger_table_sums_by_phase_and_direction(run_folder: MakeRun) -> None:
    path = run_folder(clients=2, rounds=2)
    with (path / "ledger.jsonl").open("a") as file:
        file.write(
            json.dumps({"round": 2, "phase": "score", "client": "client-000", "direction": "up", "bytes": 7})
            + "\n"
        )
    rows = {(r.phase, r.direction): r for r in tables.ledger_rows(reading.read(path))}
    # 2 clients x 2 rounds x 2811324 bytes.
    assert rows["train", "up"].bytes == rows["train", "down"].bytes == 11_245_296
    assert rows["train", "up"].messages == 4
    assert rows["score", "up"].bytes == 7


def test_lost_replies_count_as_bytes_but_not_as_rounds(run_folder: MakeRun) -> None:
    run = reading.read(run_folder())  # in round 4 the reply of client-002 was lost
    clients = {c.name: c for c in tables.client_rows(run)}
    assert clients["client-002"].rounds == 19 and clients["client-001"].rounds == 20
    assert clients["client-002"].bytes_up == clients["client-001"].bytes_up
    assert clients["client-002"].failures == 1
    refused = {(r.phase, r.direction): r.bytes_refused for r in tables.ledger_rows(run)}
    assert refused == {("train", "up"): 2_811_324, ("train", "down"): 0}


@pytest.mark.parametrize("clients", [1, 2, 100, 130])
def test_any_number_of_clients_is_drawn(run_folder: MakeRun, clients: int) -> None:
    html = text_of(run_folder(clients=clients, rounds=2))
    assert "Images per client" in html
    assert ("too many for a row each" in html) == (clients > 100)


def test_many_grids_are_thinned_with_first_and_last_kept() -> None:
    assert gallery.evenly(list(range(5)), 12) == [0, 1, 2, 3, 4]
    chosen = gallery.evenly(list(range(100)), 12)
    assert len(chosen) == 12 and chosen[0] == 0 and chosen[-1] == 99 and chosen == sorted(set(chosen))


def test_rounds_that_kept_the_old_weights_are_told(run_folder: MakeRun) -> None:
    path = run_folder()
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    lines[2]["kept_old_weights"] = lines[6]["kept_old_weights"] = True
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    html = text_of(path)
    assert "In rounds 3, 7 too few" in html and "old weights kept" in html


def test_the_snippet_fits_the_kind_of_pipeline(run_folder: MakeRun) -> None:
    path = run_folder()
    assert "class_labels=[0, 1" in narrative.load_snippet(reading.read(path))
    assert "trust_remote_code=True" in narrative.load_snippet(reading.read(path))
    (path / "model" / "model_index.json").write_text('{"_class_name": "DDPMPipeline"}')
    edit(path, "partition.json", lambda p: p.update(counts=[], class_names=[]))
    plain = narrative.load_snippet(reading.read(path))
    assert "trust_remote_code" not in plain and "batch_size=10" in plain


@pytest.mark.parametrize(
    ("method", "claim"),
    [
        ("central", "One trainer held all images"),
        ("local", "alone"),
        ("fedavg", "10 simulated clients on one machine"),
    ],
)
def test_the_sentence_never_calls_a_baseline_federated(run_folder: MakeRun, method: str, claim: str) -> None:
    told = narrative.sentence(reading.read(run_folder(rounds=2, method=method)))
    assert claim in told
    assert ("together" in told) == (method == "fedavg")
