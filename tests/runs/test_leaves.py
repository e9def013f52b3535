"""What is told to leave a site is what packets of real runs hold, for every preset: nothing more, nothing less."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import tiny_network

from osmotic.codecs import EXACT, described
from osmotic.config.presets import PRESETS
from osmotic.errors import RunStopped
from osmotic.federation.client import Worker
from osmotic.federation.uplink import UpLink
from osmotic.methods import METHODS
from osmotic.pieces import PIECES, Piece
from osmotic.pieces.base import NOT_STATED
from osmotic.protocol import disclosure
from osmotic.protocol.gate import Expectation
from osmotic.protocol.messages import ADDRESS, Packet
from osmotic.runs import resolve
from osmotic.runs.leaves import leaves, text

TINY = (
    "model.network=tiny",
    "data.max_images=72",
    "data.clients=4",
    "training.rounds=3",
    "training.batch_size=8",
    "training.local_epochs=1",
    "score.every=2",
)
INT8 = ("codec.up=int8", "codec.down=int8", "codec.error_feedback=true")
RUNS: dict[str, tuple[str, ...]] = {
    name: (f"preset={name}",) for name, preset in PRESETS.items() if not preset.needs
} | {
    "int8, half the clients": ("preset=udec", *INT8, "training.fraction_train=0.5"),
    "only moved parts": ("preset=usplit", "codec.changed_only=true", "local.pieces=scaffold"),
    "personalise": ("after.pieces=personalise", "codec.down=fp16"),
    "entropy coding and first contact by seed": (
        "preset=fedavg",
        "codec.up=int4",
        "codec.down=int8",
        "codec.int4.entropy=true",
        "codec.int8.entropy=true",
        "codec.first_contact=seed",
    ),
    "drawn at the site, all weights in fp32": ("preset=usplit", "codec.first_contact=seed"),
    "sparse with flushes": (
        "preset=fedavg",
        "codec.up=sparse",
        "codec.error_feedback=true",
        "codec.feedback_flush=2",
    ),
    "weights up": ("preset=fedavg", "codec.up=fp16", "codec.up_sends=weights"),
    "encoder averaged too": ("preset=udec", "method.encoder_every=2", "local.pieces=scaffold,prox"),
}


@pytest.fixture(autouse=True)
def tiny() -> None:
    tiny_network.register()


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Packet, Packet]]:
    """Every packet that a client was sent, with its answer."""
    kept: list[tuple[Packet, Packet]] = []
    serve = Worker.serve

    def record(self: Worker, site: Any, packet: Packet) -> Packet:
        answer = serve(self, site, packet)
        kept.append((packet, answer))
        return answer

    monkeypatch.setattr(Worker, "serve", record)
    return kept


@pytest.fixture
def coded(monkeypatch: pytest.MonkeyPatch) -> dict[bytes, set[str]]:
    """Whose tensors each coded blob held that the server took: it does not say so itself, but of others it is refused."""
    kept: dict[bytes, set[str]] = {}
    decode = UpLink.decode

    def record(self: UpLink, client: str, packet: Packet, expected: Expectation, *rest: Any) -> Any:
        found = decode(self, client, packet, expected, *rest)
        if expected.coded:
            assert expected.coded.keys() <= found.keys()
            kept[bytes(packet.blobs[0])] = {name.partition("/")[0] for name in expected.coded}
        return found

    monkeypatch.setattr(UpLink, "decode", record)
    return kept


def owners(blob: bytes, coded: dict[bytes, set[str]]) -> set[str]:
    """Whose tensors a blob holds: those of an exact one by the names in it."""
    if bytes(blob[:4]) == described.MAGIC:
        return {name.partition("/")[0] for name in described.decode(blob)}
    return coded[bytes(blob)]


def kind_of(packet: Packet, answer: Packet, coded: dict[bytes, set[str]]) -> dict[str, Any]:
    """What one exchange held, under the names of `leaves`."""
    header = packet.header
    extras = owners(packet.blobs[-1], {}) if header["extras"] else set()
    back = set().union(*(owners(blob, coded) for blob in answer.blobs))
    return {
        "phase": header["phase"],
        "action": header["action"],
        "to_site": ({e["part"] for e in header["down"]}, extras, packet.num_bytes),
        "from_site": (set(header["returns"]), back - {"model"}, answer.num_bytes),
    }


def fits(row: dict[str, Any], kind: dict[str, Any], server_round: int) -> bool:
    """Whether an exchange is one of those that a row tells of."""
    if (row["phase"], row["action"]) != (kind["phase"], kind["action"]):
        return False
    if row["rounds"] and not row["rounds"][0] <= server_round <= row["rounds"][1]:
        return False
    for side in ("to_site", "from_site"):
        parts, groups, length = kind[side]
        told = row[side]
        if (set(told["parts"]), set(told["tensors"])) != (parts, groups):
            return False
        if not told["bytes"][0] <= length <= told["bytes"][1]:
            return False
    return True


@pytest.mark.parametrize("settings", RUNS.values(), ids=list(RUNS))
def test_a_run_sends_what_is_told_and_all_of_it(
    make_server: Any, recorded: Any, coded: Any, settings: Any
) -> None:
    # Dealt evenly: each has enough images for a model of its own, and sends as many as the others.
    even = ("data.partition=iid",) if settings[0].startswith(("preset=fedddpm", "preset=oneshot")) else ()
    # Three rounds are too few for the window that learning is watched over.
    window = ("server.correction.window=2",) if settings[0] == "preset=fedddpm+" else ()
    server = make_server(*TINY, *settings, *even, *window)
    server.run()
    server.personal_models()
    assert recorded and not server.state.failures
    told = leaves(server.config)
    seen = set()
    for packet, answer in recorded:
        assert packet.header.keys() <= disclosure.TO_SITE.keys()
        assert answer.header.keys() <= disclosure.FROM_SITE.keys()
        assert answer.header["metrics"].keys() <= disclosure.METRICS.keys()
        kind = kind_of(packet, answer, coded)
        if server.method.pools_data:
            continue  # the trainer is where the data are
        rows = [i for i, r in enumerate(told["exchanges"]) if fits(r, kind, packet.header["server_round"])]
        assert rows, f"not told: {kind}"
        seen.update(rows)
    assert seen == set(range(len(told["exchanges"]))), "told, and never sent"


def test_clients_that_train_alone_send_figures_and_nothing_else_while_training(
    make_server: Any, recorded: Any
) -> None:
    make_server(*TINY, "preset=local").run()
    trained = [answer for packet, answer in recorded if packet.header["action"] == "train"]
    assert trained and not any(answer.blobs for answer in trained)


@pytest.mark.filterwarnings("ignore:data.partition")  # images that no client holds
def test_the_classes_of_a_site_can_be_read_off_its_answer_and_that_is_told(
    make_server: Any, monkeypatch: Any
) -> None:
    held = []  # per answer: (moves [classes] of the embedding's rows, images [classes] of the site)
    serve = Worker.serve

    def look(self: Worker, site: Any, packet: Packet) -> Packet:
        answer = serve(self, site, packet)
        if packet.header["action"] == "train":
            tensors = EXACT.read(answer.blobs[0], {}, None, self.network.layout.named("model/"))
            rows = next(v for k, v in tensors.items() if "class_embedding" in k)[
                :-1
            ]  # the last is "no class"
            images = site.images.labels.bincount(minlength=len(rows)).numpy()
            held.append((np.abs(rows).max(axis=1), images))
        return answer

    monkeypatch.setattr(Worker, "serve", look)
    server = make_server(*TINY, "training.rounds=1", "data.partition=pathological", "training.batch_size=2")
    server.run()
    assert held and all((moved[images == 0] < 0.1 * moved[images > 0].min()).all() for moved, images in held)
    assert "which classes a site holds" in leaves(server.config)["reveals"]["labels"]


def test_labels_are_told_of_only_where_a_class_embedding_is_sent() -> None:
    for settings in (("model.conditional=false",), ("preset=local",), ("preset=central",)):
        assert "labels" not in leaves(resolve.load(sets=[*TINY, *settings]))["reveals"]


def test_the_baselines_tell_no_more_exchange_than_there_is() -> None:
    alone = leaves(resolve.load(sets=[*TINY, "preset=local"]))["exchanges"][0]
    assert alone["when"] == "train 1 to 3" and alone["from_site"]["bytes"] == [0, 0]
    told = text(leaves(resolve.load(preset="central")))
    assert "there is no site" in told and "beside every answer" not in told


def test_every_entry_of_the_headers_is_of_some_packet(make_server: Any, recorded: Any) -> None:
    for name, sets in (("one", ["preset=udec"]), ("two", ["after.pieces=personalise", "data.holdout=0.3"])):
        server = make_server(*TINY, *sets, name=name)
        server.run()
        server.personal_models()
    down = {key for packet, _ in recorded for key in packet.header}
    up = {key for _, answer in recorded for key in answer.header}
    figures = {key for _, answer in recorded for key in answer.header["metrics"]}
    assert (down, up | {"failure", "first_contact"}) == (
        disclosure.TO_SITE.keys(),
        disclosure.FROM_SITE.keys(),
    )
    assert figures == disclosure.METRICS.keys()


def test_a_failure_tells_its_kind_and_one_line_only(
    make_server: Any, recorded: Any, monkeypatch: Any
) -> None:
    def broken(self: Any, opened: Any) -> Any:
        raise RuntimeError("patient 4711 at /data/secret")

    monkeypatch.setattr(Worker, "train", broken)
    with pytest.raises(RunStopped, match=r"RuntimeError$"):
        make_server(*TINY, "training.rounds=1").run()
    told = [{k: v for k, v in a.header.items() if k not in ADDRESS} for _, a in recorded]
    assert {json.dumps(header) for header in told} == {'{"failure": ["raised", "RuntimeError"]}'}


def test_every_exchange_and_every_piece_that_sends_says_what_it_reveals() -> None:
    assert all(method.reveals for method in METHODS.values())
    own = [p for p in PIECES.values() if p.__module__.startswith("osmotic.")]
    assert all(p.left != NOT_STATED and (not p.left or p.reveals != NOT_STATED) for p in own)


def test_a_piece_that_says_nothing_is_not_told_as_one_that_sends_nothing(monkeypatch: Any) -> None:
    class Mute(Piece):
        pass

    monkeypatch.setitem(PIECES, "mute", Mute)
    told = leaves(resolve.load(sets=["local.pieces=mute"]))
    assert told["pieces_send"] == {"mute": NOT_STATED} and told["reveals"]["piece mute"] == NOT_STATED


STAYS = [
    ((), "residual", False),
    (INT8, "what the codec lost", True),
    (INT8, "a copy of what it was sent", True),
    (("preset=scaffold",), "private state of scaffold", True),
    (("preset=udec",), "its own encoder", True),
    (("training.optimizer_state=keep",), "moments", True),
]


@pytest.mark.parametrize(("settings", "what", "there"), STAYS)
def test_what_stays_follows_from_the_configuration(settings: Any, what: str, there: bool) -> None:
    told = leaves(resolve.load(sets=[*TINY, *settings]))["stays"]
    assert any(line.startswith(what) for line in told) is there
    assert "images and labels" in told


def test_the_text_tells_directions_dangers_and_what_is_missing() -> None:
    told = text(leaves(resolve.load(preset="scaffold")))
    for words in ("a simulation", "to the site", "scaffold (145 tensors", "mean training loss", "1906.08935"):
        assert words in told
    assert "no differential privacy" in told and "no secure aggregation" in told
    assert "the trainer holds all images" in text(leaves(resolve.load(preset="central")))
