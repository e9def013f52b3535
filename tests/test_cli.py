"""The commands: help, machine-readable answers, and one line with exit code 2 for every kind of bad input."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import types
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import osmotic.runs
from osmotic import cli, engines
from osmotic.config import presets, schema, toml
from osmotic.data.dataset import Shape
from osmotic.errors import RunStopped
from osmotic.runs import commands, plan, resolve


@dataclass
class Done:
    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        return self.err.splitlines()


class Command:
    """`osmotic ARGUMENTS` in this process, in an empty working folder."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folder: Path):
        self.monkeypatch, self.capsys, self.folder = monkeypatch, capsys, folder
        monkeypatch.chdir(folder)
        monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)

    def __call__(self, *arguments: str) -> Done:
        self.monkeypatch.setattr(sys, "argv", ["osmotic", *arguments])
        self.capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            cli.main()
        out, err = self.capsys.readouterr()
        return Done(int(caught.value.code or 0), out, err)  # type: ignore[arg-type]


@pytest.fixture
def osm(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Command:
    folder = tmp_path / "here"
    folder.mkdir()
    return Command(monkeypatch, capsys, folder)


def is_refused(done: Done, *words: str) -> None:
    assert done.code == 2
    assert done.out == ""
    assert len(done.lines) == 1, done.err
    assert done.lines[0].startswith("osmotic: error: ")
    for word in words:
        assert word in done.lines[0]


COMMANDS = [
    "run",
    "resume",
    "sample",
    "evaluate",
    "compare",
    "report",
    "methods",
    "plan",
    "leaves",
    "look",
    "split",
    "encoder",
    "autoencoder",
    "personalise",
]


def test_the_commands_are_those_of_the_contract():
    assert sorted(c.name or c.callback.__name__ for c in cli.app.registered_commands) == sorted(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_and_its_options(osm: Command, command: str):
    done = osm(command, "--help")
    assert done.code == 0
    assert osm(command, "-h").out == done.out
    assert f"osmotic {command}" in done.out
    callback = next(
        c.callback for c in cli.app.registered_commands if c.callback and c.callback.__name__ == command
    )
    assert (callback.__doc__ or "").split(":")[0].split(",")[0] in done.out
    assert "--json" in done.out


def test_help_lists_every_command(osm: Command):
    done = osm("--help")
    assert done.code == 0
    assert all(command in done.out for command in COMMANDS)


def test_the_version_is_printed(osm: Command):
    done = osm("--version")
    assert (done.code, done.out) == (0, f"osmotic {osmotic.__version__}\n")


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",)])
def test_help_says_that_clients_are_simulated(osm: Command, arguments: tuple[str, ...]):
    told = " ".join(osm(*arguments).out.split())
    assert "simulates all clients on this machine" in told and "images stay at their sites" in told


def test_every_engine_says_where_its_clients_are():
    assert set(engines.WHERE) == {"inprocess", "flower", "sites"}
    assert {name for name, told in engines.WHERE.items() if "simulation" in told} == {"inprocess", "flower"}


def test_methods_lists_every_preset_for_people_and_for_scripts(osm: Command):
    done = osm("methods")
    assert done.code == 0
    assert [line.split()[0] for line in done.out.splitlines()] == list(presets.PRESETS)
    rows = json.loads(osm("methods", "--json").out)
    assert [r["preset"] for r in rows] == list(presets.PRESETS)
    assert rows[0]["paper"] == "1602.05629"
    papers = {r["preset"]: r["paper"] for r in rows}
    assert papers["local"] is None and papers["feddiffuse-udec"] == "2406.12575"
    assert all(r["exchanges"] and r["keys"] for r in rows)


def test_plan_prints_one_document_with_the_names_of_the_summary(osm: Command):
    done = osm("plan", "--json", "--preset", "fedavg", "--set", "training.rounds=2", "--link", "10")
    assert (done.code, done.err) == (0, "")
    figures = json.loads(done.out)
    # 2 rounds of 10 clients and 702,753 weights, each way.
    assert figures["parameters_up"] == figures["parameters_down"] == 2 * 10 * 702_753
    assert figures["rounds"] == 2
    assert figures["link_mbit"] == 10
    assert len(figures["sites"]) == 10


def test_plan_reads_a_file_and_says_it_in_words(osm: Command):
    (osm.folder / "c.toml").write_text('[training]\nrounds = 3\n[codec]\nup = "int8"\n')
    done = osm("plan", "c.toml")
    assert done.code == 0
    assert "3 rounds" in done.out
    assert "codec int8 up" in done.out


def test_leaves_prints_one_document_or_tells_a_person(osm: Command):
    done = osm("leaves", "--json", "--preset", "udec", "--set", "codec.up=int8")
    assert (done.code, done.err) == (0, "")
    told = json.loads(done.out)
    # 385,441 weights of the decoder, a byte each, and no more than a twentieth of that in scales and header.
    [up] = {tuple(e["from_site"]["bytes"]) for e in told["exchanges"] if e["action"] == "train"}
    assert 385_441 < up[0] == up[1] < 1.05 * 385_441
    assert "no differential privacy" in osm("leaves").out


BAD = {
    "unknown key": (["--set", "traning.rounds=5"], ["traning.rounds = 5", "unknown key", "training.rounds"]),
    "end of a key": (["--set", "data.alpha=1"], ["unknown key", "data.dirichlet_alpha"]),
    "another tool's key": (["--set", "lr=0.1"], ["unknown key", "training.learning_rate"]),
    "wrong type": (["--set", "training.rounds=many"], ["training.rounds = 'many'", "whole number"]),
    "out of range": (["--set", "training.rounds=0"], ["training.rounds = 0", ">= 1"]),
    "impossible together": (
        ["--set", "codec.error_feedback=true"],
        ["codec.error_feedback = True", "fp32 is exact"],
    ),
    "no choice": (["--set", "model.target=noise"], ["model.target = 'noise'", "must be one of epsilon"]),
    "unknown preset": (["--preset", "fedavgg"], ["preset = 'fedavgg'", "(nearest valid key: fedavg)"]),
    "unknown source": (["--data", "digit"], ["data.source = 'digit'", "(nearest valid key: digits)"]),
    "no value": (["--set", "training.rounds"], ["--set = 'training.rounds'", "section.key=value"]),
    "no such file": (["none.toml"], ["none.toml", "cannot be read"]),
    "no such npz": (["--data", "npz:none.npz"], ["none.npz"]),
    "no such folder": (["--data", "folder:none"], ["none"]),
    "size that no network halves": (["--set", "data.image_size=9"], ["data.image_size = 9", "multiple of 2"]),
    "more clients than images": (["--set", "data.clients=1438"], ["data.clients = 1438", "1437"]),
}


SHORT = ["--set", "training.fraction_train=0.001"]  # an answer where none is due should not take minutes


@pytest.mark.parametrize("case", BAD)
def test_plan_refuses_bad_input_in_one_line(osm: Command, case: str):
    arguments, words = BAD[case]
    is_refused(osm("plan", *arguments, *SHORT), *words)


@pytest.mark.parametrize("case", [c for c in BAD if c not in ("no such npz", "no such folder")])
def test_run_refuses_bad_input_in_one_line_and_leaves_no_folder(osm: Command, case: str):
    arguments, words = BAD[case]
    is_refused(osm("run", *arguments), *words)
    assert not (osm.folder / "runs").exists()


def test_an_autoencoder_of_a_folder_of_images_is_one_that_a_run_takes(osm: Command):
    rng = np.random.default_rng(0)
    (osm.folder / "pictures").mkdir()
    for i in range(24):
        Image.fromarray(rng.integers(0, 256, (16, 16), np.uint8)).save(osm.folder / f"pictures/{i:02d}.png")
    quick = [
        *("--set", "training.rounds=1", "--set", "score.samples=4", "--set", "training.local_epochs=1"),
        *("--set", "track.backends=[]", "--set", "data.image_size=16"),
    ]
    done = osm("autoencoder", "--data", "folder:pictures", "--out", "public", *quick)
    assert done.code == 0, done.err
    latents = ["--preset", "feddm-latent", "--set", "model.autoencoder=public/model"]
    few = ["--set", "data.clients=2", "--set", "score.steps=2"]
    done = osm("run", "--data", "folder:pictures", "--out", "latent", *latents, *quick, *few, "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["image_shape"] == [16, 16, 1]
    assert json.loads((osm.folder / "latent/model/unet/config.json").read_text())["sample_size"] == 4


def test_an_autoencoder_is_no_other_network(osm: Command):
    is_refused(osm("autoencoder", "--set", "model.network=unet-8"), "model.network = 'unet-8'")
    assert not (osm.folder / "autoencoder").exists()


def test_nobody_joins_a_run_that_is_not_finished(osm: Command):
    (osm.folder / "begun").mkdir()
    (osm.folder / "begun/config.toml").write_text("")
    words = ["personalise", "begun", "--data", "digits", "--out", "mine"]
    is_refused(osm(*words), "is not finished yet; go on with `osmotic resume begun`")


def test_bad_toml_is_told_with_its_file(osm: Command):
    (osm.folder / "c.toml").write_text("[training\n")
    is_refused(osm("run", "c.toml"), "c.toml", "not valid TOML")


FLAGS = [
    (["plan", "--link", "fast"], "--link"),
    (["plan", "--link", "0"], "--link"),
    (["plan", "--fast"], "--fast"),
    (["sample", "x", "--count", "0"], "--count"),
    (["sample", "x", "--seed", "-1"], "--seed"),
    (["trian"], "trian"),
    (["resume"], "DIR"),
]


@pytest.mark.parametrize(("arguments", "word"), FLAGS)
def test_a_wrong_flag_is_told_in_one_line_too(osm: Command, arguments: list[str], word: str):
    done = osm(*arguments)
    assert done.code == 2
    assert word in done.err
    assert len(done.lines) == 1, done.err


HINTS = [
    (["Run"], "No such command 'Run'. Did you mean 'run'?"),
    (["train"], "No such command 'train'. Did you mean 'run'?"),
    (["fit"], "No such command 'fit'. Did you mean 'run'?"),
    (["help"], "No such command 'help'. Did you mean '--help'?"),
    (["zzz"], "No such command 'zzz'."),
    (["run", "--rounds", "3"], "No such option '--rounds'. Did you mean --set training.rounds=3?"),
    (["plan", "--epochs=2"], "No such option '--epochs'. Did you mean --set training.local_epochs=2?"),
    (["run", "--every", "3"], "Did you mean --set score.every=3 or --set checkpoint.every=3?"),
    (["plan", "--seed"], "Did you mean --set seed=...?"),
    (["run", "--lr", "0.1"], "Did you mean --set training.learning_rate=0.1?"),
    (["run", "fedprox"], "is no file. Did you mean --preset fedprox?"),
    (["run", "mnist"], "is no file. Did you mean --data mnist?"),
    (["plan", "npz:a.npz"], "is no file. Did you mean --data npz:a.npz?"),
    (["run", "training.rounds=3"], "is no file. Did you mean --set training.rounds=3?"),
    (["report", "x", "--batch-size", "3"], "No such option '--batch-size'."),  # takes no keys
]


@pytest.mark.parametrize(
    ("arguments", "told"), HINTS, ids=lambda v: " ".join(v) if isinstance(v, list) else ""
)
def test_a_wrong_word_is_answered_with_one_hint_that_works(osm: Command, arguments: list[str], told: str):
    done = osm(*arguments)
    assert done.code == 2
    assert len(done.lines) == 1 and done.lines[0].endswith(told)
    assert done.err.count("Did you mean") <= 1


@pytest.mark.parametrize("written", ["wandb", "[wandb]", "['wandb']", '["wandb"]'])
def test_one_tracker_is_named_with_or_without_brackets_and_quotes(
    osm: Command, written: str, monkeypatch: Any
):
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *_: object())  # as if it were installed
    assert resolve.load(sets=[f"track.backends={written}"]).track.backends == ("wandb",)
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *_: None)
    is_refused(
        osm("plan", "--set", f"track.backends={written}"), "track.backends = 'wandb'", "osmotic[wandb]"
    )


def test_the_shell_completes_commands_and_options(tmp_path: Path):
    script = "import sys; sys.argv = ['osmotic']; from osmotic import cli; cli.main()"
    for words, found in (("osmotic re", {"report", "resume"}), ("osmotic run --pre", {"--preset"})):
        asked = {
            "_OSMOTIC_COMPLETE": "complete_bash",
            "COMP_WORDS": words,
            "COMP_CWORD": str(words.count(" ")),
        }
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, env={**os.environ, **asked}
        )
        assert set(done.stdout.split()) == found, done.stderr


