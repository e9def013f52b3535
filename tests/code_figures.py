"""Figures of a tree of Python files, as one Markdown row, to be read beside other codebases.

    python tests/code_figures.py [SRC_DIR]            # SRC_DIR is src/osmotic where it is not given
    python tests/code_figures.py [SRC_DIR] --rooms    # a row for each folder of SRC_DIR too, under a heading

files: those of two lines or more, so that an `__init__.py` of one docstring is none.
kLOC: thousand lines that hold code; blank lines, docstrings and lines of comment alone are none.
file: lines of such a file, of every kind.
body: lines of a function from its `def` to its end, less its docstring; a function inside another is part of it.
docs: share with a docstring, of public classes and of public functions and methods. Public is what neither has
    a leading underscore nor stands inside something that has one, or inside a function.
typed: share of arguments (less `self`, `cls`) and return values that have an annotation, of all functions.
shapes: share of the public docstrings that give a shape: words or sums in square brackets, with a letter in one
    of them, such as [N, C, H, W] or [B], or [...] alone, any shape, as in a table of tensors (name -> float32 [...]).
    [0, 1] is a range, [text](link) a link. Of commit 1dbb698 it is 15 %; 14 % where [...] is not counted.
errors: share, of the public functions that raise an error of their own (a bare `raise` is none), whose docstring
    says `Raises` or names an error.
cites: share of the files that name arXiv, in a docstring or in a comment.
comments: lines with a comment per 100 lines that hold code, those behind code too; `# noqa`, `# type:` and
    `# fmt` are none.
tests/code: lines of the files of `tests` beside SRC_DIR over those of the code, of every kind; for a room those
    of tests/ROOM/ and tests/test_ROOM.py.
"""

from __future__ import annotations

import argparse
import ast
import io
import math
import re
import statistics
import tokenize
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

HEADING = (
    "| tree | files | kLOC | file median / max | body median / p90 / max | public docs class / fn % "
    "| typed % | shapes % | errors % | cites % | comments per 100 | tests / code |\n"
    "|---|---|---|---|---|---|---|---|---|---|---|---|"
)
Function = ast.FunctionDef | ast.AsyncFunctionDef
SHAPE = re.compile(r"\[(\.\.\.|(?=[^\]]*[A-Za-z])\w[\w*/+ .-]*(, ?[\w*/+ .-]+)*)\](?!\()")
ERROR = re.compile(r"\b[Rr]aises\b|\w+Error\b")
DIRECTIVE = re.compile(r"#\s*(noqa|type:|fmt)")


@dataclass
class Figures:
    """What was counted; one entry for each file, function or docstring."""

    files: list[int] = field(default_factory=list)  # lines
    cited: list[bool] = field(default_factory=list)
    code: int = 0  # lines
    lines: int = 0
    comments: int = 0
    bodies: list[int] = field(default_factory=list)  # lines
    classes: list[bool] = field(default_factory=list)  # has a docstring
    functions: list[bool] = field(default_factory=list)
    typed: list[bool] = field(default_factory=list)
    shaped: list[bool] = field(default_factory=list)
    errors: list[bool] = field(default_factory=list)

    def row(self, name: str, test_lines: int) -> str:
        """The Markdown row."""
        body = sorted(self.bodies)
        p90 = body[math.ceil(0.9 * len(body)) - 1] if body else 0
        cells = [
            name,
            str(len(self.files)),
            f"{self.code / 1000:.1f}",
            f"{_median(self.files)} / {max(self.files, default=0)}",
            f"{_median(body)} / {p90} / {max(body, default=0)}",
            f"{_percent(self.classes)} / {_percent(self.functions)}",
            _percent(self.typed, 1),
            _percent(self.shaped),
            _percent(self.errors),
            _percent(self.cited),
            f"{100 * self.comments / max(self.code, 1):.1f}",
            f"{test_lines / max(self.lines, 1):.2f}",
        ]
        return f"| {' | '.join(cells)} |"


def count(files: Sequence[Path]) -> Figures:
    """The figures of these files."""
    found = Figures()
    for path in files:
        text = path.read_text(encoding="utf-8")
        tree = ast.parse(text)
        length = len(text.splitlines())
        found.lines += length
        if length > 1:
            found.files.append(length)
            found.cited.append("arxiv" in text.lower())
        code, comments = _code_and_comments(text, tree)
        found.code += code
        found.comments += comments
        _count_scope(found, tree, public=True, inside_class=False)
    return found


