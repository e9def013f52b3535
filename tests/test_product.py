"""Every pair of choices in some run: it is killed once and resumed, on another engine, with equal bits, and its ledger equals the plan.

A covering array over exchange, pieces, codecs, conditioning, participation and workers (all pairs), on a network of
three thousand weights. What cannot work together must be refused by a rule, with the reason.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import re
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import small_autoencoder
import tiny_network
from allpairspy import AllPairs
from safetensors.numpy import save_file
from small_runs import Crash, crash_at

from osmotic import codecs, models, plugins
from osmotic.errors import ConfigError
from osmotic.federation.unfit import refuse_unfit
from osmotic.runs import plan, resolve
from osmotic.runs.summary import weights_sha256
from osmotic.storage.store import digest

# As many images of each client, so that a plan knows them; dealt evenly, so that each has enough for a model of its own.
SITE = (
    "server.pieces=correction",
    "server.correction.spread=even",
    "server.correction.local_epochs=1",
    "data.partition=iid",
)
# Images of 8x8 become latents of 2x2; the folder lies where a test runs.
LATENT = "autoencoder"
LATENTS = (f"model.autoencoder={LATENT}",)
# Weights to start from, of the network that is told no class, for images and for their latents.
BEGUN, BEGUN_LATENT = "pretrained", "pretrained-latent"
ADAPTED = (
    "model.conditional=false",
    "adapter.rank=1",
    'adapter.targets=["conv_in", "mid_block", "conv_out"]',
)
FACTORS: dict[str, list[tuple[str, ...]]] = {
    "exchange": [
        ("method.name=fedavg",),
        ("method.name=usplit",),
        ("method.name=usplit", "method.freeze=true"),
        ("method.name=ulatdec",),
        ("method.name=udec", "method.encoder_every=2"),
        ("method.name=oneshot", *SITE, "server.correction.images=upload"),
        ("method.name=central",),
        ("method.name=local",),
    ],
    "local": [
        (),
        ("local.pieces=prox",),
        ("local.pieces=scaffold",),
        ("local.pieces=scaffold,prox",),
    ],
    "server": [
        (),
        ("server.pieces=momentum",),
        ("server.pieces=nesterov",),
        ("server.pieces=adam",),
        ("server.pieces=yogi",),
        ("server.pieces=momentum,adagrad",),
        SITE,
        (
            "server.pieces=momentum,correction",
            "server.correction.images=upload",
            "server.correction.when=slow",
            "server.correction.window=1",
            "server.correction.least_gain=1",
            "server.correction.local_epochs=1",
            "data.partition=iid",
        ),
        (
            "server.pieces=correction,nesterov",
            "server.correction.images=federated",
            "server.correction.draw_after=1",
            "server.correction.redraw=1",
        ),
    ],
    "after": [
        (),
        ("after.pieces=personalise",),
        ("after.pieces=personalise", "after.personalise.trains=decoder", "data.holdout=0.25"),
        ("after.pieces=personalise", "after.personalise.trains=adapter", "after.personalise.rank=1"),
        ("after.pieces=personalise", "after.personalise.when=rounds"),
        ("after.pieces=personalise", "after.personalise.trains=embedding"),
    ],
    "up": [
        (),
        ("codec.up=fp16",),
        ("codec.up=int8",),
        ("codec.up=int8", "codec.error_feedback=true"),
        ("codec.up=int8", "codec.int8.stochastic=true"),
        ("codec.up=int8", "codec.int8.entropy=true"),
        ("codec.up=int4", "codec.error_feedback=true", "codec.feedback_decay=0.9"),
        ("codec.up=int2", "codec.error_feedback=true", "codec.feedback_flush=2"),
        ("codec.up=sparse", "codec.error_feedback=true"),
        ("codec.up=learned", "codec.error_feedback=true", "codec.learned.warmup=1", "codec.learned.every=1"),
        ("codec.up_sends=weights",),
        ("codec.up=fp16", "codec.up_sends=weights"),
    ],
    "down": [
        (),
        ("codec.down=fp16",),
        ("codec.down=int8",),
        ("codec.changed_only=true",),
        ("codec.down=int4",),
        ("codec.down=int2", "codec.int2.entropy=true"),
        ("codec.down=sparse",),
        ("codec.up=learned", "codec.down=learned", "codec.learned.warmup=1", "codec.learned.every=1"),
    ],
    "first": [(), ("codec.first_contact=seed",)],
    "conditional": [(), ("model.conditional=false",)],
    "participation": [(), ("training.fraction_train=0.5",)],
    "moments": [(), ("training.optimizer_state=keep",)],
    "workers": [("engine.workers=1",), ("engine.workers=2",)],
    "space": [(), LATENTS],
}
TINY = (
    "model.network=tiny",
    "data.max_images=72",
    "data.clients=4",
    "training.rounds=3",
    "training.batch_size=8",
    "recipe.ema_half_lives=[40.0]",
)


@cache
def refused(settings: tuple[str, ...]) -> str:
    """Why this combination cannot work; empty if it can."""
    tiny_network.register()
    try:
        config = resolve.load(sets=[*TINY, *settings])
        if config.after.pieces:  # which hangs on the network
            classes = 0 if config.model.conditional is False else 10
            refuse_unfit(config, models.resolve("tiny", 8, 1, classes, 0.0))
    except ConfigError as error:
        return str(error)
    return ""


Choice = tuple[int, int]  # (factor, way)
WAYS = list(FACTORS.values())


def settings_of(row: Iterable[Choice]) -> tuple[str, ...]:
    """The settings of these choices."""
    return tuple(itertools.chain.from_iterable(WAYS[factor][way] for factor, way in sorted(row)))


def possible_pairs() -> set[frozenset[Choice]]:
    """All pairs of choices of two factors that can work together."""
    choices = [[(f, w) for w in range(len(ways))] for f, ways in enumerate(WAYS)]
    pairs = (p for a, b in itertools.combinations(choices, 2) for p in itertools.product(a, b))
    return {frozenset(p) for p in pairs if not refused(settings_of(p))}


def covering() -> list[tuple[Choice, ...]]:
    """Rows that hold every possible pair: the library's, and further ones for pairs that its filter made it miss."""
    numbers = [list(range(len(ways))) for ways in WAYS]
    made = AllPairs(numbers, filter_func=lambda row: not refused(settings_of(enumerate(row))))
    rows = [tuple(enumerate(row)) for row in made]
    missing = possible_pairs() - {frozenset(p) for row in rows for p in itertools.combinations(row, 2)}
    while missing:
        row = dict.fromkeys(range(len(WAYS)), 0) | dict(min(missing, key=sorted))
        for pair in sorted(missing, key=sorted):  # as many more of them as go along
            tried = row | dict(pair)
            gained = [p for p in missing if p <= set(tried.items())]
            held = [p for p in missing if p <= set(row.items())]
            if len(gained) > len(held) and not refused(settings_of(tried.items())):
                row = tried
        rows.append(tuple(row.items()))
        missing -= {frozenset(p) for p in itertools.combinations(row.items(), 2)}
    return rows


