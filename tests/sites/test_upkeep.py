"""What operators of a site and a hub do before a run and between runs: asking the policy, clearing states, renewing certificates."""

from __future__ import annotations

import datetime
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("flwr", reason="flwr is not installed: pip install 'osmotic[flower]'")

from osmotic.config.schema import to_dict
from osmotic.errors import ConfigError
from osmotic.protocol.messages import Packet
from osmotic.runs import resolve
from osmotic.sites import certificates, hub, site
from osmotic.sites.desk import Declined, SiteDesk, Spec
from osmotic.sites.folder import SiteFolder


@pytest.fixture
def one(tmp_path: Path) -> Path:
    """A site with the digits for its images."""
    return site.init(tmp_path / "one", "one", "digits", "localhost:1", None, 9094).path


def allow(folder: Path, key: str, value: str) -> None:
    """Writes a key of the policy."""
    lines = (folder / "site.toml").read_text().splitlines()
    assert any(line.startswith(f"{key} = ") for line in lines)
    new = [f"{key} = {value}" if line.startswith(f"{key} = ") else line for line in lines]
    (folder / "site.toml").write_text("\n".join(new) + "\n")


# --- what would be allowed ---


@pytest.mark.parametrize(
    ("keys", "policy", "refused"),
    [
        ({}, {}, []),
        ({}, {"most_passes": "1.0"}, ["most_passes"]),
        ({}, {"codecs": '["int8"]'}, ["codecs"]),
        ({}, {"most_megabytes": "0.1"}, ["most_megabytes"]),
        ({"method.name": "udec"}, {"synthetic_images": "true"}, ["own_model"]),
        ({"method.name": "udec"}, {"own_model": "true"}, ["synthetic_images"]),
        ({"method.name": "udec"}, {"own_model": "true", "synthetic_images": "true"}, []),
        ({"server.pieces": ["correction"]}, {}, ["synthetic_images"]),
        (
            {"server.pieces": ["correction"], "server.correction.local_epochs": 200},
            {"synthetic_images": "true"},
            ["most_passes"],
        ),
        ({"data.clients": 5000}, {}, []),
        ({"data.clients": 3, "training.fraction_train": 0.1}, {}, ["least_clients"]),
    ],
)
def test_a_site_tells_beforehand_what_its_policy_lets_it_do(
    one: Path, keys: dict[str, Any], policy: dict[str, str], refused: list[str]
) -> None:
    for key, value in policy.items():
        allow(one, key, value)
    lines = list(site.allows(one, resolve.load(keys={"training.rounds": 2, "score.samples": 20, **keys})))
    found = {line.told.split()[0].removeprefix("policy.") for line in lines if not line.good}
    assert lines and sorted(found) == refused
    assert all("may leave" in line.told for line in lines if line.good)


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"model.autoencoder": "hubs"}, "has no autoencoder"),
        ({"model.pretrained": "hubs/model", "adapter.rank": 2}, "does not have the pretrained network"),
        (
            {"model.pretrained": "hubs/model", "method.name": "local"},
            "this exchange does not send all of them",
        ),
        (
            {"model.pretrained": "hubs/model", "method.name": "udec"},
            "this exchange does not send all of them",
        ),
    ],
)
def test_what_a_site_does_not_have_is_told_beforehand_too(one: Path, keys: dict[str, Any], told: str) -> None:
    [line] = site.allows(one, resolve.load(keys=keys))
    assert not line.good and told in line.told


