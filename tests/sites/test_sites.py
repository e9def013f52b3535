"""Sites behind a grid in this process: the bits of the simulation, policies, lies about oneself, broken files; and the hub's own files."""

from __future__ import annotations

import inspect
import json
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("flwr", reason="flwr is not installed: pip install 'osmotic[flower]'")

from flower_grid import SitesGrid, failed
from flwr.app import Message, RecordDict
from process_tree import alive, descendants

import osmotic
from osmotic.engines import flower
from osmotic.engines.envelope import packet_of, records
from osmotic.engines.flower import lent
from osmotic.errors import ConfigError, RunStopped
from osmotic.models import autoencoder_file
from osmotic.protocol.messages import Packet
from osmotic.runs import resolve
from osmotic.sites import certificates, hub, roster, site
from osmotic.sites.desk import Declined, SiteDesk, Spec
from osmotic.sites.folder import SiteFolder
from osmotic.sites.policy import Policy
from osmotic.sites.supervisor import Service, Supervisor

KEYS: dict[str, Any] = {
    "data.clients": 3,
    "data.max_images": 90,
    "training.rounds": 2,
    "training.local_epochs": 1,
    "score.samples": 20,
    "score.steps": 3,
    "score.guidance": 1,
    "track.backends": [],
}
SITES = {"engine.name": "sites", "engine.deadline_seconds": 60}


def split(keys: dict[str, Any], folder: Path) -> Path:
    """What the clients of a simulation hold, as files."""
    sets = [w for k, v in keys.items() if k.startswith("data.") for w in ("--set", f"{k}={v}")]
    subprocess.run(
        [sys.executable, "-m", "osmotic", "split", *sets, "--out", folder], check=True, capture_output=True
    )
    return folder


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return split(KEYS, tmp_path_factory.mktemp("split") / "parts")


@pytest.fixture
def folders(parts: Path, tmp_path: Path) -> list[Path]:
    """Three sites, with these files for their data."""
    return sites_of(parts, tmp_path)


def sites_of(parts: Path, tmp_path: Path) -> list[Path]:
    found = []
    for file in sorted(parts.glob("*.npz")):
        made = site.init(tmp_path / file.stem, file.stem, f"npz:{file}", "localhost:1", None, 9094)
        found.append(made.path)
    return found


def write(folder: Path, before: str, after: str) -> None:
    file = folder / "site.toml"
    assert before in file.read_text()
    file.write_text(file.read_text().replace(before, after))


def run(grid: SitesGrid, out: Path, **keys: Any) -> Any:
    with lent(grid, roster.across_sites):
        return osmotic.run(keys=KEYS | SITES | {k.replace("__", "."): v for k, v in keys.items()}, out=out)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roster, "LOOK", 0.0)


# --- the same bits ---

KINDS: dict[str, dict[str, Any]] = {
    "fedavg": {},
    "feddm-quant": {"codec__up": "int8", "codec__error_feedback": True, "codec__first_contact": "seed"},
    "usplit": {"method__name": "usplit"},
    "corrected": {
        "server__pieces": ["correction"],
        "server__correction__size": 0.5,
        "server__correction__local_epochs": 1,
        "server__correction__drop_outliers": 0.0,
    },
    "a combination": {
        "local__pieces": ["scaffold", "prox"],
        "server__pieces": ["adam"],
        "codec__up": "sparse",
    },
}


@pytest.mark.parametrize("kind", KINDS)
def test_sites_give_the_weights_of_the_simulation(folders: list[Path], tmp_path: Path, kind: str) -> None:
    keys = KINDS[kind]
    for folder in folders:
        write(folder, "synthetic_images = false", "synthetic_images = true")
    told = {k.replace("__", "."): v for k, v in keys.items()}
    simulated = osmotic.run(keys=KEYS | told | {"score.every": 0}, out=tmp_path / "simulated")
    found = run(SitesGrid(folders), tmp_path / "run", **keys)
    assert found.summary["weights_sha256"] == simulated.summary["weights_sha256"]
    assert found.summary["quality"] is None and found.metrics[-1]["unscored"] == "images are at their sites"
    one, other = (Path(r.path, "ledger.jsonl").read_text().splitlines() for r in (found, simulated))
    assert [line for line in one if '"score"' not in line] == [
        line for line in other if '"score"' not in line
    ]


def test_a_page_of_sites_does_not_speak_of_a_simulation(folders: list[Path], tmp_path: Path) -> None:
    found = run(SitesGrid(folders), tmp_path / "run", training__rounds=1)
    for name in ("report.html", "model/README.md"):
        text = (Path(found.path) / name).read_text()
        assert "simulat" not in text and "3 sites" in text and "Dirichlet" not in text.split("config")[0], (
            name
        )
        assert "class-conditional" in text
    config = (Path(found.path) / "config.toml").read_text()
    assert 'source = "sites"' in config
    with pytest.raises(ConfigError, match="their images are not here"):
        found.evaluate()


# --- what befalls sites ---


def test_a_site_that_is_away_and_back_before_the_deadline_changes_nothing(
    folders: list[Path], tmp_path: Path
) -> None:
    expected = run(SitesGrid(folders), tmp_path / "unbroken").summary["weights_sha256"]
    tasks: list[int] = []

    def fate(place: int, message: Message) -> list[Message] | None:
        if message.metadata.message_type == flower.HELLO or place != 1:
            return None
        tasks.append(place)
        if len(tasks) == 1:  # its process died, and the node with it; it comes back with another id
            node = next(n for n, p in grid.partitions.items() if p == 1)
            grid.online.discard(node)
            new = node + 1
            for table in (grid.partitions, grid.names, grid.contexts):
                table[new] = table.pop(node)  # type: ignore[attr-defined]
            grid.online.add(new)
            return [failed(message, 5)]
        return None

    grid = SitesGrid(folders, fate=fate)
    found = run(grid, tmp_path / "run")
    assert found.summary["weights_sha256"] == expected and found.summary["failures"] == []


def test_nobody_waits_for_a_site_that_is_away(folders: list[Path], tmp_path: Path) -> None:
    """It is away when a round begins, and back once the others have answered."""
    expected = run(SitesGrid(folders), tmp_path / "unbroken").summary["weights_sha256"]
    answered: list[int] = []

    def fate(place: int, message: Message) -> list[Message] | None:
        first = {n for n, p in grid.partitions.items() if p == 0}
        if message.metadata.message_type == flower.HELLO:
            answered.append(place)
            if len(answered) == 3:
                grid.online -= first
            return None
        done.append(place)
        if sorted(done) == [1, 2]:
            grid.online |= first
        return None

    done: list[int] = []
    grid = SitesGrid(folders, fate=fate)
    found = run(grid, tmp_path / "run")
    assert sorted(done[:2]) == [1, 2] and done[2] == 0
    assert found.summary["weights_sha256"] == expected and found.summary["failures"] == []


