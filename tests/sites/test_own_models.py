"""A model for each across sites: it stands at the site, whether it leaves or not, and has the bits of the simulation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_network

pytest.importorskip("flwr", reason="flwr is not installed: pip install 'osmotic[flower]'")

from flower_grid import SitesGrid
from flwr.app import Message
from safetensors.numpy import load_file
from small_runs import Crash
from test_sites import KEYS, SITES, folders, parts, quick, write  # noqa: F401

import osmotic
from osmotic import plugins
from osmotic.engines.envelope import packet_of
from osmotic.engines.flower import lent
from osmotic.runs import summary
from osmotic.sites import roster, site
from osmotic.sites.folder import SiteFolder

tiny_network.register()
# An average over rounds, so that what is published is not what the rounds left.
OWN = {"after.pieces": ["personalise"], "recipe.ema_half_lives": [100.0], "model.network": "tiny"}


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sites of this grid are in this process, where the tiny network is registered."""
    monkeypatch.setattr(plugins, "registered_here", lambda config: None)


def run(grid: SitesGrid, out: Path, **more: Any) -> Any:
    with lent(grid, roster.across_sites):
        return osmotic.run(keys=KEYS | SITES | OWN | more.pop("keys", {}), out=out, **more)


def weights(folder: Path) -> dict[str, np.ndarray]:
    [file] = folder.rglob("*.safetensors")
    return load_file(file)


def own_model(folder: Path) -> Path:
    """The one model of a site's own."""
    [found] = (folder / "models").glob("[!.]*")
    return found


def equal(one: Path, other: Path) -> bool:
    a, b = weights(one), weights(other)
    return a.keys() == b.keys() and all(np.array_equal(w, b[n]) for n, w in a.items())


