"""What a person and the trackers are told while a run goes on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from osmotic.federation.interfaces import Work
from osmotic.protocol.messages import MERGE, TRAIN, Phase
from osmotic.runs.display import Display
from osmotic.storage.folder import RunDir

if TYPE_CHECKING:
    from osmotic.config.schema import Config
    from osmotic.runs.announce import Start
    from osmotic.runs.trackers import Tracker


class Progress:
    """The observer of the command line.

    Args:
        run: folder of the run, whose sample grids the trackers are shown.
        quiet: print nothing, for `--json`.
        display: what is printed to; by default one of its own.
    """

    def __init__(self, run: RunDir, config: Config, quiet: bool, display: Display | None = None) -> None:
        self.run, self.config, self.quiet = run, config, quiet
        self.display = display or Display(quiet)
        self._tracker: Tracker | None = None
        self._before: Mapping[str, Any] | None = None  # the line of the phase before
        self._clients = 0

    def run_started(self, start: Start) -> None:
        """Says what runs where, times a few steps, and says how long all of it will take."""
        self._clients = start.num_clients
        if self.quiet:
            return
        from osmotic.runs import announce

        for line in announce.lines(start):
            self.display.say(line)
        self.display.at("timing a few steps")
        estimate = start.estimate()
        if estimate is None:
            self.display.at("")
            return
        for line in announce.time_lines(start, estimate):
            self.display.say(line)
        self.display.at("")
        self.display.estimate = estimate
        estimate.begin()

    def phase_started(self, phase: Phase, index: int, count: int) -> None:
        """Opens the trackers when the first phase starts."""
        if self._tracker is None:
            from osmotic.config.schema import to_dict
            from osmotic.runs import tracked, trackers

            self._before = tracked.last_line(self.run.log("metrics"))
            self._tracker = trackers.open_trackers(
                self.config.track.backends, self.run.path, to_dict(self.config), from_step=phase.server_round
            )
        rounds = f" of {self.config.training.rounds}" if phase.name == TRAIN else ""
        self.display.at(f"{phase.name} {phase.server_round}{rounds}")

    def answered(self, client: str) -> None:
        """One more client of this phase has answered."""
        self.display.tick()

    def worked(self, work: Work, amount: float) -> None:
        """So much of one kind of work is done."""
        self.display.worked(work, amount)

    def phase_done(self, line: Mapping[str, Any]) -> None:
        """One line per phase, to the terminal and to the trackers."""
        if self.display.estimate is not None:
            self.display.estimate.phase_done()
        text = describe(line)
        self.display.say(text, note=text)
        if self._tracker is not None:
            self._tell(self._tracker, line)

    def close(self) -> None:
        """Closes bar and trackers."""
        self.display.close()
        if self._tracker is not None:
            self._tracker.close()

    def _tell(self, tracker: Tracker, line: Mapping[str, Any]) -> None:
        from osmotic.runs import tracked

        scalars = tracked.curves(line, self._before, self._clients)
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
