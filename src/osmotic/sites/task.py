"""The program of one task at a site, which Flower starts by the name `flwr-clientapp`: its own, but for the app.

Flower would unpack whatever app the hub has sent, and import it. Here that is put aside unread, and a task is always done by
the app of the osmotic that is installed at the site: a hub sends data, and no code.
"""

from __future__ import annotations

import fcntl
import os
import shlex
import sys
from collections.abc import Callable
from contextlib import ExitStack, suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from flwr.clientapp import ClientApp
from flwr.supernode.cli import flwr_clientapp
from flwr.supernode.runtime import run_clientapp

from osmotic import plugins
from osmotic.engines.flower import APP
from osmotic.storage.atomic import write_text

PROGRAM = "flwr-clientapp"
ANSWERS = (
    "answers"  # beside the folder of the program: a file for each answer that is on its way to the SuperNode
)


def main() -> None:
    """What `flwr-clientapp` does, with our app in the place of the one that was sent."""
    run_clientapp.install_from_fab = _unread
    run_clientapp.install_app_dependencies = _unread
    run_clientapp.get_load_client_app_fn = _ours
    run_clientapp.push_message = _told(run_clientapp.push_message, Path(os.environ["OSMOTIC_ANSWERS"]))
    flwr_clientapp()


def write_program(folder: Path) -> Path:
    """The only folder of programs that a site's processes find; returns it.

    Of all that Flower can start for a hub (servers, agents, models) it finds this task's program, and nothing else.
    """
    folder.mkdir(exist_ok=True)
    file = folder / PROGRAM
    # Through a shell: the path of an interpreter may be too long for a first line, or hold a space.
    answers = folder.parent / ANSWERS
    answers.mkdir(exist_ok=True)
    line = f"export OSMOTIC_ANSWERS={shlex.quote(str(answers))}\nexec {shlex.quote(sys.executable)} -m osmotic.sites.task"
    write_text(file, f'#!/bin/sh\n{line} "$@"\n')
    file.chmod(0o700)
    return folder


def broken_off(answers: Path, since: float) -> bool:
    """Whether a task's process died while it handed its answer over. True once for each such answer.

    Flower's SuperNode waits for the rest of it for ever, and does nothing else: it must be started anew.

    Args:
        answers: folder of those that are on their way.
        since: when the SuperNode was started, in seconds since 1970: what is older was meant for the one before it.
    """
    found = False
    for file in answers.glob("*.answer"):
        # Gone: it has just been handed over. Locked: it is being. A file system without locks tells nothing.
        with suppress(OSError), open(file, "r+b") as opened:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
            found |= file.stat().st_mtime >= since
            file.unlink()
    return found


def _told(push_message: Callable[..., None], answers: Path) -> Callable[..., None]:
    """What hands an answer to the SuperNode, beside a file that is locked until it has all of it."""

    def push(client: Any, message: Any, context: Any) -> None:
        file = answers / f"{os.getpid()}.answer"
        new = file.with_suffix(".new")
        with ExitStack() as held:
            with suppress(
                OSError
            ):  # without locks or room on the disk the answer is handed over all the same
                opened = held.enter_context(open(new, "wb"))
                fcntl.flock(opened, fcntl.LOCK_EX)  # the system lets go of it, however this process ends
                new.rename(file)
            push_message(client, message, context)
            file.unlink(missing_ok=True)

    return push


def _unread(*args: object, **more: object) -> None:
    return None


def _ours(*args: object, **more: object) -> Callable[..., ClientApp]:
    plugins.load_installed()
    app: ClientApp = import_module(APP).client
    return lambda *named: app


if __name__ == "__main__":
    main()