def allow(folders: list[Path]) -> None:  # noqa: F811
    for folder in folders:
        write(folder, "own_model = false", "own_model = true")


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run with clients of this process."""
    out = tmp_path_factory.mktemp("simulated") / "run"
    osmotic.run(keys=KEYS | OWN | {"score.every": 0}, out=out)
    return out


def test_the_published_model_is_fine_tuned_and_stays_at_its_site(
    folders: list[Path],  # noqa: F811
    tmp_path: Path,
    simulated: Path,
) -> None:
    asked: list[tuple[str, str]] = []
    answers: dict[str, int] = {}

    class Listens(SitesGrid):
        def pull_messages(self, message_ids: Any) -> list[Message]:
            for number in message_ids:
                if number in self.waiting:
                    header = packet_of(self.waiting[number].content).header
                    asked.append((header.get("phase", "hello"), header.get("action", "")))
            found = super().pull_messages(message_ids)
            for message in found:
                packet = packet_of(message.content)
                if packet.header.get("phase") == "models":
                    answers[packet.header["client"]] = packet.num_bytes
                    assert packet.header["metrics"] == {}
            return found

    found = run(Listens(folders), tmp_path / "run")
    assert {action for phase, action in asked if phase == "models"} == {"keep-model"}
    assert answers == {folder.name: 0 for folder in folders}, "of the model nothing goes back"
    assert found.summary["failures"] == [] and found.summary["personal"]
    assert not list(Path(found.path).glob("personal/*"))
    assert found.summary["weights_sha256"] == osmotic.load(simulated).summary["weights_sha256"]
    for folder in folders:
        mine = own_model(folder)
        assert equal(mine, simulated / "personal" / folder.name)
        assert not equal(mine, Path(found.path) / "model")
        told = (mine / "README.md").read_text()
        assert "has not left this site" in told and mine.name in told
    assert len({weights(own_model(f))["conv_in.weight"].tobytes() for f in folders}) == 3


def test_a_model_that_may_leave_stands_at_its_site_too(
    folders: list[Path],  # noqa: F811
    tmp_path: Path,
    simulated: Path,
) -> None:
    allow(folders[:2])
    found = run(SitesGrid(folders), tmp_path / "run")
    assert found.summary["failures"] == []
    assert sorted(p.name for p in Path(found.path).glob("personal/*")) == ["client-000", "client-001"]
    for folder in folders:
        assert equal(own_model(folder), simulated / "personal" / folder.name)
    for name in ("client-000", "client-001"):
        assert equal(Path(found.path) / "personal" / name, simulated / "personal" / name)
    assert "was given to the hub" in (own_model(folders[0]) / "README.md").read_text()


@pytest.mark.parametrize("leave", [False, True])
def test_a_site_that_is_restarted_between_and_a_hub_that_dies_change_nothing(
    folders: list[Path],  # noqa: F811
    tmp_path: Path,
    simulated: Path,
    leave: bool,
) -> None:
    if leave:
        allow(folders)

    class Dies(osmotic.Callback):
        def phase_done(self, line: Any) -> None:
            if line["phase"] == "personalise":
                raise Crash

    away: list[str] = []

    def once(place: int, message: Message) -> list[Message] | None:
        """The first site is away for its first task of the phase, and back under the same number."""
        phase = packet_of(message.content).header.get("phase")
        if place == 0 and phase in ("personalise", "models") and phase not in away:
            away.append(phase)
            return []
        return None

    with pytest.raises(Crash):
        run(SitesGrid(folders, fate=once), tmp_path / "run", callbacks=Dies())
    assert not any((folder / "models").exists() for folder in folders), "it has not counted yet"
    with lent(SitesGrid(folders, fate=once), roster.across_sites):
        found = osmotic.load(tmp_path / "run").resume()
    assert away == ["personalise", "models"] and found.summary["failures"] == []
    for folder in folders:
        assert equal(own_model(folder), simulated / "personal" / folder.name)
    assert len(list(Path(found.path).glob("personal/*"))) == (3 if leave else 0)


def test_a_model_that_cannot_be_written_is_that_sites_failure_until_the_hub_asks_again(
    folders: list[Path],  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from osmotic.sites import desk

    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(desk, "save_pipeline", full)
    found = run(SitesGrid(folders), tmp_path / "run")
    assert [(f["kind"], f["reason"]) for f in found.summary["failures"]] == [("raised", "OSError")] * 3
    monkeypatch.setattr(desk, "save_pipeline", summary.save_pipeline)
    with lent(SitesGrid(folders), roster.across_sites):
        osmotic.load(tmp_path / "run").resume()
    assert all(own_model(folder).is_dir() for folder in folders)


OTHERS: dict[str, dict[str, Any]] = {
    "udec": {"method.name": "udec", "after.pieces": []},
    "local": {"method.name": "local", "after.pieces": []},
    "watched": {"data.holdout": 0.2, "after.personalise.rate": 0.1},
    "of the rounds": {"after.personalise.when": "rounds"},
}


@pytest.mark.parametrize("kind", OTHERS)
def test_any_model_of_its_own_stands_at_its_site(
    folders: list[Path],  # noqa: F811
    tmp_path: Path,
    kind: str,
) -> None:
    keys = OTHERS[kind]
    simulated = Path(
        osmotic.run(keys=KEYS | OWN | keys | {"score.every": 0}, out=tmp_path / "simulated").path
    )
    found = run(SitesGrid(folders), tmp_path / "run", keys=keys)
    assert found.summary["failures"] == []
    assert not [p for p in Path(found.path).glob("*/client-*") if p.is_dir()]
    there = simulated / ("personal" if (simulated / "personal").exists() else "model")
    for folder in folders:
        assert equal(own_model(folder), there / folder.name)


def test_diffusers_loads_it_and_it_counts_as_what_hubs_have_brought(
    folders: list[Path],  # noqa: F811
    tmp_path: Path,
) -> None:
    from diffusers import DiffusionPipeline

    run(SitesGrid(folders), tmp_path / "run", keys={"model.network": "unet-8", "training.rounds": 1})
    mine = own_model(folders[0])
    pipe = DiffusionPipeline.from_pretrained(mine, trust_remote_code=True)
    pipe.set_progress_bar_config(disable=True)
    assert len(pipe(class_labels=[3], num_inference_steps=2).images) == 1
    runs, held = SiteFolder.read(folders[0]).states()
    both = [mine, folders[0] / "state" / mine.name]
    assert runs == 1 and held > sum(f.stat().st_size for top in both for f in top.rglob("*.safetensors"))


def test_a_run_of_one_global_model_leaves_none(folders: list[Path], tmp_path: Path) -> None:  # noqa: F811
    run(SitesGrid(folders), tmp_path / "run", keys={"after.pieces": [], "training.rounds": 1})
    assert not any((folder / "models").exists() for folder in folders)


def test_the_hub_is_told_beforehand_whose_models_stay(
    folders: list[Path],  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from osmotic.runs import resolve

    allow(folders[:1])
    told: list[str] = []
    config = resolve.load(keys=KEYS | SITES | OWN)
    study = roster.across_sites(SitesGrid(folders), config, announce=told.append)
    assert study.withheld["model"] == {"client-001", "client-002"}
    assert "own models stay where they are at 2 of 3 sites: policy.own_model" in told


def test_check_counts_models_with_the_states(folders: list[Path]) -> None:  # noqa: F811
    (folders[0] / "models" / "abc").mkdir(parents=True)
    (folders[0] / "models" / "abc" / "weights").write_bytes(b"x" * 2000)
    write(folders[0], "most_state_gigabytes = 20.0", "most_state_gigabytes = 1e-6")
    [line] = (line for line in site.check(folders[0]) if line.what == "states")
    assert not line.good and "most_state_gigabytes" in line.told
