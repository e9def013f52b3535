"""What tests share: settings of a run of seconds, an observer that remembers, and a scorer that measures nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

SMALL = (
    "data.max_images=96",
    "data.clients=3",
    "training.rounds=3",
    "training.local_epochs=1",
    "score.samples=40",
    "score.steps=3",
    "score.guidance=1",
    "track.backends=[]",
)


class Crash(BaseException):
    """Plays a killed process: nothing after it runs."""


def crash_at(phase_number: int, answers: int, end: type[BaseException] = Crash) -> Callable[[str, Any], None]:
    """Dies in the phase of this number after so many clients have done their step."""
    seen = {"phase": 0, "answered": 0}

    def at(event: str, value: Any) -> None:
        if event == "phase":
            seen["phase"], seen["answered"] = seen["phase"] + 1, 0
        elif event == "answered":
            seen["answered"] += 1
            if (seen["phase"], seen["answered"]) == (phase_number, answers):
                raise end

    return at


class Silent:
    """An observer that remembers the lines; `at` may raise to play a crash."""

    def __init__(self, at: Callable[[str, Any], None] = lambda event, value: None) -> None:
        self.lines: list[Mapping[str, Any]] = []
        self.at = at

    def run_started(self, start: Any) -> None:
        pass

    def phase_started(self, phase: Any, index: int, count: int) -> None:
        self.at("phase", phase)

    def answered(self, client: str) -> None:
        self.at("answered", client)

    def worked(self, work: Any, amount: float) -> None: ...

    def phase_done(self, line: Mapping[str, Any]) -> None:
        self.lines.append(line)
        self.at("done", line)


class NoScore:
    """A scorer that measures nothing, for tests about training alone.

    Args:
        conditional: whether clients are told what classes to draw.
    """

    def __init__(self, conditional: bool = True) -> None:
        self.conditional = conditional

    def score_global(self, weights: Any, server_round: int) -> dict[str, Any]:
        return {}

    def sums_wanted(self) -> None:
        return None

    def wanted(self, client: Any) -> dict[str, Any]:
        return {"samples": 40, "labels": [0] * 40 if self.conditional else None, "seed": 1, "guidance": 1.0}

    def score_personal(self, pools: Any, stage: str, server_round: int) -> dict[str, Any]:
        return {}

    def with_after(self, before: Any, after: Any) -> dict[str, Any]:
        return {}
