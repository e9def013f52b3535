"""What users add by name: what `register` takes and refuses, and where plugins come from, and where never."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import tiny_network

import osmotic
from osmotic import cli, models, plugins
from osmotic.codecs import CODECS
from osmotic.codecs.fp16 import Fp16
from osmotic.config import presets, schema
from osmotic.methods import METHODS
from osmotic.methods.fedavg import FedAvg
from osmotic.metrics import METRICS
from osmotic.pieces import PIECES
from osmotic.runs import resolve

TINY: dict[str, Any] = {
    "model": {"network": "tiny"},
    "data": {"max_images": 96, "clients": 3},
    "training": {"rounds": 2, "local_epochs": 1},
    "score": {"samples": 30, "steps": 3, "guidance": 1},
    "track": {"backends": []},
}
REGISTRIES: tuple[dict[str, Any], ...] = (PIECES, METHODS, CODECS, METRICS, presets.PRESETS, models.NETWORKS)


@pytest.fixture(autouse=True)
def registries(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a test registers is gone after it."""
    before = [dict(registry) for registry in REGISTRIES]
    monkeypatch.setattr(plugins, "_own_presets", set())
    monkeypatch.setattr(plugins, "FILES", [])
    tiny_network.register()
    yield
    forget(before)


def forget(before: list[dict[str, Any]]) -> None:
    for registry, was in zip(REGISTRIES, before, strict=True):
        registry.clear()
        registry.update(was)


# As short as a user's file may be: a pull that does nothing at its default, and a word on the server.
PULL = textwrap.dedent(
    """\
    from __future__ import annotations

    from dataclasses import dataclass
    from typing import Literal

    import osmotic


    @osmotic.register("pull")
    @dataclass(frozen=True, kw_only=True)
    class Pull(osmotic.Piece):
        title = "a pull of one's own"

        strength: float | Literal["off"] = osmotic.key("off", "how hard", 0)
        spared: tuple[str, ...] = osmotic.key((), "beginnings of names that are left alone")

        def after_backward(self, step, work):
            for name, weight in step.parameters.items():
                if self.strength != "off" and not name.startswith(self.spared):
                    weight.grad.add_(weight.detach() - step.received[name], alpha=self.strength)

        def change(self, view, state, gathered, phase, mean):
            return mean, state, {"tensors": len(mean)}
    """
)


@pytest.fixture
def pull(tmp_path: Path) -> Path:
    path = tmp_path / "pull.py"
    path.write_text(PULL)
    return path