def test_a_site_that_does_not_come_back_is_late_and_costs_no_round(
    folders: list[Path], tmp_path: Path
) -> None:
    def fate(place: int, message: Message) -> list[Message] | None:
        if message.metadata.message_type != flower.HELLO and place == 2:
            grid.online = {n for n, p in grid.partitions.items() if p != 2}
            return [failed(message, 5)]
        return None

    grid = SitesGrid(folders, fate=fate)
    found = run(grid, tmp_path / "run", engine__deadline_seconds=5, training__rounds=1)
    assert [(f["client_id"], f["kind"]) for f in found.summary["failures"]] == [(2, "lost")]
    assert found.summary["failures"][0]["reason"] == "is not there"
    assert found.metrics[0]["num_counted"] == 2


def test_too_few_sites_stop_the_run_before_it_begins(folders: list[Path], tmp_path: Path) -> None:
    with pytest.raises(RunStopped, match="2 of 3 sites are here after 1 s: client-000, client-001"):
        run(SitesGrid(folders[:2]), tmp_path / "run", engine__deadline_seconds=1)
    assert not (tmp_path / "run").exists()


def test_more_sites_than_clients_are_refused_and_a_run_that_goes_on_waits_for_its_own(
    folders: list[Path], tmp_path: Path
) -> None:
    from small_runs import Crash

    whole = run(SitesGrid(folders[:2]), tmp_path / "whole", data__clients=2).summary["weights_sha256"]
    with pytest.raises(
        ConfigError, match=r"data\.clients = 2: but 3 sites are here: client-000, client-001, client-002"
    ):
        run(SitesGrid(folders), tmp_path / "more", data__clients=2)

    class Dies(osmotic.Callback):
        def phase_done(self, line: Any) -> None:
            raise Crash

    with lent(SitesGrid(folders[:2]), roster.across_sites), pytest.raises(Crash):
        osmotic.run(keys=KEYS | SITES | {"data.clients": 2}, out=tmp_path / "run", callbacks=Dies())
    with lent(SitesGrid(folders), roster.across_sites):
        found = osmotic.load(tmp_path / "run").resume()
    assert found.summary["weights_sha256"] == whole


def test_sites_with_images_of_several_shapes_are_refused(folders: list[Path], tmp_path: Path) -> None:
    np.savez(
        tmp_path / "wide.npz", train_images=np.zeros((9, 16, 16), np.uint8), train_labels=np.arange(9) % 3
    )
    name = next(
        line for line in (folders[1] / "site.toml").read_text().splitlines() if line.startswith("data")
    )
    write(folders[1], name, f'data = "npz:{tmp_path / "wide.npz"}"')
    with pytest.raises(ConfigError, match="images of several shapes: client-000 8x8x1, client-001 16x16x1"):
        run(SitesGrid(folders), tmp_path / "run")


# --- whom the hub believes ---


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ({"name": "client-001"}, "says that it is 'client-001', and its key is that of 'client-000'"),
        ({"name": 3}, "says that it is 3"),
        ({"num_examples": 0}, "no number of images"),
        ({"num_examples": True}, "no number of images"),
        ({"num_examples": 10**30}, "no number of images"),
        ({"image": [8, 8, 1]}, "no shape"),
        ({"image": [8, 2]}, "no shape"),
        ({"classes": "0123"}, "no classes"),
        ({"classes": [1, 2]}, "no classes"),
        ({"classes": ["a", "a"]}, "class names must differ"),
        ({"classes": ["\x1b[31mred"]}, "printable characters only"),
        ({"classes": ["a" * 300]}, "at most 200 characters"),
        ({"classes": [f"{n}" for n in range(10_001)]}, "more than 10,000 classes"),
        ({"classes": [f"{n:0100}" for n in range(1_001)]}, "letters of their names"),
        ({"image": [0, 1]}, "no shape"),
        ({"image": [-8, 1]}, "no shape"),
        ({"image": [1025, 1]}, "no shape"),
        ({"encoders": None}, "no feature networks"),
        ({"encoders": ["x"]}, "no feature networks"),
        ({"encoders": [7]}, "no feature networks"),
        ({"encoders": ["0" * 64] * 101}, "too many"),
        ({"version": "0.0.1"}, "has osmotic '0.0.1', and the hub"),
    ],
)
def test_who_lies_of_himself_does_not_take_part(said: dict[str, Any], reason: str) -> None:
    import importlib.metadata

    good = {"name": "client-000", "num_examples": 5, "image": [8, 1], "classes": ["a"], "encoders": []}
    good["version"] = importlib.metadata.version("osmotic")
    assert roster._checked(good, "client-000")["num_examples"] == 5
    with pytest.raises(ValueError, match=reason.replace("(", r"\(")):
        roster._checked(good | said, "client-000")


def test_a_hello_that_is_no_packet_and_one_of_another_name_are_passed_over(
    folders: list[Path], tmp_path: Path
) -> None:
    told: list[str] = []

    def fate(place: int, message: Message) -> list[Message] | None:
        if message.metadata.message_type == flower.HELLO and place == 0:
            return [Message(RecordDict(), reply_to=message)]
        return None

    config = resolve.load(keys=KEYS | SITES | {"data.clients": 2, "engine.deadline_seconds": 2})
    grid = SitesGrid(folders[:2], registered=["client-000", "somebody-else"], fate=fate)
    with pytest.raises(RunStopped, match="nobody"):
        roster.across_sites(grid, config, announce=told.append)
    assert any("holds other records" in line for line in told)
    assert any("says that it is 'client-001'" in line for line in told)


def test_one_that_declines_is_known_by_the_name_of_its_key() -> None:
    told = roster._checked({"name": "client-001", "declines": "\x1b[31mno"}, "client-000")
    assert told == {"name": "client-000", "declines": "\\x1b[31mno"}


