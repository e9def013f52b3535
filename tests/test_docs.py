"""The documentation says what the code does: made pages are up to date, links resolve, commands and examples work."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import re
import shlex
import sys
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import numpy as np
import pytest
import typer
from osmotic.engines.base import Engine

from osmotic import methods
from osmotic.cli import app
from osmotic.codecs import Codec
from osmotic.config import schema
from osmotic.config.presets import PRESETS
from osmotic.errors import ConfigError
from osmotic.methods import Method
from osmotic.runs import resolve
from osmotic.storage.store import Store

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md")) + [p for p in [ROOT / "README.md"] if p.exists()]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def load(name: str, path: Path) -> ModuleType:
    """A Python file as a module."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def blocks(page: Path, language: str) -> list[str]:
    """Code blocks of one language."""
    return [code for found, code in FENCE.findall(page.read_text()) if found == language]


def without_code(page: Path) -> str:
    """The prose of a page, and its headings."""
    return FENCE.sub("", page.read_text())


def anchors(page: Path) -> set[str]:
    """What `#...` may point at on a page: its headings in lower case, words joined by hyphens."""
    headings = re.findall(r"^#+ (.+)$", without_code(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


def commands() -> list[tuple[str, str]]:
    """Every line of a shell block that calls osmotic: (page, line)."""
    found = []
    for page in PAGES:
        for language in ("sh", "bash", "console"):
            for block in blocks(page, language):
                lines = (line.strip().removeprefix("$ ") for line in block.replace("\\\n", " ").splitlines())
                found += [(page.name, line) for line in lines if line.startswith("osmotic ")]
    return found


def test_the_configuration_page_is_what_the_script_makes() -> None:
    script = load("make_configuration", DOCS / "make_configuration.py")
    assert (DOCS / "configuration.md").read_text() == script.page(), "run docs/make_configuration.py"


def test_the_configuration_page_names_every_key() -> None:
    text = (DOCS / "configuration.md").read_text()
    missing = [key for key in schema.valid_keys() if f"| `{key}` |" not in text]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_relative_links_resolve(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        other = (page.parent / path).resolve() if path else page
        assert other.exists(), f"{page.name} links to {target}"
        assert not anchor or anchor in anchors(other), f"{page.name} links to {target}"


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_every_preset_has_a_section_that_names_its_paper(preset: str) -> None:
    sections = re.split(r"^## ", (DOCS / "methods.md").read_text(), flags=re.MULTILINE)
    own = [s for s in sections if s.startswith(f"{preset}\n")]
    assert len(own) == 1
    assert PRESETS[preset].paper in own[0]


def test_there_are_commands_to_check() -> None:
    assert {line.split()[1] for _, line in commands()} >= {"run", "resume", "sample", "evaluate", "split"}


@pytest.mark.parametrize("page, line", commands(), ids=lambda text: text[:60])
def test_commands_in_the_pages_parse_and_their_keys_are_valid(page: str, line: str) -> None:
    group = typer.main.get_command(app)
    assert isinstance(group, click.Group)
    _, name, *words = shlex.split(line, comments=True)
    if name.startswith("-"):
        return
    context = group.commands[name].make_context(name, words, parent=click.Context(group, info_name="osmotic"))
    given = context.params
    if name in ("run", "plan", "split") and given["config"] is None:
        resolve.load(None, preset=given["preset"], data=given["data"], sets=given["sets"])
    elif given.get("sets"):  # on top of a file that is not here: names, types and ranges alone
        schema.build(dict(resolve.parse_set(text) for text in given["sets"]))


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_toml_examples_are_valid_configurations(page: Path) -> None:
    for block in blocks(page, "toml"):
        schema.build(schema.flatten(tomllib.loads(block)))


@pytest.mark.parametrize("page", [p for p in PAGES if p.name != "design.md"], ids=lambda p: p.name)
def test_python_examples_are_python(page: Path) -> None:
    for block in blocks(page, "python"):
        compile(block, page.name, "exec")


@pytest.mark.parametrize("cls", [Engine, Method, Codec, Store], ids=lambda cls: cls.__name__)
def test_the_design_page_has_the_signatures_of_the_code(cls: type) -> None:
    text = (DOCS / "design.md").read_text()
    code = re.search(rf"^\*\*{cls.__name__}\*\*.*?^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert code is not None
    told = {
        name: [part.split(":")[0].strip() for part in re.sub(r"\[.*?\]", "", arguments).split(",")]
        for name, arguments in re.findall(r"def (\w+)\((.*?)\) ->", code[1])
    }
    public = {n: f for n, f in vars(cls).items() if inspect.isfunction(f) and not n.startswith("_")}
    found = {name: list(inspect.signature(function).parameters) for name, function in public.items()}
    assert told.items() <= found.items()
    assert set(found) - set(told) <= {"entry"}  # a helper, not a hook


def modules() -> list[Path]:
    """Every file of the package that holds code."""
    package = ROOT / "src" / "osmotic"
    return [p.relative_to(package) for p in sorted(package.rglob("*.py")) if p.name != "__init__.py"]


def test_the_design_page_has_a_line_for_every_file() -> None:
    text = (DOCS / "design.md").read_text()
    house = text[text.index("## 4.") : text.index("Imports go one way")]
    assert [str(p) for p in modules() if p.name not in house] == []


def test_imports_go_down_the_layers_of_the_design_page() -> None:
    text = (DOCS / "design.md").read_text()
    table = text[text.index("Imports go one way") : text.index("Two imports go against")]
    layers = [re.findall(r"`(\w+)`", row) for row in table.splitlines() if row.startswith("|")]
    rank = {name: i for i, row in enumerate(layers) for name in row}
    upwards = []
    for path in modules():
        tree = ast.parse((ROOT / "src" / "osmotic" / path).read_text())
        here = rank[path.parts[0].removesuffix(".py")]
        for node in tree.body:  # imports at the top of the file; those for types stand inside an `if`
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("osmotic"):
                whole = [f"{node.module}.{alias.name}".split(".")[1] for alias in node.names]
                upwards += [f"{path} imports {name}" for name in whole if rank.get(name, here) < here]
    assert upwards == []


def test_seam_methods_named_in_the_tables_exist() -> None:
    seams = load("seams_of_the_docs", Path(__file__).with_name("seam_methods.py"))
    text = (DOCS / "methods.md").read_text()
    named = set(
        re.findall(r"`(Auxiliary|Variates|PersonalEncoder|DecoderOnly|TrainedCodec)(?:\.(\w+))?`", text)
    )
    assert {cls for cls, _ in named} == {cls.__name__ for cls in seams.SEAMS.values()} | {"TrainedCodec"}
    for cls, hook in named:
        assert not hook or hook in vars(getattr(seams, cls)), f"{cls}.{hook}"
    tests = Path(__file__).with_name("test_seams.py").read_text()
    for test in re.findall(r"`(test_\w+)`", text):
        assert f"def {test}(" in tests or (ROOT / "tests" / f"{test}.py").exists(), test


@pytest.fixture
def fedprox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The example method of methods.md, registered."""
    [code] = [b for b in blocks(DOCS / "methods.md", "python") if b.startswith('"""FedProx')]
    path = tmp_path / "fedprox.py"
    path.write_text(code)
    module = load("fedprox_of_the_docs", path)
    monkeypatch.setitem(methods.METHODS, "fedprox", module.FedProx)
    return module.FedProx


def test_the_example_method_at_mu_0_is_fedavg(make_server: Any, fedprox: Any) -> None:
    results = {}
    for name in ("fedavg", "fedprox"):
        sets = ("method.mu=0.0",) if name == "fedprox" else ()
        slim = ("training.rounds=1", "data.max_images=24", "data.clients=2")
        server = make_server(f"method.name={name}", *sets, *slim, name=name)
        server.run()
        results[name] = server.state.weights
    assert all(np.array_equal(w, results["fedprox"][n]) for n, w in results["fedavg"].items())


def test_the_pull_of_the_example_method_is_half_mu_times_squared_distance(fedprox: Any) -> None:
    import torch

    # w - g = (3, 4): squared distance 25, so mu = 2 adds 2 / 2 * 25 = 25 to a loss of 1.
    model = torch.nn.Linear(2, 1, bias=False)
    model.weight.data = torch.tensor([[3.0, 4.0]])
    local = type("Local", (), {"received": {"weight": torch.zeros(1, 2)}})()
    assert fedprox(mu=2.0).local_loss(local, torch.tensor(1.0), model).item() == pytest.approx(26.0)


def test_the_example_method_refuses_a_negative_mu_with_one_line(fedprox: Any) -> None:
    with pytest.raises(ConfigError, match=r"mu must be >= 0, got -1"):
        resolve.load(sets=["method.name=fedprox", "method.mu=-1"])