def command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: Any
) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of `osmotic WORDS`, in this process."""
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    monkeypatch.setattr(sys, "argv", ["osmotic", *map(str, words)])
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        cli.main()
    out, err = capsys.readouterr()
    return int(caught.value.code or 0), out, err  # type: ignore[arg-type]


def without_time(summary: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in summary.items() if k != "wall_seconds"}


# --- what register takes ---


def test_a_registered_piece_is_a_piece_with_checked_keys(pull: Path, tmp_path: Path) -> None:
    plugins.load_file(pull)
    off = osmotic.run(**TINY, local={"pieces": ["pull"]}, out=tmp_path / "off")
    plain = osmotic.run(**TINY, out=tmp_path / "plain")
    assert off.summary["scored_weights_sha256"] == plain.summary["scored_weights_sha256"]
    assert off.metrics[0]["pull/tensors"] > 0
    assert off.summary["preset"] == "fedavg+pull"
    assert off.config.local.options == {"pull": {"strength": "off", "spared": []}}
    # At 0.5 it is FedProx's gradient; no name is spared that begins with "none".
    settings = {"pieces": ["pull"], "pull": {"strength": 0.5, "spared": ["none"]}}
    on = osmotic.run(**TINY, local=settings, out=tmp_path / "on")
    prox = osmotic.run(**TINY, local={"pieces": ["prox"], "prox": {"mu": 0.5}}, out=tmp_path / "prox")
    assert on.summary["scored_weights_sha256"] == prox.summary["scored_weights_sha256"]
    assert on.summary["scored_weights_sha256"] != plain.summary["scored_weights_sha256"]
    assert on.resume().finished, "its options, a tuple among them, are those of the run's beginning"
    for key, value, words in (
        ("strength", -1, r"local.pull.strength = -1.0: must be >= 0"),
        ("spared", 3, r"local.pull.spared = 3: must be a list"),
        ("strenth", 1, r"local.pull.strenth = 1: .*nearest valid key: strength"),
    ):
        with pytest.raises(osmotic.ConfigError, match=words):
            osmotic.plan(local={"pieces": ["pull"], "pull": {key: value}})


def test_options_arrive_in_the_types_of_their_keys() -> None:
    @osmotic.register("typed")
    @dataclass(frozen=True, kw_only=True)
    class Typed(osmotic.Piece):
        share: float = osmotic.key(0.5, "a float")
        names: tuple[str, ...] = osmotic.key(("a",), "a tuple")

    config = resolve.load(sets=["local.pieces=typed", "local.typed.share=1", "local.typed.names=b,c"])
    assert config.local.options == {"typed": {"share": 1.0, "names": ("b", "c")}}
    assert type(config.local.options["typed"]["share"]) is float
    assert resolve.load(schema.to_dict(config)) == config, "also from a file, which knows no tuples"


def test_a_registered_exchange_and_codec_run(tmp_path: Path) -> None:
    @osmotic.register("gift")
    @dataclass(frozen=True, kw_only=True)
    class Gift(FedAvg):
        """FedAvg whose clients return the decoder alone."""

        def tasks(self, view: Any, phase: osmotic.Phase, clients: Any) -> Any:
            for client in clients:
                yield osmotic.Task(client, "train", send=self.shared, returns=("decoder",))

    @osmotic.register("rough")
    class Rough(Fp16):
        """Half precision under a name of its own."""

    settings = {"method": {"name": "gift"}, "codec": {"up": "rough"}}
    planned = osmotic.plan(**TINY, **settings)
    run = osmotic.run(**TINY, **settings, out=tmp_path / "run")
    assert (run.summary["method"], run.summary["codec_up"]) == ("gift", "rough")
    assert run.summary["bytes_up"] == planned["bytes_up"]
    assert run.summary["parameters_up"] < run.summary["parameters_down"]
    assert (Rough.name, Fp16.name) == ("rough", "fp16")


def test_a_metric_is_registered_by_the_same_function() -> None:
    assert osmotic.register("ink", lambda images, reference: 1.0)(1, 2) == 1.0
    assert "ink" in METRICS
    with pytest.raises(ValueError, match="lower-case letters, digits and underscores"):
        osmotic.register("my-ink", lambda images, reference: 1.0)


def test_a_preset_is_a_name_for_keys(tmp_path: Path) -> None:
    osmotic.register_preset(
        "gentle", {"local.pieces": ["prox"], "local.prox.mu": 0.5}, exchanges="as fedavg", paper="1812.06127"
    )
    row = osmotic.list_presets()[-1]
    assert row == {
        "preset": "gentle",
        "exchanges": "as fedavg",
        "paper": "1812.06127",
        "keys": {"local.pieces": ["prox"], "local.prox.mu": 0.5},
    }
    with pytest.raises(KeyboardInterrupt):
        osmotic.run(**TINY, preset="gentle", out=tmp_path / "run", callbacks=Stop())
    assert osmotic.load(tmp_path / "run").config.preset == "gentle"
    del presets.PRESETS["gentle"]
    run = osmotic.load(tmp_path / "run").resume()
    assert run.summary["preset"] == "gentle", "a run keeps its name where its preset is not known"
    assert run.config.local.options == {"prox": {"mu": 0.5}}
    with pytest.raises(osmotic.ConfigError, match=r"training.round = 3: unknown key"):
        osmotic.register_preset("bad", {"training": {"round": 3}})
    assert "bad" not in presets.PRESETS


class Stop(osmotic.Callback):
    def phase_done(self, line: Any) -> None:
        raise KeyboardInterrupt


# --- what register refuses ---


def test_names_are_checked_and_those_of_the_package_are_taken() -> None:
    class Plain(osmotic.Piece):
        pass

    class Half(Fp16):
        pass

    for bad in ("Pull", "my piece", "1st", "", "a+b", "ä", None, 3):
        with pytest.raises(osmotic.ConfigError, match=r"piece name.*: must be lower-case letters"):
            osmotic.register(bad, Plain)  # type: ignore[call-overload]
    for thing, taken in ((Plain, "prox"), (FedAvg, "udec"), (Half, "int8")):
        with pytest.raises(
            osmotic.ConfigError, match=f"name = '{taken}': is a .* of the package: take another"
        ):
            osmotic.register(taken, thing)
    for thing, reserved in (
        (Plain, "pieces"),
        (Plain, "model"),
        (Plain, "codec"),
        (Half, "up"),
        (Half, "changed_only"),
    ):
        with pytest.raises(osmotic.ConfigError, match=f"name = '{reserved}': means something else"):
            osmotic.register(reserved, thing)
    with pytest.raises(osmotic.ConfigError, match="preset name = 'fedavg': is a preset of the package"):
        osmotic.register_preset("fedavg", {})
    with pytest.raises(osmotic.ConfigError, match="preset name = 'My': must be lower-case"):
        osmotic.register_preset("My", {})
    assert PIECES["prox"].__name__ == "Prox" and "pieces" not in PIECES


def test_ones_own_name_is_replaced_so_that_a_cell_can_run_again() -> None:
    for mu in (0.1, 0.2):

        @osmotic.register("again")
        @dataclass(frozen=True, kw_only=True)
        class Again(osmotic.Piece):
            mu_of_it: float = osmotic.key(mu, "any")

        assert PIECES["again"] is Again
    assert osmotic.list_pieces()[-1]["keys"] == {"local.again.mu_of_it": 0.2}
    for mu in (0.1, 0.2):
        osmotic.register_preset("twice", {"local": {"pieces": ["prox"], "prox": {"mu": mu}}})
    assert presets.PRESETS["twice"].keys["local.prox.mu"] == 0.2


def test_things_of_no_kind_are_refused_with_what_would_do() -> None:
    import torch

    with pytest.raises(TypeError, match=r"use osmotic.register_network"):
        osmotic.register("net", torch.nn.Linear)
    with pytest.raises(TypeError, match=r"dict must derive from osmotic.Piece"):
        osmotic.register("thing", dict)
    with pytest.raises(TypeError, match="Fp16 has a name already: derive a class from it"):
        osmotic.register("half", Fp16)
    assert Fp16.name == "fp16"
    with pytest.raises(TypeError, match="must be a class derived from Piece, Method or Codec, or a function"):
        osmotic.register("thing", 5)


def test_classes_that_cannot_be_configured_are_refused_when_they_are_registered() -> None:
    with pytest.raises(TypeError, match=r"put @dataclass.* between @osmotic.register and the class"):

        @osmotic.register("order")
        class Order(osmotic.Piece):
            share: float = osmotic.key(0.5, "forgotten decorator")

    with pytest.raises(TypeError, match="key share needs a default"):

        @osmotic.register("bare")
        @dataclass(frozen=True, kw_only=True)
        class Bare(osmotic.Piece):
            share: float

    for hint in (dict, list[int], float | None, int | float, Literal[1, 2], tuple[int, str], Any):
        made = dataclass(frozen=True, kw_only=True)(
            type(
                "Odd", (osmotic.Piece,), {"__annotations__": {"share": hint}, "share": osmotic.key(None, "")}
            )
        )
        with pytest.raises(TypeError, match="key share must be of type int, float, bool"):
            osmotic.register("odd", made)

    with pytest.raises(osmotic.ConfigError, match=r"low.share = 0.0: must be > 0"):

        @osmotic.register("low")
        @dataclass(frozen=True, kw_only=True)
        class Low(osmotic.Piece):
            share: float = osmotic.key(0, "its own default is out of its range", 0, above=True)

    with pytest.raises(TypeError, match="abstract"):

        @osmotic.register("half-done")
        class HalfDone(osmotic.Method):
            pass

    assert not {"order", "bare", "odd", "low"} & set(PIECES) and "half-done" not in METHODS


# --- plugin files ---

WRONG = {
    "no such file": (None, ["cannot be read", "No such file"]),
    "syntax": ("x = 1\ndef f(:\n", ["line 2", "invalid syntax"]),
    "an error": ("import osmotic\n\n1 / 0\n", ["line 3", "ZeroDivisionError: division by zero"]),
    "several lines": ("raise ValueError('one\\ntwo')\n", ["line 1", "ValueError: one"]),
    "a taken name": ("import osmotic\nosmotic.register('prox', osmotic.Piece)\n", ["line 2", "'prox'", "of the package"]),
    "it exits": ("raise SystemExit(0)\n", ["line 1", "SystemExit"]),
    "no text": (b"\x00\xff", [""]),
    "unknown type": (
        "from __future__ import annotations\nimport osmotic\nfrom dataclasses import dataclass\n"
        "@osmotic.register('odd')\n@dataclass(frozen=True, kw_only=True)\nclass Odd(osmotic.Piece):\n"
        "    share: Fraction = osmotic.key(0.5, '')\n",
        ["TypeError", "Fraction"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_a_plugin_that_cannot_be_run_is_one_line_with_its_place(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source, words = WRONG[case]
    path = tmp_path / "plugin.py"
    if source is not None:
        path.write_bytes(source if isinstance(source, bytes) else source.encode())
    modules = set(sys.modules)
    code, out, err = command(monkeypatch, capsys, "plan", "--plugin", path)
    assert (code, out, len(err.splitlines())) == (2, "", 1), err
    assert err.startswith(f"osmotic: error: --plugin = '{path}': ")
    assert all(word in err for word in words)
    assert not {m for m in set(sys.modules) - modules if m.startswith("plugin_")}


def test_two_files_of_one_name_are_two_plugins(tmp_path: Path) -> None:
    for folder, kind in (("a", "Left"), ("b", "Right")):
        (tmp_path / folder).mkdir()
        text = (
            "from __future__ import annotations\nfrom dataclasses import dataclass\nfrom typing import Literal\nimport osmotic\n"
            f"{kind} = Literal['{kind.lower()}']\n"
            f"@osmotic.register('{kind.lower()}')\n@dataclass(frozen=True, kw_only=True)\nclass Piece(osmotic.Piece):\n"
            f"    side: {kind} = osmotic.key('{kind.lower()}', '')\n"
        )
        (tmp_path / folder / "piece.py").write_text(text)
        plugins.load_file(tmp_path / folder / "piece.py")
    # Types written as text are looked up in the file that the class came from.
    assert osmotic.plan(local={"pieces": ["left", "right"]})["pieces"] == ["left", "right"]
    with pytest.raises(osmotic.ConfigError, match=r"local.left.side = 'right': must be one of left"):
        osmotic.plan(local={"pieces": ["left"], "left": {"side": "right"}})


def test_no_bytecode_is_left_beside_a_plugin(pull: Path) -> None:
    plugins.load_file(pull)
    pull.write_text(PULL.replace("a pull of one's own", "a pull of our own"))
    plugins.load_file(pull)
    assert PIECES["pull"].title == "a pull of our own"
    assert [p.name for p in pull.parent.iterdir()] == ["pull.py"]


def test_every_command_takes_plugins(
    pull: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    known = [dict(registry) for registry in REGISTRIES]
    sets = [f"{s}.{k}={json.dumps(v)}" for s, keys in TINY.items() for k, v in keys.items()]
    words = [
        word for text in (*sets, "local.pieces=pull", "local.pull.strength=0.5") for word in ("--set", text)
    ]
    run = tmp_path / "run"

    def osm(*arguments: Any) -> tuple[int, str, str]:
        forget(known)
        return command(monkeypatch, capsys, *arguments)

    plugin = ("--plugin", pull)
    for name in ("run", "plan", "split"):
        code, out, err = osm(name, *words, *(("--out", tmp_path / name) if name != "plan" else ()))
        assert (code, out) == (2, "")
        assert "local.pieces = 'pull'" in err and "a piece of your own needs --plugin FILE" in err
        assert len(err.splitlines()) == 1
    assert osm("plan", *words, *plugin)[0] == 0
    assert osm("split", *words, *plugin, "--out", tmp_path / "split")[0] == 0
    code, out, err = osm("run", *words, *plugin, "--out", run, "--json")
    assert code == 0, err
    assert json.loads(out)["pieces"] == ["pull"]
    assert "`osmotic run config.toml --plugin pull.py` repeats this run" in (run / "config.toml").read_text()
    # What needs the piece's code is refused without it, in one line that names piece and flag.
    for name in ("resume", "evaluate"):
        code, out, err = osm(name, run)
        assert (code, out, len(err.splitlines())) == (2, "", 1)
        assert "'pull'" in err and "--plugin FILE" in err
        assert osm(name, run, *plugin)[0] == 0
    for arguments in (("sample", run, "--count", 2), ("report", run), ("compare", run)):
        assert osm(*arguments)[0] == 0, "what needs no code of the piece works without it"
        more = ("--out", tmp_path / "more") if arguments[0] == "sample" else ()
        assert osm(*arguments, *more, *plugin)[0] == 0
    assert "a pull of one&#39;s own" in (run / "report.html").read_text()
    assert "a pull of one's own" not in osm("methods", "--pieces")[1]
    assert "a pull of one's own" in osm("methods", "--pieces", *plugin)[1]
    assert osm("methods", *plugin)[1] == osm("methods")[1]


def test_plugins_are_repeatable(
    pull: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "preset.py").write_text(
        "import osmotic\nosmotic.register_preset('pulled', {'local.pieces': ['pull']})\n"
    )
    words = ("--preset", "pulled", "--plugin", pull, "--plugin", tmp_path / "preset.py", "--json")
    code, out, _ = command(monkeypatch, capsys, "plan", *words)
    assert code == 0
    assert json.loads(out)["preset"] == "pulled" and json.loads(out)["pieces"] == ["pull"]


# --- what is never imported, and what is ---


def fresh(folder: Path, *words: Any, **environment: str) -> subprocess.CompletedProcess[str]:
    """`osmotic WORDS` in a process of its own, in `folder`."""
    asked = [sys.executable, "-m", "osmotic", *map(str, words)]
    return subprocess.run(asked, cwd=folder, env=os.environ | environment, capture_output=True, text=True)


def test_a_run_folder_never_makes_anything_run(tmp_path: Path) -> None:
    marker = tmp_path / "imported"
    text = PULL + f"\nopen({str(marker)!r}, 'w').close()\n"
    here = tmp_path / "here"
    here.mkdir()
    (here / "pull.py").write_text(text)
    known = [dict(registry) for registry in REGISTRIES]
    plugins.load_file(here / "pull.py")
    settings = TINY | {"model": {}, "training": {"rounds": 1, "local_epochs": 1}}
    osmotic.run(**settings, local={"pieces": ["pull"]}, out=here / "run")
    forget(known)
    assert marker.exists()
    marker.unlink()
    # Files with the names that the run speaks of lie wherever one might look for them.
    for folder in (here, here / "run", here / "run" / "model"):
        for name in ("pull.py", "local.py", "plugins.py", "conftest.py", "sitecustomize_of_run.py"):
            (folder / name).write_text(text)
    config = here / "run" / "config.toml"
    config.write_text(config.read_text().replace("# osmotic", "# --plugin pull.py; osmotic", 1))
    for name in ("resume", "evaluate"):
        refused = fresh(here, name, "run")
        assert refused.returncode == 2 and len(refused.stderr.splitlines()) == 1
        assert "'pull'" in refused.stderr and "--plugin FILE" in refused.stderr
    for arguments in (("report", "run"), ("compare", "run"), ("sample", "run", "--count", "2")):
        assert fresh(here, *arguments).returncode == 0
    assert not marker.exists()


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A folder on the path in which two packages with entry points are installed, one of them broken."""
    site = tmp_path / "site"
    for package, module in (("good-plug", "good_plug"), ("bad-plug", "bad_plug")):
        info = site / f"{module}-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[osmotic.plugins]\n{package} = {module}\n")
    (site / "good_plug.py").write_text(PULL)
    (site / "bad_plug.py").write_text("import something_that_is_not_there\n")
    return site