@pytest.mark.parametrize("command", ["resume", "sample", "evaluate", "compare", "report"])
def test_a_folder_that_is_no_run_is_refused(osm: Command, command: str):
    (osm.folder / "empty").mkdir()
    for name in ("empty", "none"):
        is_refused(osm(command, name), name)


def test_a_run_that_is_not_finished_is_not_sampled_or_scored(osm: Command):
    (osm.folder / "half").mkdir()
    (osm.folder / "half" / "config.toml").write_text(toml.to_toml(resolve.load()))
    for command in ("sample", "evaluate"):
        is_refused(osm(command, "half"), "half", "not finished", "osmotic resume half")


def test_only_score_keys_can_change_after_training(osm: Command):
    (osm.folder / "done").mkdir()
    (osm.folder / "done" / "config.toml").write_text(toml.to_toml(resolve.load()))
    (osm.folder / "done" / "summary.json").write_text("{}")
    is_refused(osm("evaluate", "done", "--set", "training.rounds=3"), "training.rounds=3", "[score]")
    is_refused(osm("evaluate", "done", "--set", "score.step=3"), "score.step = 3", "score.steps")
    is_refused(osm("evaluate", "done", "--ema", "3"), "--ema = 3.0", "0 or one of")


def test_an_encoder_is_one_file_that_runs_can_be_scored_by(osm: Command) -> None:
    few = ("--set", "data.max_images=200", "--set", "data.clients=2")
    done = osm("encoder", "--data", "digits", *few, "--out", "network.safetensors", "--json")
    told = json.loads(done.out)
    assert done.code == 0 and told["name"] == "classifier-digits-8" and len(told["sha256"]) == 64
    small = ("--set", "training.rounds=1", "--set", "score.samples=20", "--set", "score.steps=2")
    named = ("--set", "score.encoder=file:network.safetensors")
    assert osm("run", "--data", "digits", *few, *small, *named, "--out", "scored").code == 0
    quality = json.loads((osm.folder / "scored/summary.json").read_text())["quality"]
    assert quality["encoder_sha256"] == told["sha256"] and quality["fd"] > 0
    (osm.folder / "network.safetensors").write_bytes(b"none")
    is_refused(
        osm("run", "--data", "digits", *few, *small, *named, "--out", "o"),
        "score.encoder",
        "holds no encoder",
    )
    is_refused(
        osm("run", "--set", "score.encoder=inceptionv3", "--out", "o"), "score.encoder", "inception-v3"
    )


