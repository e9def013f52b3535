"""Tables that the server keeps once, by the hash of what they hold, and not in every checkpoint: synthetic images."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from osmotic.errors import ConfigError
from osmotic.storage.atomic import clear_leftovers
from osmotic.storage.store import StateLost, digest, read_checked, write_checked
from osmotic.tensors import Tensors


class Shelf:
    """Files `HASH.safetensors` in one folder; without a folder, as in tests and plans, tables are held in memory.

    Args:
        folder: of this run alone; made when the first table is kept.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder, self._held = folder, dict[str, Tensors]()

    def keep(self, tensors: Mapping[str, np.ndarray]) -> str:
        """Keeps a table, name -> array [...], and gives the SHA-256 by which it is found again.

        Raises: OSError as the file system gives it.
        """
        sha256 = digest(tensors)
        self._held = {sha256: dict(tensors)}  # the one that is in use: what is older is read again
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            clear_leftovers(self.folder)
            if not self._whole(sha256):
                write_checked(self._path(sha256), tensors)
        return sha256

    def take(self, sha256: str) -> Tensors:
        """The table of this hash. Raises: ConfigError naming the file if it is not there, damaged, or another."""
        if sha256 not in self._held:
            try:
                found = read_checked(self._path(sha256))
                if digest(found) != sha256:
                    raise StateLost("it holds another table than its name says")
            except StateLost as error:
                raise ConfigError(
                    str(self.folder), sha256[:12], f"{error}; put the file back, or start anew elsewhere"
                ) from None
            self._held = {sha256: found}
        return self._held[sha256]

    def _whole(self, sha256: str) -> bool:
        with contextlib.suppress(StateLost):
            return digest(read_checked(self._path(sha256))) == sha256
        return False

    def _path(self, sha256: str) -> Path:
        if self.folder is None or not re.fullmatch(r"[0-9a-f]{64}", sha256):
            raise StateLost("not a hash of a table")
        return self.folder / f"{sha256}.safetensors"
