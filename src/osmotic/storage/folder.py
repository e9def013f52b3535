"""The folder of a run while it is being written: its files, its logs, and cutting them back on resume."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from osmotic.errors import ConfigError

LOGS = ("metrics", "ledger")  # those that grow; all other files are written whole


class RunDir:
    """Paths of a run (docs/design.md, section 7). Logs grow by whole lines, a checkpoint knows their lengths.

    Args:
        path: the run's folder; nothing is looked at or made by naming it.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)

    @staticmethod
    def refuse_used(path: Path) -> None:
        """Refuses a folder that something is in already: nothing is ever overwritten.

        Raises: ConfigError naming `--out`.
        """
        path = Path(path)
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
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
        if not (Path(path) / "config.toml").is_file():
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
        self.append_text(name, "".join(json.dumps(r) + "\n" for r in records))

    def append_text(self, name: str, text: str) -> None:
        """Adds finished lines to a log and forces them to disk.

        Args:
            name: "metrics" or "ledger".
            text: ends with a line break, or is empty.
        Raises: OSError as the file system gives it.
        """
        # Appended, not replaced atomically: a log of n rounds would be written n times over. What a kill
        # leaves behind the last checkpoint is cut off on resume, so here a torn line does no harm.
        with open(self.log(name), "a", encoding="utf-8", errors="backslashreplace", newline="") as file:
            file.write(text)
            # Before the checkpoint that counts these bytes: it may never promise more than is on disk.
            file.flush()
            os.fsync(file.fileno())

    def reopen(self, server_round: int) -> None:
        """The run goes on after this round: what is of its end, or of later rounds, is taken away."""
        self.summary.unlink(missing_ok=True)  # or it would say that the run is finished
        for grid in self.samples.glob("round-*.png"):
            number = re.match(r"round-(-?\d+)", grid.name)
            if number and int(number[1]) > server_round:
                grid.unlink()

    def sizes(self) -> dict[str, int]:
        """Lengths of the logs in bytes, for the checkpoint; 0 for one that is not there yet."""
        return {name: self.log(name).stat().st_size if self.log(name).exists() else 0 for name in LOGS}

    def cut(self, sizes: Mapping[str, int]) -> None:
        """Cuts the logs back to the lengths of a checkpoint.

        Args:
            sizes: bytes, as `sizes` gave them.
        Raises: ConfigError if a log is shorter than that: then lines are missing that nobody can bring back.
        """
        # All are checked before any is cut: a refused resume must leave the run as it found it.
        present = self.sizes()
        for name, size in sizes.items():
            found = present[name]
            if found < size:
                raise ConfigError(
                    str(self.log(name)), found, f"must have at least the {size} bytes of the checkpoint"
                )
        for name, size in sizes.items():
            if present[name] > size:
                os.truncate(self.log(name), size)