@pytest.mark.parametrize("command", ["run", "split"])
def test_a_folder_that_is_not_empty_is_never_written_into(osm: Command, command: str):
    (osm.folder / "taken").mkdir()
    (osm.folder / "taken" / "note.txt").write_text("mine")
    is_refused(osm(command, "--out", "taken"), "--out = 'taken'", "empty")
    assert [p.name for p in (osm.folder / "taken").iterdir()] == ["note.txt"]


def picture(path: Path, *shape: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros(shape, np.uint8)).save(path)


def broken(folder: Path) -> None:
    picture(folder / "a" / "1.png", 8, 8)
    (folder / "a" / "2.png").write_bytes((folder / "a" / "1.png").read_bytes()[:30])


def empty(folder: Path) -> None:
    folder.mkdir()


def mixed_sizes(folder: Path) -> None:
    for i in range(8):
        picture(folder / "a" / f"{i}.png", *((8, 8) if i < 4 else (16, 16)))


def mixed_pair(folder: Path) -> None:
    picture(folder / "a" / "1.png", 8, 8)
    picture(folder / "a" / "2.png", 16, 16)


FOLDERS = [
    (broken, ["2.png"]),
    (empty, ["pictures"]),
    (mixed_sizes, [".png", "same size", "data.image_size"]),
    (mixed_pair, [".png", "same size"]),
]