def test_a_site_that_never_says_who_it_is_holds_nobody_up(
    folders: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(roster, "SETTLED", 0.3)

    def fate(place: int, message: Message) -> list[Message] | None:
        return [] if place == 2 else None

    grid = SitesGrid(folders, fate=fate)
    engine = roster.AcrossSites(grid, resolve.load(keys=KEYS | SITES))
    begun = time.monotonic()
    assert engine.gather(2, (), 60).keys() == {"client-000", "client-001"}
    assert engine.gather(2, ("client-000", "client-001"), 60).keys() == {"client-000", "client-001"}
    assert time.monotonic() - begun < 30


def test_a_hello_that_flower_cannot_read_costs_the_others_nothing(folders: list[Path]) -> None:
    def fate(place: int, message: Message) -> list[Message] | None:
        if place == 1:
            raise TypeError("Object of type 'Array' is corrupt: /home/someone")
        return None

    told: list[str] = []
    engine = roster.AcrossSites(SitesGrid(folders, fate=fate), resolve.load(keys=KEYS | SITES), told.append)
    assert engine.gather(2, (), 30).keys() == {"client-000", "client-002"}
    assert "site client-001 does not take part: cannot be read (TypeError)" in told


def test_a_site_that_comes_back_with_another_policy_is_asked_again(
    folders: list[Path], tmp_path: Path
) -> None:
    write(folders[0], "methods = []", 'methods = ["udec"]')
    asked: list[int] = []

    def fate(place: int, message: Message) -> list[Message] | None:
        asked.append(place)
        return None

    grid = SitesGrid(folders[:1], fate=fate)
    engine = roster.AcrossSites(grid, resolve.load(keys=KEYS | SITES))
    for online in (True, True, False, True):
        if online and len(asked) == 1 and not grid.online:
            write(folders[0], 'methods = ["udec"]', "methods = []")
        grid.online = set(grid.partitions) if online else set()
        engine._look()
        engine._look()
    assert asked == [0, 0] and engine.gather(1, (), 0.1).keys() == {"client-000"}


def test_the_name_of_a_site_that_is_here_cannot_be_taken(folders: list[Path]) -> None:
    """Where sites have no keys, names are nobody's: the first one stays."""
    told: list[str] = []
    grid = SitesGrid([folders[0], folders[0]], registered=["", ""])
    engine = roster.AcrossSites(grid, resolve.load(keys=KEYS | SITES), told.append)
    for _ in range(3):
        engine._look()
    assert sum("has the name of another site" in line for line in told) == 1
    [first] = engine._nodes.values()
    [second] = grid.partitions.keys() - {first}
    assert engine._second == {second: first}
    # A site whose process died comes back as another node, at times before the old one is given up.
    grid.online.discard(first)
    engine._look()
    engine._look()
    assert list(engine._nodes.values()) == [second]


# --- what a site lets happen ---


@pytest.mark.parametrize(
    ("policy", "keys", "action", "reason"),
    [
        ({"methods": ("udec",)}, {}, "train", "policy.methods does not allow fedavg"),
        ({"codecs": ("int8",)}, {"codec.up": "int8"}, "train", "policy.codecs does not allow fp32"),
        (
            {"pieces": ("prox",)},
            {"local.pieces": "scaffold"},
            "train",
            "policy.pieces does not allow scaffold",
        ),
        (
            {"least_clients": 4},
            {},
            "train",
            "policy.least_clients asks for 4 clients in a round, and this run has 3",
        ),
        ({}, {"training.fraction_train": 0.3}, "train", "policy.least_clients asks for 2"),
        (
            {"most_passes": 2.0},
            {"training.local_epochs": 3},
            "train",
            "policy.most_passes = 2: this task asks",
        ),
        (
            {"largest_side": 15},
            {"data.image_size": 16},
            "train",
            "policy.largest_side = 15: this run asks for 16 pixels",
        ),
        ({}, {"method.name": "udec"}, "model", "policy.own_model"),
        ({}, {"method.name": "udec"}, "sample", "policy.synthetic_images"),
        ({}, {"server.pieces": "correction"}, "train", "policy.synthetic_images"),
        (
            {},
            {"server.pieces": "correction", "server.correction.images": "upload"},
            "train",
            "policy.own_model",
        ),
    ],
)
def test_the_policy_objects(policy: dict[str, Any], keys: dict[str, Any], action: str, reason: str) -> None:
    config = resolve.load(keys=KEYS | keys)
    assert (Policy(**policy).objection(config, {"action": action}) or "").startswith(reason)
    free = Policy(least_clients=1, own_model=True, synthetic_images=True)
    assert free.objection(config, {"action": action}) is None


@pytest.mark.parametrize("passes", [101, float("nan"), float("inf"), True, "7", [1]])
def test_a_task_cannot_ask_for_more_passes_than_the_policy_lets_it(passes: Any) -> None:
    config = resolve.load(keys=KEYS)
    told = Policy().objection(config, {"action": "train", "local_epochs": passes}) or ""
    assert told.startswith("policy.most_passes = 100")
    for few in (1, 0.5, 100, None):
        assert Policy().objection(config, {"action": "train", "local_epochs": few}) is None


@pytest.mark.parametrize("returns", [["encoder"], ["decoder", "encoder"], "encoder", 7, [["encoder"]]])
def test_a_hub_cannot_ask_for_parts_that_the_exchange_leaves_at_the_sites(returns: Any) -> None:
    config = resolve.load(keys=KEYS | {"method.name": "udec"})
    told = Policy().objection(config, {"action": "train", "returns": returns})
    assert told == "policy.own_model does not let parts leave that the exchange does not share"
    assert Policy().objection(config, {"action": "train", "returns": ["decoder"]}) is None
    shares = resolve.load(keys=KEYS | {"method.name": "udec", "method.encoder_every": 2})
    assert Policy().objection(shares, {"action": "train", "returns": ["decoder", "encoder"]}) is None


def test_a_site_declines_what_its_policy_forbids_and_the_others_go_on(
    folders: list[Path], tmp_path: Path
) -> None:
    write(folders[0], "most_megabytes = 0.0", "most_megabytes = 0.001")
    found = run(SitesGrid(folders), tmp_path / "run", training__rounds=1)
    [failure] = found.summary["failures"]
    assert (failure["client_id"], failure["kind"]) == (0, "refused")
    assert "policy.most_megabytes = 0.001: the answer has 2.8" in failure["reason"]
    assert found.metrics[0]["num_counted"] == 2


def test_a_site_that_declines_is_told_of_before_the_run(folders: list[Path], tmp_path: Path) -> None:
    write(folders[0], "methods = []", 'methods = ["udec"]')
    told: list[str] = []
    config = resolve.load(keys=KEYS | SITES | {"engine.deadline_seconds": 2})
    with pytest.raises(RunStopped, match="2 of 3"):
        roster.across_sites(SitesGrid(folders), config, announce=told.append)
    assert "site client-000 does not take part: policy.methods does not allow fedavg" in told


# --- what a site believes: nothing ---


@pytest.fixture
def desk(folders: list[Path]) -> SiteDesk:
    return SiteDesk(SiteFolder.read(folders[0]))


@pytest.mark.parametrize(
    "spec",
    ["", "{", "[]", "{}", "x" * 2_000_000, '{"config": [], "image": null, "classes": null}', "[" * 100_000,
     '{"config": {}, "image": [8], "classes": []}', '{"config": {}, "image": null, "classes": []}'],
)  # fmt: skip
def test_what_is_no_run_is_declined(desk: SiteDesk, spec: str) -> None:
    with pytest.raises(Declined, match="is told no run"):
        Spec.of(spec)
    answer = desk.serve(spec, Packet({"action": "train", "run": "a", "phase": "train", "server_round": 1}))
    assert (
        answer.header["failure"][0] == "refused"
        and answer.header["client"] == "client-000"
        and not answer.blobs
    )


def spec_of(**keys: Any) -> str:
    from osmotic.config.schema import to_dict

    config = to_dict(resolve.load(keys=KEYS))
    for name, value in keys.items():
        section, key = name.split("__")
        config[section][key] = value
    return Spec(config, (8, 1), tuple("0123456789")).text()


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ({"training__batch_size": -1}, "training.batch_size: must be"),
        ({"method__name": "../../evil"}, "method.name: must be one of"),
        ({"local__pieces": ["os.system"]}, "local.pieces: must be of"),
        ({"codec__up": "pickle"}, "codec.up: must be one of"),
        ({"training__unheard": 1}, "training.unheard: unknown key"),
    ],
)
def test_a_configuration_from_the_hub_is_held_to_every_rule(
    desk: SiteDesk, keys: dict[str, Any], reason: str
) -> None:
    told = desk.hello(spec_of(**keys)).header
    assert reason in told["declines"] and "num_examples" not in told


