"""Exchange and pieces are told in the words of their own classes, known by name to no page, card or table."""

from __future__ import annotations

import dataclasses
import json
import re
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest

from osmotic.methods import METHODS, Method
from osmotic.methods.fedavg import FedAvg
from osmotic.pieces import PIECES, Piece
from osmotic.report import card, compare, learning_rule, narrative, page, reading
from osmotic.runs import commands

MakeRun = Callable[..., Path]

MODEL = "a class-conditional diffusion model of 702,753 parameters"
SPLIT = "split by class with a Dirichlet(0.5) draw"
STAYED = f"the images were {SPLIT}."
THREE = "3 simulated clients on one machine"
SENTENCES = {
    "fedavg": f"{THREE} trained {MODEL} together on digits with fedavg, for 2 rounds; {STAYED}",
    "usplit": f"{THREE} trained {MODEL} together on digits with usplit, each returning a part of it, for 2 rounds; "
    + STAYED,
    "ulatdec": f"Each of {THREE} trained {MODEL} of its own on digits with ulatdec, for 2 rounds: they share "
    f"bottleneck and decoder, the rest is personal; {STAYED}",
    "udec": f"Each of {THREE} trained {MODEL} of its own on digits with udec, for 2 rounds: they share the decoder, "
    f"the rest is personal; {STAYED}",
    "oneshot": f"{THREE} each trained {MODEL} alone on its own part of digits, {SPLIT}, and were asked once; a server trained "
    "one model on synthetic images that theirs drew, with oneshot, in 2 rounds.",
    "central": f"One trainer held all images of digits and trained {MODEL} for 2 rounds: the upper baseline.",
    "local": f"Each of {THREE} trained {MODEL} alone on its own part of digits, {SPLIT}, for 2 rounds: "
    "the lower baseline.",
}


class Pull(Piece):
    title: ClassVar[str] = "a pull towards <everything>"
    paper: ClassVar[str] = "0000.00001"
    left: ClassVar[str] = "a list of | all pulls"


class Quiet(Piece):
    left: ClassVar[str] = ""
    title: ClassVar[str] = "nothing at all"


class Carrier(FedAvg):
    sentence: ClassVar[str] = "{clients} wrote {model} on paper: {shared}."
    left: ClassVar[str] = "A pigeon left the clients."
    paper: ClassVar[str] = "1149.00000"
    exchanges: ClassVar[str] = "letters both ways"


