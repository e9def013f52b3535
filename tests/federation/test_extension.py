"""A run that is given more rounds has the bits of one begun with so many; where it could not, it is refused in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_network
from small_runs import Crash, crash_at

import osmotic
from osmotic import methods, pieces
from osmotic.config.schema import to_dict
from osmotic.errors import ConfigError
from osmotic.federation import extension
from osmotic.runs import resolve
from osmotic.runs.summary import weights_sha256
from osmotic.storage import checkpoint
from osmotic.storage.store import digest

TINY = (
    "model.network=tiny",
    "data.max_images=72",
    "data.clients=4",
    "training.batch_size=8",
    "recipe.ema_half_lives=[40.0]",
    "score.every=0",
)
INT8 = ("codec.up=int8", "codec.down=int8", "codec.error_feedback=true")
RUNS = {
    "int8 both ways, half the clients": (*INT8, "training.fraction_train=0.5"),
    "scaffold and adam": ("local.pieces=scaffold", "server.pieces=adam"),
    "udec, merged at the old end": ("method.name=udec", *INT8),
    "a model for each at the old end": ("after.pieces=personalise", "codec.changed_only=true"),
    "local, moments kept": ("method.name=local", "training.optimizer_state=keep"),
}


@pytest.fixture(autouse=True)
def tiny() -> None:
    tiny_network.register()


def outcome(server: Any, old_end: int) -> dict[str, Any]:
    """All that a run leaves, but for times and for the score that was taken at the old end."""
    state, run = server.state, server.run_dir
    metrics = [json.loads(line) for line in run.log("metrics").read_text().splitlines()]
    ledger = [json.loads(line) for line in run.log("ledger").read_text().splitlines()]
    for line in metrics:
        del line["wall_seconds"]
        if line["round"] == old_end:
            del line["quality"]
    return {
        "weights": weights_sha256(state.weights, state.state_hashes),
        "tensors": digest(state.to_checkpoint()[0]),
        "totals": vars(state.totals),
        "counted": state.counted,
        "metrics": metrics,
        "ledger": [e for e in ledger if (e["phase"], e["round"]) != ("score", old_end)],
        "steps": checkpoint.steps(run.checkpoints),
    }


@pytest.mark.parametrize("settings", RUNS.values(), ids=list(RUNS))
def test_a_finished_run_given_more_rounds_equals_one_begun_with_them(make_server: Any, settings: Any) -> None:
    long = make_server(*TINY, *settings, "training.rounds=4", name="long")
    long.run()
    make_server(*TINY, *settings, "training.rounds=2", name="short").run()
    with pytest.raises(Crash):  # and it may be killed on the way
        extended = ("training.rounds=4",)
        make_server(*TINY, *settings, *extended, name="short", resume=True, at=crash_at(2, answers=1)).run()
    short = make_server(*TINY, *settings, *extended, name="short", resume=True)
    assert short.state.step == 3
    short.run()
    assert outcome(short, old_end=2) == outcome(long, old_end=2)


def test_grids_and_summary_of_the_old_end_are_taken_away(make_server: Any) -> None:
    short = make_server(*TINY, "method.name=udec", "training.rounds=2")
    short.run()
    run = short.run_dir
    run.samples.mkdir()
    for name in ("round-0002-client-000.png", "round-0003-client-000.png", "mine.png"):
        (run.samples / name).touch()
    run.summary.write_text("{}")
    make_server(*TINY, "method.name=udec", "training.rounds=2", resume=True)
    assert run.summary.exists() and len(list(run.samples.iterdir())) == 3
    make_server(*TINY, "method.name=udec", "training.rounds=3", resume=True)
    assert not run.summary.exists()
    assert sorted(p.name for p in run.samples.iterdir()) == ["mine.png", "round-0002-client-000.png"]


REFUSED = [
    ((), "training.rounds=2", "training.rounds = 2: this run has 3, and they can only be made more"),
    ((), "training.batch_size=9", "training.batch_size = 9: was 16 when this run began; start a new run"),
    (
        ("training.lr_schedule=cosine",),
        "training.rounds=4",
        "cosine has spread the learning rate over 3 rounds",
    ),
    (
        ("method.name=udec", "method.encoder_every=3"),
        "training.rounds=4",
        "cannot be raised from 3: method udec: the encoder would have been averaged in round 3",
    ),
]


@pytest.mark.parametrize(("settings", "change", "told"), REFUSED)
def test_what_would_not_equal_the_longer_run_is_refused(settings: Any, change: str, told: str) -> None:
    before = resolve.load(sets=[*settings, "training.rounds=3"])
    after = resolve.load(sets=[*settings, "training.rounds=3", change])
    method = methods.make(after.method.name, dict(after.method.options))
    with pytest.raises(ConfigError) as caught:
        extension.check(to_dict(before), after, method, pieces.make(after))
    assert told in str(caught.value)


def test_a_piece_can_say_that_it_looked_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    before, after = (resolve.load(preset="fedprox", sets=[f"training.rounds={r}"]) for r in (3, 4))
    chain = pieces.make(after)
    extension.check(to_dict(before), after, methods.make("fedavg", {}), chain)
    monkeypatch.setattr(
        type(chain.pieces["prox"]), "tied_to", lambda self, rounds: f"mu fell over {rounds} rounds"
    )
    with pytest.raises(ConfigError, match="piece prox: mu fell over 3 rounds"):
        extension.check(to_dict(before), after, methods.make("fedavg", {}), chain)


def test_without_a_checkpoint_from_before_the_end_it_is_refused_and_nothing_changes(make_server: Any) -> None:
    keep = ("method.name=udec", "checkpoint.keep=1")
    short = make_server(*TINY, *keep, "training.rounds=2")
    short.run()
    files = {p: p.read_bytes() for p in short.run_dir.path.rglob("*") if p.is_file()}
    with pytest.raises(ConfigError, match="no checkpoint that the run can go on from, only later ones"):
        make_server(*TINY, *keep, "training.rounds=3", resume=True)
    assert files == {p: p.read_bytes() for p in short.run_dir.path.rglob("*") if p.is_file()}


class Stop(osmotic.Callback):
    """Plays a crash once the first further round has counted."""

    def phase_done(self, line: Any) -> None:
        raise Crash


def test_the_folder_says_what_goes_on_even_if_it_is_killed_on_the_way(tmp_path: Path) -> None:
    keys = {key: value for key, value in map(resolve.parse_set, (*TINY, "score.samples=20", "score.steps=2"))}
    keys |= {"track.backends": [], "training.local_epochs": 1}
    long = osmotic.run(keys=keys | {"training.rounds": 3}, out=tmp_path / "long")
    run = osmotic.run(keys=keys | {"training.rounds": 1}, out=tmp_path / "short")
    with pytest.raises(ConfigError, match=r"training\.batch_size = 4: was 8"):
        run.resume(keys={"training.batch_size": 4})
    assert run.finished and run.config.training.rounds == 1
    with pytest.raises(Crash):
        run.resume(Stop(), keys={"training.rounds": 3, "checkpoint.keep": 5})
    assert not run.finished and (run.config.training.rounds, run.config.checkpoint.keep) == (3, 5)
    assert run.path.joinpath("config.toml").read_text().startswith("# osmotic ")
    run.resume()
    assert run.finished and [line["round"] for line in run.metrics] == [1, 2, 3]
    for field in ("weights_sha256", "scored_weights_sha256", "rounds", "quality", "bytes_up", "failures"):
        assert run.summary[field] == long.summary[field]