@pytest.mark.parametrize(
    "config", [{"training": 5}, {"seed": {"a": 1}}, {"": 1}, {"data": {"a": {"b": []}}}, {"method": []}]
)
def test_tables_of_any_form_are_declined_and_break_nothing(desk: SiteDesk, config: dict[str, Any]) -> None:
    spec = Spec(config, (8, 1), ("a",)).text()
    assert "declines" in desk.hello(spec).header
    answer = desk.serve(spec, Packet({"action": "train", "run": "a", "phase": "train", "server_round": 1}))
    assert answer.header["failure"][0] in ("refused", "raised") and not answer.blobs


def test_a_bug_at_a_site_is_told_by_its_kind_alone(desk: SiteDesk, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any, **more: Any) -> Any:
        raise KeyError("/home/someone/patient-7.png")

    monkeypatch.setattr(desk, "_dataset", broken)
    assert desk.hello(spec_of()).header["declines"] == "cannot take part (KeyError)"
    header = {"action": "train", "run": "a", "phase": "train", "server_round": 1}
    assert desk.serve(spec_of(), Packet(header)).header["failure"] == ["raised", "KeyError"]


def test_a_mistake_in_the_sites_file_is_told_without_its_path(folders: list[Path]) -> None:
    from osmotic.sites import desk as desks

    write(folders[0], "least_clients = 2", "least_clients = 0")
    assert desks.hello(str(folders[0]), spec_of()).header["declines"] == "has a mistake in its own file"
    header = {"action": "train", "run": "a", "phase": "train", "server_round": 1}
    answer = desks.serve(str(folders[0]), spec_of(), Packet(header))
    assert answer.header["failure"] == ["raised", "ConfigError"] and answer.header["run"] == "a"


def test_a_run_is_held_to_what_it_was_when_it_began(
    folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hub that tells another story under the same run's id gets no personal part; changed images are noticed."""
    tasks: list[tuple[str, Packet]] = []
    serve = SiteDesk.serve

    def watched(self: SiteDesk, spec: str, packet: Packet) -> Packet:
        if self.name == "client-000":
            tasks.append((spec, packet))
        return serve(self, spec, packet)

    monkeypatch.setattr(SiteDesk, "serve", watched)
    data = tmp_path / "client-000.npz"
    data.write_bytes(Path(SiteFolder.read(folders[0]).config.data.removeprefix("npz:")).read_bytes())
    [line] = [one for one in (folders[0] / "site.toml").read_text().splitlines() if one.startswith("data")]
    write(folders[0], line, f'data = "npz:{data}"')
    run(SitesGrid(folders), tmp_path / "run", method__name="udec", training__rounds=1)
    spec, packet = tasks[0]
    desk = SiteDesk(SiteFolder.read(folders[0]))

    def failure(told: dict[str, Any], **header: Any) -> Any:
        again = Packet(packet.header | header, packet.blobs)
        return serve(desk, json.dumps(told), again).header.get("failure")

    told = json.loads(spec)
    assert failure(told) is None, "the same task may come again"
    # What may change while a run goes on, and what is the site's own.
    longer = json.loads(spec)
    longer["config"]["training"]["rounds"] = 9
    longer["config"]["data"]["source"] = "elsewhere"
    assert failure(longer) is None
    other = json.loads(spec)
    other["config"]["method"]["name"] = "fedavg"
    returns = ["encoder", "bottleneck", "decoder"]
    held = ["refused", "is told other rules than those that this run began with here"]
    assert failure(other, returns=returns) == held
    fewer = json.loads(spec)
    fewer["classes"] = fewer["classes"][::-1]
    assert failure(fewer) == held

    with np.load(data) as found:
        arrays = dict(found)
    arrays["train_images"] = arrays["train_images"][::-1]
    np.savez(data, **arrays)
    desk = SiteDesk(SiteFolder.read(folders[0]))
    assert failure(told) == ["refused", "has other images than when this run began here"]


def test_a_hub_cannot_ask_for_more_threads_than_there_are(desk: SiteDesk) -> None:
    header = {"action": "train", "run": "a", "phase": "train", "server_round": 1}
    answer = desk.serve(spec_of(engine__threads=1_000), Packet(header)).header["failure"]
    assert answer == ["refused", "has fewer processors than engine.threads asks for"]


def test_a_rule_that_names_any_path_stays_at_the_site(
    desk: SiteDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*args: Any, **more: Any) -> Any:
        raise ConfigError("data.source", "x", "no such file: /srv/patients/7.png")

    monkeypatch.setattr(resolve, "received", refused)
    told = desk.hello(spec_of()).header["declines"]
    assert "patients" not in told and told.startswith("cannot take part: data.source")


@pytest.mark.parametrize("run_id", ["../up", "", "a/b", "x" * 65, 7, None])
def test_a_run_cannot_name_a_folder_outside_the_site(desk: SiteDesk, run_id: Any) -> None:
    header = {"action": "train", "run": run_id, "phase": "train", "server_round": 1}
    answer = desk.serve(spec_of(), Packet(header))
    assert answer.header["failure"][0] == "refused"
    assert not list((desk.folder.path / "state").iterdir())


def test_the_hubs_own_source_and_paths_are_not_opened(desk: SiteDesk, tmp_path: Path) -> None:
    elsewhere = tmp_path / "secret.npz"
    np.savez(elsewhere, train_images=np.zeros((50, 8, 8), np.uint8))
    told = desk.hello(spec_of(data__source=f"npz:{elsewhere}")).header
    assert told["num_examples"] == len(np.load(desk.folder.config.data.removeprefix("npz:"))["train_images"])
    assert told["classes"] == list("0123456789")


def test_what_a_site_runs_into_names_no_path(desk: SiteDesk) -> None:
    data = Path(desk.folder.config.data.removeprefix("npz:"))
    kept = data.read_bytes()
    try:
        data.write_bytes(b"no npz")
        told = desk.hello(spec_of()).header["declines"]
    finally:
        data.write_bytes(kept)
    assert str(data) not in told and data.name not in told


# --- the site's file, and its check ---


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ("least_clients = 2", "least_clients = 0", "policy.least_clients = 0: must be >= 1"),
        (
            "least_clients = 2",
            "least_client = 2",
            "policy.least_client = 2: unknown key (nearest valid key: policy.least_clients)",
        ),
        ("own_model = false", 'own_model = "no"', "policy.own_model = 'no': must be true or false"),
        (
            "encoders = []",
            'encoders = ["abc"]',
            "policy.encoders = 'abc': must be a hash, 64 hexadecimal digits",
        ),
        ('device = "auto"', "device = 1", "device = 1: must be a text"),
        ('name = "client-000"', 'name = "a/b"', "name = 'a/b': must be 1 to 100 printable characters"),
        ('name = "client-000"', "name = ", "is not valid TOML"),
    ],
)
def test_a_mistake_in_the_sites_file_is_one_line(
    folders: list[Path], before: str, after: str, told: str
) -> None:
    write(folders[0], before, after)
    with pytest.raises(ConfigError) as refused:
        SiteFolder.read(folders[0])
    assert told in str(refused.value) and str(folders[0] / "site.toml") in str(refused.value)


