"""The program of one task at a site, which Flower starts by the name `flwr-clientapp`: its own, but for the app.

Flower would unpack whatever app the hub has sent, and import it. Here that is put aside unread, and a task is always done by
the app of the osmotic that is installed at the site: a hub sends data, and no code.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from flwr.clientapp import ClientApp
from flwr.supernode.cli import flwr_clientapp
from flwr.supernode.runtime import run_clientapp

from osmotic import plugins
from osmotic.engines.flower import APP
from osmotic.sites.answers import FOLDER, marked
from osmotic.storage.atomic import write_text

PROGRAM = "flwr-clientapp"


def main() -> None:
    """What `flwr-clientapp` does, with our app in the place of the one that was sent."""
    run_clientapp.install_from_fab = _unread
    run_clientapp.install_app_dependencies = _unread
    run_clientapp.get_load_client_app_fn = _ours
    run_clientapp.push_message = marked(run_clientapp.push_message, Path(os.environ["OSMOTIC_ANSWERS"]))
    flwr_clientapp()


def write_program(folder: Path) -> Path:
    """The only folder of programs that a site's processes find; returns it.

    Of all that Flower can start for a hub (servers, agents, models) it finds this task's program, and nothing else.
    """
    folder.mkdir(exist_ok=True)
    file = folder / PROGRAM
    # Through a shell: the path of an interpreter may be too long for a first line, or hold a space.
    answers = folder.parent / FOLDER
    answers.mkdir(exist_ok=True)
    line = f"export OSMOTIC_ANSWERS={shlex.quote(str(answers))}\nexec {shlex.quote(sys.executable)} -m osmotic.sites.task"
    write_text(file, f'#!/bin/sh\n{line} "$@"\n')
    file.chmod(0o700)
    return folder


def _unread(*args: object, **more: object) -> None:
    return None


def _ours(*args: object, **more: object) -> Callable[..., ClientApp]:
    plugins.load_installed()
    app: ClientApp = import_module(APP).client
    return lambda *named: app


if __name__ == "__main__":
    main()
