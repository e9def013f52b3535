"""Scores of images that stay at their sites: the figures of the simulation, what a policy lets leave, and sums that lie."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("flwr", reason="flwr is not installed: pip install 'osmotic[flower]'")

from flower_grid import SitesGrid
from test_sites import KEYS, SITES, folders, parts, quick, run, write  # noqa: F401

import osmotic
from osmotic.codecs import described
from osmotic.config.schema import to_dict
from osmotic.data import sources
from osmotic.errors import ConfigError
from osmotic.federation import feature_sums
from osmotic.federation.feature_sums import Sums, Wanted, together
from osmotic.metrics import encoder_file, federated
from osmotic.metrics.frechet import frechet_to
from osmotic.protocol.messages import Packet
from osmotic.runs import resolve
from osmotic.sites import site
from osmotic.sites.desk import SiteDesk, Spec
from osmotic.sites.folder import SiteFolder
from osmotic.sites.policy import Policy

SCORED = {"score__every": 1, "score__samples": 40}


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A feature network of other images than the sites': (file, hash)."""
    file = tmp_path_factory.mktemp("network") / "network.safetensors"
    config = resolve.load(keys={"data.max_images": 300, "data.clients": 1})
    return file, encoder_file.write(file, sources.load(config.data)).sha256


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sites of 30 images are enough here."""
    monkeypatch.setattr(Policy, "too_few", staticmethod(lambda images, width: None))
    monkeypatch.setattr(feature_sums, "least", lambda width: 1)
    monkeypatch.setattr(federated, "MIN_OWN", 5)


def allow(folder: Path, network: tuple[Path, str]) -> None:
    write(folder, "encoders = []", f'encoders = ["{network[1]}"]')
    write(folder, 'encoder = ""', f'encoder = "{network[0]}"')
    write(folder, "kernel_distances = false", "kernel_distances = true")


METHODS: dict[str, dict[str, Any]] = {
    "fedavg": {},
    "unconditional": {"model__conditional": False},
    "udec": {"method__name": "udec"},
}


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("kind", METHODS)
def test_scores_across_sites_are_those_of_all_images_together(
    folders: list[Path],  # noqa: F811
    tmp_path: Path,
    network: tuple[Path, str],
    kind: str,
) -> None:
    for folder in folders:
        allow(folder, network)
        write(folder, "synthetic_images = false", "synthetic_images = true")
        write(folder, "own_model = false", "own_model = true")
    keys = METHODS[kind] | SCORED | {"score__encoder": f"file:{network[0]}"}
    told = {k.replace("__", "."): v for k, v in keys.items()}
    pooled = osmotic.run(keys=KEYS | told, out=tmp_path / "simulated")
    found = run(SitesGrid(folders), tmp_path / "run", **keys)
    assert found.summary["weights_sha256"] == pooled.summary["weights_sha256"]
    assert not found.summary["failures"]
    ours, theirs = found.summary["quality"], pooled.summary["quality"]
    for name in ("encoder", "encoder_sha256", "num_samples", "nfe", "sampler", "guidance"):
        assert ours[name] == theirs[name], name
    assert ours["reference_sites"] == ["client-000", "client-001", "client-002"]
    assert ours["reference_images"] == sum(found.summary["client_sizes"])
    # FD of the union is exact: the same figure but for rounding, in every round that was scored.
    pairs = [(ours["fd"], theirs["fd"])]
    pairs += [
        (a.get("quality.fd"), b.get("quality.fd")) for a, b in zip(found.metrics, pooled.metrics, strict=True)
    ]
    pairs += [(ours[way]["fd_all"], theirs[way]["fd_all"]) for way in ("mean", "weighted", "worst")]
    compared = [(a, b) for a, b in pairs if b is not None]
    assert len(compared) >= 3
    for a, b in compared:
        assert a == pytest.approx(b, rel=1e-6)
    assert [(e["name"], e["stage"]) for e in ours["per_client"]] == [
        (e["name"], e["stage"]) for e in theirs["per_client"]
    ]
    for mine, its in zip(ours["per_client"], theirs["per_client"], strict=True):
        assert mine["fd_own"] == pytest.approx(its["fd_own"], rel=1e-6)
        assert (mine["own_images"], mine["own_samples"]) == (its["own_images"], its["own_samples"])
        assert mine["kid_own"] == pytest.approx(its["kid_own"], rel=1e-6)
        assert mine["kid_all"] is None
    for way in ("mean", "weighted", "worst"):
        assert ours[way]["kid_own"] == pytest.approx(theirs[way]["kid_own"], rel=1e-6)


@pytest.mark.usefixtures("few")
def test_a_sites_own_score_is_that_of_its_own_images(
    folders: list[Path],  # noqa: F811
    tmp_path: Path,
    network: tuple[Path, str],
) -> None:
    """Against the images that it trains on: where none are held out, the simulation takes the same."""
    allow(folders[1], network)
    keys = SCORED | {"score__encoder": f"file:{network[0]}", "training__rounds": 1}
    found = run(SitesGrid(folders), tmp_path / "run", **keys)
    quality = found.summary["quality"]
    assert quality["reference_sites"] == ["client-001"]
    own = {e["name"]: e for e in quality["per_client"]}
    assert own["client-001"]["fd_own"] is not None and own["client-000"]["fd_own"] is None
    assert found.summary["failures"] == [], "the others have said beforehand that they tell nothing"
    # What they are asked and what they answer is booked, apart from the four totals.
    ledger = [
        line for line in (Path(found.path) / "ledger.jsonl").read_text().splitlines() if '"score"' in line
    ]
    assert len(ledger) == 4, "for its sums, and for KID to what was drawn"


HELD_OUT: dict[str, dict[str, Any]] = {
    "fedavg": {},
    "half of them watched": {"after__pieces": ["personalise"], "after__personalise__epochs": 1},
}


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("kind", HELD_OUT)
def test_own_scores_are_against_what_a_site_holds_out(
    folders: list[Path],  # noqa: F811
    tmp_path: Path,
    network: tuple[Path, str],
    kind: str,
) -> None:
    """As in the simulation; the union's score is against what is trained on, there as here."""
    for folder in folders:
        allow(folder, network)
        write(folder, "synthetic_images = false", "synthetic_images = true")
    keys = HELD_OUT[kind] | SCORED | {"score__encoder": f"file:{network[0]}", "data__holdout": 0.45}
    keys |= {"training__rounds": 1}
    told = {k.replace("__", "."): v for k, v in keys.items()}
    theirs = osmotic.run(keys=KEYS | told, out=tmp_path / "simulated").summary["quality"]
    found = run(SitesGrid(folders), tmp_path / "run", **keys)
    assert not found.summary["failures"]
    ours = found.summary["quality"]
    assert ours["fd"] == pytest.approx(theirs["fd"], rel=1e-6)
    pairs = list(zip(ours["per_client"], theirs["per_client"], strict=True))
    if kind != "fedavg":
        pairs += zip(ours["personal"]["per_client"], theirs["personal"]["per_client"], strict=True)
    for mine, its in pairs:
        assert (mine["own_images"], mine["own_samples"]) == (its["own_images"], its["own_samples"])
        assert mine["own_images"] < mine["num_examples"]
        for name in ("fd_own", "kid_own"):
            assert (mine[name] is None) == (its[name] is None)
            assert mine[name] is None or mine[name] == pytest.approx(its[name], rel=1e-6, abs=1e-9)
    assert any(mine["fd_own"] is not None for mine, _ in pairs)
    if kind != "fedavg":  # some have too few that are not watched
        assert any(mine["fd_own"] is None for mine, _ in pairs)


