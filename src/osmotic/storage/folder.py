"""The folder of a run while it is being written: its files, its logs, and cutting them back on resume."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from osmotic.errors import ConfigError
from osmotic.storage import lock, strict_json
from osmotic.storage.atomic import clear_tree, is_leftover, naming

if TYPE_CHECKING:
    from hashlib import _Hash

LOGS = ("metrics", "ledger")  # those that grow; all other files are written whole


class RunDir:
    """Paths of a run (docs/design.md, section 7). Logs grow by whole lines; a checkpoint knows their lengths and hashes.

    Args:
        path: the run's folder; nothing is looked at or made by naming it.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._told: dict[str, tuple[int, _Hash]] = {}  # log -> bytes so far, and their running SHA-256

    @staticmethod
    def refuse_used(path: Path) -> None:
        """Refuses a folder that something is in already: nothing is ever overwritten.

        What a run leaves that was killed before its first file was whole does not count.
        Raises: ConfigError naming `--out`.
        """
        path = Path(path)
        try:
            used = path.exists() and (not path.is_dir() or not all(map(_is_nothing, path.iterdir())))
        except OSError as error:  # a name too long, no permission
            raise ConfigError("--out", str(path), f"cannot be used ({error.strerror})") from None
        if used:
            raise ConfigError(
                "--out", str(path), "must be a new or empty folder; `osmotic resume` continues a run"
            )

    @classmethod
    def new(cls, path: Path) -> RunDir:
        """A fresh run folder.

        Raises: ConfigError naming `--out` if it is in use or cannot be made.
        """
        path = Path(path)
        cls.refuse_used(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError("--out", str(path), f"cannot be made ({error.strerror})") from None
        return cls(path)

    @classmethod
    def existing(cls, path: Path) -> RunDir:
        """A folder that holds a run.

        Raises: ConfigError naming it if it does not.
        """
        # The configuration is the first file a run writes, so its absence tells a wrong folder from a run cut
        # short.
        try:
            found = (Path(path) / "config.toml").is_file()
        except OSError as error:  # a name too long, no permission
            raise ConfigError(str(path), None, f"cannot be read ({error.strerror})") from None
        if not found:
            raise ConfigError(str(path), None, "is not the folder of a run (it has no config.toml)")
        return cls(path)

    @property
    def config(self) -> Path:
        """The resolved configuration."""
        return self.path / "config.toml"

    @property
    def partition(self) -> Path:
        """partition.json: who holds how many images of which class."""
        return self.path / "partition.json"

    @property
    def checkpoints(self) -> Path:
        """Folder of the server's checkpoints."""
        return self.path / "checkpoints"

    @property
    def journal(self) -> Path:
        """Folder of what the phase under way has done so far; gone at the end."""
        return self.path / "journal"

    @property
    def shelf(self) -> Path:
        """Folder of synthetic images that the server holds, by their hash."""
        return self.path / "auxiliary"

    @property
    def model(self) -> Path:
        """The pipeline folder, or one per client inside it."""
        return self.path / "model"

    @property
    def personal(self) -> Path:
        """Folder of the clients' own pipelines, where there is a global model too."""
        return self.path / "personal"

    @property
    def samples(self) -> Path:
        """Folder of PNG grids."""
        return self.path / "samples"

    @property
    def summary(self) -> Path:
        """The summary's file."""
        return self.path / "summary.json"

    def client(self, name: str) -> Path:
        """Where a simulated client keeps what is its own; on sites this is the site's folder."""
        return self.path / "clients" / name

    def log(self, name: str) -> Path:
        """metrics.jsonl or ledger.jsonl."""
        return self.path / f"{name}.jsonl"

    def append(self, name: str, records: Iterable[Mapping[str, Any]]) -> None:
        """Adds records to a log, one line of JSON each.

        Args:
            name: "metrics" or "ledger".
        Raises: OSError as the file system gives it.
        """
        # One write for all lines of a round: a kill between two of them is then rarer, and `cut` mends it
        # anyway.
        self.append_text(name, "".join(strict_json.dumps(r) + "\n" for r in records))

    def append_text(self, name: str, text: str) -> None:
        """Adds finished lines to a log and forces them to disk.

        Args:
            name: "metrics" or "ledger".
            text: ends with a line break, or is empty.
        Raises: OSError as the file system gives it.
        """
        size, running = self._running(name)
        data = text.encode("utf-8", "backslashreplace")
        # Appended, not replaced atomically: a log of n rounds would be written n times over. What a kill
        # leaves behind the last checkpoint is cut off on resume, so here a torn line does no harm.
        with naming(self.log(name)), open(self.log(name), "ab") as file:
            file.write(data)
            # Before the checkpoint that counts these bytes: it may never promise more than is on disk.
            file.flush()
            os.fsync(file.fileno())
        # Only now: an append that failed is not counted.
        running.update(data)
        self._told[name] = size + len(data), running

    def reopen(self, server_round: int) -> None:
        """The run goes on after this round: what is of its end, or of later rounds, is taken away."""
        self.summary.unlink(missing_ok=True)  # or it would say that the run is finished
        for grid in self.samples.glob("round-*.png"):
            number = re.match(r"round-(-?\d+)", grid.name)
            if number and int(number[1]) > server_round:
                grid.unlink()

    def sizes(self) -> dict[str, int]:
        """Lengths of the logs in bytes, for the checkpoint; 0 for one that is not there yet."""
        return {name: self._running(name)[0] for name in LOGS}

    def hashes(self) -> dict[str, str]:
        """SHA-256 of the logs so far, for the checkpoint. They are kept up line by line: the cost does not grow."""
        return {name: self._running(name)[1].hexdigest() for name in LOGS}

    def check(
        self, sizes: Mapping[str, int], hashes: Mapping[str, str] | None = None
    ) -> dict[str, tuple[int, _Hash]]:
        """Holds the logs against a checkpoint: the bytes that it knew, and their hashes, still open, by log.

        Args:
            sizes: bytes, as `sizes` gave them.
            hashes: as `hashes` gave them; None for checkpoints of earlier versions.
        Raises: ConfigError if a log is shorter than that, or its beginning another: then lines are missing or altered
            that nobody can bring back.
        """
        found: dict[str, tuple[int, _Hash]] = {}
        for name, size in sizes.items():
            path = self.log(name)
            present = path.stat().st_size if path.exists() else 0
            if present < size:
                raise ConfigError(
                    str(path), present, f"must have at least the {size} bytes of the checkpoint"
                )
            found[name] = _hashed(path, size)
            if hashes is not None and found[name][1].hexdigest() != hashes.get(name):
                rule = (
                    f"its first {size} bytes are not those that the run wrote; put them back, or start anew"
                )
                raise ConfigError(str(path), None, rule)
        return found

    def cut(self, sizes: Mapping[str, int], hashes: Mapping[str, str] | None = None) -> None:
        """Cuts the logs back to the lengths of a checkpoint.

        Args:
            sizes, hashes: as of `check`.
        Raises: ConfigError as `check`.
        """
        # All are checked before any is cut: a refused resume must leave the run as it found it.
        found = self.check(sizes, hashes)
        for name, size in sizes.items():
            if self.log(name).exists():
                os.truncate(self.log(name), size)
        self._told = found

    def _running(self, name: str) -> tuple[int, _Hash]:
        """Bytes and running hash of a log; read once, where another process has written it."""
        if name not in self._told:
            path = self.log(name)
            self._told[name] = _hashed(path, path.stat().st_size if path.exists() else 0)
        return self._told[name]

    @contextmanager
    def held(self) -> Iterator[None]:
        """Inside the block nobody else can write to this run; what killed writers left unfinished is cleared first.

        Raises: ConfigError naming the folder if somebody writes to it already.
        """
        with lock.held(self.path):
            clear_tree(self.path)
            yield

    def identify(self, run_id: str) -> None:
        """Writes down the id of this run, unless there is one. Raises: OSError as the file system gives it."""
        lock.write_id(self.path, run_id)

    @property
    def run_id(self) -> str | None:
        """The id of this run; None where none was written down."""
        return lock.read_id(self.path)


def _is_nothing(path: Path) -> bool:
    """Whether a file says nothing of a run: an unfinished one, or the lock."""
    return is_leftover(path) or path.name == lock.NAME


def _hashed(path: Path, size: int) -> tuple[int, _Hash]:
    """`size`, and the SHA-256, still open, of as many bytes from the beginning of a file."""
    total = hashlib.sha256()
    if size:
        with open(path, "rb") as file:
            left = size
            while left and (chunk := file.read(min(left, 2**20))):
                total.update(chunk)
                left -= len(chunk)
    return size, total
