"""How long a run takes: amounts of work by hand and as runs report them, seconds by a clock that the test moves."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import SMALL

from osmotic.federation.interfaces import Work
from osmotic.metrics import classifier
from osmotic.runs import launch, quicker, resolve, study, timing
from osmotic.runs.callbacks import Callback
from osmotic.runs.estimate import Estimate, about, seconds, told


class Clock:
    """Seconds that only the test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def prepared(*sets: str) -> study.Study:
    return study.prepare(resolve.load(sets=[*SMALL, *sets]))


def test_the_work_of_a_run_by_hand() -> None:
    # Batches of 16: of 96 images in three equal shares each client has 32, so 2 steps a pass, 3 passes: 18 of three.
    work = timing.workload(
        prepared("data.partition=iid", "training.batch_size=16", "training.local_epochs=3", "score.every=2")
    )
    assert [phase["train"] for phase in work] == [18, 18, 18]
    # Scored after round 2 and after the last; looked at: the 40 samples twice, and the 96 images.
    assert [phase.get("draw") for phase in work] == [None, 40, 40]
    assert [phase.get("score") for phase in work] == [None, 96 + 40, 40]


def test_what_is_watched_is_work_by_hand() -> None:
    # 32 images each, of which 6.4 or so are held out, and 3 watched: 512 noisy images a look, 3 passes and one before them.
    made = prepared(
        "data.partition=iid",
        "data.holdout=0.2",
        "after.pieces=personalise",
        "after.personalise.epochs=3",
    )
    *rounds, own = timing.workload(made)
    assert own["watch"] == 3 * 4 * 512 and not any("watch" in phase for phase in rounds)
    # A look of 512 images takes a third of as many in training: with batches of 16 at 3 s, 512 / 16 s.
    pace: dict[Work, tuple[float, float]] = {"train": (3, 1), "watch": (1, 16)}
    assert seconds([own], pace)[0] == 3 * own["train"] + 12 * 512 / 16
    unwatched = prepared("after.pieces=personalise")
    assert timing.workload(unwatched)[-1]["watch"] == 0


def test_a_step_that_is_watched_takes_a_third_of_one_that_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "side_by_side", lambda *_: 6.0)
    made = prepared("data.partition=iid", "training.batch_size=16", "engine.workers=1")
    assert timing.network(made)["watch"] == (2.0, 16)


def test_seconds_are_amounts_times_pace() -> None:
    phases: list[dict[Work, float]] = [{"train": 10}, {"train": 10, "draw": 5, "encoder": 4, "score": 30}]
    timed: dict[Work, tuple[float, float]] = {
        "train": (3, 2),
        "draw": (4, 1),
        "encoder": (1, 2),
        "score": (1, 10),
    }
    # 20 steps of 1.5 s; 5 images of 4 s, 4 encoder steps of 0.5 s, 30 looks of 0.1 s.
    assert seconds(phases, timed) == (30, 25)


def test_scores_to_come_are_in_the_time_left() -> None:
    clock = Clock()
    estimate = Estimate([{"train": 10, "draw": 5}], {"train": (1, 1), "draw": (2, 1)}, clock)
    assert estimate.left() == 20
    for _ in range(10):
        clock.now += 1
        estimate.worked("train", 1)
    assert estimate.left() == 10 and estimate.doing() == ("draw", 0, 5)
    clock.now += 2
    assert estimate.left() == 8  # it counts down between two events
    estimate.worked("draw", 1)
    assert estimate.left() == 8 and estimate.doing() == ("draw", 1, 5)
    clock.now += 8
    estimate.phase_done()
    assert estimate.left() == 0 and estimate.gone() == 20


def test_what_the_run_takes_outweighs_what_was_timed() -> None:
    clock = Clock()
    estimate = Estimate([{"train": 100}, {"train": 100}], {"train": (1, 1)}, clock)
    assert estimate.left() == 200
    for _ in range(100):
        clock.now += 3
        estimate.worked("train", 1)
    estimate.phase_done()
    # 301 s for 101 steps.
    assert estimate.left() == pytest.approx(100 * 301 / 101)