def test_who_holds_out_too_few_is_not_asked_for_sums_over_them(
    folders: list[Path],  # noqa: F811
    tmp_path: Path,
    network: tuple[Path, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without `few` on the hub's side: what it knows beforehand to be declined it does not ask for, and nothing fails."""
    monkeypatch.setattr(Policy, "too_few", staticmethod(lambda images, width: None))
    for folder in folders:
        allow(folder, network)
    keys = SCORED | {"score__encoder": f"file:{network[0]}", "data__holdout": 0.3, "training__rounds": 1}
    found = run(SitesGrid(folders), tmp_path / "run", **keys)
    assert found.summary["failures"] == []
    for entry in found.summary["quality"]["per_client"]:
        assert entry["fd_own"] is None and 0 < entry["own_images"] < 50


def test_a_test_split_of_its_own_is_what_a_site_holds_out(
    tmp_path: Path,
    network: tuple[Path, str],
    few: None,
) -> None:
    rng, labels = np.random.default_rng(0), np.arange(30) % 10
    train, test = rng.integers(0, 256, (2, 30, 8, 8), np.uint8)
    np.savez(
        tmp_path / "own.npz", train_images=train, train_labels=labels, test_images=test, test_labels=labels
    )
    made = site.init(
        tmp_path / "site", "client-000", f"npz:{tmp_path / 'own.npz'}", "localhost:1", None, 9094
    )
    allow(made.path, network)
    desk = SiteDesk(SiteFolder.read(made.path))
    keys = KEYS | {"score.encoder": f"file:{network[0]}"}
    spec = Spec(to_dict(resolve.load(keys=keys)), (8, 1), tuple("0123456789")).text()
    told = desk.hello(spec).header
    assert told.get("held_out") == 30, told
    watching = to_dict(resolve.load(keys=keys | {"after.pieces": ["personalise"]}))
    assert desk.hello(Spec(watching).text()).header["held_out"] == 15
    header = {"action": "feature-sums", "run": "a", "phase": "score", "server_round": 1, "returns": []}
    sums = []
    for held_out in (False, True):
        control = {"encoder": network[1], "held_out": held_out}
        answer = desk.serve(spec, Packet(header | {"control": control}))
        assert answer.header["num_examples"] == 30, answer.header
        sums.append(described.decode(answer.blobs[0])["features/sum"])
    encoder = encoder_file.read(network[0])
    for found, images in zip(sums, (train, test), strict=True):
        assert found == pytest.approx(encoder.features(images[..., None]).sum(axis=0), rel=1e-5)


def test_images_that_policies_keep_back_are_asked_of_nobody(
    folders: list[Path],  # noqa: F811
    tmp_path: Path,
    network: tuple[Path, str],
    few: None,
) -> None:
    for folder in folders:
        allow(folder, network)
    write(folders[0], "synthetic_images = false", "synthetic_images = true")
    keys = SCORED | {"score__encoder": f"file:{network[0]}", "after__pieces": ["personalise"]}
    found = run(SitesGrid(folders), tmp_path / "run", training__rounds=1, **keys)
    assert found.summary["failures"] == []
    [entry] = found.summary["quality"]["personal"]["per_client"]
    assert entry["name"] == "client-000" and entry["fd_all"] is not None
    assert (entry["loss_published"], entry["loss_own"], entry["kept_pass"]) == (None, None, None)


def test_where_no_site_tells_the_run_is_whole_and_says_why_it_has_no_score(
    folders: list[Path],  # noqa: F811
    tmp_path: Path,
    network: tuple[Path, str],
) -> None:
    keys = SCORED | {"score__encoder": f"file:{network[0]}"}
    with pytest.warns(UserWarning, match="is not scored: no site lets sums"):
        found = run(SitesGrid(folders), tmp_path / "run", **keys)
    assert found.summary["quality"] is None
    assert "policy.encoders" in found.metrics[-1]["unscored"]
    assert found.summary["failures"] == []


def test_few_images_tell_no_sums(
    folders: list[Path],  # noqa: F811
    tmp_path: Path,
    network: tuple[Path, str],
) -> None:
    for folder in folders:
        allow(folder, network)
    keys = SCORED | {"score__encoder": f"file:{network[0]}", "training__rounds": 1}
    with pytest.warns(UserWarning, match="is not scored"):
        found = run(SitesGrid(folders), tmp_path / "run", **keys)
    assert "images, and sums of 96 features need 96" in found.summary["failures"][0]["reason"]
    assert Policy.too_few(96, 96) is None


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("which", ["no file", "another network", "its own classifier"])
def test_a_site_looks_through_the_network_that_its_policy_names(
    folders: list[Path],  # noqa: F811
    tmp_path: Path,
    network: tuple[Path, str],
    which: str,
) -> None:
    allow(folders[0], network)
    named = f"file:{network[0]}"
    if which == "no file":
        write(folders[0], f'encoder = "{network[0]}"', 'encoder = ""')
    if which == "another network":
        other = tmp_path / "other.safetensors"
        config = resolve.load(keys={"data.max_images": 200, "data.clients": 1})
        encoder_file.write(other, sources.load(config.data))
        write(folders[0], f'encoder = "{network[0]}"', f'encoder = "{other}"')
    if which == "its own classifier":
        named = "classifier"
    config_tables = to_dict(resolve.load(keys=KEYS))
    config_tables["score"]["encoder"] = named  # of the hub's: nobody looks for its path here
    spec = Spec(config_tables, (8, 1), tuple("0123456789")).text()
    header = {"action": "feature-sums", "run": "a", "phase": "score", "server_round": 1, "returns": []}
    packet = Packet(header | {"control": {"encoder": network[1]}})
    answer = SiteDesk(SiteFolder.read(folders[0])).serve(spec, packet)
    reason = "has another" if which == "another network" else "does not have the"
    assert answer.header["failure"][0] == "refused" and not answer.blobs
    assert answer.header["failure"][1].startswith(reason)
    for control in (None, [], {}, {"encoder": ["x"]}, {"encoder": None}):
        answer = SiteDesk(SiteFolder.read(folders[0])).serve(spec, Packet(header | {"control": control}))
        assert "policy.encoders" in answer.header["failure"][1]


def pool(made: Any) -> tuple[bytes, ...]:
    return (described.encode({"features/made": made}),)


BAD_POOLS: dict[str, tuple[bytes, ...]] = {
    "nothing": (),
    "no packet": (b"x" * 100,),
    "another name": (described.encode({"features/other": np.zeros((3, 96), np.float32)}),),
    "one image": pool(np.zeros((1, 96), np.float32)),
    "another width": pool(np.zeros((3, 95), np.float32)),
    "three axes": pool(np.zeros((3, 96, 1), np.float32)),
    "float64": pool(np.zeros((3, 96))),
    "nan": pool(np.full((3, 96), np.nan, np.float32)),
}


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("what", [*BAD_POOLS, "drawn images", "without leave"])
def test_a_site_compares_its_images_with_features_alone(
    folders: list[Path],  # noqa: F811
    network: tuple[Path, str],
    what: str,
) -> None:
    allow(folders[0], network)
    if what == "without leave":
        write(folders[0], "kernel_distances = true", "kernel_distances = false")
    tables = to_dict(resolve.load(keys=KEYS | {"score.encoder": f"file:{network[0]}"}))
    spec = Spec(tables, (8, 1), tuple("0123456789")).text()
    header = {"action": "kernel-distance", "run": "a", "phase": "score", "server_round": 1, "returns": []}
    drawn = np.random.default_rng(0).normal(size=(20, 96)).astype(np.float32)
    packet = Packet(header | {"control": {"encoder": network[1]}}, BAD_POOLS.get(what, pool(drawn)))
    answer = SiteDesk(SiteFolder.read(folders[0])).serve(spec, packet)
    if what == "drawn images":
        [blob] = answer.blobs
        told = described.decode(blob)["features/kid"]
        assert told.shape == (1,) and told.dtype == np.float64 and told[0] > 0
        return
    assert not answer.blobs and answer.header["failure"][0] == "refused"
    reason = "policy.kernel_distances" if what == "without leave" else "is sent "
    assert answer.header["failure"][1].startswith(reason)


LIES: dict[str, Callable[[dict[str, np.ndarray]], None]] = {
    "a variance below 0": lambda t: t["features/products"].__setitem__(0, -1.0),
    "classes that are not its images": lambda t: t["features/classes"].__setitem__(0, 10**6),
    "fewer than none of a class": lambda t: t["features/classes"].__setitem__(slice(0, 2), [-5, 5]),
}


@pytest.mark.parametrize("lie", LIES)
def test_sums_that_no_images_have_are_left_out(lie: str) -> None:
    rng = np.random.default_rng(0)
    features, labels = rng.normal(size=(50, 8)).astype(np.float32), rng.integers(0, 3, 50)
    told = Sums.of(features, labels, 3).tensors()
    assert {n: t.shape for n, t in told.items()} == {n: s.shape for n, s in Wanted("x", 8, 3).specs().items()}
    honest = Sums.read(told, 50)
    other = rng.normal(size=(60, 8))
    assert frechet_to(honest.statistics, other) == pytest.approx(
        frechet_to(Sums.of(features, labels, 3).statistics, other), rel=1e-12
    )
    LIES[lie](told)
    with pytest.raises(ValueError, match=r"no images have|do not add up"):
        Sums.read(told, 50)


@pytest.mark.usefixtures("few")
def test_a_site_that_lies_costs_its_own_sums_alone(
    folders: list[Path],  # noqa: F811
    tmp_path: Path,
    network: tuple[Path, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for folder in folders:
        allow(folder, network)
    honest = Sums.of

    def lying(features: np.ndarray, labels: np.ndarray | None, num_classes: int) -> Sums:
        made = honest(features, labels, num_classes)
        lying.asked = getattr(lying, "asked", 0) + 1  # type: ignore[attr-defined]
        if lying.asked == 1:  # type: ignore[attr-defined]
            made.statistics.outer[:] = -1.0
        if lying.asked == 2:  # type: ignore[attr-defined]
            made.statistics.sum[0] = np.nan
        return made

    monkeypatch.setattr(Sums, "of", lying)
    keys = SCORED | {"score__encoder": f"file:{network[0]}", "training__rounds": 1}
    found = run(SitesGrid(folders), tmp_path / "run", **keys)
    assert len(found.summary["quality"]["reference_sites"]) == 1
    [failure] = found.summary["failures"]
    assert failure["kind"] == "bad" and "not finite" in failure["reason"]


@pytest.mark.usefixtures("few")
def test_a_site_without_leave_for_kernel_distances_is_not_asked_for_one(
    folders: list[Path],  # noqa: F811
    tmp_path: Path,
    network: tuple[Path, str],
) -> None:
    for folder in folders[:2]:
        allow(folder, network)
    write(folders[0], "kernel_distances = true", "kernel_distances = false")
    keys = SCORED | {"score__encoder": f"file:{network[0]}", "training__rounds": 1}
    found = run(SitesGrid(folders), tmp_path / "run", **keys)
    scores = {e["name"]: (e["fd_own"], e["kid_own"]) for e in found.summary["quality"]["per_client"]}
    assert scores["client-000"][0] is not None and scores["client-000"][1] is None
    assert None not in scores["client-001"] and scores["client-002"] == (None, None)
    assert found.summary["failures"] == []


@pytest.mark.usefixtures("few")
def test_a_site_that_is_late_for_one_score_is_asked_again_for_the_next(
    folders: list[Path],  # noqa: F811
    tmp_path: Path,
    network: tuple[Path, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for folder in folders:
        allow(folder, network)
    sums, failed = SiteDesk._looked_at, []

    def once(self: SiteDesk, *args: Any) -> Any:
        if self.name == "client-001" and not failed:
            failed.append(self.name)
            raise OSError("a disk that is away for a moment")
        return sums(self, *args)

    monkeypatch.setattr(SiteDesk, "_looked_at", once)
    found = run(SitesGrid(folders), tmp_path / "run", **SCORED, score__encoder=f"file:{network[0]}")
    told = [len(line["quality.reference_sites"]) for line in found.metrics]
    assert told == [2, 3] and len(found.summary["failures"]) == 1


def test_sums_of_parts_are_those_of_the_whole() -> None:
    rng = np.random.default_rng(1)
    features, labels = rng.normal(size=(90, 6)), rng.integers(0, 4, 90)
    parts_of = {f"s{n}": Sums.of(features[n::3], labels[n::3], 4) for n in range(3)}
    found = together({k: Sums.read(v.tensors(), 30) for k, v in parts_of.items()})
    whole = Sums.of(features, labels, 4)
    assert found.statistics.count == 90 and np.array_equal(found.classes, whole.classes)
    other = rng.normal(size=(40, 6))
    assert frechet_to(found.statistics, other) == pytest.approx(frechet_to(whole.statistics, other), rel=1e-9)


def test_a_run_that_goes_on_asks_again_and_has_the_same_scores(
    folders: list[Path],  # noqa: F811
    tmp_path: Path,
    network: tuple[Path, str],
    few: None,
) -> None:
    from small_runs import Crash

    from osmotic.engines.flower import lent
    from osmotic.sites import roster

    for folder in folders[1:]:
        allow(folder, network)
    keys = SCORED | {"score__encoder": f"file:{network[0]}"}
    whole = run(SitesGrid(folders), tmp_path / "whole", **keys)

    class Dies(osmotic.Callback):
        def phase_done(self, line: Any) -> None:
            raise Crash

    told = {k.replace("__", "."): v for k, v in keys.items()}
    with lent(SitesGrid(folders), roster.across_sites), pytest.raises(Crash):
        osmotic.run(keys=KEYS | SITES | told, out=tmp_path / "run", callbacks=Dies())
    with lent(SitesGrid(folders), roster.across_sites):
        found = osmotic.load(tmp_path / "run").resume()
    assert found.summary["quality"] == whole.summary["quality"]
    assert found.summary["failures"] == whole.summary["failures"] == []
    one, other = (Path(r.path, "ledger.jsonl").read_text() for r in (found, whole))
    assert one == other and '"phase": "score"' in one


def test_the_page_of_a_scored_run_shows_its_score(
    folders: list[Path],  # noqa: F811
    tmp_path: Path,
    network: tuple[Path, str],
    few: None,
) -> None:
    for folder in folders[:2]:
        allow(folder, network)
    keys = SCORED | {"score__encoder": f"file:{network[0]}"}
    found = run(SitesGrid(folders), tmp_path / "run", **keys)
    page = (Path(found.path) / "report.html").read_text()
    assert "2 of 3 sites" in page and "images are at their sites" not in page
    assert not list(Path(found.path).rglob("*real*.png"))


def test_check_tells_whether_scores_can_count_on_this_site(
    folders: list[Path],  # noqa: F811
    network: tuple[Path, str],
) -> None:
    def told() -> Any:
        return next(line for line in site.check(folders[0]) if line.what == "scores")

    assert told().good and "do not leave" in told().told
    allow(folders[0], network)
    assert told().good and "by classifier-digits-8 may leave" in told().told
    write(folders[0], network[1], "0" * 64)
    assert not told().good and network[1] in told().told
    write(folders[0], f'encoder = "{network[0]}"', 'encoder = "nowhere"')
    assert not told().good and "cannot be read" in told().told


@pytest.mark.parametrize("broken", ["cut off", "another weight", "no metadata", "a side of 10**9", "text"])
def test_a_broken_file_of_a_network_is_one_line(
    network: tuple[Path, str], tmp_path: Path, broken: str
) -> None:
    from safetensors import safe_open
    from safetensors.torch import load, save

    data, file = network[0].read_bytes(), tmp_path / "broken.safetensors"
    weights = load(data)
    with safe_open(str(network[0]), framework="pt") as one:
        facts = dict(one.metadata())
    if broken == "cut off":
        file.write_bytes(data[:-10])
    elif broken == "another weight":
        next(iter(weights.values())).view(-1)[0] += 1
        file.write_bytes(save(weights, metadata=facts))
    elif broken == "no metadata":
        file.write_bytes(save(weights))
    elif broken == "a side of 10**9":
        facts["osmotic"] = facts["osmotic"].replace('"side": 8', '"side": 1000000000')
        file.write_bytes(save(weights, metadata=facts))
    else:
        file.write_text("none")
    with pytest.raises(ConfigError, match=r"score\.encoder .*holds no encoder of this version"):
        encoder_file.read(file)
    with pytest.raises(ConfigError, match="names no file"):
        resolve.load(keys=KEYS | {"score.encoder": f"file:{tmp_path / 'nowhere'}"})


def test_a_network_for_colour_is_not_shown_grey_images(network: tuple[Path, str], tmp_path: Path) -> None:
    from osmotic.data.dataset import Dataset, Split
    from osmotic.metrics import encoder as encoders

    images = np.zeros((4, 8, 8, 3), np.uint8)
    dataset = Dataset("colour", Split(images, None), Split(images[:0], None), ())
    with pytest.raises(ConfigError, match="is for other images"):
        encoders.get(dataset, f"file:{network[0]}")
