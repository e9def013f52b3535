"""Reading run folders: what is refused and what is tolerated."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from osmotic.errors import ConfigError
from osmotic.report import reading


def test_a_missing_folder_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere.*no such folder"):
        reading.read(tmp_path / "nowhere")


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no finished run folder: it holds no summary\.json"):
        reading.read(tmp_path)


def test_an_unfinished_run_is_refused_with_the_way_on(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("seed = 0\n")
    with pytest.raises(ConfigError, match="osmotic resume"):
        reading.read(tmp_path)


@pytest.mark.parametrize(
    ("file", "text", "rule"),
    [
        ("summary.json", "{", "valid JSON"),
        ("summary.json", '{"schema": 2}', "schema 1"),
        ("summary.json", "[]", "schema 1"),
        ("metrics.jsonl", '{"round": 1}\n{"rou', "line 2 is not valid JSON"),
        ("ledger.jsonl", "[1]\n", "line 1 must be a JSON object"),
        ("config.toml", "= 3", "valid TOML"),
    ],
)
def test_a_damaged_file_is_named(run_folder: Callable[..., Path], file: str, text: str, rule: str) -> None:
    path = run_folder()
    (path / file).write_text(text)
    with pytest.raises(ConfigError, match=rule) as caught:
        reading.read(path)
    assert caught.value.key.endswith(file)


def test_the_bare_summary_alone_is_a_run(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text('{"schema": 1, "quality": null, "failures": null}')
    run = reading.read(tmp_path)
    assert run.quality == {} and run.rounds == () and run.ledger == () and run.partition is None
    assert run.setting("data.source", "none") == "none"


def test_samples_are_in_order_of_rounds(run_folder: Callable[..., Path]) -> None:
    path = run_folder()
    (path / "samples" / "round-10000.png").write_bytes(b"")
    (path / "samples" / "notes.txt").write_bytes(b"")
    assert [n for n, _ in reading.read(path).samples] == [5, 10, 15, 20, 10000]


def test_settings_are_read_from_the_resolved_file(run_folder: Callable[..., Path]) -> None:
    run = reading.read(run_folder(clients=3))
    assert run.setting("data.clients") == 3 and run.setting("seed") == 0