def test_images_are_found_from_wherever_a_service_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    made = site.init(tmp_path / "one", "one", "npz:parts/one.npz", "localhost:1", None, 9094)
    assert made.config.data == f"npz:{tmp_path / 'parts/one.npz'}"
    assert (
        site.init(tmp_path / "two", "two", "hf:some/name", "localhost:1", None, 9094).config.data
        == "hf:some/name"
    )


def test_check_says_what_is_wrong_line_by_line(folders: list[Path]) -> None:
    folder = folders[0]
    lines = {line.what: line for line in site.check(folder)}
    assert [w for w, line in lines.items() if not line.good] == ["hub"], "nobody listens there"
    assert "images of 8x8, grey, 10 classes" in lines["images"].told
    (folder / "site.key").chmod(0o644)
    assert "chmod 600" in next(line.told for line in site.check(folder) if line.what == "keys")
    (folder / "site.key").unlink()
    assert "is not there" in next(line.told for line in site.check(folder) if line.what == "keys")
    [line] = site.check(folder / "nowhere")
    assert not line.good and "osmotic site init makes one" in line.told


def test_a_site_whose_certificate_is_gone_does_not_speak_without_encryption(tmp_path: Path) -> None:
    made = hub.init(tmp_path / "hub", ["localhost"], 9092, "127.0.0.1", False)
    one = site.init(tmp_path / "one", "one", "digits", "localhost:1", made.path / "ca.crt", 9094)
    command = site.services(one).services[0].command
    assert "--root-certificates" in command and "--insecure" not in command
    (one.path / "ca.crt").unlink()
    with pytest.raises(ConfigError, match="is not there: get it from the hub again"):
        site.services(SiteFolder.read(one.path))
    assert {line.what for line in site.check(one.path) if not line.good} == {"certificate", "hub"}
    for lines in ("plaintext = true", "plaintext = false"):
        assert isinstance(SiteFolder.read(one.path), SiteFolder), lines
    write(one.path, "plaintext = false", "plaintext = true")
    assert "--insecure" in site.services(SiteFolder.read(one.path)).services[0].command