def test_plugins_of_installed_packages_are_found_and_a_broken_one_is_one_line(
    installed: Path, tmp_path: Path
) -> None:
    listed = fresh(tmp_path, "methods", "--pieces", PYTHONPATH=str(installed))
    assert listed.returncode == 0
    assert "a pull of one's own" in listed.stdout
    assert listed.stderr.splitlines() == [
        "osmotic: warning: plugin bad-plug of package bad-plug cannot be loaded "
        "(ModuleNotFoundError: No module named 'something_that_is_not_there')"
    ]
    planned = fresh(tmp_path, "plan", "--set", "local.pieces=pull", "--json", PYTHONPATH=str(installed))
    assert planned.returncode == 0 and json.loads(planned.stdout)["pieces"] == ["pull"]
    assert len(planned.stderr.splitlines()) == 1
    without = fresh(tmp_path, "plan", "--set", "local.pieces=pull")
    assert without.returncode == 2


def test_reports_and_models_know_installed_plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = [dict(registry) for registry in REGISTRIES]
    models.register_network(
        "renamed", lambda spec: tiny_network.Tiny(spec.channels, spec.num_classes), multiple=2
    )
    (tmp_path / "pull.py").write_text(PULL)
    plugins.load_file(tmp_path / "pull.py")
    registered = PIECES["pull"], models.NETWORKS["renamed"]
    settings = TINY | {"model": {"network": "renamed"}, "training": {"rounds": 1, "local_epochs": 1}}
    run = osmotic.run(**settings, local={"pieces": ["pull"]}, out=tmp_path / "run")

    class Point:
        name, dist = "p", None

        def load(self) -> None:
            PIECES["pull"], models.NETWORKS["renamed"] = registered

    monkeypatch.setattr(
        "importlib.metadata.entry_points", lambda group: [Point()] if group == plugins.GROUP else []
    )
    for use in (
        run.report,
        lambda: run.sample(1),
        lambda: osmotic.list_pieces(),
        lambda: osmotic.plan(preset="fedavg"),
    ):
        forget(known)
        monkeypatch.setattr(plugins, "_installed_are_loaded", False)
        assert "pull" not in PIECES
        use()
        assert "pull" in PIECES
    assert "a pull of one&#39;s own" in run.report().read_text()


