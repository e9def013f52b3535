"""Runs that differ in seeds alone are one group: mean, interval, and differences seed by seed."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from osmotic.report import compare, groups, spreadsheet
from osmotic.runs import commands

MakeRun = Callable[..., Path]


@pytest.fixture
def seeded(run_folder: MakeRun) -> Callable[..., Path]:
    """Makes runs of two rounds: `seeded("name", seed=1, fd=6.0, local_epochs=3.0)`."""

    def make(name: str, seed: int, fd: float | None, **keys: object) -> Path:
        path = run_folder(name, clients=2, rounds=2, seed=seed)
        text = re.sub(r"^seed = 0$", f"seed = {seed}", (path / "config.toml").read_text(), flags=re.M)
        for key, value in keys.items():
            text, found = re.subn(rf"^{key} = .*$", f"{key} = {value}", text, flags=re.M)
            assert found == 1
        (path / "config.toml").write_text(text)
        summary = json.loads((path / "summary.json").read_text())
        summary["quality"]["fd"] = fd
        (path / "summary.json").write_text(json.dumps(summary))
        return path

    return make


@pytest.fixture
def two_groups(seeded: Callable[..., Path]) -> list[Path]:
    """Three seeds with 2 epochs a round, of FD 6, 8 and 10; the same seeds with 3, each 1, 1 and 4 less; one seed more."""
    plain = [seeded(f"plain-{k}", k, fd) for k, fd in enumerate((6.0, 8.0, 10.0))]
    longer = [seeded(f"longer-{k}", k, fd, local_epochs=3.0) for k, fd in enumerate((5.0, 7.0, 6.0, 50.0))]
    return [*plain, *longer]


def test_mean_and_interval_by_hand() -> None:
    # Mean 8, deviation 2, t(0.975, 2) = 4.302653: half width 4.302653 * 2 / sqrt(3) = 4.968275.
    found = groups.mean_of([6.0, 8.0, 10.0])
    assert found is not None and (found.mean, found.n) == (8.0, 3)
    assert found.half == pytest.approx(4.968275, abs=1e-6)
    assert groups.mean_of([7.0]) == groups.Mean(7.0, None, 1) and groups.mean_of([]) is None


def test_equal_figures_have_an_interval_of_exactly_nothing() -> None:
    found = groups.mean_of([13.447675099469546] * 3)
    assert found == groups.Mean(13.447675099469546, 0.0, 3)


def test_runs_that_differ_in_seeds_alone_are_one_group(two_groups: list[Path]) -> None:
    first, second = compare.compare(two_groups).groups
    assert (first.name, second.name) == ("fedavg, local_epochs 2.0", "fedavg, local_epochs 3.0")
    assert [row.name for row in first.rows] == ["plain-0", "plain-1", "plain-2"]
    assert len(second.runs) == 4 and first.samples == 1000


def test_the_seed_of_the_split_and_the_trackers_make_no_group_and_another_codec_does(
    seeded: Callable[..., Path],
) -> None:
    runs = [
        seeded("a", 0, 6.0),
        seeded("b", 1, 6.0, partition_seed=5),
        seeded("c", 2, 6.0, keep=7),
        seeded("d", 0, 6.0, up='"int8"'),
    ]
    found = [[row.name for row in group.rows] for group in compare.compare(runs).groups]
    assert found == [["a", "b", "c"], ["d"]]


def test_differences_are_paired_by_seed(two_groups: list[Path]) -> None:
    first, second = compare.compare(two_groups).groups
    # Seed by seed -1, -1 and -4: mean -2, deviation sqrt(3), half width 4.302653. The seed 3 of one group counts not.
    paired = second.paired(first, "fd_ranked")
    assert paired is not None and (paired.mean, paired.n) == (-2.0, 3)
    assert paired.half == pytest.approx(4.302653, abs=1e-6)


def test_a_run_named_twice_is_no_second_draw(seeded: Callable[..., Path]) -> None:
    first, second = seeded("a", 0, 6.0), seeded("b", 1, 8.0)
    group = compare.compare([first, second, first, first]).groups[0]
    assert group.mean("fd_ranked") == compare.compare([first, second]).groups[0].mean("fd_ranked")


def test_runs_without_a_common_seed_have_no_difference(seeded: Callable[..., Path]) -> None:
    a, b = compare.compare([seeded("a", 0, 6.0), seeded("b", 1, 5.0, local_epochs=3.0)]).groups
    assert b.paired(a, "fd_ranked") is None


def test_json_gains_the_groups_and_loses_nothing(two_groups: list[Path]) -> None:
    told = compare.compare(two_groups).as_dicts()
    assert {"comparable", "differences", "cautions", "runs", "groups"} == set(told)
    first, second = told["groups"]
    assert first["n"] == 3 and first["seeds"] == [0, 1, 2] and first["minus_first"] is None
    assert second["minus_first"]["fd_ranked"]["mean"] == -2.0
    json.dumps(told)


def test_groups_of_runs_scored_differently_are_not_subtracted(two_groups: list[Path]) -> None:
    summary = json.loads((two_groups[-1] / "summary.json").read_text())
    summary["quality"]["num_samples"] = 5
    (two_groups[-1] / "summary.json").write_text(json.dumps(summary))
    result = compare.compare(two_groups)
    assert result.groups[1].samples is None  # not the same of all its runs
    assert result.paired_table() == ([], []) and result.as_dicts()["groups"][1]["minus_first"] is None
    assert spreadsheet.groups(result)[1]["fd_ranked_minus_first_n"] == 0


def test_the_csv_has_a_row_per_run_and_the_file_beside_it_one_per_group(
    two_groups: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    commands.compare(two_groups, None, False, tmp_path / "all.csv")
    assert capsys.readouterr().out.splitlines()[-2:] == [
        str(tmp_path / "all.csv"),
        str(tmp_path / "all-groups.csv"),
    ]
    with (tmp_path / "all.csv").open() as file:
        rows = list(csv.DictReader(file))
    # In the order given, whatever their scores are.
    assert [row["name"] for row in rows] == [path.name for path in two_groups]
    assert rows[0]["group"] == "fedavg, local_epochs 2.0" and rows[0]["seed"] == "0"
    assert int(rows[0]["bytes_up"]) == 2 * 2 * 2_811_324 and rows[0]["fd_merged"] == ""
    with (tmp_path / "all-groups.csv").open() as file:
        first, second = csv.DictReader(file)
    assert float(first["fd_ranked_mean"]) == 8.0 and first["fd_ranked_n"] == "3"
    assert float(first["fd_ranked_low"]) == pytest.approx(8 - 4.968275, abs=1e-6)
    assert first["fd_ranked_minus_first_mean"] == "" and float(second["fd_ranked_minus_first_mean"]) == -2.0


class Cells(HTMLParser):
    """The tables of a page by their labels, as rows of cells; and what its pictures show."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: dict[str, list[list[str]]] = {}
        self.pictures: list[str] = []
        self._label, self._inside = "", False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self._label = found.get("aria-label") or self._label
        if tag == "tr":
            self.tables.setdefault(self._label, []).append([])
        elif tag in ("td", "th"):
            self.tables[self._label][-1].append("")
            self._inside = True
        elif tag == "img":
            self.pictures.append(str(found["alt"]))

    def handle_endtag(self, tag: str) -> None:
        self._inside = self._inside and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.tables[self._label][-1][-1] += data