@pytest.mark.parametrize(
    ("name", "data", "address", "told"),
    [
        ("a/b", "digits", "localhost:1", "name = 'a/b'"),
        ("one", "", "localhost:1", "data = '': must be given"),
        ("one", "digits", "localhost", "hub = 'localhost': must be HOST:PORT"),
        ("one", "digits", ":1", "hub = ':1': must be HOST:PORT"),
    ],
)
def test_a_site_with_a_mistake_is_not_made(
    tmp_path: Path, name: str, data: str, address: str, told: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        site.init(tmp_path / "one", name, data, address, None, 9094)
    assert told in str(refused.value) and not (tmp_path / "one").exists()


def test_only_a_certificate_is_taken_for_one(tmp_path: Path) -> None:
    (tmp_path / "ca.crt").write_text("-----BEGIN CERTIFICATE-----\nnone\n-----END CERTIFICATE-----\n")
    for file in (tmp_path / "ca.crt", tmp_path / "nowhere", tmp_path):
        with pytest.raises(ConfigError, match=r"--ca .*must be the ca\.crt"):
            site.init(tmp_path / "one", "one", "digits", "localhost:1", file, 9094)
        assert not (tmp_path / "one").exists()


def test_a_port_that_answers_with_anything_but_http_is_told_of(tmp_path: Path) -> None:
    import socket
    import threading

    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(1000)
            connection.sendall(b"SSH-2.0-OpenSSH_9.6\r\n")

    thread = threading.Thread(target=serve)
    thread.start()
    address = f"127.0.0.1:{listener.getsockname()[1]}"
    made = site.init(tmp_path / "one", "one", "digits", address, None, 9094)
    [line] = [line for line in site.check(made.path) if line.what == "hub"]
    thread.join()
    listener.close()
    assert not line.good and "does not answer" in line.told


# --- the programs of a site ---


@pytest.mark.parametrize(
    ("end", "code"), [("raise OSError('no')", 1), ("raise SystemExit(305 % 256)", 49), ("pass", 0)]
)
def test_a_supernode_whose_work_has_ended_is_no_process_any_more(end: str, code: int) -> None:
    program = f"""
import threading, time
from osmotic.sites import node
def ended():
    threading.Thread(target=time.sleep, args=(600,)).start()
    {end}
node.flower_supernode = ended
node.main()
"""
    done = subprocess.run([sys.executable, "-c", program], timeout=60, capture_output=True, text=True)
    assert done.returncode == code and ("OSError: no" in done.stderr) == (code == 1)


def test_a_link_that_is_cut_is_tried_again_and_a_false_certificate_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import httpx
    from flwr.supercore.retry import http_retry

    from osmotic.sites import node

    cut = httpx.ConnectError(
        "[SSL: UNEXPECTED_EOF_WHILE_READING] EOF occurred in violation of protocol (_ssl.c:1006)"
    )
    false = httpx.ConnectError(
        "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: self-signed certificate"
    )
    no_tls = httpx.ConnectError("[SSL: WRONG_VERSION_NUMBER] wrong version number (_ssl.c:1006)")
    refused = httpx.HTTPStatusError(
        "no", request=httpx.Request("GET", "http://a"), response=httpx.Response(404)
    )
    gives_up = http_retry.make_simple_http_retry_invoker().should_giveup
    assert gives_up is not None and [gives_up(e) for e in (cut, false, no_tls, refused)] == [True] * 4, (
        "flwr 1.41"
    )
    monkeypatch.setattr(http_retry, "RetryInvoker", node.Patient)
    gives_up = http_retry.make_simple_http_retry_invoker().should_giveup
    assert gives_up is not None and [gives_up(e) for e in (cut, false, no_tls, refused)] == [
        False,
        True,
        True,
        True,
    ]


def test_a_site_finds_one_program_and_no_other(folders: list[Path]) -> None:
    made = site.services(SiteFolder.read(folders[0]))
    folder = Path(made.environment["PATH"])
    assert [p.name for p in folder.iterdir()] == ["flwr-clientapp"] and folder == folders[0] / "bin"
    done = subprocess.run(
        ["flwr-clientapp", "--help"], env=made.environment, capture_output=True, text=True, check=True
    )
    assert "--token" in done.stdout


def test_a_task_runs_our_app_whatever_the_hub_has_sent(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Flower's own functions, put aside where it looks for them."""
    from flwr.supernode.runtime import run_clientapp

    from osmotic.flower import client
    from osmotic.sites import task

    names = ("install_from_fab", "install_app_dependencies", "get_load_client_app_fn", "push_message")
    theirs = {name: getattr(run_clientapp, name) for name in names}
    source = inspect.getsource(run_clientapp.run_clientapp)
    for name in names:
        monkeypatch.setattr(run_clientapp, name, theirs[name])
        assert f"{name}(" in source, "is called by the name that is put aside"
    begun: list[bool] = []
    monkeypatch.setattr(task, "flwr_clientapp", lambda: begun.append(True))
    monkeypatch.setenv("OSMOTIC_ANSWERS", str(tmp_path))
    task.main()
    assert begun and all(getattr(run_clientapp, name) is not theirs[name] for name in names)
    assert run_clientapp.install_from_fab(b"no archive", skip_prompt=True) is None
    load = run_clientapp.get_load_client_app_fn(default_app_ref="", app_path=None, multi_app=True)
    assert load("evil/app", "1.0", "0" * 64) is client


# --- keys, certificates, the hub's files ---


def test_the_authority_vouches_for_the_server_and_for_nobody_else(tmp_path: Path) -> None:
    import socket
    import ssl
    import threading

    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        certificates.make_authority(tmp_path / name)
    certificates.make_server(tmp_path / "one", ["hub.example.org", "127.0.0.1"])

    def handshake(authority: str, host: str) -> None:
        server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        server.load_cert_chain(tmp_path / "one/server.crt", tmp_path / "one/server.key")
        ours, theirs = socket.socketpair()

        def serve() -> None:
            try:
                server.wrap_socket(theirs, server_side=True).close()
            except OSError:
                theirs.close()

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            context = ssl.create_default_context(cafile=str(tmp_path / authority / "ca.crt"))
            context.wrap_socket(ours, server_hostname=host).close()
        finally:
            ours.close()
            thread.join()

    handshake("one", "hub.example.org")
    handshake("one", "127.0.0.1")
    for authority, host in (("one", "evil.example.org"), ("other", "hub.example.org")):
        with pytest.raises(ssl.SSLCertVerificationError):
            handshake(authority, host)


def test_private_files_are_their_owners_alone(folders: list[Path], tmp_path: Path) -> None:
    made = hub.init(tmp_path / "hub", ["localhost"], 9092, "127.0.0.1", False)
    private = [made.path / n for n in ("ca.key", "server.key", "superexec.secret")]
    private += [folders[0] / n for n in ("site.key", "superexec.secret")]
    for file in private:
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file
    for folder in (made.path, folders[0]):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_only_keys_that_flower_takes_are_registered(tmp_path: Path, folders: list[Path]) -> None:
    made = hub.init(tmp_path / "hub", ["localhost"], 9092, "127.0.0.1", False)
    assert certificates.is_public_key((folders[0] / "site.key.pub").read_bytes())
    for text in (b"", b"ssh-rsa AAAA", (folders[0] / "site.key").read_bytes(), b"\xff\xfe"):
        (tmp_path / "key.pub").write_bytes(text)
        with pytest.raises(ConfigError, match="is no public key"):
            made.add_site("one", tmp_path / "key.pub")
    with pytest.raises(ConfigError, match="NAME"):
        made.add_site("../one", folders[0] / "site.key.pub")


def test_a_hub_is_this_machines_alone_and_its_proxy_shows_one_path(tmp_path: Path) -> None:
    made = hub.init(tmp_path / "hub", ["hub.example.org"], 9092, "127.0.0.1", False)
    command = made.services().services[0].command
    assert command[command.index("--host") + 1] == "127.0.0.1" and "--enable-supernode-auth" in command
    assert "--insecure" not in command
    text = (made.path / "nginx.conf").read_text()
    assert (
        text.count("proxy_pass") == 1
        and "location /v1/fleet/ {" in text
        and "client_max_body_size 16m" in text
    )
    with pytest.raises(ConfigError, match="is not empty"):
        hub.init(made.path, ["localhost"], 9092, "127.0.0.1", False)
    plain = (
        hub.init(tmp_path / "plain", ["localhost"], 9092, "127.0.0.1", True).services().services[0].command
    )
    assert "--insecure" in plain and "--enable-supernode-auth" not in plain


# --- a space that all must have ---


def test_sites_work_in_the_latents_of_the_hubs_autoencoder_and_of_no_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    import small_autoencoder

    # Few images of each, and not as many: a site encodes its own alone, the simulation all at once.
    few = {"data.max_images": 36}
    folders = sites_of(split(KEYS | few, tmp_path / "parts"), tmp_path)
    theirs = small_autoencoder.write(tmp_path / "hubs")
    keys = {"model__autoencoder": str(theirs)}
    copies = [small_autoencoder.write(folder / "autoencoder") for folder in folders]
    for folder in folders:
        write(folder, 'autoencoder = ""', 'autoencoder = "autoencoder"')
    simulated = osmotic.run(
        keys=KEYS | few | {"model.autoencoder": str(theirs), "score.every": 0}, out=tmp_path / "simulated"
    )
    found = run(SitesGrid(folders), tmp_path / "run", **keys)
    assert found.summary["weights_sha256"] == simulated.summary["weights_sha256"]

    small_autoencoder.write(copies[0], seed=1)
    write(folders[1], 'autoencoder = "autoencoder"', 'autoencoder = ""')
    hashes = [autoencoder_file.describe(place).sha256 for place in (copies[0], theirs)]
    capsys.readouterr()
    with pytest.raises(RunStopped, match="1 of 3 sites are here"):
        run(SitesGrid(folders), tmp_path / "other", **keys, engine__deadline_seconds=3)
    told = capsys.readouterr().err
    assert f"site client-000 does not take part: has autoencoder {hashes[0]}, and the run {hashes[1]}" in told
    lacking = "has no autoencoder, and this run works in the latents of one"
    assert f"site client-001 does not take part: {lacking}: {hashes[1]}" in told
    assert f"does not take part: {lacking}" in caplog.text, "and the site itself has it in its log"
    # The same weights with another factor are another autoencoder.
    small_autoencoder.write(copies[0], scaling_factor=2.5)
    scaled = autoencoder_file.describe(copies[0])
    assert scaled.scale == 2.5 and scaled.sha256 != hashes[1]
    with pytest.raises(RunStopped, match="1 of 3 sites are here"):
        run(SitesGrid(folders), tmp_path / "factor", **keys, engine__deadline_seconds=3)
    told = capsys.readouterr().err
    assert f"client-000 does not take part: has autoencoder {scaled.sha256}, and the run {hashes[1]}" in told
    # And a run in pixels asks for none.
    run(SitesGrid(folders), tmp_path / "pixels")


def test_sites_start_from_weights_that_they_hold_or_are_sent(
    folders: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from osmotic.models import pretrained

    begun = osmotic.run(keys=KEYS | {"training.rounds": 1, "score.every": 0}, out=tmp_path / "begun")
    place = str(Path(begun.path) / "model")
    keys = {"model__pretrained": place, "codec__first_contact": "seed"}
    told = {k.replace("__", "."): v for k, v in keys.items()}
    simulated = osmotic.run(keys=KEYS | told | {"score.every": 0}, out=tmp_path / "simulated")
    for folder in folders[:2]:
        write(folder, 'pretrained = ""', f'pretrained = "{place}"')
    found = run(SitesGrid(folders), tmp_path / "run", **keys)
    assert found.summary["weights_sha256"] == simulated.summary["weights_sha256"]
    lines = [json.loads(line) for line in Path(found.path, "ledger.jsonl").read_text().splitlines()]
    first = {r["client"]: r["bytes"] for r in lines if r["round"] == 1 and r["direction"] == "down"}
    assert first["client-000"] == first["client-001"] == 0
    assert first["client-002"] > 4 * found.summary["parameters"], "who does not hold them is sent them"
    assert not found.summary["failures"]

    # Other weights, and none where only an adapter travels.
    other = osmotic.run(
        keys=KEYS | {"training.rounds": 1, "seed": 5, "score.every": 0}, out=tmp_path / "other"
    )
    write(folders[0], f'pretrained = "{place}"', f'pretrained = "{Path(other.path) / "model"}"')
    capsys.readouterr()
    with pytest.raises(RunStopped, match="1 of 3 sites are here"):
        run(SitesGrid(folders), tmp_path / "adapted", **keys, adapter__rank=2, engine__deadline_seconds=3)
    said = capsys.readouterr().err
    hashes = [pretrained.sha256_of(str(Path(r.path) / "model")) for r in (other, begun)]
    assert (
        f"client-000 does not take part: has pretrained weights {hashes[0]}, and the run {hashes[1]}" in said
    )
    assert "client-002 does not take part: does not have the pretrained network that this run adapts" in said


# --- rules ---


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"method.name": "central"}, "trains on all images in one place"),
        ({"engine.batched_clients": 2}, "those of engine sites have a process each"),
    ],
)
def test_what_cannot_be_across_sites_is_refused(keys: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        resolve.load(keys=KEYS | SITES | keys)


def test_sites_need_a_hub(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="osmotic hub run"):
        osmotic.run(keys=KEYS | SITES, out=tmp_path / "run")


# --- the supervisor ---


@pytest.fixture
def supervised(tmp_path: Path) -> Iterator[Callable[[str], Supervisor]]:
    import threading

    begun: list[tuple[Supervisor, threading.Thread]] = []

    def start(program: str) -> Supervisor:
        made = Supervisor([Service("one", [sys.executable, "-c", program])], tmp_path / "logs", {})
        thread = threading.Thread(target=made.run)
        thread.start()
        begun.append((made, thread))
        return made

    yield start
    for made, thread in begun:
        made.end()
        thread.join(30)
        assert not thread.is_alive()


def until(true: Callable[[], Any], seconds: float = 30.0) -> Any:
    end = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < end
        time.sleep(0.02)
    return found


def test_what_dies_is_started_again_and_nothing_outlives_the_end(
    supervised: Callable[[str], Supervisor], tmp_path: Path
) -> None:
    child = tmp_path / "child"
    program = (
        "import subprocess, sys, time; p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']);"
        f"open({str(child)!r}, 'w').write(str(p.pid)); time.sleep(600)"
    )
    made = supervised(program)
    first = until(lambda: made.services[0].process)
    until(lambda: child.exists() and child.read_text())
    old = int(child.read_text())
    first.kill()
    second = until(lambda: (p := made.services[0].process) is not None and p is not first and p)
    until(lambda: not alive(old))
    until(lambda: child.read_text() not in ("", str(old)))
    made.end()
    until(lambda: not alive(second.pid) and not alive(int(child.read_text())))


def test_nothing_outlives_a_supervisor_that_is_killed(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from osmotic.sites.supervisor import Service, Supervisor;"
        "Supervisor([Service('one', [sys.executable, '-c', 'import time; time.sleep(600)'])], Path(sys.argv[1]), {}).run()"
    )
    process = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)])
    children = until(lambda: descendants(process.pid))
    process.kill()
    process.wait()
    until(lambda: not any(alive(pid) for pid in children))