@pytest.fixture
def own_pieces(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setitem(PIECES, "pull", Pull)
    monkeypatch.setitem(PIECES, "quiet", Quiet)
    return ["pull", "quiet"]


def edit(path: Path, **fields: Any) -> Path:
    """Overwrites fields of the summary; those set to `...` are taken out."""
    summary = json.loads((path / "summary.json").read_text()) | fields
    left = {name: value for name, value in summary.items() if value is not ...}
    (path / "summary.json").write_text(json.dumps(left))
    return path


def text_of_card(path: Path) -> str:
    return card.write(path)[0].read_text(encoding="utf-8")


@pytest.mark.parametrize("method", METHODS)
def test_every_exchange_is_told_in_one_sentence(run_folder: MakeRun, method: str) -> None:
    run = reading.read(run_folder(clients=3, rounds=2, method=method))
    assert narrative.sentence(run) == SENTENCES[method]


@pytest.mark.parametrize("method", METHODS)
def test_a_summary_from_before_the_fields_is_told_alike(run_folder: MakeRun, method: str) -> None:
    path = run_folder(clients=3, rounds=2, method=method)
    told = card.render(reading.read(path))
    edit(path, pieces=..., shared=..., travels=..., personal=..., global_model=...)
    assert "shared" not in reading.read(path).summary
    assert card.render(reading.read(path)) == told


def test_of_an_exchange_that_is_not_installed_nothing_is_claimed(run_folder: MakeRun) -> None:
    path = edit(run_folder(clients=3, rounds=2), method="carrier", travels=..., shared=..., global_model=...)
    told = narrative.sentence(reading.read(path))
    assert told == f"{THREE} trained {MODEL} on digits with carrier, for 2 rounds; the images were {SPLIT}."
    text = text_of_card(path)
    assert "never left" not in text and "cannot be told" in text and "bytes up" in text
    assert "what they held is not known" in text and "weights or their changes" not in text
    assert "an unnamed exchange" in narrative.sentence(reading.read(edit(path, method=None)))


def test_a_report_without_the_plugin_of_its_run_is_warned_of(
    run_folder: MakeRun, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    path = edit(run_folder(clients=3, rounds=2), method="carrier", pieces=["prox", "echo"])
    with pytest.warns(UserWarning, match="^carrier, echo: not known here, .*--plugin FILE"):
        commands.report(path)
    monkeypatch.setitem(METHODS, "carrier", Carrier)
    monkeypatch.setitem(PIECES, "echo", PIECES["prox"])
    commands.report(path)
    assert not recwarn.list


def test_a_plugin_is_told_in_its_own_words(run_folder: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "carrier", Carrier)
    path = edit(run_folder(clients=3, rounds=2), method="carrier")
    assert narrative.sentence(reading.read(path)) == (
        f"{THREE} wrote {MODEL} on paper: encoder, bottleneck and decoder."
    )
    text = text_of_card(path)
    assert "A pigeon left the clients." in text and "never left" not in text
    assert "| exchange | carrier · letters both ways (arXiv 1149.00000) |" in text
    assert "carrier · letters both ways (arXiv 1149.00000)" in page.render(reading.read(path))


def test_what_the_run_says_of_itself_goes_before_its_class(run_folder: MakeRun) -> None:
    path = edit(run_folder(clients=3, rounds=2, method="udec"), shared=["encoder", "decoder"])
    assert "they share encoder and decoder, the rest" in narrative.sentence(reading.read(path))
    assert "What is averaged is encoder and decoder;" in text_of_card(path)
    # An empty list and False are answers, not missing fields.
    told = learning_rule.exchange_of(reading.read(edit(path, shared=[], travels=False, global_model=False)))
    assert (told.shared, told.travels, told.global_model) == ((), False, False)
    told = learning_rule.exchange_of(reading.read(edit(path, method="fedavg")))
    assert (told.shared, told.travels, told.global_model) == ((), False, False)
    assert "bytes up" not in text_of_card(path)


def test_templates_hold_only_the_fields_that_are_given() -> None:
    known = {"clients", "model", "data", "rounds", "split", "shared", "method"}
    for method in (Method, *METHODS.values()):
        fields = {name for _, name, _, _ in string.Formatter().parse(method.sentence) if name is not None}
        assert fields <= known, method


def test_every_exchange_and_piece_says_how_it_is_told() -> None:
    for method in METHODS.values():
        assert method.left.endswith(".") and method.exchanges and method.sentence.endswith(".")
    for piece in PIECES.values():
        assert piece.title and not piece.left.endswith("."), piece  # words in a list, not sentences


def test_pieces_are_told_in_the_order_of_their_chain(run_folder: MakeRun, own_pieces: list[str]) -> None:
    run = reading.read(edit(run_folder(clients=3, rounds=2), pieces=own_pieces))
    assert "with fedavg + pull + quiet, for 2 rounds" in narrative.sentence(run)
    assert learning_rule.rule_lines(run)[1:] == [
        ("piece", "pull · a pull towards <everything> (arXiv 0000.00001)"),
        ("piece", "quiet · nothing at all"),
    ]
    html = page.render(run)
    assert "pull · a pull towards &lt;everything&gt; (arXiv 0000.00001)" in html


def test_the_card_tells_what_each_piece_makes_leave_a_client(
    run_folder: MakeRun, own_pieces: list[str]
) -> None:
    path = edit(run_folder(clients=3, rounds=2), pieces=own_pieces)
    text = text_of_card(path)
    assert "- pull: a list of \\| all pulls\n- quiet: nothing\n" in text
    assert "| piece | pull · a pull towards &lt;everything&gt; (arXiv 0000.00001) |" in text
    # Nothing travels, so a piece cannot send anything along.
    assert "- pull:" not in text_of_card(edit(path, travels=False))
    assert "makes leave a client besides" not in text_of_card(edit(path, pieces=[], travels=True))


def test_of_a_piece_that_is_not_installed_the_card_claims_nothing(run_folder: MakeRun) -> None:
    path = edit(run_folder(clients=3, rounds=2), pieces=["<b>gone</b>"])
    text = text_of_card(path)
    assert "- &lt;b&gt;gone&lt;/b&gt;: not known" in text and "gone&lt;/b&gt;: nothing" not in text
    assert "<b>gone" not in page.render(reading.read(path))


def test_own_models_beside_a_global_one_are_told(run_folder: MakeRun) -> None:
    path = run_folder(clients=3, rounds=2)
    assert "model of its own" not in narrative.sentence(reading.read(path))
    assert narrative.sentence(reading.read(edit(path, personal=True))).endswith(
        "draw. Each client also has a model of its own."
    )
    own_alone = reading.read(edit(path, method="local", personal=True, global_model=False))
    assert "also" not in narrative.sentence(own_alone)


def test_a_comparison_shows_pieces_where_a_run_has_any(run_folder: MakeRun, own_pieces: list[str]) -> None:
    plain, bent = run_folder("plain", rounds=2), edit(run_folder("bent", rounds=2), pieces=own_pieces)
    result = compare.compare([plain, bent])
    cells = {heading: [cell(row) for row in result.rows] for heading, cell in result.columns()}
    assert cells["pieces"] == ["—", "pull + quiet"]
    assert result.as_dicts()["runs"][1]["pieces"] == ("pull", "quiet")
    assert "pieces" not in {heading for heading, _ in compare.compare([plain]).columns()}


def test_no_exchange_and_no_piece_is_known_by_name_in_this_package() -> None:
    names = "|".join(re.escape(name) for name in (*METHODS, *PIECES))
    folder = Path(learning_rule.__file__).parent
    files = [*folder.glob("*.py"), *folder.glob("*.jinja")]
    assert len(files) > 10
    for file in files:
        found = re.findall(rf"""["']({names})["']""", file.read_text(encoding="utf-8"))
        assert not found, f"{file.name} knows {found} by name"


def test_the_command_that_repeats_a_run_names_its_plugins_and_nothing_else(run_folder: MakeRun) -> None:
    run = reading.read(run_folder(clients=2, rounds=1))

    def told(first_line: str) -> str:
        text = f"{first_line}\nseed = 0\n"
        return narrative.repeat_command(dataclasses.replace(run, config_toml=text))

    assert told("# osmotic 0.1.0; `osmotic run config.toml` repeats this run") == "osmotic run config.toml"
    plugged = "osmotic run config.toml --plugin my-piece.py --plugin b.py"
    assert told(f"# osmotic 0.1.0; `{plugged}` repeats this run") == plugged
    for bad in ("; rm -rf x", "--plugin $(x).py", "--plugin a.py; x", "--plugin ../a b.py"):
        assert told(f"# `osmotic run config.toml {bad}` repeats this run") == "osmotic run config.toml"
