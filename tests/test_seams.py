"""Every hook that the papers need, used once, with a crash in between: the run after it is the unbroken one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from seam_methods import SEAMS, HalfCodec, TrainedCodec
from small_runs import Crash, crash_at

from osmotic import codecs, methods
from osmotic.runs.summary import weights_sha256
from osmotic.storage.store import digest

SLIM = ("training.rounds=2", "data.max_images=60", "data.clients=3")


@pytest.fixture(autouse=True)
def seams(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, cls in SEAMS.items():
        monkeypatch.setitem(methods.METHODS, name, cls)
    monkeypatch.setitem(codecs.CODECS, "trained", TrainedCodec)
    monkeypatch.setitem(codecs.CODECS, "half", HalfCodec)


def outcome(server: Any) -> dict[str, Any]:
    """All that a run leaves, but for the time."""
    averages, _ = server.state.ema.state()
    ledger = [json.loads(line) for line in server.run_dir.log("ledger").read_text().splitlines()]
    return {
        "weights": weights_sha256(server.state.weights, server.state.state_hashes),
        "averages": digest(averages),
        "totals": vars(server.state.totals),
        "failures": server.state.failures,
        "counted": server.state.counted,
        "ledger": ledger,
        "server_steps": server.state.server_steps,
    }


@pytest.mark.parametrize("name", sorted(SEAMS))
@pytest.mark.parametrize("phase", [1, 2])
def test_a_crash_in_mid_round_changes_nothing(make_server: Any, name: str, phase: int) -> None:
    settings = (f"method.name={name}", *SLIM)
    unbroken = make_server(*settings, name="unbroken")
    unbroken.run()
    with pytest.raises(Crash):
        make_server(*settings, name="broken", at=crash_at(phase, answers=2)).run()
    resumed = make_server(*settings, name="broken", resume=True)
    resumed.run()
    assert outcome(resumed) == outcome(unbroken)


CODED = ("codec.up=trained", "codec.down=int8", "training.fraction_train=0.67", "training.rounds=4")


def test_a_trained_codec_with_memory_survives_a_crash(make_server: Any) -> None:
    settings = (*SLIM, *CODED)
    unbroken = make_server(*settings, name="unbroken")
    unbroken.run()
    assert unbroken.state.up.version == 4 and unbroken.state.up.memory, "the codec was refreshed and remembers"
    with pytest.raises(Crash):
        make_server(*settings, name="broken", at=crash_at(3, answers=1)).run()
    resumed = make_server(*settings, name="broken", resume=True)
    resumed.run()
    assert outcome(resumed) == outcome(unbroken)


def test_a_trained_codec_both_ways_survives_a_crash_and_refreshes(make_server: Any) -> None:
    settings = (
        *SLIM,
        "codec.up=half",
        "codec.down=half",
        "training.fraction_train=0.67",
        "training.rounds=6",
    )
    unbroken = make_server(*settings, name="unbroken")
    unbroken.run()
    assert unbroken.state.up.version == 5
    for site in unbroken.engine.sites.values():
        if unbroken.state.counted[site.client.name] == 6:
            state = site.store.load(6)
            for stream in unbroken.state.down.streams.values():
                assert all(np.array_equal(state[f"replica/{n}"], t) for n, t in stream.replica.items())
    with pytest.raises(Crash):
        make_server(*settings, name="broken", at=crash_at(4, answers=1)).run()
    resumed = make_server(*settings, name="broken", resume=True)
    resumed.run()
    assert outcome(resumed) == outcome(unbroken)


def test_a_round_without_a_quorum_leaves_no_trace_in_codec_or_method(
    make_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from osmotic.federation.client import Worker

    serve = Worker._serve

    def failing(self: Any, site: Any, packet: Any) -> Any:
        if packet.header["server_round"] == -1 and site.client.name == "client-001":
            raise RuntimeError
        return serve(self, site, packet)

    monkeypatch.setattr(Worker, "_serve", failing)
    settings = (*SLIM, "codec.up=trained", "method.name=auxiliary", "training.quorum_clients=3")
    server = make_server(*settings, at=crash_at(2, answers=1))
    with pytest.raises(Crash):
        server.run()
    assert server.observer.lines[0]["kept_old_weights"]
    # Two of three clients had answered in the lost phase; the third's failure takes back what they left.
    assert server.state.up.codec.seen == 0
    assert server.method.images == {}
    assert server.state.counted == {}


def test_a_codec_that_remembers_cannot_go_down() -> None:
    from osmotic.errors import ConfigError
    from osmotic.runs import resolve

    with pytest.raises(ConfigError, match=r"codec.down = 'trained': remembers earlier packets"):
        resolve.load(sets=["codec.up=trained", "codec.down=trained"])


def test_a_trained_codec_loses_no_more_than_rounding(make_server: Any) -> None:
    plain, coded = make_server(*SLIM, name="plain"), make_server(*SLIM, CODED[0], name="coded")
    plain.run()
    coded.run()
    # x / 2^k * 2^k is exact; adding and taking away half of the last packet rounds once at its size (below 2),
    # four packets and two directions long; then the difference has trained on.
    worst = max(float(np.abs(plain.weights[n] - coded.weights[n]).max()) for n in plain.weights)
    assert worst < 1e-3


def test_personal_parts_stay_on_the_client(make_server: Any) -> None:
    server = make_server("method.name=personal-encoder", *SLIM)
    start = {n: w.copy() for n, w in server.state.weights.items()}
    server.run()
    for n in server.part_names["encoder"] + server.part_names["bottleneck"]:
        assert np.array_equal(server.state.weights[n], start[n])
    assert len(set(server.state.state_hashes.values())) == 3, "each client has a state of its own"
    decoder = sum(start[n].size for n in server.part_names["decoder"])
    whole = sum(w.size for w in start.values())
    # papers.md 1.2: K P down at first contact, then K U per round; up K U per round. The phase after is not counted.
    assert server.state.totals.parameters_down == 3 * whole + 3 * decoder
    assert server.state.totals.parameters_up == 2 * 3 * decoder
    phases = {json.loads(line)["phase"] for line in server.run_dir.log("ledger").read_text().splitlines()}
    assert {"train", "personalise"} <= phases


def test_the_server_trains_after_the_average(make_server: Any) -> None:
    server = make_server("method.name=auxiliary", *SLIM)
    server.run()
    assert server.state.server_steps == 2 * 2
    assert all(
        pixels.dtype == np.uint8 and pixels.shape == (8, 8, 8, 1) for pixels in server.method.images.values()
    )
    assert [p.server_round for p in server.phases] == [-1, 1, 2]


def test_variates_travel_and_are_counted(make_server: Any) -> None:
    server = make_server("method.name=variates", *SLIM)
    server.run()
    whole = sum(w.size for w in server.state.weights.values())
    assert server.state.totals.parameters_up == server.state.totals.parameters_down == 2 * 3 * (whole + 1)
    assert np.abs(server.method.common["c"]).max() > 0


def test_frozen_parts_do_not_move(make_server: Any, tmp_path: Path) -> None:
    server = make_server("method.name=decoder-only", *SLIM, "training.rounds=1")
    start = dict(server.state.weights)
    server.run()
    for n in server.part_names["encoder"]:
        assert np.array_equal(server.state.weights[n], start[n])
    assert any(not np.array_equal(server.state.weights[n], start[n]) for n in server.part_names["decoder"])