def test_what_dies_at_once_is_not_started_all_the_time(
    supervised: Callable[[str], Supervisor], tmp_path: Path
) -> None:
    supervised(f"open({str(tmp_path / 'starts')!r}, 'a').write('x')")
    time.sleep(4)
    assert 1 <= len((tmp_path / "starts").read_text()) <= 3


def test_what_is_alive_and_stuck_is_started_anew(
    supervised: Callable[[str], Supervisor], tmp_path: Path
) -> None:
    made = supervised("import time; time.sleep(600)")
    first = until(lambda: made.services[0].process)
    said = iter([True])
    made.services[0].stuck = lambda since: next(said, False)
    until(lambda: (p := made.services[0].process) is not None and p is not first)
    assert not alive(first.pid)


def test_a_log_that_grows_too_long_is_turned_over(
    supervised: Callable[[str], Supervisor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from osmotic.sites import supervisor

    monkeypatch.setattr(supervisor, "MAX_LOG", 1000)
    supervised("import time\nwhile True: print('x' * 99, flush=True); time.sleep(0.01)")
    older = tmp_path / "logs/one.log.1"
    until(older.exists)
    first = older.stat().st_mtime_ns
    until(lambda: older.stat().st_mtime_ns != first)
    (
        tmp_path / "logs/one.log"
    ).unlink()  # its process writes on, into nothing; whoever looks after it is not disturbed
    time.sleep(0.5)
    assert 1000 < older.stat().st_size < 100_000 and not older.read_bytes().strip(b"x\n")
    assert [p.name for p in older.parent.iterdir()] == ["one.log.1"]


HANDS_OVER = """
import sys, time
from pathlib import Path
from osmotic.sites import answers

def push_message(client, message, context):
    print("begun", flush=True)
    if message == "is slow":
        time.sleep(600)
    if message == "cannot":
        raise OSError("no")

answers.marked(push_message, Path(sys.argv[1]))(None, sys.argv[2], None)
"""


def test_an_answer_that_is_broken_off_is_told_of_once(tmp_path: Path) -> None:
    from osmotic.sites.answers import broken_off

    def handing_over(message: str) -> subprocess.Popen[str]:
        words = [sys.executable, "-c", HANDS_OVER, str(tmp_path), message]
        found = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert found.stdout is not None and found.stdout.readline() == "begun\n"
        return found

    begun = time.time() - 1
    handing_over("is quick").wait()
    assert not broken_off(tmp_path, begun) and not list(tmp_path.iterdir())
    slow = handing_over("is slow")
    assert not broken_off(tmp_path, begun)
    slow.kill()
    slow.wait()
    assert broken_off(tmp_path, begun) and not broken_off(tmp_path, begun)
    handing_over("cannot").wait()
    assert broken_off(tmp_path, begun) and not list(tmp_path.iterdir())
    handing_over("cannot").wait()
    # It was meant for the SuperNode before this one.
    assert not broken_off(tmp_path, time.time() + 1) and not list(tmp_path.iterdir())


def test_records_of_a_hello_are_small(desk: SiteDesk) -> None:
    answer = packet_of(records(desk.hello(spec_of()))).header
    assert set(answer) == {
        "name",
        "version",
        "num_examples",
        "held_out",
        "image",
        "classes",
        "encoders",
        "kernel_distances",
        "own_model",
        "synthetic_images",
        "autoencoder",
        "pretrained",
        "torch",
    }
    assert len(json.dumps(answer)) < 400


def test_a_hub_knows_its_sites_by_name(
    tmp_path: Path, folders: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flower gives a number when a key is registered, and lists numbers alone."""
    made = hub.init(tmp_path / "hub", ["localhost"], 9092, "127.0.0.1", False)
    numbers = iter([18071833777992326379, 7])

    taken_back: list[str] = []

    def ask(home: Path, words: list[str], **more: Any) -> dict[str, Any]:
        if words[1] == "register":
            assert more["patience"] >= 60, "the hub may only just be starting"
            return {"node-id": next(numbers)}
        if words[1] == "unregister":
            taken_back.append(words[2])
            return {"success": True}
        return {
            "nodes": [
                {"node-id": "7", "status": "online"},
                {"node-id": "18071833777992326379"},
                {"node-id": "8"},
            ]
        }

    monkeypatch.setattr(hub, "ask", ask)
    for folder in folders[:2]:
        made.add_site(folder.name, folder / "site.key.pub")
    assert [one["name"] for one in hub.Hub.read(made.path).sites()] == ["client-001", "client-000", ""]
    with pytest.raises(ConfigError, match="is the name of a site that is there"):
        made.add_site("client-000", folders[2] / "site.key.pub")
    with pytest.raises(ConfigError, match=r"is no site of this hub .*client-00"):
        made.remove_site("client-00")
    made.remove_site("client-000")
    assert taken_back == ["18071833777992326379"] and made.names() == {"7": "client-001"}
    numbers = iter([9])
    made.add_site("client-000", folders[2] / "site.key.pub")
    assert made.names() == {"7": "client-001", "9": "client-000"}


def test_two_runs_never_share_a_folder(tmp_path: Path) -> None:
    made = hub.init(tmp_path / "hub", ["localhost"], 9092, "127.0.0.1", False)
    one, other = made.fresh_run("run", False), made.fresh_run("run", False)
    assert one != other and one.is_dir() and other.is_dir()
    assert made.fresh_run("mine", True).is_dir()
    with pytest.raises(ConfigError, match="--name = 'mine': is the name of another run"):
        made.fresh_run("mine", True)


def test_a_mistake_in_the_hubs_file_is_one_line(tmp_path: Path) -> None:
    made = hub.init(tmp_path / "hub", ["localhost"], 9092, "127.0.0.1", False)
    write_to = made.path / "hub.toml"
    write_to.write_text(write_to.read_text() + "plain = true\n")
    with pytest.raises(ConfigError, match=r"hub\.toml: plain = True: unknown key .*plaintext"):
        hub.Hub.read(made.path)


def test_a_runs_server_finds_the_feature_network_from_wherever_it_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = hub.init(tmp_path / "hub", ["localhost"], 9092, "127.0.0.1", False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "network.safetensors").touch()
    monkeypatch.setattr(hub, "ask", lambda *args, **more: {"run-id": "1"})
    config = resolve.load(keys=KEYS | SITES | {"score.encoder": "file:network.safetensors"})
    made.submit(config, made.fresh_run("one", True))
    handed = resolve.load(made.path / "submitted/one.toml")
    assert handed.score.encoder == f"file:{tmp_path / 'network.safetensors'}"