COVERING = covering()
ROWS = [settings_of(row) for row in COVERING]


def named(settings: tuple[str, ...]) -> str:
    """A short name for the list of tests."""
    return " ".join(s.partition(".")[2].replace("name=", "").replace("pieces=", "") for s in settings)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An autoencoder, and weights of the network to start from."""
    tiny_network.register()
    folder = tmp_path_factory.mktemp("product")
    small_autoencoder.write(folder / LATENT)
    for name, spec in (
        (BEGUN, models.resolve("tiny", 8, 1, 0, 0.0)),
        (BEGUN_LATENT, models.resolve("tiny", 2, 4, 0, 0.0)),
    ):
        (folder / name).mkdir()
        save_file(models.initial(spec, 5), folder / name / "weights.safetensors")
    return folder


@pytest.fixture(autouse=True)
def tiny(folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_network.register()
    monkeypatch.chdir(tmp_path)
    for name in (LATENT, BEGUN, BEGUN_LATENT):
        (tmp_path / name).symlink_to(folders / name)


def outcome(server: Any) -> dict[str, Any]:
    """All that a run leaves, but for the time."""
    state = server.state
    averages, _ = state.ema.state()
    metrics = [json.loads(line) for line in server.run_dir.log("metrics").read_text().splitlines()]
    return {
        "weights": weights_sha256(state.weights, state.state_hashes),
        "averages": digest(averages),
        "pieces": digest(state.pieces),
        "totals": vars(state.totals),
        "failures": state.failures,
        "counted": state.counted,
        "own": {name: digest(own) for name, own in server.personal_models(book=False).items()},
        "ledger": server.run_dir.log("ledger").read_text(),
        "metrics": [{k: v for k, v in line.items() if k != "wall_seconds"} for line in metrics],
    }


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    """Another engine: clients behind Flower, over a grid in this process; this one where flwr is not installed."""
    if sys.platform != "linux" or not all(importlib.util.find_spec(name) for name in ("flwr", "ray")):
        return ()
    from flower_grid import in_place_of_flower

    in_place_of_flower(monkeypatch)
    # The network of these tests is registered in this process, which is where these clients are.
    monkeypatch.setattr(plugins, "registered_here", lambda config: None)
    return ("engine.name=flower",)


def adapted_rows() -> list[tuple[str, ...]]:
    """Every exchange that has clients with an adapter of B and of both factors, one of them in latents, each with another codec; pieces where they go with it."""
    rows = []
    # The learned one's own network is bounded far above so few weights.
    ups = [up for up in FACTORS["up"] if "codec.up=learned" not in up]
    for i, exchange in enumerate(FACTORS["exchange"]):
        for j, trains in enumerate(("b", "both")):
            where = (
                (*LATENTS, f"model.pretrained={BEGUN_LATENT}")
                if i % 2 == j
                else (f"model.pretrained={BEGUN}",)
            )
            row = (*exchange, *ups[(3 * i + j) % len(ups)], *where, *ADAPTED, f"adapter.trains={trains}")
            for section in ("local", "server", "after"):
                more = FACTORS[section][(i + j + 1) % len(FACTORS[section])]
                row = (*row, *more) if not refused((*row, *more)) else row
            rows.append(tuple(dict.fromkeys(row)))
    return [row for row in rows if not refused(row)]


def begun_rows() -> list[tuple[str, ...]]:
    """Every other exchange that sends something, from pretrained weights that whoever holds them is not sent."""
    begun = (f"model.pretrained={BEGUN}", "model.conditional=false", "codec.first_contact=seed")
    downs = [down for down in FACTORS["down"] if "codec.up=learned" not in down]
    rows = [(*e, *down, *begun) for e, down in zip(FACTORS["exchange"], itertools.cycle(downs), strict=False)]
    return [row for row in rows if not refused(row)][::2]


@pytest.mark.parametrize("settings", [*ROWS, *adapted_rows(), *begun_rows()], ids=named)
def test_killed_and_resumed_elsewhere_it_has_the_same_bits_and_the_plans_bytes(
    make_server: Any, elsewhere: tuple[str, ...], settings: tuple[str, ...]
) -> None:
    unbroken = make_server(*TINY, *settings, name="unbroken")
    unbroken.run()
    assert not unbroken.state.failures
    # In one shot nobody answers but in the first phase.
    crashed = 1 if unbroken.method.server_trains else 2
    with pytest.raises(Crash):
        make_server(*TINY, *settings, name="broken", at=crash_at(crashed, answers=1)).run()
    resumed = make_server(*TINY, *settings, *elsewhere, name="broken", resume=True)
    assert resumed.config.engine.name == ("flower" if elsewhere else "inprocess")
    assert resumed.state.step == crashed - 1
    resumed.run()
    assert outcome(resumed) == outcome(unbroken)
    figures, totals = plan.plan(unbroken.config), unbroken.state.totals
    assert all(figures[k] == getattr(totals, k) for k in ("parameters_up", "parameters_down"))
    bounded = {way: codecs.of(unbroken.config.codec, way).bounded for way in ("up", "down")}
    # Its own weights go down, whatever the codec of the way down.
    bounded["down"] |= codecs.of(unbroken.config.codec, "up").trained
    for way, bound in bounded.items():
        planned, sent = figures[f"bytes_{way}"], getattr(totals, f"bytes_{way}")
        # An upper bound, and no idle one: the smallest networks compress least.
        assert sent == planned or (bound and planned / 4 < sent < planned)
    # What the server trains moves in every round, and only moved parts are sent: how many, a plan can only suppose.
    supposed = unbroken.config.codec.changed_only and unbroken.chain.works_after
    # And how many images each client holds, no plan knows.
    supposed |= any(piece.by_size for piece in unbroken.chain.pieces.values())
    assert figures["exact"] is not (any(bounded.values()) or supposed)


def test_the_rows_hold_every_pair_that_can_work() -> None:
    held = {frozenset(pair) for row in COVERING for pair in itertools.combinations(row, 2)}
    assert possible_pairs() <= held
    assert len({choice for row in COVERING for choice in row}) == sum(map(len, WAYS)), (
        "every choice is in some row"
    )


def test_what_cannot_work_is_refused_with_the_reason() -> None:
    pairs = [
        (one, other)
        for a, b in itertools.combinations(WAYS, 2)
        for one, other in itertools.product(a, b)
        if refused((*one, *other))
    ]
    assert pairs, "some combinations cannot work"
    for one, other in pairs:
        reason = refused((*one, *other))
        assert re.match(r"[\w.]+( = .*)?: .*\w{4}", reason) and "\n" not in reason
        assert not refused(one) and not refused(other), f"each works alone: {one}, {other}"
