"""What a person sees while a run goes on: a progress bar on a terminal, plain lines elsewhere; trackers are told too."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from osmotic.protocol.messages import MERGE, Phase
from osmotic.storage.folder import RunDir

if TYPE_CHECKING:
    from osmotic.config.schema import Config
    from osmotic.runs.trackers import Tracker


class Progress:
    """The observer of the command line.

    Args:
        run: folder of the run, whose sample grids the trackers are shown.
        quiet: print nothing, for `--json`.
    """

    def __init__(self, run: RunDir, config: Config, quiet: bool) -> None:
        self.run, self.config, self.quiet = run, config, quiet
        self._tracker: Tracker | None = None
        self._before: Mapping[str, Any] | None = None  # the line of the phase before
        self._bar: Any = None
        self._task: Any = None
        self._terminal = not quiet and sys.stderr.isatty()

    def phase_started(self, phase: Phase, index: int, count: int) -> None:
        """Says where clients run, and opens bar and trackers, when the first phase starts."""
        if self._tracker is None:
            if not self.quiet:
                from osmotic.engines import WHERE

                print(f"osmotic: {WHERE[self.config.engine.name]}", file=sys.stderr, flush=True)
            from osmotic.config.schema import to_dict
            from osmotic.runs import tracked, trackers

            self._before = tracked.last_line(self.run.log("metrics"))
            self._tracker = trackers.open_trackers(
                self.config.track.backends, self.run.path, to_dict(self.config), from_step=phase.server_round
            )
        if self._terminal and self._bar is None:
            self._open_bar(index, count)
        if self._bar is not None:
            self._bar.update(self._task, description=f"{phase.name} {phase.server_round}", clients=0)

    def answered(self, client: str) -> None:
        """One more client of this phase has answered."""
        if self._bar is not None:
            self._bar.update(self._task, clients=self._bar.tasks[self._task].fields["clients"] + 1)

    def phase_done(self, line: Mapping[str, Any]) -> None:
        """One line per phase, to the terminal and to the trackers."""
        text = describe(line)
        if self._bar is not None:
            self._bar.update(self._task, advance=1, note=text)
        elif not self.quiet:
            print(text, file=sys.stderr, flush=True)
        if self._tracker is not None:
            self._tell(self._tracker, line)

    def close(self) -> None:
        """Closes bar and trackers."""
        if self._bar is not None:
            self._bar.stop()
        if self._tracker is not None:
            self._tracker.close()

    def _open_bar(self, index: int, count: int) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )
        from rich.progress import Progress as Bar

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[clients]} clients"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        self._bar = Bar(*columns, console=Console(stderr=True))
        self._task = self._bar.add_task("", total=count, completed=index, clients=0, note="")
        self._bar.start()

    def _tell(self, tracker: Tracker, line: Mapping[str, Any]) -> None:
        from osmotic.runs import tracked

        scalars = tracked.curves(line, self._before)
        self._before = line
        tracker.log(line["round"], scalars)
        # One grid of the global model, or one per client, of which the first stands for all.
        grid = min(self.run.samples.glob(f"round-{line['round']:04d}*.png"), default=None)
        if line["quality"] and grid is not None:
            import numpy as np
            from PIL import Image

            with Image.open(grid) as picture:
                pixels = np.asarray(picture)
            tracker.image(line["round"], "samples", pixels if pixels.ndim == 3 else pixels[:, :, None])


def describe(line: Mapping[str, Any]) -> str:
    """A phase in one line: loss, clients, and scores where there are any."""
    parts = [f"{line['phase']} {line['round']}"]
    if line["loss"] is not None:
        parts.append(f"loss {line['loss']:.4f}")
    parts.append(f"{line['num_counted']} clients" if line["phase"] != MERGE else "nobody trains")
    if line["num_failed"]:
        parts.append(f"{line['num_failed']} failed")
    if line["kept_old_weights"]:
        parts.append("no quorum: old weights kept")
    if line["quality"]:
        from osmotic.report.formatting import fd_name

        fd = line["quality"].get("fd")
        shown = fd if fd is not None else (line["quality"].get("mean") or {}).get("fd_all")
        if shown is not None:
            parts.append(f"{fd_name(line['quality']['encoder'])} {shown:.3f}")
    return "  ".join(parts)
