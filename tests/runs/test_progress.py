"""What a person is told while a run goes on: the start, plain lines at a measured pace, and no line at all when quiet."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_runs import SMALL

import osmotic
from osmotic.data import sources
from osmotic.protocol.messages import Phase
from osmotic.runs import announce, commands, display, resolve
from osmotic.runs.display import EVERY, Display
from osmotic.runs.estimate import Estimate
from osmotic.runs.progress import Progress
from osmotic.storage.folder import RunDir


class Clock:
    """Seconds that only the test moves."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Iterator[Clock]:
    yield Clock()


def start(given: Estimate, **facts: Any) -> announce.Start:
    values: dict[str, Any] = {
        "where": "a simulation",
        "device": "cpu",
        "network": "unet-32",
        "parameters": 35_746_307,
        "image_size": 32,
        "channels": 3,
        "num_images": 240,
        "num_classes": 0,
        "num_clients": 5,
        "rounds": 3,
        "samples": 240,
        "every": 1,
        "estimate": lambda: given,
        "quicker": lambda estimate: ("--set model.network=unet-28", 1200.0),
    }
    return announce.Start(**values | facts)


def test_the_start_says_what_runs_where(clock: Clock) -> None:
    told = announce.lines(start(Estimate([], {}, clock)))
    assert told == [
        "osmotic: a simulation",
        "osmotic: 5 clients on cpu, 240 images of 32x32, colour, no classes; network unet-32 with 35,746,307 weights; "
        "3 rounds, 240 samples scored every round",
    ]
    graded = announce.lines(start(Estimate([], {}, clock), num_classes=10, channels=1, every=4))[1]
    assert "32x32, grey, 10 classes;" in graded and graded.endswith("240 samples scored every 4 rounds")
    assert announce.lines(start(Estimate([], {}, clock), every=0))[1].endswith("scored after the last round")


def test_a_long_run_on_a_cpu_is_warned_of_with_the_key_that_helps(clock: Clock) -> None:
    long = Estimate([{"train": 60, "draw": 10}], {"train": (100, 1), "draw": (120, 1)}, clock)
    assert announce.time_lines(start(long), long) == [
        "osmotic: about 2.0 h (1.7 h training, 20 min scoring)",
        "osmotic: warning: this is long on a CPU; --set model.network=unet-28 would take about 20 min",
    ]
    # Not on a GPU, not below half an hour.
    assert len(announce.time_lines(start(long, device="cuda"), long)) == 1
    short = Estimate([{"train": 17}], {"train": (100, 1)}, clock)
    assert announce.time_lines(start(short), short) == [
        "osmotic: about 28 min (28 min training, 1 s scoring)"
    ]


def test_plain_lines_come_at_most_every_so_many_seconds(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = Display(quiet=False, clock=clock)
    shown.estimate = Estimate([{"train": 1000, "draw": 60}], {"train": (1, 1), "draw": (2, 1)}, clock)
    shown.at("train 1 of 3")
    for _ in range(100):
        clock.now += 1
        shown.estimate.worked("train", 1)
        shown.tick()
    lines = capsys.readouterr().err.splitlines()
    assert EVERY == 30 and len(lines) == 3
    assert lines[0] == "train 1 of 3: training 30 of 1,000 steps, about 18 min left"


def test_a_line_of_a_phase_puts_the_next_plain_line_off(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = Display(quiet=False, clock=clock)
    shown.estimate = Estimate([{"train": 1000}], {"train": (1, 1)}, clock)
    clock.now += 29
    shown.say("train 1  loss 0.5", note="train 1  loss 0.5")
    clock.now += 29
    shown.tick()
    assert capsys.readouterr().err == "train 1  loss 0.5\n"


def test_quiet_prints_and_times_nothing(
    clock: Clock, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def never() -> Estimate:
        raise AssertionError("timed for nobody")

    progress = Progress(RunDir(tmp_path), resolve.load(sets=["track.backends=[]"]), quiet=True)
    progress.run_started(start(Estimate([], {}, clock), estimate=never))
    progress.phase_started(Phase("train", 1), 0, 1)
    progress.worked("train", 1)
    progress.close()
    assert capsys.readouterr() == ("", "")


def test_a_run_tells_start_time_and_phases_on_stderr_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = resolve.load(sets=[*SMALL, "training.rounds=1"])
    osmotic.run(config, out=tmp_path / "run", quiet=False)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("osmotic: a simulation: all clients share one machine")
    assert lines[1].startswith("osmotic: 3 clients on ") and "96 images of 8x8, grey, 10 classes" in lines[1]
    assert "network unet-8 with 702,753 weights; 1 round, 40 samples" in lines[1]
    assert lines[2].startswith("osmotic: about ") and lines[2].endswith(" scoring)")
    assert lines[3].startswith("train 1  loss ")


def test_an_error_in_a_callback_of_a_batch_ends_the_run_and_is_no_failure_of_a_client(tmp_path: Path) -> None:
    class Breaks(osmotic.Callback):
        def worked(self, work: str, amount: float) -> None:
            raise ZeroDivisionError("of the callback")

    with pytest.raises(ZeroDivisionError, match="of the callback"):
        osmotic.run(resolve.load(sets=SMALL), out=tmp_path / "run", callbacks=[Breaks()])
    assert not any(line["num_failed"] for line in osmotic.load(tmp_path / "run").metrics)


def test_reading_images_is_told_image_by_image(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = np.random.default_rng(0).integers(0, 255, (30, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", train_images=images, test_images=images[:4])
    told: list[tuple[int, int]] = []
    sources.load(
        resolve.load(sets=[f"data.source=npz:{tmp_path / 'a.npz'}"]).data, lambda *at: told.append(at)
    )
    assert told == [*((n, 30) for n in range(1, 31)), *((n, 4) for n in range(1, 5))]


def test_reading_for_long_is_told_in_plain_lines(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    shown = Display(quiet=False, clock=clock)
    for done in range(1, 71):
        clock.now += 1
        shown.read(done, 1500)
    assert capsys.readouterr().err.splitlines() == [
        "reading images: 30 of 1,500",
        "reading images: 60 of 1,500",
    ]


def test_evaluate_tells_how_far_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    osmotic.run(resolve.load(sets=[*SMALL, "training.rounds=1"]), out=tmp_path / "run")
    monkeypatch.setattr(display, "EVERY", 0.0)
    commands.evaluate(tmp_path / "run")
    assert capsys.readouterr().err == ""
    commands.evaluate(tmp_path / "run", quiet=False)
    lines = capsys.readouterr().err.splitlines()
    # 40 images in 3 sampler steps, then what the encoder looks at.
    assert [line.split(",")[0] for line in lines if "drawing" in line][:2] == [
        "drawing 13 of 40 images",
        "drawing 26 of 40 images",
    ]
    assert any("scoring" in line for line in lines) and all(line.endswith(" left") for line in lines[-2:])


def test_the_start_of_a_run_with_an_adapter_tells_the_network_too(clock: Clock) -> None:
    told = announce.lines(start(Estimate([], {}, clock), parameters=3712, parameters_whole=35_746_307))[1]
    assert "network unet-32 with 35,746,307 weights, under an adapter of 3,712; 3 rounds" in told
