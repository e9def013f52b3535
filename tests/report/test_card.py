"""The model card tells what the run's files say, and nothing more."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import tomli_w

from osmotic.config import toml
from osmotic.report import card, page, reading, templates

MakeRun = Callable[..., Path]


def text_of(path: Path) -> str:
    return card.write(path)[0].read_text(encoding="utf-8")


def test_the_card_stands_in_the_model_folder_and_tells_counts(run_folder: MakeRun) -> None:
    path = run_folder()
    assert card.write(path) == [path / "model" / "README.md"]
    text = text_of(path)
    assert text.startswith("---\nlibrary_name: diffusers\n")
    assert "562,264,800 bytes up" in text and "No image of a client's own leaves it in training." in text
    assert "| FD, lower is better | 6.300 |" in text and "| floor of FD | 2.870 |" in text
    assert "encoder classifier-digits · 1,000 samples" in text and "It is not an FID" in text


def test_a_central_run_is_not_called_federated(run_folder: MakeRun) -> None:
    text = text_of(run_folder(method="central"))
    assert "never left" not in text and "Nothing about this run was federated" in text


def test_the_card_of_a_simulation_says_so_and_never_that_images_stayed_with_owners(
    run_folder: MakeRun,
) -> None:
    text = text_of(run_folder())
    assert "10 simulated clients on one machine trained" in text
    assert "This run was a simulation: all clients share one machine" in text
    assert not re.search(r"never (left|leave)|stayed where", text)
    # One trainer with all images simulates no clients; of an engine that is not known here nothing is said.
    assert "simulat" not in text_of(run_folder("central", method="central"))
    assert "simulat" not in text_of(run_folder("sites", engine="carrier-pigeon"))


def test_the_card_invents_no_licence_and_names_network_and_version(full_folder: MakeRun) -> None:
    path = full_folder()
    text = text_of(path)
    front, rest = text.split("---\n")[1:3]
    keys = dict(line.split(": ") for line in front.splitlines() if ": " in line)
    assert keys["license"] == "other" and keys["license_name"] == "not-stated"
    assert "Of the model: not stated." in rest and "under the Apache License 2.0" in rest
    rows = [line.strip("| ").split(" | ") for line in rest.splitlines() if line.startswith("| ")]
    found = {row[0]: row[1:] for row in rows}
    assert found["network, target"] == ["unet-8, v"] and found["osmotic"] == ["0.2.0"]
    assert found["images"] == ["8 x 8 pixels, grey"]


def test_the_card_sets_held_out_scores_and_near_copies_beside_the_others(full_folder: MakeRun) -> None:
    text = text_of(full_folder())
    assert "| FD, lower is better | 6.300 | 7.500 |" in text
    assert "| FD of other real images (floor) | 2.870 | 3.250 |" in text
    assert (
        "Near-copies of training images: 1.2 % of the generated images by features, 0.4 % by pixels" in text
    )
    assert "was not measured in this run" not in text


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("python", "images handed over in Python"),
        ("folder:/home/ann/photos/", "images of the folder photos"),
        ("npz:/home/ann/scans.npz", "images of the file scans.npz"),
        ("hf:ylecun/mnist", "ylecun/mnist from the Hugging Face Hub"),
    ],
)
def test_own_images_are_named_without_the_path_to_them(run_folder: MakeRun, source: str, words: str) -> None:
    path = run_folder(rounds=2)
    config = (path / "config.toml").read_text().replace('source = "digits"', f'source = "{source}"')
    (path / "config.toml").write_text(config)
    text = text_of(path)
    assert f"Data: {words}, " in text and f"together on {words} with" in text and "/home" not in text


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


# --- what a run started from, and adapters ---


def adapted(path: Path, pretrained: str = "public/model", rank: int = 2, **more: object) -> Path:
    """Makes the run one of an adapter of 3,712 weights, or with rank 0 one that only started from others."""
    told = toml.read_toml(path / "config.toml")
    told["model"] |= {"pretrained": pretrained, "pretrained_sha256": "bc" * 32}
    told["adapter"] |= {"rank": rank, "alpha": 8.0, "targets": ["to_q", "conv1"], "trains": "b"}
    (path / "config.toml").write_text(tomli_w.dumps(told))
    summary = json.loads((path / "summary.json").read_text())
    if rank:
        summary |= {"parameters": 3712, "parameters_whole": 702_753, "model_weights_sha256": "de" * 32}
    (path / "summary.json").write_text(json.dumps(summary | more))
    return path


def rows_of(text: str) -> dict[str, str]:
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return {line[0]: line[1] for line in lines if len(line) == 2}


def test_the_card_of_an_adapter_tells_the_whole_network_and_what_was_trained(run_folder: MakeRun) -> None:
    text = text_of(adapted(run_folder())).replace("\\_", "_")
    assert (
        "model of 702,753 parameters (through a low-rank adapter of 3,712; all else stayed as it was)" in text
    )
    found = rows_of(text)
    assert found["parameters"] == "702,753" and found["of the adapter, all that was trained"] == "3,712"
    assert found["start"] == "the pretrained weights public/model"
    assert found["adapter"].startswith(
        "low-rank, rank 2, alpha 8.000; of the layers to_q, conv1; trained was B,"
    )
    assert found["SHA-256 of the weights that it started from"] == "bc" * 32
    assert found["SHA-256 of these weights, the adapter merged"] == "de" * 32
    assert found["SHA-256 of the adapter alone"] == "a7" * 32
    data = text.partition("## Training data")[2].partition("##")[0]
    assert (
        "- It started from other weights, public/model. What these were trained on is not known to this card"
        in data
    )


def test_a_run_that_only_started_from_other_weights_says_so(run_folder: MakeRun) -> None:
    text = text_of(adapted(run_folder(), rank=0))
    assert "It started from other weights, public/model." in text and "adapter" not in text
    assert rows_of(text)["SHA-256 of these weights"] == "a7" * 32
    assert "started from" not in text_of(run_folder("plain"))


def test_an_older_run_with_an_adapter_does_not_take_it_for_the_network(run_folder: MakeRun) -> None:
    text = text_of(adapted(run_folder(), parameters_whole=None, model_weights_sha256=None))
    assert "diffusion model (through a low-rank adapter of 3,712; all else stayed as it was)" in text
    assert rows_of(text)["parameters"] == "—"
    assert rows_of(text)["SHA-256 of these weights, the adapter merged"] == "—"


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("/home/ann/start", "start"),
        ("~/runs/start", "start"),
        ("../ann/start/", "start"),
        ("org/unet.v2", "org/unet.v2"),
        ("deep/er/start", "start"),
    ],
)
def test_pretrained_weights_are_named_without_the_path_to_them(
    run_folder: MakeRun, place: str, name: str
) -> None:
    text = text_of(adapted(run_folder(), place))
    assert f"| start | the pretrained weights {name} |" in text and "/ann" not in text and "ann/" not in text


def test_the_page_of_an_adapter_tells_the_same(run_folder: MakeRun) -> None:
    text = " ".join(
        re.sub(
            r"<style>.*?</style>|<[^>]*>", " ", page.render(reading.read(adapted(run_folder()))), flags=re.S
        ).split()
    )
    assert "start the pretrained weights public/model adapter low-rank, rank 2" in text
    assert "Parameters 702,753 network auto; trained were 3,712 of an adapter" in text
    assert f"Weights in model/, the adapter merged {'de' * 32}" in text
    assert f"Scored weights, of the adapter alone {'a7' * 32}" in text
    assert f"Pretrained weights that it started from {'bc' * 32}" in text