def test_time_behind_the_last_batch_belongs_to_the_scores() -> None:
    clock = Clock()
    phase: dict[Work, float] = {"train": 1, "score": 10}
    estimate = Estimate([phase, phase], {"train": (1, 1), "score": (1, 10)}, clock)
    clock.now += 1
    estimate.worked("train", 1)
    clock.now += 2
    estimate.worked("score", 10)
    clock.now += 5
    estimate.phase_done()
    # A step of 1 s; 10 looks of (1 + 2 + 5) s in 20.
    assert estimate.left() == pytest.approx(1 + 10 * 8 / 20)


def test_images_looked_at_in_a_score_correct_the_scores_to_come() -> None:
    clock = Clock()
    phase: dict[Work, float] = {"score": 10}
    estimate = Estimate([phase, phase, {"train": 4}], {"train": (1, 1), "score": (1, 1)}, clock)
    clock.now += 30
    estimate.worked("score", 30)
    estimate.phase_done()
    # Each look took 1 s as timed, but there were 30: so it is again.
    assert estimate.left() == pytest.approx(30 + 4)


def test_a_client_that_fails_leaves_no_work_behind() -> None:
    clock = Clock()
    estimate = Estimate([{"train": 10}, {"train": 10}], {"train": (1, 1)}, clock)
    clock.now += 5
    estimate.worked("train", 5)
    estimate.phase_done()
    assert estimate.left() == 10


def test_an_estimate_in_words() -> None:
    assert [about(s) for s in (0.2, 4.4, 42, 89, 90, 740, 5399, 12600)] == [
        *("1 s", "4 s", "40 s", "90 s", "2 min", "12 min", "90 min", "3.5 h")
    ]
    assert told(480, 240) == "about 12 min (8 min training, 4 min scoring)"


class Counted(Callback):
    """Adds up the work that a run reports."""

    def __init__(self) -> None:
        self.done: Counter[str] = Counter()

    def worked(self, work: str, amount: float) -> None:
        self.done[work] += amount