@pytest.mark.parametrize(("make", "words"), FOLDERS)
def test_bad_images_are_told_with_file_and_rule(osm: Command, make: Any, words: list[str]):
    make(osm.folder / "pictures")
    keys = ("--set", "data.clients=2", "--set", "data.fit=refuse")
    is_refused(osm("split", "--data", "folder:pictures", *keys, "--out", "o"), *words)
    assert not (osm.folder / "o").exists()


def test_a_folder_without_classes_is_divided_evenly_without_a_key(osm: Command):
    for i in range(6):
        picture(osm.folder / "pictures" / f"{i}.png", 8, 8)
    done = osm("split", "--data", "folder:pictures", "--set", "data.clients=2", "--out", "o")
    assert done.code == 0, done
    sizes = [len(np.load(file)["train_images"]) for file in sorted((osm.folder / "o").glob("*.npz"))]
    assert sizes == [2, 2]  # a fifth, rounded up, is the test split


def test_an_error_is_answered_within_two_seconds(tmp_path: Path):
    script = "import sys; sys.argv = ['osmotic', 'run', '--set', 'traning.rounds=5']; from osmotic import cli; cli.main()"
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, timeout=60
    )
    # Far above the 0.2 s it takes, so that a busy machine does not fail it; torch and diffusers alone take longer.
    assert time.monotonic() - started < 2 * 3
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@dataclass
class FakeLaunch:
    """Stands in for training; `fails` is raised, after the configuration was written or before."""

    fails: BaseException | None = None
    written: bool = True

    def start(self, cfg: schema.Config, folder: Path, observer: Any, *_: Any) -> Any:
        self.cfg, self.folder = cfg, folder
        if self.written:
            folder.mkdir(parents=True)
            (folder / "config.toml").write_text(toml.to_toml(cfg))
        if self.fails is not None:
            raise self.fails
        return folder