def test_plugins_of_installed_packages_are_not_imported_with_osmotic(installed: Path, tmp_path: Path) -> None:
    script = "import osmotic, sys; osmotic.Piece; print('good_plug' in sys.modules)"
    told = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
    )
    assert told.stdout == "False\n"


def test_the_example_piece_of_the_page_is_feddyn(tmp_path: Path) -> None:
    from osmotic.protocol.messages import Client, Reply
    from osmotic.protocol.view import View

    page = (Path(__file__).parents[1] / "docs" / "python.md").read_text()
    start = page.index("from dataclasses import dataclass")
    path = tmp_path / "feddyn.py"
    path.write_text("import numpy as np\nimport osmotic\n" + page[start : page.index("\n\ndyn = ", start)])
    piece = plugins.load_file(path).FedDyn(alpha=0.1)
    view = View(osmotic.Config(), {"w": (2,)}, {}, (Client(0, "a", 1), Client(1, "b", 3)))

    def server(*drifts: list[float]) -> tuple[Any, Any, Any]:
        gathered = None
        for drift in drifts:
            change = {"w": np.array(drift, np.float32)}
            gathered = piece.gather(view, gathered, Reply(None, {}, 1, {}, change))  # type: ignore[arg-type]
        mean = {"w": np.array([1.0, -2.0], np.float32)}
        return piece.change(view, piece.server_start(view), gathered, None, mean)  # type: ignore[no-any-return]

    # From h = 0, both answer: h = -0.1 / 2 * ((1, -1) + (1, -3)) = (-0.1, 0.2), so x moves by (1, -2) - h / 0.1 = (2, -4).
    change, state, metrics = server([1.0, -1.0], [1.0, -3.0])
    assert change["w"].tolist() == pytest.approx([2.0, -4.0])
    assert state["w"].tolist() == pytest.approx([-0.1, 0.2])
    assert metrics["h_norm"] == pytest.approx(0.05**0.5)
    # One of the two asked: h moves by its share alone, -0.1 / 2 * (1, -2).
    assert server([1.0, -2.0])[1]["w"].tolist() == pytest.approx([-0.05, 0.1])


