"""What the phase under way has done so far, on disk: answers that passed the gate, and finished pieces of the server's work.

A phase counts as a whole or not at all. Where much hangs on one (all clients train alone, the server draws from every
model), a kill would cost all of it: with a journal it costs the piece under way. An entry is found again only by the very
question that it answers, so an entry of another phase, run or state is never taken. The next phase drops them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from pathlib import Path

import numpy as np

from osmotic.protocol.messages import Packet, Sent
from osmotic.storage import strict_json
from osmotic.storage.atomic import clear_leftovers
from osmotic.storage.store import StateLost, read_with_notes, write_checked
from osmotic.tensors import Tensors

# Of a task's header what may differ when the same task is posted again: it hangs on the checkpoints still on disk.
UNSTEADY = ("durable_round",)


class Journal:
    """One folder of entries, `NUMBER/KEY.safetensors` by the number of the phase.

    Args:
        folder: of this run's journal; made when the first entry is written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self._phase = Path(folder), ""

    def begin(self, server_round: int) -> None:
        """The phase of this number is under way: entries of others are dropped.

        Not when a phase counts: until its checkpoint is on disk it may have to be gone through again. An entry of a later phase may build on private states of clients that going through this phase again replaces.
        """
        self._phase = f"{server_round:+09d}"
        for folder in self.folder.glob("*"):
            if folder.name != self._phase:
                _remove(folder)

    def clear(self) -> None:
        """The run has come to its end."""
        for folder in (*self.folder.glob("*"), self.folder):
            _remove(folder)

    def answer(self, sent: Sent) -> Packet | None:
        """The answer to this very task that came before; None if none did, or it is damaged."""
        try:
            tensors, notes = self._read(_question(sent))
            header = json.loads(notes["header"])
        except (StateLost, KeyError, ValueError):
            return None  # the client is asked again
        blobs = tuple(tensors[f"blob-{i:03d}"].tobytes() for i in range(len(tensors)))
        return Packet(header, blobs)

    def keep_answer(self, sent: Sent, packet: Packet) -> None:
        """Keeps an answer that passed the gate. Raises: OSError as the file system gives it."""
        blobs = {f"blob-{i:03d}": np.frombuffer(blob, np.uint8) for i, blob in enumerate(packet.blobs)}
        self._write(_question(sent), blobs, {"header": strict_json.dumps(dict(packet.header))})

    def find(self, what: str) -> Tensors | None:
        """What was last kept under `what` in this phase, name -> array [...]; None if nothing was, or it is damaged."""
        with contextlib.suppress(StateLost):
            return self._read(_name(what))[0]
        return None

    def keep(self, what: str, made: Tensors) -> None:
        """Keeps how far a piece of work has come, name -> array [...], in the place of what was kept under its name before.

        Args:
            what: names the work and all that its result follows from.
        Raises: OSError as the file system gives it.
        """
        self._write(_name(what), made, {})

    def _read(self, key: str) -> tuple[Tensors, dict[str, str]]:
        """An entry and its notes. Raises: StateLost for none, a damaged one, and one that was another's: files may be swapped."""
        path = self.folder / self._phase / f"{key}.safetensors"
        tensors, notes = read_with_notes(path)
        if notes.get("key") != key:
            raise StateLost(f"{path}: is another entry")
        return tensors, notes

    def _write(self, key: str, tensors: Tensors, notes: dict[str, str]) -> None:
        path = self.folder / self._phase / f"{key}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        clear_leftovers(path.parent)
        write_checked(path, tensors, notes | {"key": key})


def _remove(folder: Path) -> None:
    """Entries of a folder, what a kill left half written, and the folder itself unless something else lies in it."""
    clear_leftovers(folder)
    for path in folder.glob("*.safetensors"):
        path.unlink()
    with contextlib.suppress(OSError):
        folder.rmdir()


def _name(what: str) -> str:
    return hashlib.sha256(what.encode()).hexdigest()


def _question(sent: Sent) -> str:
    """SHA-256 of a task as it is posted, in hexadecimal digits."""
    header = {k: v for k, v in sent.packet.header.items() if k not in UNSTEADY}
    total = hashlib.sha256(strict_json.dumps(header, sort_keys=True).encode())
    for blob in sent.packet.blobs:
        total.update(len(blob).to_bytes(8, "little"))
        total.update(blob)
    return total.hexdigest()