def test_the_page_has_groups_differences_and_a_grid_of_each_group(
    two_groups: list[Path], tmp_path: Path
) -> None:
    page = Cells(compare.compare(two_groups).write_html(tmp_path / "c.html").read_text())
    # Half widths in two digits: 4.968 and 4.303. The mean of 5, 7, 6 and 50 is 17, its deviation 22.02.
    means = page.tables["Table of groups"]
    at = means[0].index("FD")
    assert [row[at] for row in means[1:]] == ["8.000 ± 5.0", "17.00 ± 35"]
    assert [row[1] for row in means[1:]] == ["3", "4"]
    differences = page.tables["Table of paired differences"]
    assert differences[1][:3] == ["fedavg, local_epochs 3.0", "3", "-2.000 ± 4.3"]
    assert page.pictures == [f"Grid of generated images of {name}" for name in ("plain-0", "longer-0")]


def test_what_is_the_same_of_all_runs_takes_no_column(two_groups: list[Path], tmp_path: Path) -> None:
    page = Cells(compare.compare(two_groups).write_html(tmp_path / "c.html").read_text())
    heads = page.tables["Table of runs"][0]
    assert heads[0] == "run" and {"seed", "FD"} <= set(heads)
    assert not {"preset", "codec", "rounds", "up", "down"} & set(heads)