@pytest.fixture
def launch(monkeypatch: pytest.MonkeyPatch) -> FakeLaunch:
    fake = FakeLaunch()
    module = types.ModuleType("osmotic.runs.launch")
    module.start = fake.start  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "osmotic.runs.launch", module)
    monkeypatch.setattr(osmotic.runs, "launch", module, raising=False)
    monkeypatch.setattr(commands, "publish", lambda run, json: print(f"published {run} {json}") or True)
    shape = Shape(image_size=8, channels=1, num_classes=10, num_train=100)
    monkeypatch.setattr(plan, "network", lambda cfg: (None, shape))  # no images are there to be looked at
    return fake


def test_run_hands_on_what_was_typed_and_publishes_the_result(osm: Command, launch: FakeLaunch):
    done = osm("run", "--preset", "local", "--set", "seed=7", "--out", "x/y", "--json")
    assert done.code == 0
    assert done.out == "published x/y True\n"
    assert launch.cfg == resolve.load(preset="local", sets=["seed=7"])


def test_without_a_folder_runs_are_named_and_never_overwritten(osm: Command, launch: FakeLaunch):
    folders = []
    for _ in range(3):
        assert osm("run", "--data", "npz:some/pics.npz", "--set", "seed=4").code == 0
        folders.append(str(launch.folder))
    assert folders == ["runs/fedavg-pics-4", "runs/fedavg-pics-4-2", "runs/fedavg-pics-4-3"]


def test_a_stopped_run_says_how_to_go_on(osm: Command, launch: FakeLaunch):
    launch.fails = KeyboardInterrupt()
    done = osm("run", "--out", "x")
    assert done.code == 130
    assert done.err.strip() == "osmotic: stopped; go on with: osmotic resume x"


def test_a_run_stopped_before_anything_was_written_promises_no_resume(osm: Command, launch: FakeLaunch):
    launch.fails, launch.written = KeyboardInterrupt(), False
    done = osm("run", "--out", "x")
    assert done.code == 130
    assert "osmotic resume" not in done.err or osm("resume", "x").code == 0


@pytest.mark.parametrize(
    ("fails", "told"),
    [
        (OSError(28, "No space left on device", "x/clients/a\x1b[31m"), r"x/clients/a\x1b[31m: No space left on device"),
        (RunStopped("no client came through the first phase, train 1"), "no client came through the first phase, train 1"),
    ],
)  # fmt: skip
def test_a_run_that_stops_by_itself_says_why_and_how_to_go_on(
    osm: Command, launch: FakeLaunch, fails: BaseException, told: str
):
    launch.fails = fails
    done = osm("run", "--out", "x")
    assert (done.code, done.out) == (1, "")
    assert done.err == f"osmotic: error: {told}; go on with: osmotic resume x\n"


@pytest.mark.parametrize("name", ["x" * 5000, "x/" * 5000])
@pytest.mark.parametrize("command", ["resume", "report", "sample", "evaluate", "compare", "run", "run --out"])
def test_a_path_too_long_is_bad_input(osm: Command, command: str, name: str):
    done = osm(*command.split(), name)
    assert done.code == 2
    assert len(done.err.splitlines()) == 1 and len(done.err) < 1000


HOSTILE = "a\x1b[31mb\u202ec\x07"


@pytest.mark.parametrize(
    "typed",
    [
        ["run", "--set", f"training.rounds={HOSTILE}"],
        ["run", "--set", f"{HOSTILE}=1"],
        ["run", "--preset", HOSTILE],
        ["run", "--data", HOSTILE],
        ["run", "--data", f"folder:{HOSTILE}"],
        ["run", f"{HOSTILE}.toml"],
        ["run", f"--{HOSTILE}"],
        ["resume", HOSTILE],
        ["compare", HOSTILE],
        [HOSTILE],
        ["methods", "--plugin", f"{HOSTILE}.py"],
    ],
)
def test_what_was_typed_is_never_printed_raw(osm: Command, typed: list[str]):
    done = osm(*typed)
    assert done.code == 2
    assert done.err.rstrip("\n").isprintable() and done.err.endswith("\n")
