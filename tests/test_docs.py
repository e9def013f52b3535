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

import osmotic
from osmotic.cli import app
from osmotic.codecs import Codec
from osmotic.config import schema
from osmotic.errors import ConfigError
from osmotic.federation.interfaces import Engine
from osmotic.methods import METHODS, Method
from osmotic.pieces import PIECES, Piece
from osmotic.runs import resolve, study, summary
from osmotic.storage.folder import RunDir
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
    found: set[str] = set()
    for heading in headings:
        plain = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        # As GitHub does: a second heading of the same words gets a number.
        found.add(plain if plain not in found else f"{plain}-1")
    return found


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


def test_the_page_of_what_leaves_a_site_is_what_the_script_makes() -> None:
    script = load("make_what_leaves", DOCS / "make_what_leaves.py")
    assert (DOCS / "what-leaves-a-site.md").read_text() == script.page(), "run docs/make_what_leaves.py"


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


@pytest.mark.parametrize("preset", osmotic.list_presets(), ids=lambda p: p["preset"])
def test_every_preset_has_a_section_that_names_its_paper(preset: dict[str, Any]) -> None:
    sections = re.split(r"^## ", (DOCS / "methods.md").read_text(), flags=re.MULTILINE)
    own = [s for s in sections if s.startswith(f"{preset['preset']}\n")]
    assert len(own) == 1
    assert (preset["paper"] or "") in own[0]


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
    if name in ("run", "plan", "leaves", "split") and given["config"] is None:
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


@pytest.mark.parametrize("cls", [Engine, Method, Piece, Codec, Store], ids=lambda cls: cls.__name__)
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


def imports() -> dict[str, set[str]]:
    """Module -> modules of the package that it imports: at the top, inside functions, and for types."""
    package = ROOT / "src"
    found: dict[str, set[str]] = {}
    for path in sorted(package.rglob("osmotic/**/*.py")):
        here = ".".join(path.relative_to(package).with_suffix("").parts).removesuffix(".__init__")
        targets = found.setdefault(here, set())
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                targets.update(a.name for a in node.names if a.name.split(".")[0] == "osmotic")
            elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "osmotic":
                for alias in node.names:
                    whole = f"{node.module}.{alias.name}"
                    base = package / whole.replace(".", "/")
                    is_module = base.with_suffix(".py").exists() or (base / "__init__.py").exists()
                    targets.add(whole if is_module else str(node.module))
        targets.discard(here)
    return found


def test_imports_go_down_the_layers_of_the_design_page() -> None:
    text = (DOCS / "design.md").read_text()
    table = text[text.index("Imports go one way") : text.index("`report/` and `metrics/` read")]
    layers = [re.findall(r"`(\w+)`", row) for row in table.splitlines() if row.startswith("|")]
    rank = {name: i for i, row in enumerate(layers) for name in row}

    def room(module: str) -> str:
        return module.split(".")[1] if "." in module else "__init__"

    named = {room(module) for module in imports()} - {"__init__"}
    assert named <= set(rank), "every room stands in the table"
    upwards = [
        f"{here} imports {there}"
        for here, targets in imports().items()
        for there in targets
        if room(here) in rank and room(there) in rank and rank[room(there)] < rank[room(here)]
    ]
    assert upwards == []


def test_there_is_no_circle_of_imports() -> None:
    left = imports()
    while free := [m for m, targets in left.items() if not targets & set(left)]:
        for module in free:
            del left[module]
    assert left == {}, "these files import each other in a circle, or stand above one"


def test_the_circle_test_would_see_one(monkeypatch: pytest.MonkeyPatch) -> None:
    circle = {"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": set()}
    monkeypatch.setitem(globals(), "imports", lambda: {m: set(t) for m, t in circle.items()})
    with pytest.raises(AssertionError, match="circle"):
        test_there_is_no_circle_of_imports()


def test_the_page_of_the_run_folder_names_every_field_file_and_key_that_may_change() -> None:
    page = (DOCS / "run-folder.md").read_text()
    # Fields as the functions that write them spell them.
    written = inspect.getsource(summary.summarise) + inspect.getsource(study.describe_partition)
    fields = {
        *re.findall(r'^ +"(\w+)":', written, re.M),
        *summary.QUALITY,
        *(set(summary.MORE) - {"metrics"}),
    }
    files = {"model/vae/", "model/adapter.safetensors", "personal/NAME/"}
    assert not [name for name in sorted(fields | files | {*schema.FREE}) if f"`{name}`" not in page]


