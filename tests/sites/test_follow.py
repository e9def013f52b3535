"""A run handed to a hub, followed, and handed over again: a hub in this process that plays what Flower says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("flwr", reason="flwr is not installed: pip install 'osmotic[flower]'")

from osmotic.config.schema import Config
from osmotic.errors import RunStopped
from osmotic.sites import follow


class PlayedHub:
    """Each run of the server: (lines of its log, phases that it closes, its status, whether it writes a summary).

    One that closes -1 phases dies before it has written anything.
    """

    def __init__(self, out: Path, acts: list[tuple[list[str], int, str, bool]]) -> None:
        self.out, self.path, self.acts = out, out.parent, acts
        self.submitted: list[bool] = []
        self.stopped: list[str] = []

    def submit(self, config: Any, out: Path) -> str:
        self.submitted.append(config is not None)
        _, phases, _, done = self.acts[len(self.submitted) - 1]
        if phases < 0:
            return str(len(self.submitted))
        out.mkdir(exist_ok=True)
        (out / "config.toml").touch()
        with (out / "metrics.jsonl").open("a") as file:
            file.write("{}\n" * phases)
        if done:
            (out / "summary.json").write_text("{}")
        return str(len(self.submitted))

    def follow(self, run: str) -> Iterator[str]:
        yield from self.acts[int(run) - 1][0]

    def status(self, run: str) -> str:
        return self.acts[int(run) - 1][2]

    def stop(self, run: str) -> None:
        self.stopped.append(run)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow, "POLL", 0.0)


GOOD, DEAD = "finished:completed", "finished:failed"


def test_a_run_whose_server_dies_is_handed_over_as_long_as_that_brings_it_further(tmp_path: Path) -> None:
    acts = [([], 1, DEAD, False)] * 9 + [([], 1, GOOD, True)]
    hub = PlayedHub(tmp_path / "run", acts)
    assert follow.run(hub, Config(), tmp_path / "run", quiet=True) == 0  # type: ignore[arg-type]
    assert hub.submitted == [True, *[False] * 9], "a new one once, then the same one again"


def test_one_that_gets_no_further_is_given_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hub = PlayedHub(tmp_path / "run", [([], 1, DEAD, False), *[([], 0, DEAD, False)] * 9])
    assert follow.run(hub, Config(), tmp_path / "run", quiet=True) == 1  # type: ignore[arg-type]
    assert len(hub.submitted) == 1 + follow.TRIES
    assert "the run ended as finished:failed; go on with: osmotic hub resume" in capsys.readouterr().err


def test_one_whose_server_dies_before_it_begins_is_handed_over_whole(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub = PlayedHub(
        tmp_path / "run", [([], -1, DEAD, False)] * 2 + [([], 1, DEAD, False), ([], 1, GOOD, True)]
    )
    assert follow.run(hub, Config(), tmp_path / "run", quiet=True) == 0  # type: ignore[arg-type]
    assert hub.submitted == [True, True, True, False]
    assert "the run's server died: it begins again" in capsys.readouterr().err
    hub = PlayedHub(tmp_path / "other", [([], -1, DEAD, False)] * 9)
    assert follow.run(hub, Config(), tmp_path / "other", quiet=True) == 1  # type: ignore[arg-type]
    assert hub.submitted == [True] * follow.TRIES


def test_the_name_of_a_run_that_never_began_is_free_again(tmp_path: Path) -> None:
    for begun in (False, True):
        (out := tmp_path / f"run-{begun}").mkdir()
        acts = [(["osmotic: error: 2 of 3 sites are here"], 0 if begun else -1, DEAD, False)]
        assert follow.run(PlayedHub(out, acts), Config(), out, quiet=True) == 1  # type: ignore[arg-type]
        assert out.exists() == begun


def test_one_that_says_why_is_not_tried_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [
        "INFO : noise",
        "\x1b[92mosmotic: site a is here\x1b[0m",
        "osmotic: error: the disk is full",
        "train 1  loss 0.1",
    ]
    hub = PlayedHub(tmp_path / "run", [(lines, 1, DEAD, False)])
    assert follow.run(hub, Config(), tmp_path / "run", quiet=False) == 1  # type: ignore[arg-type]
    told = capsys.readouterr().err.splitlines()
    assert told[:2] == ["osmotic: site a is here", "train 1  loss 0.1"] and "noise" not in " ".join(told)
    assert told[-1].startswith("osmotic: the disk is full; go on with")


def test_ctrl_c_stops_the_run_at_the_hub(tmp_path: Path) -> None:
    class Pressed(PlayedHub):
        def follow(self, run: str) -> Iterator[str]:
            raise KeyboardInterrupt
            yield ""

    hub = Pressed(tmp_path / "run", [([], 0, DEAD, False)])
    assert follow.run(hub, Config(), tmp_path / "run", quiet=True) == 130  # type: ignore[arg-type]
    assert hub.stopped == ["1"]


def test_a_hub_that_is_away_for_a_while_is_waited_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Away(PlayedHub):
        asked = 0

        def status(self, run: str) -> str:
            self.asked += 1
            if self.asked < 4:
                raise RunStopped("flwr list: no answer")
            return super().status(run)

    hub = Away(tmp_path / "run", [(["osmotic: one", "osmotic: two"], 1, GOOD, True)])
    assert follow.run(hub, Config(), tmp_path / "run", quiet=False) == 0  # type: ignore[arg-type]
    assert capsys.readouterr().err.splitlines() == ["osmotic: one", "osmotic: two"], "each line once"


def test_a_hub_that_is_only_just_starting_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import subprocess

    from osmotic.sites import flwr_command

    said = iter([flwr_command.AWAY, flwr_command.AWAY, ""])
    pauses: list[float] = []

    def run(command: list[str], **more: Any) -> Any:
        told = next(said)
        answer = (
            f'{{"success": false, "error-message": "{told}."}}' if told else '{"success": true, "nodes": []}'
        )
        return subprocess.CompletedProcess(command, 1 if told else 0, answer, "")

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(flwr_command.time, "sleep", pauses.append)
    assert flwr_command.ask(tmp_path, ["list"], patience=30)["nodes"] == [] and len(pauses) == 2
    said = iter([flwr_command.AWAY])
    with pytest.raises(RunStopped, match="is osmotic hub start running"):
        flwr_command.ask(tmp_path, ["list"])