def test_single_runs_need_no_groups(seeded: Callable[..., Path], tmp_path: Path) -> None:
    result = compare.compare([seeded("a", 0, 6.0), seeded("b", 0, 5.0, local_epochs=3.0)])
    assert result.group_tables() == [] and result.group_table() == ([], [])
    assert "Table of groups" not in Cells(result.write_html(tmp_path / "c.html").read_text()).tables


def test_own_scores_in_a_comparison_say_of_how_many_clients(run_folder: MakeRun) -> None:
    path = run_folder("few", clients=4, rounds=2)
    summary = json.loads((path / "summary.json").read_text())
    for client in summary["quality"]["per_client"][1:]:
        client["fd_own"] = None
    (path / "summary.json").write_text(json.dumps(summary))
    result = compare.compare([path])
    cells = {heading: cell(result.rows[0]) for heading, cell in result.columns()}
    assert cells["FD on own images"].endswith("(1 of 4 clients)")


@pytest.fixture
def with_ink(two_groups: list[Path]) -> list[Path]:
    """The two groups with a metric of their own: 1, 2, 3 of the first, 2, 4, 6 of the second, none of the last run."""
    for path, ink in zip(two_groups, (1.0, 2.0, 3.0, 2.0, 4.0, 6.0), strict=False):
        summary = json.loads((path / "summary.json").read_text())
        summary["quality"]["metrics"] = {"floor": ink}  # a name that a column of the package has as well
        (path / "summary.json").write_text(json.dumps(summary))
    return two_groups


def test_a_metric_of_ones_own_is_compared_by_run_and_by_group(
    with_ink: list[Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "200")  # so that no name is folded
    commands.compare(with_ink, tmp_path / "c.html", json=False, csv=tmp_path / "c.csv")
    assert capsys.readouterr().out.count("metric floor") == 3  # runs, groups, differences
    assert (tmp_path / "c.html").read_text().count("metric floor") == 3
    rows = list(csv.DictReader((tmp_path / "c.csv").open()))
    assert [row["metrics.floor"] for row in rows] == ["1.0", "2.0", "3.0", "2.0", "4.0", "6.0", ""]
    assert "metrics" not in rows[0]
    first, second = csv.DictReader((tmp_path / "c-groups.csv").open())
    assert (first["metrics.floor_mean"], second["metrics.floor_mean"]) == ("2.0", "4.0")
    assert (second["metrics.floor_minus_first_mean"], second["metrics.floor_n"]) == ("2.0", "3")


def test_the_floor_of_the_package_stands_beside_a_metric_of_the_same_name(with_ink: list[Path]) -> None:
    found = compare.compare(with_ink)
    told = {heading: cell(found.rows[1]) for heading, cell in found.columns()}
    assert told["metric floor"] == "2.000" and told["floor"] != "2.000"


def test_runs_without_metrics_of_their_own_have_no_columns_for_them(
    two_groups: list[Path], tmp_path: Path
) -> None:
    found = compare.compare(two_groups)
    assert not [heading for heading, _ in found.columns() if heading.startswith("metric")]
    spreadsheet.write(found, tmp_path / "c.csv")
    assert "metrics" not in (tmp_path / "c.csv").read_text()
