"""What all kinds of chaos share: tiny runs, commands in forked processes, and what a run leaves, without time.

A process is forked from a server that has imported everything and run nothing, so a whole run takes about a second.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from . import TESTS

T = TypeVar("T")
COMMON = (
    "data.max_images=72",
    "data.clients=3",
    "model.network=tiny",
    "training.rounds=3",
    "training.batch_size=8",
    "recipe.ema_half_lives=[40.0]",
    "checkpoint.every=2",
    "score.every=3",
    "score.samples=40",
    "score.steps=3",
    "score.guidance=1",
    "track.backends=[]",
    "engine.workers=1",  # so that crash point 57 is always the same one
)
CONFIGS = {
    "fedavg": (),
    "udec": (
        "method.name=udec",
        "codec.up=int8",
        "codec.down=int8",
        "codec.error_feedback=true",
        "score.every=2",
    ),
    "scaffold": (
        "local.pieces=scaffold",
        "server.pieces=adam",
        "data.clients=4",
        "training.fraction_train=0.5",
    ),
    "correction": (
        "server.pieces=correction",
        "server.correction.images=upload",
        "server.correction.local_epochs=1",
        "data.partition=iid",
    ),
}


def settings(config: str) -> list[str]:
    """The options of `osmotic run` for one of CONFIGS."""
    return [part for key in (*COMMON, *CONFIGS[config]) for part in ("--set", key)]


@dataclass(frozen=True)
class Ended:
    """How a command ended: exit code, and the lines of its error stream."""

    code: int
    said: list[str]


class Farm:
    """Runs commands of osmotic in processes of their own.

    Args:
        folder: for runs and for trained encoders; everything that children write lies below it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._made: dict[str, Any] = {}
        self._lock, self._looking = threading.RLock(), threading.Lock()
        os.environ["OSMOTIC_CACHE"] = str(folder / "cache")
        os.environ["OMP_NUM_THREADS"] = "1"
        # The fork server is a program of its own, and must find these tests.
        before = os.environ.get("PYTHONPATH", "")
        if str(TESTS) not in before.split(os.pathsep):
            os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(TESTS), before)))
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["chaos.preload"])

    def run(self, arguments: Sequence[str], before: Callable[..., Any] | None = None, *given: Any) -> Ended:
        """One command to its end; `before(*given)` is called in its process first, to prepare what befalls it."""
        with tempfile.NamedTemporaryFile(dir=self.folder, suffix=".stderr") as file:
            process = self._context.Process(target=_child, args=(list(arguments), file.name, before, given))
            # One at a time: a process that is started looks at all others, and the code of an end can be read only once.
            with self._looking:
                process.start()
            while (code := self._code(process)) is None:
                time.sleep(0.005)
            said = Path(file.name).read_text(errors="replace").splitlines()
        return Ended(code, said)

    def _code(self, process: Any) -> int | None:
        with self._looking:
            code: int | None = process.exitcode
            return code

    def once(self, name: str, make: Callable[[Path], T]) -> T:
        """What `make` gives of a folder of this name, made once."""
        with self._lock:
            if name not in self._made:
                self._made[name] = make(self.folder / name)
            return self._made[name]

    def unbroken(self, config: str) -> dict[str, Any]:
        """What a run of this configuration leaves if nothing happens to it."""
        return self.once(f"unbroken-{config}", lambda folder: self.finished(config, folder))

    def finished(
        self, config: str, folder: Path, before: Callable[..., Any] | None = None, *given: Any
    ) -> dict[str, Any]:
        """What a run in this folder leaves that must come to its end."""
        ended = self.run(["run", *settings(config), "--out", str(folder)], before, *given)
        assert ended.code == 0, ended.said
        return left(folder)


def _child(
    arguments: list[str], errors: str, before: Callable[..., Any] | None, given: tuple[Any, ...]
) -> None:
    from osmotic import cli

    for stream, path in ((1, os.devnull), (2, errors)):
        handle = os.open(path, os.O_WRONLY)
        os.dup2(handle, stream)
        os.close(handle)
    sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115 - until the process ends
    if before is not None:
        before(*given)
    sys.argv = ["osmotic", *arguments, "--json"]  # without progress, whose estimate of the time takes time
    cli.main()


def left(folder: Path) -> dict[str, Any]:
    """All that a run left in its folder, but for the time: file -> content, or its hash."""
    found = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): _content(path) for path in found}


def _content(path: Path) -> Any:
    from osmotic.storage.store import StateLost, digest, read_with_notes

    if path.name in TIMED:
        return "is there"
    # What is torn or altered is compared by its bytes.
    with suppress(ValueError, StateLost):
        if path.suffix in (".json", ".jsonl"):
            lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
            return [_timeless(json.loads(line)) for line in lines]
        if path.parent.name == "checkpoints" or path.name.startswith("state-"):
            tensors, notes = read_with_notes(path)
            return digest(tensors), _timeless(json.loads(notes.get("state", "null")))
    return hashlib.sha256(path.read_bytes()).hexdigest()


TIMED = (
    "report.html",
    "README.md",
    "run.lock",
)  # they tell how long the run took; the name that it gave itself
# Seconds; lengths and hashes of logs that hold them; the name that a run gives itself.
TIMES = ("wall_seconds", "files", "files_sha256", "run")


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _timeless(v) for k, v in value.items() if k not in TIMES}
    return [_timeless(v) for v in value] if isinstance(value, list) else value


def differences(expected: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """What is missing, too much or other, a line each."""
    missing = [f"{name} is missing" for name in expected.keys() - found.keys()]
    more = [f"{name} is too much" for name in found.keys() - expected.keys()]
    other = [
        f"{name} differs at {_where(expected[name], found[name])}"
        for name in expected.keys() & found.keys()
        if expected[name] != found[name]
    ]
    return sorted(missing + more + other)


def _where(expected: Any, found: Any, place: str = "") -> str:
    """The first place at which two contents differ."""
    if isinstance(expected, dict) and isinstance(found, dict) and expected.keys() == found.keys():
        return next(
            _where(expected[k], found[k], f"{place}.{k}") for k in expected if expected[k] != found[k]
        )
    if isinstance(expected, list | tuple) and isinstance(found, list | tuple) and len(expected) == len(found):
        pairs = enumerate(zip(expected, found, strict=True))
        return next(_where(a, b, f"{place}[{i}]") for i, (a, b) in pairs if a != b)
    return f"{place}: {str(expected)[:80]}, not {str(found)[:80]}"


@contextmanager
def farm() -> Iterator[Farm]:
    """A farm in a folder that is thrown away."""
    with tempfile.TemporaryDirectory(prefix="osmotic-chaos-") as folder:
        yield Farm(Path(folder))