@pytest.mark.parametrize(
    "sets",
    [
        (),
        ("method.name=udec", "training.local_epochs=2"),
        ("after.pieces=personalise", "after.personalise.epochs=3"),
        ("after.pieces=personalise", "data.holdout=0.2", "training.batch_size=8"),
        ("after.pieces=personalise", "after.personalise.when=rounds"),
        ("training.fraction_train=0.5", "method.name=local", "score.every=2"),
        ("method.name=central", "training.batch_size=10"),
        ("server.pieces=correction", "server.correction.local_epochs=2", "server.correction.redraw=1"),
        ("server.pieces=correction", "server.correction.images=upload", "server.correction.size=0.5"),
        ("server.pieces=correction", "server.correction.images=federated", "server.correction.draw_after=1"),
        ("preset=oneshot", "server.correction.passes=2", "server.correction.local_epochs=1"),
    ],
)
def test_a_run_does_the_work_that_was_foreseen(
    sets: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OSMOTIC_CACHE", str(tmp_path / "cache"))
    config = resolve.load(sets=[*SMALL, "training.rounds=2", *sets])
    foreseen: Counter[str] = Counter()
    for phase in timing.workload(study.prepare(config)):
        foreseen.update(phase)
    counted = Counted()
    launch.start(config, tmp_path / "run", lambda *_: counted)
    for work in ("train", "draw", "encoder"):
        assert counted.done[work] == pytest.approx(foreseen[work]) and foreseen[work] > 0
    assert counted.done["watch"] == foreseen["watch"] and (foreseen["watch"] > 0) is (
        "data.holdout=0.2" in sets
    )
    assert counted.done["score"] > 0


def test_timing_touches_neither_random_numbers_nor_threads() -> None:
    made = prepared("score.samples=50")
    torch.manual_seed(5)
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    timed = timing.network(made)
    assert torch.equal(torch.get_rng_state(), before) and torch.get_num_threads() == threads
    assert set(timed) == {"train", "watch", "draw"} and all(s > 0 and n > 0 for s, n in timed.values())


def test_an_encoder_that_is_in_the_cache_is_not_trained_on_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OSMOTIC_CACHE", str(tmp_path))
    made = prepared()
    assert set(timing.encoder(made)) == {"encoder", "score"}
    assert timing.Scoring(made, None).encoder.name  # trained, and left in the cache

    def train(*_: Any) -> None:
        raise AssertionError("it is there")

    monkeypatch.setattr(classifier, "_train", train)
    ((work, (taken, images)),) = timing.encoder(made).items()
    assert (work, images) == ("score", 64) and taken > 0


def test_a_run_that_was_timed_has_the_bits_of_one_that_was_not(tmp_path: Path) -> None:
    class Asks(Callback):
        def run_started(self, start: Any) -> None:
            lefts.append(start.estimate().left())

    lefts: list[float] = []
    config, found = resolve.load(sets=[*SMALL, "training.rounds=1"]), []
    for name, observer in (("plain", Callback()), ("timed", Asks())):
        launch.start(config, tmp_path / name, lambda *_, told=observer: told)
        summary = json.loads((tmp_path / name / "summary.json").read_text())
        found.append((summary["weights_sha256"], summary["quality"]))
    assert found[0] == found[1] and lefts[0] > 0


def test_large_batches_are_scaled_up_to_from_what_small_ones_take(monkeypatch: pytest.MonkeyPatch) -> None:
    # A step costs 3 ms and 20 ms an image, then 1 s and 2 s.
    clock = Clock()
    monkeypatch.setattr(timing.time, "perf_counter", clock)

    def trial(images: int) -> Any:
        def step(model: Any) -> None:
            clock.now += whole + each * images

        return step

    made = prepared()
    whole, each = 0.003, 0.02
    # 23 ms for one, so 21 fit into the patience of 500 ms and take 423 ms: 20 ms for each more.
    taken = timing.side_by_side(made, trial, [torch.nn.Identity()], 100)
    assert taken == pytest.approx(0.003 + 0.02 * 100)
    # No patience for one image: eight are tried all the same, or the step's own second would count for every image.
    whole, each = 1.0, 2.0
    assert timing.side_by_side(made, trial, [torch.nn.Identity()], 100) == pytest.approx(201)


@pytest.mark.skipif(sys.platform != "linux", reason="worker processes need Linux")
def test_workers_that_are_processes_take_as_long_as_one_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []

    def six_seconds(study: Any, trial: Any, models: Any, size: int) -> float:
        tried.append(len(models))
        return 6.0

    monkeypatch.setattr(timing, "side_by_side", six_seconds)
    keys = ("engine.workers=2", "engine.device=cpu")
    assert timing.network(prepared(*keys, "engine.processes=false"))["train"] == (6.0, 1)
    # A step that takes one process 6 s takes two of them 6 s for two.
    assert timing.network(prepared(*keys, "engine.processes=true"))["train"] == (3.0, 1)
    assert tried == [2, 2, 1, 2], "training, drawing; images are drawn by threads"


def test_what_is_quicker_is_timed_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    made = prepared("data.image_size=32", "training.rounds=20")
    pace = {"unet-32": 100.0, "unet-28": 10.0, "unet-8": 4.0}
    monkeypatch.setattr(timing, "network", lambda s: {"train": (pace[s.spec.name], 1)})
    phases: list[dict[Work, float]] = [{"train": 10}] * 20
    timed: dict[Work, tuple[float, float]] = {"train": (100, 1)}
    # 200 steps: 20,000 s; with unet-28 2,000 s, with unet-8 800 s.
    assert quicker.quicker(made, phases, timed, enough=3000) == ("--set model.network=unet-28", 2000)
    assert quicker.quicker(made, phases, timed, enough=1000) == ("--set model.network=unet-8", 800)
    # Half the side takes unet-8 as well: the first of equals is told.
    assert quicker.quicker(made, phases, timed, enough=100) == ("--set model.network=unet-8", 800)
    # Where neither helps, fewer rounds: 1,000 s each.
    monkeypatch.setattr(timing, "network", lambda s: {"train": (100.0, 1)})
    assert quicker.quicker(made, phases, timed, enough=3500) == ("--set training.rounds=3", 3000)


def test_quicker_ways_can_really_be_timed() -> None:
    made = prepared("data.image_size=16", "model.network=unet-28", "score.samples=50")
    found = dict(quicker.alternatives(made))
    assert list(found) == ["--set model.network=unet-8", "--set data.image_size=8"]
    assert found["--set data.image_size=8"].spec.image_size == 8
    assert all(timing.network(other)["train"][0] > 0 for other in found.values())