def test_the_example_piece_of_the_page_survives_a_stop(tmp_path: Path) -> None:
    page = (Path(__file__).parents[1] / "docs" / "python.md").read_text()
    start = page.index("from dataclasses import dataclass")
    path = tmp_path / "feddyn.py"
    path.write_text("import numpy as np\nimport osmotic\n" + page[start : page.index("\n\ndyn = ", start)])
    plugins.load_file(path)
    settings = TINY | {"local": {"pieces": ["feddyn"]}, "training": {"rounds": 3, "local_epochs": 1}}
    whole = osmotic.run(**settings, out=tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        osmotic.run(**settings, out=tmp_path / "cut", callbacks=Stop())
    cut = osmotic.load(tmp_path / "cut").resume()
    assert without_time(cut.summary) == without_time(whole.summary)
    assert (
        whole.summary["scored_weights_sha256"]
        != osmotic.run(**(settings | {"local": {}}), out=tmp_path / "plain").summary["scored_weights_sha256"]
    )


def test_a_misspelt_hook_is_refused_with_the_nearest_one() -> None:
    def near(self: Any, step: Any, work: Any) -> None: ...

    wrong = type("Wrong", (osmotic.Piece,), {"after_backwards": near, "__doc__": "x"})
    with pytest.raises(TypeError, match=r"after_backwards is no hook.*did you mean after_backward\?"):
        osmotic.register("wrong", dataclass(frozen=True, kw_only=True)(wrong))
    helper = type("Helper", (osmotic.Piece,), {"half_of_it": near, "_after_backwards": near, "__doc__": "x"})
    osmotic.register("helper", dataclass(frozen=True, kw_only=True)(helper))
    assert PIECES["helper"] is not None
