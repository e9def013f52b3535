"""The model card tells what the run's files say, and nothing more."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from osmotic.report import card, templates

MakeRun = Callable[..., Path]


def text_of(path: Path) -> str:
    return card.write(path)[0].read_text(encoding="utf-8")


def test_the_card_stands_in_the_model_folder_and_tells_counts(run_folder: MakeRun) -> None:
    path = run_folder()
    assert card.write(path) == [path / "model" / "README.md"]
    text = text_of(path)
    assert text.startswith("---\nlibrary_name: diffusers\n")
    assert "562,264,800 bytes up" in text and "The images never left the clients" in text
    assert "| FD, lower is better | 6.300 |" in text and "| floor of FD | 2.870 |" in text
    assert "encoder classifier-digits · 1,000 samples" in text and "It is not an FID" in text


def test_a_central_run_is_not_called_federated(run_folder: MakeRun) -> None:
    text = text_of(run_folder(method="central"))
    assert "never left" not in text and "Nothing about this run was federated" in text


def test_what_was_not_measured_is_a_dash(run_folder: MakeRun) -> None:
    path = run_folder(wall_seconds=None, images_seen=None)
    assert "| images seen | — |" in text_of(path)
    assert "This model was not scored." in text_of(run_folder("unscored", quality=None))


def test_one_card_per_model_where_no_global_model_exists(run_folder: MakeRun) -> None:
    path = run_folder(method="local", clients=2)
    index = (path / "model" / "model_index.json").read_text()
    (path / "model" / "model_index.json").unlink()
    for name in ("client-000", "client-001"):
        (path / "model" / name).mkdir()
        (path / "model" / name / "model_index.json").write_text(index)
    assert card.write(path) == [path / "model" / n / "README.md" for n in ("client-000", "client-001")]
    assert "client-001" in (path / "model" / "client-001" / "README.md").read_text()


def test_names_cannot_inject_markdown(run_folder: MakeRun) -> None:
    path = run_folder()
    table = json.loads((path / "partition.json").read_text())
    table["class_names"][0] = "a|b\n# big <script> [x](y)"
    (path / "partition.json").write_text(json.dumps(table))
    text = text_of(path)
    assert r"a\|b \# big &lt;script&gt; \[x\](y)" in text and "\n# big" not in text


def test_an_ampersand_stays_one() -> None:
    assert templates.escape_markdown("R&D <x>") == "R&amp;D &lt;x&gt;"
