"""osmotic from Python: the same runs as the command's, with images, callbacks and networks of the caller's own."""

from __future__ import annotations

import dataclasses
import doctest
import inspect
import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_network

import osmotic
from osmotic import cli, models
from osmotic.config import presets, toml
from osmotic.metrics import METRICS
from osmotic.pieces import PIECES
from osmotic.runs import resolve

ROOT = Path(__file__).parents[1]
TINY: dict[str, Any] = {
    "model": {"network": "tiny"},
    "training": {"rounds": 2, "local_epochs": 1},
    "score": {"every": 2, "samples": 30, "steps": 3, "guidance": 1},
    "track": {"backends": []},
}
DIGITS = {"max_images": 96, "clients": 3}


@pytest.fixture(autouse=True)
def registries(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a test registers is gone after it."""
    tables = (PIECES, METRICS, models.NETWORKS, presets.PRESETS)
    before = [dict(table) for table in tables]
    tiny_network.register()
    yield
    for table, was in zip(tables, before, strict=True):
        table.clear()
        table.update(was)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> osmotic.Run:
    """A finished run of the tiny network on digits; tests only look at it."""
    tiny_network.register()
    return osmotic.run(**TINY, data=DIGITS, out=tmp_path_factory.mktemp("done") / "run")


def images(count: int = 60, seed: int = 0) -> np.ndarray:
    """Noise, uint8 [count, 8, 8]."""
    return np.random.default_rng(seed).integers(0, 256, (count, 8, 8), dtype=np.uint8)


def command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: Any
) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of `osmotic WORDS`."""
    import warnings

    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    monkeypatch.setattr(sys, "argv", ["osmotic", *map(str, words)])
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        cli.main()
    out, err = capsys.readouterr()
    return int(caught.value.code or 0), out, err  # type: ignore[arg-type]


# --- import osmotic ---


def test_importing_osmotic_is_light() -> None:
    script = (
        "import sys, time; began = time.perf_counter(); import osmotic; took = time.perf_counter() - began\n"
        "print(took, 'numpy' in sys.modules, 'torch' in sys.modules, osmotic.Piece.__name__, 'torch' in sys.modules)"
    )
    runs = [subprocess.run([sys.executable, "-c", script], capture_output=True, text=True) for _ in range(3)]
    times = [float(run.stdout.split()[0]) for run in runs]
    assert min(times) < 0.1
    assert all(run.stdout.split()[1:] == ["False", "False", "Piece", "False"] for run in runs)


def test_every_public_name_is_there_and_an_unknown_one_is_said_to_be_missing() -> None:
    script = "import osmotic\nfor name in osmotic.__all__: assert getattr(osmotic, name) is not None, name"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0
    assert set(osmotic.__all__) - {"__version__"} == set(osmotic._PUBLIC)
    assert set(osmotic.__all__) <= set(dir(osmotic))
    with pytest.raises(AttributeError, match="module 'osmotic' has no attribute 'runn'"):
        osmotic.runn  # noqa: B018


def documented() -> list[tuple[str, Any]]:
    """Public functions and classes, and the methods of `Run`."""
    things = {n: getattr(osmotic, n) for n in osmotic.__all__}
    found = {n: t for n, t in things.items() if str(getattr(t, "__module__", "")).startswith("osmotic")}
    found |= {f"Run.{n}": f for n, f in vars(osmotic.Run).items() if not n.startswith("_")}
    return sorted(found.items())


WITH_EXAMPLES = {
    *(
        "Callback",
        "Run",
        "Run.evaluate",
        "Run.pipeline",
        "Run.resume",
        "Run.sample",
        "compare",
        "leaves",
        "list_pieces",
    ),
    *("list_presets", "load", "plan", "register", "register_preset", "run"),
}


def test_the_parts_of_the_face_explain_themselves_with_examples() -> None:
    parser = doctest.DocTestParser()
    assert {n for n, t in documented() if parser.get_examples(inspect.getdoc(t) or "")} == WITH_EXAMPLES
    assert all(inspect.getdoc(t) for _, t in documented())


@pytest.mark.parametrize("name", sorted(WITH_EXAMPLES))
def test_examples_in_docstrings_are_true(
    name: str, done: osmotic.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The lowest layer of the configuration makes every example a small run.
    small = {"data.max_images": 96, "data.clients": 3, "training.local_epochs": 1.0, "score.samples": 30}
    small |= {"score.steps": 3, "track.backends": (), "training.rounds": 2}
    monkeypatch.setitem(presets.RECIPES, "default", small)
    monkeypatch.chdir(tmp_path)
    thing = dict(documented())[name]
    known = {
        "osmotic": osmotic,
        "numpy": np,
        "finished": str(done.path),
        "folder": "folder",
        "other": "other",
    }
    test = doctest.DocTestParser().get_doctest(inspect.getdoc(thing) or "", known, name, None, 0)
    said: list[str] = []
    doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test, out=said.append)
    assert said == []


# --- settings ---


def test_settings_come_in_every_form_and_mean_the_same(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text(
        'seed = 3\n[training]\nrounds = 5\n[local]\npieces = ["prox"]\n[local.prox]\nmu = 0.5\n'
    )
    tables = {"seed": 3, "training": {"rounds": 5}, "local": {"pieces": ["prox"], "prox": {"mu": 0.5}}}
    dotted = {"seed": 3, "training.rounds": 5, "local.pieces": ["prox"], "local.prox.mu": 0.5}
    config = resolve.load(tmp_path / "c.toml")
    expected = osmotic.plan(tmp_path / "c.toml")
    assert expected["rounds"] == 5 and expected["pieces"] == ["prox"] and expected["seed"] == 3
    assert osmotic.plan(str(tmp_path / "c.toml")) == expected
    assert osmotic.plan(tables) == expected
    assert osmotic.plan(dotted) == expected
    assert osmotic.plan(config) == expected
    assert osmotic.plan(**tables) == expected
    assert osmotic.plan(keys=dotted) == expected


def test_sections_win_over_preset_and_config_and_keys_win_over_all() -> None:
    config = {"training": {"rounds": 4, "local_epochs": 3.0}}
    planned = osmotic.plan(config, preset="fedprox", training={"rounds": 5}, keys={"training.rounds": 6})
    assert (planned["rounds"], planned["local_epochs"], planned["pieces"]) == (6, 3.0, ["prox"])
    assert osmotic.plan(config, training={"rounds": 5})["rounds"] == 5


def test_numbers_of_numpy_are_numbers() -> None:
    planned = osmotic.plan(
        training={"rounds": np.int64(3), "local_epochs": np.float32(2)}, seed=np.arange(3)[2]
    )
    assert (planned["rounds"], planned["local_epochs"], planned["seed"]) == (3, 2.0, 2)


BAD: list[tuple[dict[str, Any], list[str]]] = [
    ({"training": {"round": 5}}, ["--set", "training.round=5"]),
    ({"training": {"rounds": 0}}, ["--set", "training.rounds=0"]),
    ({"training": {"rounds": "many"}}, ["--set", "training.rounds=many"]),
    ({"local": {"pieces": ["proxx"]}}, ["--set", "local.pieces=proxx"]),
    ({"preset": "fedavgg"}, ["--preset", "fedavgg"]),
    ({"data": "digit"}, ["--data", "digit"]),
    ({"data": "npz:none.npz"}, ["--data", "npz:none.npz"]),
    ({"data": "python"}, ["--data", "python"]),
    ({"data": {"image_size": 9}}, ["--set", "data.image_size=9"]),
    ({"config": "none.toml"}, ["none.toml"]),
    ({"codec": {"error_feedback": True}}, ["--set", "codec.error_feedback=true"]),
]


@pytest.mark.parametrize(("settings", "words"), BAD, ids=lambda v: "" if isinstance(v, dict) else v[-1])
def test_errors_are_exceptions_with_the_words_of_the_command(
    settings: dict[str, Any],
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = command(monkeypatch, capsys, "run", *words)
    assert (code, out) == (2, "")
    assert ("handed over in Python: osmotic.run(data=...)" in err) == (words[-1] == "python")
    for function in (osmotic.run, osmotic.plan):
        with pytest.raises(osmotic.ConfigError) as caught:
            function(**settings)
        assert f"osmotic: error: {caught.value}\n" == err
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_section_is_told_with_the_nearest_one() -> None:
    with pytest.raises(
        osmotic.ConfigError, match=r"traning: unknown section \(nearest valid key: training\)"
    ):
        osmotic.plan(traning={"rounds": 5})
    with pytest.raises(
        osmotic.ConfigError, match=r"data.client = 3: unknown key \(nearest valid key: data.clients\)"
    ):
        osmotic.plan(data={"client": 3})
    with pytest.raises(TypeError, match="config must be a path, a Config or a mapping, not int"):
        osmotic.plan(5)  # type: ignore[arg-type]


def test_a_run_from_python_is_the_run_of_the_command(
    done: osmotic.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sets = [f"{key}={value}" for key, value in flat(TINY | {"data": DIGITS}).items()]
    words = [word for text in sets for word in ("--set", text)]
    code, out, _ = command(monkeypatch, capsys, "run", *words, "--json", "--out", tmp_path / "c")
    assert code == 0
    assert without_time(json.loads(out)) == without_time(done.summary)
    assert (tmp_path / "c" / "config.toml").read_text() == (done.path / "config.toml").read_text()
    for name in ("report.html", "model/README.md", "summary.json"):
        assert (done.path / name).exists() and (tmp_path / "c" / name).exists()
    again = osmotic.run(done.config, out=tmp_path / "again")
    assert without_time(again.summary) == without_time(done.summary)


def flat(tables: Any) -> dict[str, Any]:
    return {f"{s}.{k}": json.dumps(v) for s, keys in tables.items() for k, v in keys.items()}


def without_time(summary: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in summary.items() if k != "wall_seconds"}


def test_without_a_folder_runs_are_named_as_the_command_names_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    slim = TINY | {"training": {"rounds": 1, "local_epochs": 1}}
    runs = [osmotic.run(**slim, data=DIGITS, preset="local", seed=7) for _ in range(2)]
    assert [str(run.path) for run in runs] == ["runs/local-digits-7", "runs/local-digits-7-2"]


def test_a_run_prints_nothing_unless_asked_and_leaves_torch_as_it_was(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    import torch

    slim = TINY | {"training": {"rounds": 1, "local_epochs": 1}, "engine": {"threads": 1}}
    threads, seed = torch.get_num_threads(), torch.initial_seed()
    try:
        torch.set_num_threads(3)
        osmotic.run(**slim, data=DIGITS, out=tmp_path / "quiet")
        assert (torch.get_num_threads(), torch.initial_seed()) == (3, seed)
    finally:
        torch.set_num_threads(threads)
    assert tuple(capfd.readouterr()) == ("", "")
    osmotic.run(**slim, data=DIGITS, out=tmp_path / "loud", quiet=False)
    out, err = capfd.readouterr()
    assert "train 1  loss" in err and "bytes up, down" in out


def test_a_used_folder_is_refused_before_anything(tmp_path: Path) -> None:
    (tmp_path / "note").write_text("mine")
    with pytest.raises(osmotic.ConfigError, match=r"--out = .*must be a new or empty folder"):
        osmotic.run(out=tmp_path)


# --- images of one's own ---


def kinds() -> dict[str, Any]:
    """The same 60 labelled images in every kind that Python users have."""
    import datasets
    import torch

    pictures, labels = images(), np.arange(60) % 3
    listed = list(zip(pictures, labels, strict=True))
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["0", "1", "2"])}
    )
    from PIL import Image

    rows = {"image": [Image.fromarray(p) for p in pictures], "label": labels}
    return {
        "pair": (pictures, labels),
        "mapping": {"train_images": pictures, "train_labels": labels},
        "tensors": (torch.from_numpy(pictures), torch.from_numpy(labels)),
        "items": listed,
        "torch Dataset": torch.utils.data.TensorDataset(
            torch.from_numpy(pictures)[:, None], torch.from_numpy(labels)
        ),
        "datasets.Dataset": datasets.Dataset.from_dict(rows, features),
        "DatasetDict": datasets.DatasetDict({"train": datasets.Dataset.from_dict(rows, features)}),
    }


def test_own_images_of_every_kind_make_the_same_run(tmp_path: Path) -> None:
    slim = TINY | {"training": {"rounds": 1, "local_epochs": 1}}
    made = {
        name: osmotic.run(**slim, data=data, keys={"data.clients": 2}, out=tmp_path / str(i))
        for i, (name, data) in enumerate(kinds().items())
    }
    assert len({run.summary["scored_weights_sha256"] for run in made.values()}) == 1
    run = made["pair"]
    assert run.config.data.source == "python"
    assert "osmotic run" not in (run.path / "config.toml").read_text().splitlines()[0]
    # A fifth of 60 is kept for testing.
    assert sum(row["images"] for row in run.partition) == 48
    assert run.sample(2, label=2).shape == (2, 8, 8, 1)


def test_an_array_alone_is_an_unlabelled_run(tmp_path: Path) -> None:
    run = osmotic.run(
        **TINY, data=images(40).repeat(3).reshape(40, 8, 8, 3), keys={"data.partition": "iid", "data.clients": 2}, out=tmp_path / "a"
    )  # fmt: skip
    assert run.sample(3).shape == (3, 8, 8, 3)
    assert run.partition == [
        {"client": "client-000", "images": 16, "held_out": 0},
        {"client": "client-001", "images": 16, "held_out": 0},
    ]
    with pytest.raises(osmotic.ConfigError, match="--label = 1: needs a conditional model"):
        run.sample(2, label=1)


def test_a_plan_of_own_images_is_their_runs_ledger(tmp_path: Path) -> None:
    data = (images(), np.arange(60) % 3)
    for i, more in enumerate([{"data.clients": 2}, {"data.partition": "by:label"}]):
        planned = osmotic.plan(**TINY, data=data, keys=more)
        run = osmotic.run(**TINY, data=data, keys=more, out=tmp_path / str(i))
        totals = ("bytes_up", "bytes_down", "parameters_up", "num_clients", "images_seen")
        assert {k: planned[k] for k in totals} == {k: run.summary[k] for k in totals}


def test_own_images_and_a_source_contradict_each_other() -> None:
    with pytest.raises(osmotic.ConfigError, match=r"data.source = 'digits': images were handed over too"):
        osmotic.run(data=images(), keys={"data.source": "digits"})
    with pytest.raises(osmotic.ConfigError, match="data = 'int': must be an array of images"):
        osmotic.run(data=5)


class Stop(osmotic.Callback):
    """Raises in one method, in the phase of one number."""

    def __init__(self, method: str, phase: int, error: type[BaseException] = ValueError) -> None:
        self.method, self.phase, self.error, self.now = method, phase, error, 0

    def _at(self, method: str) -> None:
        if (method, self.now) == (self.method, self.phase):
            raise self.error("enough")

    def phase_started(self, phase: osmotic.Phase, index: int, count: int) -> None:
        self.now = phase.server_round
        self._at("phase_started")

    def answered(self, client: str) -> None:
        self._at("answered")

    def phase_done(self, line: Any) -> None:
        self._at("phase_done")


def test_a_run_of_own_images_is_resumed_with_the_same_images_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    labels, held = np.arange(60) % 3, images(12, seed=1)
    data = {"train_images": images(), "train_labels": labels, "test_images": held, "test_labels": labels[:12]}
    whole = osmotic.run(**TINY, data=data, keys={"data.clients": 2}, out=tmp_path / "whole")
    with pytest.raises(ValueError, match="enough"):
        osmotic.run(
            **TINY, data=data, keys={"data.clients": 2}, out=tmp_path / "cut", callbacks=Stop("phase_done", 1)
        )
    run = osmotic.load(tmp_path / "cut")
    assert not run.finished
    others = {
        "other training images": data | {"train_images": images(seed=5)},
        "other labels": data | {"train_labels": np.roll(labels, 1)},
        "other test images": data | {"test_images": images(12, seed=5)},
    }
    for name, other in others.items():
        with pytest.raises(osmotic.ConfigError, match=r"data.source = 'python': holds other images"):
            run.resume(data=other)
        assert not run.finished, name
    with pytest.raises(osmotic.ConfigError, match=r"osmotic.load\(DIR\).resume\(data=...\)"):
        run.resume()
    code, _, err = command(monkeypatch, capsys, "resume", run.path)
    assert code == 2 and len(err.splitlines()) == 1 and "handed over in Python" in err
    assert run.resume(data=data).finished
    assert without_time(run.summary) == without_time(whole.summary)
    with pytest.raises(osmotic.ConfigError, match="holds other images"):
        run.evaluate(data=others["other test images"], samples=20)
    assert run.evaluate(data=data)["fd"] == run.summary["quality"]["fd"]


def test_images_are_not_taken_by_a_run_that_reads_its_own(done: osmotic.Run) -> None:
    with pytest.raises(osmotic.ConfigError, match="data: this run reads digits itself: leave it out"):
        done.resume(data=images())


# --- callbacks ---


class Heard(osmotic.Callback):
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.told: list[Any] = []
        self.run: osmotic.Run | None = None

    def phase_started(self, phase: osmotic.Phase, index: int, count: int) -> None:
        self.told.append((phase.name, phase.server_round, index, count))

    def answered(self, client: str) -> None:
        self.told.append(client)

    def phase_done(self, line: Any) -> None:
        self.told.append(line["round"])

    def run_done(self, run: osmotic.Run) -> None:
        assert (run.path / "report.html").is_file()
        self.run = run


def test_callbacks_are_told_everything_in_order(tmp_path: Path) -> None:
    first, second = Heard(), Heard()
    one_by_one = TINY | {"engine": {"workers": 1}}
    run = osmotic.run(**one_by_one, data=DIGITS, out=tmp_path / "run", callbacks=[first, second])
    clients = ["client-000", "client-001", "client-002"]
    assert first.told == [("train", 1, 0, 2), *clients, 1, ("train", 2, 1, 2), *clients, 2]
    assert second.told == first.told
    assert first.run is not None and first.run.path == run.path


def test_what_is_no_callback_is_refused_before_the_run(tmp_path: Path) -> None:
    for wrong in (Heard, [Heard], [print], "abc"):
        with pytest.raises(
            TypeError, match=r"callbacks must be objects of classes derived from osmotic.Callback"
        ):
            osmotic.run(out=tmp_path / "run", callbacks=wrong)  # type: ignore[arg-type]
    assert not (tmp_path / "run").exists()


SCORED = TINY | {"score": TINY["score"] | {"every": 1}}


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> osmotic.Run:
    """As `done`, scored in every round."""
    tiny_network.register()
    return osmotic.run(**SCORED, data=DIGITS, out=tmp_path_factory.mktemp("scored") / "run")


STOPS = [(m, p) for m in ("phase_started", "answered", "phase_done") for p in (1, 2)]


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize(("method", "phase"), STOPS)
def test_an_exception_of_a_callback_ends_the_run_and_a_resume_gives_equal_bits(
    scored: osmotic.Run, tmp_path: Path, method: str, phase: int, every: int
) -> None:
    heard = Heard()
    settings = SCORED | {"checkpoint": {"every": every}}
    with pytest.raises(ValueError, match="enough") as caught:
        osmotic.run(**settings, data=DIGITS, out=tmp_path / "cut", callbacks=[Stop(method, phase), heard])
    # The error, and with it the frames it went through, is still held here: nobody may work on behind it.
    assert caught.value.__traceback__ is not None
    assert not [t for t in threading.enumerate() if t.name.startswith("ThreadPoolExecutor") and t.is_alive()]
    assert heard.run is None
    cut = osmotic.load(tmp_path / "cut")
    assert not cut.finished
    if method == "phase_done":
        steps = [p.name for p in (cut.path / "checkpoints").iterdir()]
        assert f"checkpoint-{phase:06d}.safetensors" in steps, "the phase had counted, and is not done again"
    cut.resume(callbacks=heard)
    assert heard.run is not None
    assert without_time(cut.summary) == without_time(scored.summary)
    for rows in ("metrics", "ledger"):
        mine, theirs = getattr(cut, rows), getattr(scored, rows)
        assert [r | {"wall_seconds": 0} for r in mine] == [r | {"wall_seconds": 0} for r in theirs]


def test_a_callback_may_stop_a_run_as_ctrl_c_does(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        osmotic.run(
            **TINY, data=DIGITS, out=tmp_path / "cut", callbacks=Stop("phase_done", 1, KeyboardInterrupt)
        )
    assert len(osmotic.load(tmp_path / "cut").metrics) == 1
    assert osmotic.load(tmp_path / "cut").resume().finished


def test_a_run_in_which_nobody_was_counted_is_an_error(tmp_path: Path, caplog: Any) -> None:
    @osmotic.register("broken")
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Broken(osmotic.Piece):
        def client_begin(self, step: Any, state: Any) -> Any:
            raise LookupError

    with pytest.raises(
        RuntimeError, match=r"no client came through the first phase, train 1: .*: LookupError"
    ):
        osmotic.run(**TINY, data=DIGITS, local={"pieces": ["broken"]}, out=tmp_path / "run")
    assert not osmotic.load(tmp_path / "run").finished, "it can be gone on with when the piece is mended"


# --- a run's folder as an object ---


def test_rows_are_flat_and_hold_what_the_files_hold(done: osmotic.Run) -> None:
    last = done.metrics[-1]
    assert last["quality.fd"] == done.summary["quality"]["fd"]
    assert last["quality.mean.fd_all"] == done.summary["quality"]["mean"]["fd_all"]
    assert {k for k in last if k.startswith("client_loss.")} == {
        f"client_loss.client-00{i}" for i in range(3)
    }
    assert "quality" not in done.metrics[0] and "quality.fd" not in done.metrics[0]
    for rows in (done.metrics, done.ledger, done.partition):
        assert not any(isinstance(value, dict) for row in rows for value in row.values())
    up = sum(r["bytes"] for r in done.ledger if r["direction"] == "up")
    assert up == done.summary["bytes_up"]
    assert sum(row["images"] for row in done.partition) == 96
    assert all(sum(v for k, v in r.items() if k.startswith("images.")) == r["images"] for r in done.partition)


def test_pandas_takes_the_rows_and_is_not_needed(done: osmotic.Run) -> None:
    pandas = pytest.importorskip("pandas")
    assert pandas.DataFrame(done.metrics)["loss"].tolist() == [row["loss"] for row in done.metrics]
    assert (
        pandas.DataFrame(done.ledger)["bytes"].sum() == done.summary["bytes_up"] + done.summary["bytes_down"]
    )
    assert pandas.DataFrame(osmotic.compare([done]).rows)["fd"].tolist() == [done.summary["quality"]["fd"]]
    script = (
        f"import osmotic, sys; osmotic.load({str(done.path)!r}).metrics; assert 'pandas' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0


def test_a_run_that_goes_on_can_be_looked_at(tmp_path: Path) -> None:
    class Look(osmotic.Callback):
        def phase_done(self, line: Any) -> None:
            run = osmotic.load(tmp_path / "run")
            seen.append((run.finished, len(run.metrics), run.metrics[-1]["loss"] == line["loss"], repr(run)))

    seen: list[Any] = []
    osmotic.run(**TINY, data=DIGITS, out=tmp_path / "run", callbacks=Look())
    assert [s[:3] for s in seen] == [(False, 1, True), (False, 2, True)]
    assert "finished no, 1 phases done" in seen[0][3]
    run = osmotic.load(tmp_path / "run")
    log = run.path / "metrics.jsonl"
    log.write_text(log.read_text() + '{"round": 3, "pha')  # a line that is being written
    assert len(run.metrics) == 2


def test_what_needs_a_finished_run_says_how_to_finish_it(tmp_path: Path) -> None:
    with pytest.raises(osmotic.ConfigError, match="is not the folder of a run"):
        osmotic.load(tmp_path)
    (tmp_path / "config.toml").write_text(toml.to_toml(resolve.load()))
    run = osmotic.load(tmp_path)
    for use in (lambda: run.summary, run.sample, run.pipeline, run.evaluate, run.report):
        with pytest.raises(osmotic.ConfigError, match=r"is not finished yet; go on with `osmotic resume"):
            use()  # type: ignore[no-untyped-call]
    assert run.metrics == run.ledger == run.partition == []


def test_a_run_shows_itself(done: osmotic.Run) -> None:
    assert repr(done).startswith(f"Run({str(done.path)!r}: run fedavg, data digits, clients 3, rounds 2, FD ")
    html = done._repr_html_()
    assert html.startswith("<table>") and len(html) < 2000 and "fedavg" in html


def test_samples_are_those_of_the_command_and_nothing_is_written(
    done: osmotic.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    before = sorted(done.path.rglob("*"))
    drawn = done.sample(6, steps=2, seed=4)
    assert sorted(done.path.rglob("*")) == before
    assert drawn.dtype == np.uint8 and drawn.shape == (6, 8, 8, 1)
    words = ("--count", 6, "--steps", 2, "--seed", 4, "--out", tmp_path / "s")
    assert command(monkeypatch, capsys, "sample", done.path, *words)[0] == 0
    files = sorted(p for p in (tmp_path / "s").glob("0*.png"))
    assert [p.name for p in files] == [f"{i:05d}-{i}.png" for i in range(6)]
    assert np.array_equal(np.stack([np.asarray(Image.open(p)) for p in files]), drawn[..., 0])
    # Noise belongs to the image: the first of six are those of two, up to a rounding of the network.
    assert np.abs(done.sample(2, steps=2, seed=4).astype(int) - drawn[:2]).max() <= 1
    assert not np.array_equal(done.sample(6, steps=2, seed=5), drawn)
    assert np.array_equal(done.sample(2, label=3, steps=2), done.sample(2, label="3", steps=2))
    with pytest.raises(osmotic.ConfigError, match="--label = 'cat': must be one of 0, 1"):
        done.sample(2, label="cat")
    with pytest.raises(osmotic.ConfigError, match="--client = 'client-000': this run has one global model"):
        done.sample(2, client="client-000")
    with pytest.raises(osmotic.ConfigError, match="count = 0: must be >= 1"):
        done.sample(0)


def test_a_pipeline_is_the_one_that_diffusers_loads(tmp_path: Path) -> None:
    import torch
    from diffusers import DiffusionPipeline

    settings = {k: v for k, v in TINY.items() if k != "model"} | {
        "training": {"rounds": 1, "local_epochs": 1}
    }
    for name, model in {
        "classes": {},
        "stock": {"conditional": False},
        "edm": {"conditional": False, "target": "edm"},
        "convnext": {"network": "convnext-unet"},
    }.items():
        sampler = {"sampler": "edm-euler"} if name == "edm" else {}
        made = settings | {"model": model, "score": TINY["score"] | sampler}
        run = osmotic.run(**made, data=DIGITS, out=tmp_path / name)
        folder = run.path / "model"
        own = str(folder) if (folder / "class_conditional_pipeline.py").exists() else None
        theirs = DiffusionPipeline.from_pretrained(
            folder, custom_pipeline=own, trust_remote_code=True, low_cpu_mem_usage=False
        )
        drawn = []
        for pipe in (theirs, run.pipeline()):
            pipe.set_progress_bar_config(disable=True)
            seed = torch.Generator().manual_seed(1)
            drawn.append(pipe(batch_size=2, generator=seed, num_inference_steps=2, output_type="np").images)
        assert type(theirs).__name__ == type(run.pipeline()).__name__
        # diffusers runs its own forward pass of UNet2DModel, osmotic `models/unet_forward.py`: the same but for rounding,
        # some units of 2**-24 after two evaluations; a shade of 8 bits is 4e-3.
        assert np.abs(drawn[0] - drawn[1]).max() <= (0 if name == "convnext" else 1e-5), name


def test_no_file_of_a_run_folder_is_executed(
    done: osmotic.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    settings = {k: v for k, v in TINY.items() if k != "model"} | {
        "training": {"rounds": 1, "local_epochs": 1}
    }
    run = osmotic.run(**settings, data=DIGITS, model={"network": "convnext-unet"}, out=tmp_path / "run")
    expected = run.sample(2, steps=2)
    marker = tmp_path / "ran"
    code = f"open({str(marker)!r}, 'w').close()\n"
    planted = [*run.path.rglob("*.py")]
    assert {p.name for p in planted} == {"class_conditional_pipeline.py", "convnext_unet_2d.py"}
    for name in (
        "class_conditional_pipeline.py",
        "convnext_unet_2d.py",
        "pipeline.py",
        "osmotic.py",
        "feddyn.py",
    ):
        for folder in (run.path, run.path / "model", run.path / "model" / "unet"):
            there = folder / name
            there.write_text(code + (there.read_text() if there.exists() else ""))
    index = run.path / "model" / "model_index.json"
    entries = json.loads(index.read_text()) | {"_class_name": ["pipeline", "Pipeline"]}
    index.write_text(json.dumps(entries))
    shutil.copy(run.path / "model" / "unet" / "convnext_unet_2d.py", tmp_path / "convnext_unet_2d.py")
    monkeypatch.chdir(run.path / "model")
    assert np.array_equal(run.sample(2, steps=2), expected)
    run.pipeline()
    run.report()
    run.evaluate(samples=20)
    assert command(monkeypatch, capsys, "sample", run.path, "--count", 2, "--out", tmp_path / "s")[0] == 0
    assert not marker.exists()


@pytest.mark.parametrize(
    ("file", "text", "words"),
    [
        ("unet/config.json", '{"sample_size": 8}', "does not describe a network"),
        ("unet/config.json", "[]", "must be a JSON object"),
        ("unet/config.json", "{", "is not valid JSON"),
        ("unet/config.json", '{"sample_size": 16, "in_channels": 3, "num_class_embeds": 11}', "does not hold the weights"),
        ("unet/diffusion_pytorch_model.safetensors", "no weights", "cannot be read"),
    ],
)  # fmt: skip
def test_a_broken_model_is_one_line(
    tmp_path: Path, unet_run: osmotic.Run, file: str, text: str, words: str
) -> None:
    import shutil

    shutil.copytree(unet_run.path, tmp_path / "run")
    (tmp_path / "run" / "model" / file).write_text(text)
    with pytest.raises(osmotic.ConfigError, match=words) as caught:
        osmotic.load(tmp_path / "run").sample(1)
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def unet_run(tmp_path_factory: pytest.TempPathFactory) -> osmotic.Run:
    settings = {k: v for k, v in TINY.items() if k != "model"} | {
        "training": {"rounds": 1, "local_epochs": 1}
    }
    return osmotic.run(**settings, data=DIGITS, out=tmp_path_factory.mktemp("unet") / "run")


def test_models_of_clients_are_drawn_by_name(tmp_path: Path) -> None:
    own = osmotic.run(**TINY, data=DIGITS, preset="local", out=tmp_path / "local")
    with pytest.raises(
        osmotic.ConfigError, match="--client: must be one of client-000, client-001, client-002"
    ):
        own.sample(2)
    with pytest.raises(osmotic.ConfigError, match=r"--client = 'client-01': .*nearest valid key: client-001"):
        own.sample(2, client="client-01")
    pools = [own.sample(2, client=f"client-00{i}") for i in range(3)]
    assert not np.array_equal(pools[0], pools[1])
    both = osmotic.run(**TINY, data=DIGITS, after={"pieces": ["personalise"]}, out=tmp_path / "both")
    assert not np.array_equal(both.sample(2), both.sample(2, client="client-002"))
    with pytest.raises(osmotic.ConfigError, match="--client = 'central': must be one of client-000"):
        both.sample(2, client="central")


def test_scoring_again_changes_nothing_in_the_run(done: osmotic.Run) -> None:
    files = {p: p.stat().st_mtime_ns for p in done.path.rglob("*") if p.is_file()}
    again = done.evaluate()
    assert again["fd"] == done.summary["quality"]["fd"]
    raw = done.evaluate(ema=0, samples=20, sampler="ddim", metrics=[])
    assert (raw["half_life"], raw["num_samples"], raw["sampler"]) == (0, 20, "ddim")
    assert {p: p.stat().st_mtime_ns for p in done.path.rglob("*") if p.is_file()} == files
    with pytest.raises(
        osmotic.ConfigError, match=r"score.sample = 5: unknown key \(nearest valid key: score.samples\)"
    ):
        done.evaluate(sample=5)
    with pytest.raises(osmotic.ConfigError, match="--ema = 3: must be 0 or one of 5000, 20000"):
        done.evaluate(ema=3)


def test_an_own_metric_lands_in_the_summary_and_in_scores_taken_later(
    done: osmotic.Run, tmp_path: Path
) -> None:
    @osmotic.register("brightness")
    def brightness(pictures: np.ndarray, reference: np.ndarray) -> float:
        seen.append((pictures.dtype, pictures.shape, reference.shape))
        return float(pictures.mean())

    seen: list[Any] = []
    score = TINY["score"] | {"metrics": ["brightness"]}
    run = osmotic.run(**(TINY | {"score": score}), data=DIGITS, out=tmp_path / "run")
    assert seen == [(np.uint8, (30, 8, 8, 1), (96, 8, 8, 1))]
    found = run.summary["quality"]["metrics"]
    assert list(found) == ["brightness"] and 0 < found["brightness"] < 255
    assert run.metrics[-1]["quality.metrics.brightness"] == found["brightness"]
    assert done.evaluate(metrics=["brightness"])["metrics"] == found, "the same run but for the metric"


# --- networks of one's own ---


def network(widths: int) -> Any:
    """A build for `register_network`: two layers with diffusers' call."""
    import torch
    from torch import nn

    class Two(nn.Module):
        def __init__(self, channels: int, classes: int) -> None:
            super().__init__()
            self.into = nn.Conv2d(channels, widths, 3, padding=1)
            self.time = nn.Linear(1, widths)
            self.label = nn.Embedding(classes + 1, widths)
            self.out = nn.Conv2d(widths, channels, 3, padding=1)

        def forward(self, x: Any, t: Any, class_labels: Any = None, return_dict: bool = True) -> Any:
            at = self.time(t.float().reshape(-1, 1).expand(len(x), 1) / 1000) + self.label(class_labels)
            return (self.out(torch.relu(self.into(x) + at[:, :, None, None])),)

    return lambda spec: Two(spec.channels, spec.num_classes)


PARTS = {"encoder": ["into", "time"], "decoder": ["label", "out"]}


@pytest.mark.parametrize(("preset", "parts"), [("fedavg", None), ("udec", PARTS)])
def test_an_own_network_runs_whole_and_in_parts(tmp_path: Path, preset: str, parts: Any) -> None:
    osmotic.register_network("two", network(4), parts=parts)
    settings = TINY | {"model": {"network": "two"}, "score": TINY["score"] | {"guidance": 1.5}}
    run = osmotic.run(**settings, preset=preset, data=DIGITS, out=tmp_path / "run")
    # into: 4 x 9 + 4, time: 4 + 4, label: 11 x 4, out: 4 x 9 + 1.
    assert run.summary["parameters"] == 40 + 8 + 44 + 37
    shared = 44 + 37 if parts else 40 + 8 + 44 + 37
    assert run.summary["parameters_up"] == 2 * 3 * shared
    client = None if preset == "fedavg" else "client-001"
    assert run.sample(3, label=1, client=client).shape == (3, 8, 8, 1)
    pipe = run.pipeline(client)
    pipe.set_progress_bar_config(disable=True)
    assert len(pipe(class_labels=["0", 4]).images) == 2
    del models.NETWORKS["two"]
    with pytest.raises(osmotic.ConfigError, match=r"model.network = 'two': must be one of"):
        run.sample(1, client=client)
    with pytest.raises(
        osmotic.ConfigError, match=r"model.network = 'two': .*one of your own needs --plugin FILE"
    ):
        run.evaluate()
    osmotic.register_network("two", network(5), parts=parts)
    with pytest.raises(osmotic.ConfigError, match="does not hold the weights of network two"):
        run.sample(1, client=client)


# --- several runs, and the lists ---


def test_runs_are_compared_by_object_or_folder(done: osmotic.Run, tmp_path: Path) -> None:
    other = osmotic.run(**TINY, data=DIGITS, preset="scaffold", out=tmp_path / "scaffold")
    comparison = osmotic.compare([done, str(other.path)])
    assert [row.pieces for row in comparison.rows] == [(), ("scaffold",)]
    assert comparison.comparable
    assert comparison.write_html(tmp_path / "c.html").is_file()
    with pytest.raises(osmotic.ConfigError, match="needs at least one run folder"):
        osmotic.compare([])


def test_lists_are_those_of_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert json.loads(command(monkeypatch, capsys, "methods", "--json")[1]) == jsonable(
        osmotic.list_presets()
    )
    rows = osmotic.list_pieces()
    assert json.loads(command(monkeypatch, capsys, "methods", "--pieces", "--json")[1]) == jsonable(rows)
    assert [row["piece"] for row in rows] == list(PIECES)
    adam = next(row for row in rows if row["piece"] == "adam")
    assert (adam["section"], adam["paper"]) == ("server", "2003.00295")
    assert adam["keys"]["server.adam.beta2"] == 0.99
    text = command(monkeypatch, capsys, "methods", "--pieces")[1]
    assert all(re.search(rf"^{name} +\[{cls.section}\]", text, re.MULTILINE) for name, cls in PIECES.items())


def jsonable(rows: Any) -> Any:
    return json.loads(json.dumps(rows))


# --- the command itself ---


def test_the_package_is_a_command_and_without_words_it_helps() -> None:
    for words in ([], ["--help"]):
        done = subprocess.run([sys.executable, "-m", "osmotic", *words], capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
        assert "Usage: python -m osmotic" in done.stdout and "resume" in done.stdout


# --- the pages ---


def test_the_examples_of_the_page_run_one_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code = re.findall(
        r"^```python\n(.*?)^```", (ROOT / "docs" / "python.md").read_text(), re.MULTILINE | re.DOTALL
    )
    assert len(code) >= 8
    known: dict[str, Any] = {"__name__": "page"}
    monkeypatch.setitem(sys.modules, "page", type(sys)("page"))
    sys.modules["page"].__dict__.update(known)
    for block in code:
        exec(compile(block, "docs/python.md", "exec"), sys.modules["page"].__dict__)


def notebook() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((ROOT / "docs" / "tour.ipynb").read_text())
    return found


def test_the_tour_was_really_run_and_shows_pictures_and_nothing_of_the_machine() -> None:
    path = ROOT / "docs" / "tour.ipynb"
    cells = [cell for cell in notebook()["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert {output["output_type"] for output in outputs} <= {"display_data", "execute_result", "stream"}
    assert not [o for o in outputs if o.get("name") == "stderr"]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 4
    assert path.stat().st_size < 400_000
    assert not re.search(r"/(tmp|work|home|root|Users)/", path.read_text())


@pytest.mark.slow
def test_the_cells_of_the_tour_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import matplotlib

    matplotlib.use("agg")
    monkeypatch.chdir(tmp_path)
    module = type(sys)("tour")
    monkeypatch.setitem(sys.modules, "tour", module)
    code = ["".join(cell["source"]) for cell in notebook()["cells"] if cell["cell_type"] == "code"]
    small = code[0].replace("ROUNDS, IMAGES = 12, 1000", "ROUNDS, IMAGES = 2, 100")
    assert small != code[0]
    for block in (small, *code[1:]):
        exec(compile(block, "docs/tour.ipynb", "exec"), module.__dict__)