def _count_scope(found: Figures, scope: ast.AST, public: bool, inside_class: bool) -> None:
    """Counts the classes and functions that stand in `scope`, but not those inside its functions (only if
    typed).
    """
    for node in _statements(scope):
        if isinstance(node, ast.ClassDef):
            seen = public and not node.name.startswith("_")
            if seen:
                found.classes.append(ast.get_docstring(node) is not None)
                _count_shape(found, node)
            _count_scope(found, node, seen, inside_class=True)
        elif isinstance(node, Function):
            _count_function(found, node, public and not node.name.startswith("_"))
            found.typed += _annotations(node, inside_class)
            for inner in ast.walk(node):
                if isinstance(inner, Function) and inner is not node:
                    found.typed += _annotations(inner, inside_class=False)


def _statements(scope: ast.AST) -> Iterator[ast.AST]:
    """Classes and functions of a module or class, those under an `if` or `try` too."""
    for node in ast.iter_child_nodes(scope):
        if isinstance(node, ast.ClassDef | Function):
            yield node
        elif isinstance(node, ast.stmt | ast.ExceptHandler):
            yield from _statements(node)


def _count_function(found: Figures, node: Function, public: bool) -> None:
    doc = ast.get_docstring(node)
    first = node.body[0]
    of_doc = 0 if doc is None else (first.end_lineno or first.lineno) - first.lineno + 1
    found.bodies.append((node.end_lineno or node.lineno) - node.lineno + 1 - of_doc)
    if public:
        found.functions.append(doc is not None)
        _count_shape(found, node)
        if _raises(node):
            found.errors.append(bool(ERROR.search(doc or "")))


def _count_shape(found: Figures, node: Function | ast.ClassDef) -> None:
    doc = ast.get_docstring(node)
    if doc is not None:
        found.shaped.append(bool(SHAPE.search(doc)))


def _raises(node: Function) -> bool:
    """Whether the function itself raises something; a bare `raise` only passes on what came."""
    waiting: list[ast.AST] = list(node.body)
    while waiting:
        at = waiting.pop()
        if isinstance(at, ast.Raise) and at.exc is not None:
            return True
        if not isinstance(at, ast.ClassDef | Function | ast.Lambda):
            waiting += ast.iter_child_nodes(at)
    return False


def _annotations(node: Function, inside_class: bool) -> list[bool]:
    """For each argument and for the return value, whether it is annotated."""
    args = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    static = any(isinstance(d, ast.Name) and d.id == "staticmethod" for d in node.decorator_list)
    if inside_class and not static:
        args = args[1:]  # self or cls
    args += [a for a in (node.args.vararg, node.args.kwarg) if a is not None]
    return [*(a.annotation is not None for a in args), node.returns is not None]


def _code_and_comments(text: str, tree: ast.Module) -> tuple[int, int]:
    """(lines that hold code, comments)."""
    docs: set[int] = set()
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Module | ast.ClassDef | Function)
            and ast.get_docstring(node, clean=False) is not None
        ):
            docs.update(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    code: set[int] = set()
    comments = 0
    layout = (tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            comments += not DIRECTIVE.match(token.string)
        elif token.type not in layout:
            code.update(range(token.start[0], token.end[0] + 1))
    return len(code - docs), comments


def _median(values: Sequence[int]) -> int:
    return round(statistics.median(values)) if values else 0


def _percent(found: Sequence[bool], digits: int = 0) -> str:
    """The share of True; a dash where there is nothing to count."""
    return f"{100 * sum(found) / len(found):.{digits}f}" if found else "-"


def _lines(files: Sequence[Path]) -> int:
    return sum(len(path.read_text(encoding="utf-8").splitlines()) for path in files)


def main() -> None:
    """Prints the row, or the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = Path(__file__).resolve().parents[1] / "src" / "osmotic"
    parser.add_argument("src", nargs="?", type=Path, default=default, metavar="SRC_DIR")
    parser.add_argument("--rooms", action="store_true", help="a row for each folder too")
    asked = parser.parse_args()
    src = asked.src.resolve()
    tests = next((up / "tests" for up in src.parents if (up / "tests").is_dir()), src / "tests")
    if asked.rooms:
        print(HEADING)
        for room in sorted({path.parent for path in src.rglob("*.py")}):
            name = "(top)" if room == src else str(room.relative_to(src))
            own = [] if room == src else [*(tests / name).glob("*.py"), *tests.glob(f"test_{name}.py")]
            print(count(sorted(room.glob("*.py"))).row(name, _lines(own)))
    print(count(sorted(src.rglob("*.py"))).row(src.name, _lines(sorted(tests.rglob("*.py")))))


if __name__ == "__main__":
    main()