def test_the_design_page_names_every_folder_of_a_run() -> None:
    page = (DOCS / "design.md").read_text().partition("## 7.")[2].partition("## 8.")[0]
    paths = {n: getattr(RunDir(Path("run")), n) for n, p in vars(RunDir).items() if isinstance(p, property)}
    folders = {path.name for path in paths.values() if isinstance(path, Path) and not path.suffix}
    assert {"auxiliary", "journal", "personal"} <= folders
    assert not [name for name in sorted(folders) if f"{name}/" not in page]


def test_hooks_and_pieces_named_on_the_page_exist() -> None:
    text = (DOCS / "methods.md").read_text()
    section = text[text.index("## The hooks of a piece") : text.index("## Add your own exchange")]
    hooks = set(re.findall(r"^\| `(\w+)\(", section, re.MULTILINE))
    public = {n for n, f in vars(Piece).items() if inspect.isfunction(f) and not n.startswith("_")}
    assert hooks == public - {"auxiliary"}
    for name in re.findall(r"`(\w+)` \|$|, `(\w+)` \|$", section, re.MULTILINE):
        piece = next(filter(None, name))
        assert piece in PIECES, f"{piece} is named as an example"
    for name, cls in PIECES.items():
        own = {n for n in vars(cls) if n in hooks}
        base = {n for c in cls.__mro__[1:-1] if c is not Piece for n in vars(c) if n in hooks}
        assert own | base, f"{name} uses a hook"
        assert f"`{name}`" in text, f"{name} is not on the page"


def test_the_example_exchange_moves_one_part_of_the_network_at_a_time(
    make_server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [code] = [b for b in blocks(DOCS / "methods.md", "python") if b.startswith('"""Turns')]
    (tmp_path / "turns.py").write_text(code)
    before = dict(METHODS)
    try:
        load("turns_of_the_docs", tmp_path / "turns.py")
        slim = ("training.rounds=2", "data.max_images=24", "data.clients=2")
        server = make_server(*slim, "method.name=turns", name="turns")
        server.run()
        assert server.state.changed == {"encoder": 1, "bottleneck": 2}
        assert not server.state.failures
    finally:
        for name in set(METHODS) - set(before):
            del METHODS[name]


@pytest.fixture
def clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The example piece of methods.md, registered as a user's file would be."""
    [code] = [b for b in blocks(DOCS / "methods.md", "python") if b.startswith('"""Clip')]
    path = tmp_path / "clip.py"
    path.write_text(code)
    monkeypatch.setattr("osmotic.pieces.PIECES", PIECES)
    before = dict(PIECES)
    yield load("clip_of_the_docs", path)
    for name in set(PIECES) - set(before):
        del PIECES[name]


def test_the_example_piece_cuts_a_change_to_its_norm(clip: Any) -> None:
    # (3, 4) has norm 5, so at norm 1 it becomes (0.6, 0.8); a shorter one stays.
    piece = clip.Clip(norm=1.0)
    cut = piece.filter(None, {}, {"w": np.array([3, 4], np.float32)})
    assert cut["w"].tolist() == pytest.approx([0.6, 0.8])
    short = {"w": np.array([0.3, 0.4], np.float32)}
    assert np.array_equal(piece.filter(None, {}, short)["w"], short["w"])


def test_the_example_piece_bends_a_run_and_its_keys_are_checked(make_server: Any, clip: Any) -> None:
    slim = ("training.rounds=1", "data.max_images=24", "data.clients=2")
    server = make_server(*slim, "local.pieces=clip", "local.clip.norm=0.01", name="clipped")
    server.run()
    # The mean of changes of norm 0.01 is no longer than that.
    assert 0 < server.observer.lines[0]["update_norm"] <= 0.01 * 1.0001
    with pytest.raises(ConfigError, match=r"local.clip.norm = -1.0: must be > 0"):
        resolve.load(sets=["local.pieces=clip", "local.clip.norm=-1"])
