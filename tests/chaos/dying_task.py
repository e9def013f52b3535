"""A site's task that dies once while it hands its answer to the SuperNode, in the place of `osmotic.sites.task`."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from osmotic.sites import task


def main() -> None:
    """Does the task; the first one that gets this far is killed between two pieces of its answer."""
    from flwr.supernode.runtime import run_clientapp as flwr_program

    push_objects, died = flwr_program.push_objects, Path(os.environ["DIED"])

    def objects(contents: Any, push_object: Any, **more: Any) -> Any:
        if not died.exists() and len(contents) > 3:
            died.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return push_objects(contents, push_object, **more)

    flwr_program.push_objects = objects
    task.main()


if __name__ == "__main__":
    main()
