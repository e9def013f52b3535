"""Error feedback that decays or is flushed, and replies of weights instead of changes, in whole small runs."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import tiny_network
from small_runs import Crash, crash_at

from osmotic import codecs
from osmotic.errors import ConfigError
from osmotic.federation.memory import ClientState
from osmotic.runs import plan, resolve
from osmotic.runs.summary import weights_sha256

TINY = (
    "model.network=tiny",
    "data.max_images=72",
    "training.batch_size=8",
    "data.clients=4",
    "training.rounds=4",
)
HALF = ("training.fraction_train=0.5",)
FEEDBACK = {
    "decay": ("codec.feedback_decay=0.9",),
    "flush": ("codec.feedback_flush=2",),
    "both": ("codec.feedback_decay=0.5", "codec.feedback_flush=3"),
}
UP = {
    codec: (f"codec.up={codec}", "codec.error_feedback=true")
    for codec in codecs.CODECS
    if codec not in ("fp32", "learned")
} | {"int4, entropy": ("codec.up=int4", "codec.int4.entropy=true", "codec.error_feedback=true")}


@pytest.fixture(autouse=True)
def tiny() -> None:
    tiny_network.register()


def sent_up(server: Any) -> list[tuple[int, int]]:
    """(round, bytes) of every reply."""
    rows = [json.loads(line) for line in server.run_dir.log("ledger").read_text().splitlines()]
    return [(e["round"], e["bytes"]) for e in rows if e["direction"] == "up" and e["phase"] == "train"]


def states(server: Any) -> dict[str, ClientState]:
    """What every client keeps that was counted."""
    sites = server.engine.sites
    return {n: ClientState.of(sites[n].store.load(r)) for n, r in server.state.counted.items()}


def left(server: Any) -> tuple[Any, ...]:
    metrics = [json.loads(line) for line in server.run_dir.log("metrics").read_text().splitlines()]
    lines = [{k: v for k, v in line.items() if k != "wall_seconds"} for line in metrics]
    residuals = {c: {n: t.tobytes() for n, t in s.residual.items()} for c, s in states(server).items()}
    hashes = weights_sha256(server.state.weights, server.state.state_hashes)
    return hashes, vars(server.state.totals), lines, server.run_dir.log("ledger").read_text(), residuals


# --- feedback ---


@pytest.mark.parametrize("how", FEEDBACK)
@pytest.mark.parametrize("up", UP)
def test_under_partial_participation_it_costs_what_is_planned_and_survives_a_kill(
    make_server: Any, up: str, how: str
) -> None:
    sets = (*TINY, *HALF, *UP[up], *FEEDBACK[how])
    whole = make_server(*sets, name="whole")
    whole.run()
    assert not whole.state.failures
    figures, totals = plan.plan(whole.config), whole.state.totals
    assert totals.bytes_down == figures["bytes_down"] and totals.parameters_up == figures["parameters_up"]
    if figures["exact"]:
        assert totals.bytes_up == figures["bytes_up"]
    else:
        assert totals.bytes_up < figures["bytes_up"] < 2 * totals.bytes_up + 4000
    wanted = whole.blueprint.flat.wanted
    flush, own = whole.config.codec.feedback_flush, codecs.of(whole.config.codec, "up")
    for number, length in sent_up(whole):
        coder = codecs.make("int8") if flush and number % flush == 0 else own.in_round(number)
        most = coder.packet_bytes(wanted)
        assert length <= most if coder.bounded else length == most
    with pytest.raises(Crash):
        make_server(*sets, name="broken", at=crash_at(2, answers=1)).run()
    resumed = make_server(*sets, name="broken", resume=True)
    assert resumed.state.step == 1
    resumed.run()
    assert left(resumed) == left(whole)


@pytest.mark.parametrize("up", ["int8", "int4", "int2", "sparse"])
def test_what_is_kept_is_the_decayed_share_of_what_was_lost(make_server: Any, up: str) -> None:
    found = {}
    for decay in ("1.0", "0.5"):
        # Half is exact in float32: after one round the residuals differ by the decay alone.
        server = make_server(*TINY, *UP[up], f"codec.feedback_decay={decay}", "training.rounds=1", name=decay)
        server.run()
        found[decay] = states(server)
    for name, whole in found["1.0"].items():
        half = found["0.5"][name]
        assert whole.residual.keys() == half.residual.keys() and any(t.any() for t in whole.residual.values())
        assert all(np.array_equal(half.residual[n], np.float32(0.5) * t) for n, t in whole.residual.items())


@pytest.mark.parametrize("up", ["int4", "int2", "sparse"])
def test_a_flush_sends_what_is_owed(make_server: Any, up: str) -> None:
    def owed(rounds: int) -> float:
        server = make_server(
            *TINY, *UP[up], "codec.feedback_flush=3", f"training.rounds={rounds}", name=str(rounds)
        )
        server.run()
        return float(
            np.mean([np.abs(t).mean() for s in states(server).values() for t in s.residual.values()])
        )

    two, three, four = (owed(rounds) for rounds in (2, 3, 4))
    # A step of int4 is 127 / 7 of one of int8, and that of a clipped scale a little less.
    assert three < two / 5 and three < four / 5


@pytest.mark.parametrize("up", ["int4", "sparse"])
def test_a_flush_in_every_round_is_int8(make_server: Any, up: str) -> None:
    found = []
    for sets in ((*UP[up], "codec.feedback_flush=1"), UP["int8"]):
        server = make_server(*TINY, *HALF, *sets, name=str(len(found)))
        server.run()
        found.append((weights_sha256(server.state.weights), server.state.totals.bytes_up))
    assert found[0] == found[1]


def test_what_is_never_flushed_is_another_run(make_server: Any) -> None:
    found = set()
    for more in ((), ("codec.feedback_flush=2",), ("codec.feedback_decay=0.9",)):
        server = make_server(*TINY, *UP["int4"], *more, name=str(len(found)))
        server.run()
        found.add(weights_sha256(server.state.weights))
    assert len(found) == 3


# --- weights instead of changes ---


def run(make_server: Any, name: str, *sets: str) -> Any:
    server = make_server(*TINY, *sets, name=name)
    server.run()
    assert not server.state.failures
    return server


@pytest.mark.parametrize(
    "more",
    [
        HALF,
        (*HALF, "codec.down=int8"),  # a client's start is then the replica, and not the server's weights
        ("codec.down=int4", "codec.first_contact=seed"),
        ("codec.changed_only=true", "method.name=usplit", "method.freeze=true"),
        ("method.name=udec",),
        ("local.pieces=scaffold", *HALF),
        ("server.pieces=adam",),
    ],
    ids=" ".join,
)
def test_weights_in_fp32_give_what_changes_give_but_for_rounding(
    make_server: Any, more: tuple[str, ...]
) -> None:
    change, weights = (run(make_server, s, *more, f"codec.up_sends={s}") for s in ("change", "weights"))
    start = change.blueprint.initial().buffer
    moved = np.abs(change.state.weights.buffer - start).max()
    off = np.abs(change.state.weights.buffer - weights.state.weights.buffer).max()
    assert off <= 2e-3 * moved and moved > 1e-3, "of float32 with weights below 1, over four rounds"
    assert vars(change.state.totals) == vars(weights.state.totals)
    figures = plan.plan(weights.config)
    for sums in ("parameters_up", "parameters_down", "bytes_up", "bytes_down"):
        assert getattr(weights.state.totals, sums) == figures[sums]


@pytest.mark.parametrize("up", ["fp16", "int8", "int4"])
def test_a_lossy_codec_loses_more_of_weights_than_of_changes(make_server: Any, up: str) -> None:
    exact = run(make_server, "exact").state.weights.buffer
    off = {
        s: float(
            np.abs(
                run(make_server, s, f"codec.up={up}", f"codec.up_sends={s}").state.weights.buffer - exact
            ).mean()
        )
        for s in ("change", "weights")
    }
    assert off["weights"] > 3 * off["change"] > 0


@pytest.mark.parametrize("up", ["fp32", "int4"])
def test_a_run_that_sends_weights_survives_a_kill(make_server: Any, up: str) -> None:
    sets = (*TINY, *HALF, f"codec.up={up}", "codec.down=int8", "codec.up_sends=weights")
    whole = make_server(*sets, name="whole")
    whole.run()
    with pytest.raises(Crash):
        make_server(*sets, name="broken", at=crash_at(3, answers=1)).run()
    resumed = make_server(*sets, name="broken", resume=True)
    resumed.run()
    assert left(resumed) == left(whole)


def test_the_gate_bounds_the_change_and_not_the_weights(make_server: Any) -> None:
    # Weights are larger than 0.05, what a round moves is not.
    server = run(make_server, "run", "codec.up_sends=weights", "training.max_abs_update=0.05")
    assert np.abs(server.state.weights.buffer).max() > 0.05
    assert server.state.totals.bytes_up > 0


# --- rules ---


@pytest.mark.parametrize(
    ("sets", "key", "said"),
    [
        (
            ("codec.up=int8", "codec.feedback_decay=0.9"),
            "codec.feedback_decay",
            "is of codec.error_feedback: set it to true",
        ),
        (
            ("codec.up=int8", "codec.feedback_flush=5"),
            "codec.feedback_flush",
            "is of codec.error_feedback: set it to true",
        ),
        (
            ("codec.up=int8", "codec.error_feedback=true", "codec.up_sends=weights"),
            "codec.up_sends",
            "has no error feedback: what is lost of weights is not owed to the next ones",
        ),
        (
            ("codec.up=int8", "codec.error_feedback=true", "codec.feedback_decay=0"),
            "codec.feedback_decay",
            "must be > 0 and <= 1",
        ),
        (("codec.first_contact=hash",), "codec.first_contact", "weights"),
        (("preset=local", "codec.first_contact=seed"), "codec.first_contact", "method local sends nothing"),
        (("preset=central", "codec.up_sends=weights"), "codec.up_sends", "method central sends nothing"),
        (
            ("preset=udec", "method.encoder_every=2", "codec.up_sends=weights"),
            "codec.up_sends",
            "clients return a part that they were not sent",
        ),
        (("codec.up_sends=both",), "codec.up_sends", "weights"),
    ],
)
def test_keys_that_would_do_nothing_or_harm_are_refused_in_one_line(sets: Any, key: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve.load(sets=sets)
    assert caught.value.key == key
    assert said in str(caught.value) and "\n" not in str(caught.value)
