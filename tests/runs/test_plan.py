"""`osmotic plan`: hand-worked figures, the same bytes as the real codecs give, and no heavy import."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_autoencoder

from osmotic import codecs, methods, models, pieces
from osmotic.codecs import base
from osmotic.errors import ConfigError
from osmotic.federation.downlink import DownLink
from osmotic.flat import Flat, FlatLayout
from osmotic.models import parts as network_parts
from osmotic.protocol.gate import Gate
from osmotic.protocol.messages import Client, Phase, Spec, Task
from osmotic.protocol.participation import choose, weights_sent
from osmotic.runs import plan, resolve
from osmotic.runs.leaves import leaves

TINY = {"conv_in.weight": (6, 4), "mid_block.bias": (3,), "conv_out.weight": (2, 5)}
P = 24 + 3 + 10
NAMES = network_parts.table(TINY)
UNET = models.resolve("unet-8", 8, 1, 10, 0.0)
UNET_8 = 702_753  # with 10 classes and the null class


def sites(count: int) -> list[Client]:
    return [Client(i, f"client-{i:03d}", 10) for i in range(count)]


def tiny(clients: int, *sets: str) -> dict[str, plan.Cost]:
    cfg = resolve.load(sets=[f"data.clients={clients}", *sets])
    method, chain = methods.make(cfg.method.name, {}), pieces.make(cfg)
    return plan.rehearse(cfg, method, chain, TINY, NAMES, sites(clients), UNET)


def test_fedavg_conveys_every_weight_once_each_way_per_client_and_round():
    # 2 * K * P * R: 4 clients, 37 weights, 3 rounds, each way 444.
    cost = tiny(4, "training.rounds=3")
    assert sum(c.parameters_up for c in cost.values()) == 4 * P * 3
    assert sum(c.parameters_down for c in cost.values()) == 4 * P * 3
    assert len({tuple(vars(c).items()) for c in cost.values()}) == 1


def test_the_default_run_by_hand():
    # 10 clients, 20 rounds, all clients every round; 1437 images twice per round.
    figures = plan.plan(resolve.load())
    assert figures["parameters"] == UNET_8
    assert figures["parameters_up"] == figures["parameters_down"] == 10 * 20 * UNET_8
    assert figures["images_seen"] == 1437 * 2 * 20
    assert figures["exact"] is True
    assert figures["bytes_up"] == sum(s["bytes_up"] for s in figures["sites"].values())
    # Up one packet, down one per part: at least 4 bytes a weight, and headers of a few per cent.
    for way in ("bytes_up", "bytes_down"):
        assert 0 < figures[way] - 4 * 10 * 20 * UNET_8 < 0.01 * figures[way]


def test_the_link_time_is_that_of_the_busiest_site():
    # (up + down) bytes * 8 bits / (10 * 10**6 bit/s).
    figures = plan.plan(resolve.load(sets=["training.rounds=1"]), link_mbit=10.0)
    site = figures["sites"]["client-000"]
    assert figures["link_seconds_busiest_site"] == pytest.approx(
        (site["bytes_up"] + site["bytes_down"]) * 8 / 1e7
    )


def test_fp32_bytes_of_a_tiny_network_by_hand():
    # Head 19 bytes, zeros up to 64, 4 bytes a weight. Up: one packet of all changes. Down: one packet per part.
    cost = tiny(1, "training.rounds=2")["client-000"]
    assert cost.bytes_up == 2 * (64 + 4 * P)
    assert cost.bytes_down == 2 * (3 * 64 + 4 * P)
    drawn = tiny(1, "training.rounds=2", "codec.first_contact=seed")["client-000"]
    assert (drawn.bytes_down, drawn.bytes_up) == (3 * 64 + 4 * P, cost.bytes_up)


@pytest.mark.parametrize(
    ("codec", "up", "down"),
    [
        # 19, then 2 for each tensor, 1 for each of its channels if it has two or more, and the codes: a weight of
        # int4 half a byte, of int2 a quarter, of the vector a whole one; each section of matrices whole bytes.
        ("int8", 19 + 3 * 2 + (6 + 2) + 37, (19 + 2 + 6 + 24, 19 + 2 + 3, 19 + 2 + 2 + 10)),
        ("int4", 19 + 3 * 2 + (6 + 2) + 3 + 17, (19 + 2 + 6 + 12, 19 + 2 + 3, 19 + 2 + 2 + 5)),
        ("int2", 19 + 3 * 2 + (6 + 2) + 3 + 9, (19 + 2 + 6 + 6, 19 + 2 + 3, 19 + 2 + 2 + 3)),
        ("fp16", 19 + 2 * 37, (19 + 48, 19 + 6, 19 + 20)),
    ],
)
def test_bytes_of_quantised_weights_by_hand(codec: str, up: int, down: tuple[int, ...]):
    full = 3 * 64 + 4 * P
    sets = (f"codec.up={codec}", f"codec.down={codec}", "training.rounds=3")
    cost = tiny(1, *sets)["client-000"]
    assert cost.bytes_up == 3 * up
    assert cost.bytes_down == full + 2 * sum(down)
    drawn = tiny(1, *sets, "codec.first_contact=seed")["client-000"]
    assert (drawn.bytes_down, drawn.bytes_up) == (2 * sum(down), 3 * up), "nothing at first contact"


def real(clients: int, *sets: str) -> dict[str, list[int]]:
    """Bytes down and up per site, with real weights, packets and down-link."""
    cfg = resolve.load(sets=[f"data.clients={clients}", *sets])
    rng = np.random.default_rng(0)
    layout, up = FlatLayout(TINY, NAMES), codecs.of(cfg.codec, "up", cfg.codec.error_feedback)
    drawn = dict.fromkeys(NAMES, "") if cfg.codec.first_contact == "seed" else None
    link = DownLink(codecs.of(cfg.codec, "down"), layout, drawn=drawn)
    total = {c.name: [0, 0] for c in sites(clients)}
    for r in range(1, cfg.training.rounds + 1):
        weights = Flat.of(layout, {n: rng.normal(size=s).astype(np.float32) for n, s in TINY.items()})
        chosen = choose(cfg, Phase("train", r), sites(clients))
        changed = dict.fromkeys(NAMES, r - 1) if r > 1 else {}
        for client in chosen:
            _, blobs = link.message(client.name, network_parts.PARTS, r, weights, changed)
            total[client.name][0] += sum(map(len, blobs))
            total[client.name][1] += len(up.in_round(r).encode(weights.named("model/"), {}))
        link.commit({c.name: network_parts.PARTS for c in chosen}, r)
    return total


FIXED = [c for c in codecs.CODECS if c != "learned"]  # whose packets follow from one round alone
WAYS = {c: (c, ()) for c in FIXED} | {
    f"{c}, entropy": (c, (f"codec.{c}.entropy=true",)) for c in ("int8", "int4", "int2")
}


@pytest.mark.parametrize("down", WAYS)
@pytest.mark.parametrize("up", WAYS)
@pytest.mark.parametrize(
    "more",
    [(), ("training.fraction_train=0.4",), ("training.fraction_train=0.4", "codec.first_contact=seed")],
)
def test_the_bytes_are_those_of_real_packets(up: str, down: str, more: tuple[str, ...]):
    (coded_up, up_sets), (coded_down, down_sets) = WAYS[up], WAYS[down]
    sets = [
        f"codec.up={coded_up}",
        f"codec.down={coded_down}",
        *up_sets,
        *down_sets,
        *more,
        "training.rounds=6",
    ]
    config = resolve.load(sets=sets)
    bounded = [codecs.of(config.codec, way).bounded for way in ("down", "up")]  # type: ignore[arg-type]
    found = real(5, *sets)
    for name, cost in tiny(5, *sets).items():
        for planned, came, bound in zip((cost.bytes_down, cost.bytes_up), found[name], bounded, strict=True):
            assert came <= planned if bound else came == planned
    assert bounded == [c == "sparse" or f"codec.{c}.entropy=true" in sets for c in (coded_down, coded_up)]


@pytest.mark.parametrize("flush", [1, 2, 3, 7])
@pytest.mark.parametrize("up", ["fp16", "int4", "int2", "int8"])
def test_rounds_of_flushing_cost_what_int8_does(up: str, flush: int):
    sets = (
        f"codec.up={up}",
        "codec.error_feedback=true",
        f"codec.feedback_flush={flush}",
        "training.rounds=6",
    )
    for more in ((), ("training.fraction_train=0.4",)):
        found = {n: cost.bytes_up for n, cost in tiny(5, *sets, *more).items()}
        assert found == {n: up for n, (_, up) in real(5, *sets, *more).items()}
    each = {c: tiny(1, f"codec.up={c}", "training.rounds=1")["client-000"].bytes_up for c in (up, "int8")}
    flushes = 6 // flush
    assert tiny(1, *sets)["client-000"].bytes_up == flushes * each["int8"] + (6 - flushes) * each[up]


def test_sampling_asks_the_same_clients_as_the_seed_says_and_no_others():
    # 0.4 of 5 clients are 2: every round counts two clients.
    cost = tiny(5, "training.fraction_train=0.4", "training.rounds=9", "seed=3")
    assert sum(c.parameters_up for c in cost.values()) == 2 * 9 * P
    other = tiny(5, "training.fraction_train=0.4", "training.rounds=9", "seed=4")
    assert {n: c.parameters_up for n, c in cost.items()} != {n: c.parameters_up for n, c in other.items()}


@pytest.mark.parametrize("method", ["central", "local"])
def test_a_baseline_sends_nothing(method: str):
    figures = plan.plan(resolve.load(preset=method))
    ways = ("parameters_up", "parameters_down", "bytes_up", "bytes_down", "link_seconds_busiest_site")
    assert [figures[w] for w in ways] == [0] * 5
    assert figures["num_clients"] == (1 if method == "central" else 10)
    assert figures["images_seen"] == 1437 * 2 * 20


def test_int8_up_costs_about_a_quarter():
    # 1 byte a weight, 1 per output channel, 2 per tensor.
    exact, coded = (plan.plan(resolve.load(sets=[f"codec.up={c}"])) for c in ("fp32", "int8"))
    assert exact["bytes_up"] / 4 < coded["bytes_up"] < exact["bytes_up"] / 3.9
    assert coded["parameters_up"] == exact["parameters_up"]
    assert coded["bytes_down"] == exact["bytes_down"]


@pytest.mark.parametrize("sets", [("codec.up=int8", "codec.int8.entropy=true"), ("codec.down=sparse",)])
def test_an_upper_bound_is_called_one(sets: tuple[str, ...]):
    figures = plan.plan(resolve.load(sets=[*sets, "training.rounds=1"]))
    assert figures["exact"] is False
    codec = sets[0].partition("=")[2]
    assert any(codec in n and "upper bound" in n for n in figures["notes"])
    assert "at most" in plan.text(figures)
    assert "at most" not in plan.text(plan.plan(resolve.load(sets=["codec.up=int8", "training.rounds=1"])))
    assert "at most" not in plan.text(plan.plan(resolve.load(sets=["training.rounds=1"])))


@pytest.mark.parametrize(
    ("sets", "told"),
    [
        (["method.name=udec"], True),
        (["after.pieces=personalise"], True),
        (["method.name=fedavg"], False),
        (["method.name=local"], False),  # nothing travels at all
    ],
)
def test_what_travels_beside_training_is_told_of(sets: list[str], told: bool):
    notes = plan.plan(resolve.load(sets=sets))["notes"]
    assert any("own models and the images drawn from them travel too" in n for n in notes) is told


def test_images_are_not_counted_where_they_are_not_known():
    for unknown in ("training.fraction_train=0.5", "data.holdout=0.2", "training.local_epochs=1.5"):
        assert plan.plan(resolve.load(sets=[unknown, "training.rounds=1"]))["images_seen"] is None


def test_images_that_a_partition_may_leave_out_are_not_counted():
    # Two clients of one class each hold two of the ten classes.
    cfg = resolve.load(
        sets=[
            "data.partition=pathological",
            "data.clients=2",
            "data.classes_per_client=1",
            "training.rounds=1",
        ]
    )
    assert plan.plan(cfg)["images_seen"] != 1437 * 2


def test_more_clients_than_images_are_refused_as_the_run_would():
    with pytest.raises(ConfigError) as caught:
        plan.plan(resolve.load(sets=["data.clients=1438", "training.fraction_train=0.001"]))
    assert caught.value.key == "data.clients"


def test_packet_lengths_are_not_worked_out_anew_for_every_client(monkeypatch: pytest.MonkeyPatch):
    calls = []
    original = base.Codec.packet_bytes
    monkeypatch.setattr(base.Codec, "packet_bytes", lambda *a: calls.append(1) or original(*a))
    tiny(4, "training.rounds=2")
    few = len(calls)
    assert few == 4, "one packet up, one for each part down"
    calls.clear()
    tiny(40, "training.rounds=2")
    assert len(calls) == few


def test_conveyed_weights_count_parts_and_variates_but_no_images_and_no_codecs():
    task = Task(
        sites(1)[0],
        "train",
        send=("encoder", "bottleneck"),
        returns=("decoder",),
        extras={
            "control/c": np.zeros((2, 2), np.float32),
            "image/x": np.zeros((9, 9), np.uint8),
            "codec/scale": np.zeros(3, np.float32),
        },
        expects={"control/d": Spec((7,), counts=True), "image/y": Spec((5, None), "uint8")},
    )
    expected = Gate(TINY, NAMES, resolve.load().training).expect(task)
    # Down 24 + 3 + 4, up 10 + 7.
    assert (weights_sent(task, TINY, NAMES), expected.weights) == (31, 17)
    assert set(expected.tensors) == {"model/conv_out.weight", "control/d", "image/y"}


@pytest.mark.parametrize(("share", "count"), [(1.0, 10), (0.5, 5), (0.01, 1), (0.34, 3)])
def test_a_share_of_clients_is_drawn_without_repeats_and_at_least_one(share: float, count: int):
    cfg = resolve.load(sets=[f"training.fraction_train={share}"])
    for r in (-2, 1, 7):
        drawn = choose(cfg, Phase("train", r), sites(10))
        assert len(drawn) == count
        assert [c.name for c in drawn] == sorted({c.name for c in drawn})
        assert drawn == choose(cfg, Phase("train", r), sites(10))
        assert len(choose(cfg, Phase("all", r, everybody=True), sites(10))) == 10


def test_draws_differ_from_round_to_round():
    cfg = resolve.load(sets=["training.fraction_train=0.3"])
    assert len({tuple(c.name for c in choose(cfg, Phase("train", r), sites(10))) for r in range(20)}) > 5


@pytest.mark.parametrize("figures", [plan.plan, leaves])
def test_a_plan_refuses_what_the_run_would_for_its_network(tmp_path: Path, figures: Any) -> None:
    from safetensors.numpy import save_file

    whole = models.initial(UNET, 0)
    for name, table in (("good", whole), ("other", {n: w for n, w in whole.items() if n != "conv_in.bias"})):
        (tmp_path / name).mkdir()
        save_file(table, tmp_path / name / "diffusion_pytorch_model.safetensors")
    good = f"model.pretrained={tmp_path / 'good'}"
    assert figures(resolve.load(sets=[good]))["parameters"] == UNET_8
    for sets, told in (
        (["model.pretrained=nowhere"], "is no folder, and no name on a hub"),
        ([f"model.pretrained={tmp_path}"], "neither itself nor in unet/"),
        ([f"model.pretrained={tmp_path / 'other'}"], r"is another network: it has no conv_in\.bias"),
        ([good, f"model.pretrained_sha256={'0' * 64}"], "and what was agreed on 000"),
        ([good, "adapter.rank=2", 'adapter.targets=["conv_in"]', "method.name=udec"], r"adapter\.targets"),
        (
            [
                "after.pieces=personalise",
                "after.personalise.trains=adapter",
                "after.personalise.rank=1024",
            ],
            "no layer of this network is wider",
        ),
    ):
        with pytest.raises(ConfigError, match=told):
            figures(resolve.load(sets=sets))


@pytest.mark.parametrize("figures", [plan.plan, leaves])
def test_a_plan_downloads_nothing_and_says_so(monkeypatch: pytest.MonkeyPatch, figures: Any) -> None:
    from osmotic.models import pretrained

    monkeypatch.setattr(pretrained, "_downloaded", lambda name: pytest.fail("downloads"))
    found = figures(resolve.load(sets=["model.pretrained=osmotic/none-such"]))
    assert found["parameters"] == UNET_8
    assert any("osmotic/none-such is on a hub" in note for note in found["notes"])


SCRIPT = """
import sys
from osmotic.runs import resolve
from osmotic.runs import plan
plan.plan(resolve.load(sets=["training.rounds=1", "codec.up=int8", "data.source=cifar10"]))
plan.plan(resolve.load(sets=["training.rounds=1"]))
heavy = {"torch", "diffusers", "sklearn", "scipy", "torchmetrics", "datasets", "flwr_datasets", "matplotlib", "PIL"}
print(sorted(heavy & {name.split(".")[0] for name in sys.modules}))
"""


def test_planning_imports_nothing_heavy(tmp_path: Path):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, cwd=tmp_path, timeout=60, check=True
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("partition, clients", [("q-skew", 144), ("l-skew", 144), ("iid", 1438)])
def test_a_plan_refuses_more_clients_than_a_run_would(partition: str, clients: int) -> None:
    sets = (f"data.partition={partition}", f"data.clients={clients}")
    with pytest.raises(ConfigError, match=f"data.clients = {clients}: must be at most {clients - 1}|1437"):
        plan.plan(resolve.load(sets=sets))
    plan.network(resolve.load(sets=(f"data.partition={partition}", f"data.clients={clients - 1}")))


def test_a_client_without_a_global_model_keeps_its_own_and_an_average() -> None:
    # Of P weights: 4 P bytes for its own model, 8 P for the sums of the average, 4 P for the average itself.
    own, none = (
        plan.plan(resolve.load(preset=p, sets=["recipe.ema_half_lives=[5000.0]"])) for p in ("udec", "fedavg")
    )
    more = own["memory_bytes"]["client"] - none["memory_bytes"]["client"]
    assert more == 16 * own["parameters"]


def test_an_average_lies_in_the_servers_memory_twice_while_a_checkpoint_is_written() -> None:
    # Of P weights: 8 P bytes for the sums of each average, and 8 P for what of them is being written.
    one, two = (
        plan.plan(resolve.load(sets=[f"recipe.ema_half_lives={h}"])) for h in ("[50.0]", "[50.0, 5000.0]")
    )
    assert two["memory_bytes"]["server"] - one["memory_bytes"]["server"] == 16 * one["parameters"]


def test_a_piece_that_trains_on_the_server_makes_a_plan_of_moved_parts_inexact(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from osmotic.pieces import PIECES, Piece

    class Trains(Piece):
        def after(self, lab: Any, state: Any, phase: Any) -> Any:
            return state, {}

    monkeypatch.setitem(PIECES, "trains", Trains)
    for sets, exact in (([], True), (["codec.changed_only=true"], False)):
        figures = plan.plan(resolve.load(sets=["local.pieces=trains", *sets]))
        assert figures["exact"] is exact
        assert any("piece trains may train on the server" in note for note in figures["notes"]) is not exact


def test_time_is_null_unless_it_is_asked_for():
    figures = plan.plan(resolve.load(sets=["training.rounds=1"]))
    assert [figures[name] for name in plan.TIMED] == [None] * 4
    assert "time " not in plan.text(figures)


def test_time_is_that_of_a_few_steps_times_the_work(monkeypatch: pytest.MonkeyPatch):
    from osmotic.runs import timing

    monkeypatch.setattr(timing, "network", lambda made: {"train": (2.0, 1), "draw": (3.0, 1)})
    monkeypatch.setattr(timing, "encoder", lambda made: {"encoder": (0.0, 1), "score": (0.5, 100)})
    sets = ["data.max_images=96", "data.clients=3", "data.partition=iid", "training.batch_size=32"]
    sets += ["training.rounds=2", "training.local_epochs=1", "score.samples=50", "score.every=2"]
    figures = plan.plan(resolve.load(sets=sets), time=True)
    # 3 clients with a batch each, 2 rounds, 2 s a step; 50 images of 3 s, and 50 + 96 looks of 5 ms.
    assert (figures["device"], figures["seconds_training"]) == ("cpu", 12)
    assert figures["seconds_scoring"] == pytest.approx(150 + 146 * 0.005)
    assert figures["quicker"] is None
    assert "time         about 3 min (12 s training, 3 min scoring) on cpu, as timed here" in plan.text(
        figures
    )
    # 400 times the rounds, one score after the last: 4,800 s of training are too long, and the two networks no help.
    long = plan.plan(resolve.load(sets=[*sets, "training.rounds=800", "score.every=800"]), time=True)
    assert long["quicker"] == {"keys": "--set training.rounds=290", "seconds": pytest.approx(1794.6, abs=1)}
    assert "quicker      --set training.rounds=290 would take about 30 min" in plan.text(long)


def test_above_a_thousand_clients_a_plan_asks_those_whom_the_run_asks(tmp_path: Path) -> None:
    # client-1000 stands before client-101 in the order of names, by which the engine lists clients.
    from osmotic.runs import launch, study

    config = resolve.load(
        sets=["data.clients=1100", "data.partition=iid", "training.fraction_train=0.01", "training.rounds=1"]
    )
    busy = {name for name, cost in plan.plan(config)["sites"].items() if cost["bytes_up"]}
    prepared = study.prepare(config)
    make_worker, stop = launch.worker_factory(prepared, {}, "")
    engine = launch.in_process(prepared, tmp_path / "clients", make_worker, stop)
    asked = choose(config, Phase("train", 1), engine.clients(1, 0.0))
    assert busy == {client.name for client in asked} and len(busy) == 11


def test_a_plan_of_ten_thousand_clients_does_no_more_for_those_who_are_not_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Work that is done for a task or a kind of task, and not for a client of the list.
    counts = dict.fromkeys(("asked", "checked", "sized"), 0)

    def counting(what: str, original: Any) -> Any:
        def counted(*args: Any, **keys: Any) -> Any:
            counts[what] += 1
            return original(*args, **keys)

        return counted

    monkeypatch.setattr(DownLink, "message", counting("asked", DownLink.message))
    monkeypatch.setattr(Gate, "expect", counting("checked", Gate.expect))
    monkeypatch.setattr(base.Codec, "packet_bytes", counting("sized", base.Codec.packet_bytes))
    sets = ["data.source=npz:none.npz", "data.partition=iid", "training.rounds=3"]
    shape = plan.Shape(8, 1, 10, 80_000)
    monkeypatch.setattr(plan.sources, "describe", lambda data: shape)
    made = []
    for clients, share in ((100, 1.0), (10_000, 0.01)):
        counts |= dict.fromkeys(counts, 0)
        plan.plan(resolve.load(sets=[*sets, f"data.clients={clients}", f"training.fraction_train={share}"]))
        made.append(dict(counts))
    assert made[0] == made[1] and made[0]["asked"] == 300 and made[0]["checked"] == 1


def test_an_autoencoder_lies_in_the_memory_of_everybody(tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    folder = small_autoencoder.write(tmp_path / "latents")
    held = load_file(folder / "diffusion_pytorch_model.safetensors")
    cfg = resolve.load(sets=["data.image_size=32", f"model.autoencoder={folder}"])
    figures = plan.plan(cfg)
    method, chain = methods.make("fedavg", {}), pieces.make(cfg)
    without = plan.memory(cfg, method, chain, figures["parameters"], figures["num_clients"])
    more = 4 * sum(w.size for w in held.values())
    assert figures["memory_bytes"] == {side: held + more for side, held in without.items()}
