"""The server's state on disk: written after a round, verified when loaded, the last few kept.

One file holds all of it under one checksum, so that weights and books can never be of different rounds. Step and run
stand inside, under that checksum: a file that was renamed, or copied from another run, is no checkpoint of this one.
"""

from __future__ import annotations

import contextlib
import json
import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from osmotic.errors import ConfigError, plain
from osmotic.storage import strict_json
from osmotic.storage.atomic import clear_leftovers
from osmotic.storage.store import StateLost, Tensors, read_with_notes, write_checked


def path_of(folder: Path, step: int) -> Path:
    """File of the checkpoint after `step` phases, `step` >= 0."""
    # Padded so that names sort as numbers do, for whoever looks at the folder; `steps` does not rely on it.
    return Path(folder) / f"checkpoint-{step:06d}.safetensors"


def save(
    folder: Path, step: int, tensors: Mapping[str, np.ndarray], state: Mapping[str, Any], keep: int
) -> list[int]:
    """`prepared`, and written at once: the steps whose checkpoints are still there, ascending."""
    return prepared(folder, step, tensors, state, keep)()


def prepared(
    folder: Path, step: int, tensors: Mapping[str, np.ndarray], state: Mapping[str, Any], keep: int
) -> Callable[[], list[int]]:
    """What writes the checkpoint of `step` atomically, tensors and JSON in one file under one checksum, and deletes
    all but the last `keep`; it may be called beside what goes on, from any thread.

    Args:
        folder: of this run's checkpoints; nobody else may be writing to it.
        step: phases done, >= 0.
        tensors: arrays [...] of any shape, by name, of the dtypes of `store.DTYPES`; not changed until it is written.
        state: what JSON can hold, taken down now; under "run" the id of the run.
        keep: checkpoints to keep, >= 1.
    Returns: a call that gives the steps whose checkpoints are still there, ascending. It raises OSError as the file
        system gives it; the checkpoints before are then untouched.
    """
    seal = {"state": strict_json.dumps(state, sort_keys=True), "step": str(step)}

    def write() -> list[int]:
        clear_leftovers(folder)
        # Written before any old one is deleted: at every moment at least one whole checkpoint is there.
        write_checked(path_of(folder, step), tensors, seal)
        return drop_old(folder, keep)

    return write


def drop_old(folder: Path, keep: int) -> list[int]:
    """Deletes all but the last `keep` checkpoints, `keep` >= 1; returns the steps of those, ascending."""
    found = steps(folder)
    for old in found[:-keep]:
        path_of(folder, old).unlink()
    return found[-keep:]


def steps(folder: Path) -> list[int]:
    """Steps that have a checkpoint file, ascending."""
    found = (
        re.fullmatch(r"checkpoint-(\d{6,})\.safetensors", p.name) for p in Path(folder).glob("checkpoint-*")
    )
    return sorted(int(match[1]) for match in found if match)


def load(folder: Path, step: int, run_id: str | None = None) -> tuple[Tensors, dict[str, Any]]:
    """Tensors [...] and state of one checkpoint.

    Args:
        run_id: of the run that it must be of; None takes any.
    Raises: StateLost if it is torn, altered, of another step or run, or no such file.
    """
    path = path_of(folder, step)
    tensors, notes = read_with_notes(path)
    # The checksum has held, so a state that is missing was never written: a file of another kind under this
    # name.
    try:
        state = json.loads(notes["state"])
        # `get`: checkpoints of earlier versions say neither step nor run.
        sealed, run = notes.get("step", str(step)), state.get("run")
    except (KeyError, ValueError, AttributeError):
        raise StateLost(f"{path.name} holds no state") from None
    if sealed != str(step):
        raise StateLost(f"it is that of step {plain(sealed, 20)}")
    if run_id is not None and run is not None and run != run_id:
        raise StateLost("it is of another run")
    return tensors, state


def load_latest(
    folder: Path,
    mark_damaged: bool = True,
    usable: Callable[[int, Mapping[str, Any]], bool] = lambda step, state: True,
    run_id: str | None = None,
) -> tuple[int, Tensors, dict[str, Any]]:
    """The newest checkpoint that is whole and `usable`: (step, tensors [...] by name, state).

    A torn or altered file, or one of another step or run, is passed over with a warning.

    Args:
        mark_damaged: rename such a file to `.damaged`, so that nothing mistakes it for a good one; False for
            readers that must not change a run.
        usable: given step and state, whether the run can go on from there.
        run_id: as of `load`.
    Raises: ConfigError if none is left.
    """
    found, whole = steps(folder), False
    for step in reversed(found):
        path = path_of(folder, step)
        try:
            tensors, state = load(folder, step, run_id)
        except StateLost as error:
            warnings.warn(
                f"checkpoint {path.name} is damaged ({error}); the one before is used", stacklevel=2
            )
            if mark_damaged:
                path.rename(path.with_suffix(".damaged"))
            continue
        if usable(step, state):
            return step, tensors, state
        whole = True
    reason = "holds no checkpoint" if not found else "holds no undamaged checkpoint"
    if whole:
        reason = "holds no checkpoint that the run can go on from, only later ones"
    raise ConfigError(str(folder), None, f"{reason}; start the run anew in another folder")


def drop_after(folder: Path, step: int) -> None:
    """Deletes the checkpoints after `step`: the run goes on from there, and they are not of its future."""
    for later in steps(folder):
        if later > step:
            path_of(folder, later).unlink()


def damaged(folder: Path) -> bool:
    """Whether a checkpoint was found damaged here before."""
    return any(Path(folder).glob("checkpoint-*.damaged"))


def counted(folder: Path, run_id: str | None = None) -> dict[int, dict[str, int]]:
    """For every whole checkpoint, by step: the round in which each client was last counted; `run_id` as of `load`.

    Clients keep the private states of these rounds, as the server could go back to any of them.
    """
    found: dict[int, dict[str, int]] = {}
    for step in steps(folder):
        # A damaged older one is no use to resume from, so nothing needs to be kept for it.
        with contextlib.suppress(StateLost):
            found[step] = load(folder, step, run_id)[1]["counted"]
    return found