def test_what_is_allowed_is_told_by_a_command(one: Path, tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text('[method]\nname = "udec"\n[data]\nsource = "npz:/nowhere.npz"\n')
    command = [sys.executable, "-m", "osmotic", "site", "allows", one, tmp_path / "run.toml"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and "no  " in done.stdout and "policy.own_model" in done.stdout
    done = subprocess.run([*command, "--set", "method.name=fedavg", "--json"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    [task] = json.loads(done.stdout)["tasks"]
    assert task["good"] and "702,753 weights" in task["told"]
    done = subprocess.run([*command, "--set", "method.name=none"], capture_output=True, text=True)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1


# --- private states ---


def test_a_hub_cannot_fill_the_disk_of_a_site(one: Path) -> None:
    """A task is declined while private states of earlier runs take more than the site lets them; deleting some helps."""
    allow(one, "most_state_gigabytes", "0.0001")
    folder = SiteFolder.read(one)
    config = resolve.load(keys={"training.rounds": 1, "data.image_size": 8, "data.channels": 1})
    spec = Spec(to_dict(config), (8, 1), tuple("0123456789")).text()
    (old := one / "state" / "earlier").mkdir()
    (old / "state.safetensors").write_bytes(bytes(200_000))
    (one / "state" / "earlier.json").write_text("{}")
    assert folder.states() == (1, 200_002)
    task = Packet({"run": "abc", "action": "train", "returns": []})
    kind, reason = SiteDesk(folder).serve(spec, task).header["failure"]
    assert kind == "refused" and "policy.most_state_gigabytes = 0.0001" in reason
    assert not (one / "state/abc.json").exists()
    [line] = [line for line in site.check(one) if line.what == "states"]
    assert not line.good and "delete those of runs that are over" in line.told
    (old / "state.safetensors").unlink()
    [line] = [line for line in site.check(one) if line.what == "states"]
    assert line.good and "1 run" in line.told
    kind, reason = SiteDesk(folder).serve(spec, task).header["failure"]
    assert "most_state_gigabytes" not in reason


# --- certificates ---


def test_a_hub_renews_its_certificate_under_the_same_authority(tmp_path: Path) -> None:
    made = hub.init(tmp_path / "hub", ["hub.example.org", "10.0.0.7"], 9092, "127.0.0.1", False)
    kept = {n: (made.path / n).read_bytes() for n in ("ca.crt", "ca.key", "server.crt", "server.key")}
    names = certificates.hosts_of(made.path)
    assert names == ["hub.example.org", "10.0.0.7", "localhost", "127.0.0.1"]
    assert made.ending() is None
    until = made.renew()
    assert datetime.date.fromisoformat(until) > datetime.date.today() + datetime.timedelta(days=700)
    new = {n: (made.path / n).read_bytes() for n in kept}
    assert [n for n in kept if kept[n] == new[n]] == ["ca.crt", "ca.key"]
    assert certificates.hosts_of(made.path) == names
    assert (made.path / "server.key").stat().st_mode & 0o777 == 0o600
    made.renew(["other.example.org"])
    assert certificates.hosts_of(made.path) == ["other.example.org", "localhost", "127.0.0.1"]


def test_a_certificate_that_ends_soon_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = hub.init(tmp_path / "hub", ["localhost"], 9092, "127.0.0.1", False)
    monkeypatch.setattr(hub, "SOON", datetime.timedelta(days=3 * 365))
    assert "server.crt ends on" in (made.ending() or "") and "osmotic hub renew" in (made.ending() or "")
    monkeypatch.setattr(hub, "SOON", datetime.timedelta(days=11 * 365))
    monkeypatch.setattr(certificates, "ends", lambda file: certificates_end[file.name])
    now = datetime.datetime.now(datetime.UTC)
    certificates_end = {"server.crt": now + datetime.timedelta(days=9999), "ca.crt": now}
    assert "a new hub" in (made.ending() or "")


def test_no_certificate_and_a_damaged_one_are_one_line(tmp_path: Path) -> None:
    plain = hub.init(tmp_path / "plain", ["localhost"], 9092, "127.0.0.1", True)
    assert plain.ending() is None
    with pytest.raises(ConfigError, match="plaintext = true"):
        plain.renew()
    made = hub.init(tmp_path / "hub", ["localhost"], 9092, "127.0.0.1", False)
    (made.path / "ca.key").write_text("none")
    with pytest.raises(ConfigError, match="its certificates cannot be read"):
        made.renew()
    (made.path / "server.crt").write_text("none")
    with pytest.raises(ConfigError, match="its certificates cannot be read"):
        made.ending()


# --- what a run was when it began, and what may change ---


def test_a_site_may_move_its_folders_and_computes_on_its_own_device(one: Path, tmp_path: Path) -> None:
    """Where an autoencoder lies is the site's own; what it is stands in the contract. The hub's device is not the site's."""
    import small_autoencoder

    allow(one, "autoencoder", '"here"')
    allow(one, "device", '"cpu"')
    small_autoencoder.write(one / "here")
    keys = {"training.rounds": 1, "model.autoencoder": "hubs", "engine.device": "auto"}
    spec = Spec(to_dict(resolve.load(keys=keys)), (8, 1), tuple("0123456789"))
    desk = SiteDesk(SiteFolder.read(one))
    config = desk.configuration(spec)
    assert config.engine.device == "cpu" and config.model.autoencoder == str(one / "here")
    dataset = desk._dataset(config)
    rows, _ = desk._rows(config, dataset)
    file = one / "state/abc.json"
    desk._hold_to(file, config, spec.classes or (), dataset, rows)
    (one / "here").rename(one / "there")
    allow(one, "autoencoder", '"there"')
    moved = SiteDesk(SiteFolder.read(one)).configuration(spec)
    assert moved.model.autoencoder == str(one / "there")
    desk._hold_to(file, moved, spec.classes or (), dataset, rows)
    with pytest.raises(Declined, match="other rules"):
        other = resolve.load(keys=keys | {"training.local_epochs": 7})
        desk._hold_to(file, desk.configuration(Spec(to_dict(other))), spec.classes or (), dataset, rows)
