"""The studies' commands are valid runs, and their tables say what the rows say. Nothing is trained."""

from __future__ import annotations

import importlib
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from small_runs import SMALL

from osmotic.config import schema
from osmotic.pieces import PIECES
from osmotic.runs import resolve

FOLDER = Path(__file__).parents[1] / "experiments" / "feddiffuse"


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Loads a script of the FedDiffuse study by name."""
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.syspath_prepend(str(FOLDER.parent))
    return importlib.import_module


def loaded(arguments: list[str]) -> schema.Config:
    """The configuration of `osmotic run` with these arguments."""
    assert arguments[0] == "--preset" and set(arguments[2::2]) == {"--set"}
    return resolve.load(preset=arguments[1], sets=arguments[3::2])


def test_the_small_grid_varies_one_thing_at_a_time(module: Any) -> None:
    cases = module("cases")
    grid = {name: loaded(arguments) for name, arguments in cases.main_grid().items()}
    assert len(grid) == 3 * (1 + 3 * 5)
    assert {c.method.name for c in grid.values()} == {*cases.METHODS, "local", "central"}
    for name, cfg in grid.items():
        assert cfg.seed == cfg.data.partition_seed == int(name[-1]), "weights, sampling and split all vary"
        assert (cfg.training.rounds, cfg.training.local_epochs, cfg.data.clients) == (15, 1.0, 5)
        assert (cfg.data.image_size, cfg.data.max_images) == (8, 3000)
        assert cfg.model.conditional is False and cfg.recipe.ema_half_lives == ()
    more = {name: loaded(arguments) for name, arguments in cases.variants().items()}
    assert more["udec+int8-l-skew-1"].codec.down == more["udec+int8-l-skew-1"].codec.up == "int8"
    assert more["usplit+freeze-l-skew-0"].method.options == {"freeze": True}
    own = {name: loaded(arguments) for name, arguments in cases.own_network().items()}
    assert {(c.model.network, c.data.image_size, c.data.partition) for c in own.values()} == {
        ("convnext-unet", 16, "l-skew")
    }


def test_the_full_setting_is_the_papers(module: Any) -> None:
    gpu = module("gpu")
    grid = {name: loaded(arguments) for name, arguments in gpu.cases((2023,), {}).items()}
    assert len(grid) == 3 * 3 * 4 + 3 * 4 + 2
    cell = grid["k5-l-skew-udec-2023"]
    assert (cell.model.network, cell.model.target, cell.recipe.loss) == ("convnext-unet", "epsilon", "huber")
    assert (cell.training.optimizer, cell.training.learning_rate, cell.training.batch_size) == (
        "adam",
        1e-4,
        128,
    )
    assert (cell.training.rounds, cell.training.local_epochs, cell.data.partition_seed) == (15, 5.0, 2023)
    assert (cell.score.sampler, cell.score.steps, cell.model.conditional) == ("ddpm", 1000, False)
    assert grid["e8-k10-iid-full-2023"].training.local_epochs == 8.0
    assert grid["central-e5-2023"].model.network == "convnext-unet"


def test_intervals_are_students(module: Any) -> None:
    tables = module("tables")
    # Mean 2, standard deviation 1, t = 4.303 with 2 degrees of freedom: 4.303 / sqrt(3) = 2.48.
    assert tables.interval([1.0, 2.0, 3.0]) == "2.00 +- 2.48"
    assert tables.interval([1.0]) == "1.00"
    assert tables.interval([]) == ""


def test_the_table_of_the_full_setting_reads_both_kinds_of_models(module: Any) -> None:
    gpu = module("gpu")
    rows = {
        "k2-iid-full-1": {"fd": 3.0, "mean_fd_all": 9.0},
        "k2-iid-udec-1": {"fd": None, "mean_fd_all": 4.0},
        "e8-k2-iid-full-1": {"fd": 5.0, "mean_fd_all": 5.0},
    }
    text = gpu.tables(rows).splitlines()
    assert "| full | 2 | 3.00 | not run | not run |" in text
    assert "| udec | 2 | 4.00 | not run | not run |" in text
    assert "| 2 | not run | not run | not run | 3.00 | 5.00 |" in text


def test_the_tables_of_feddiffuse_are_what_its_results_give(module: Any) -> None:
    tables = module("tables")
    rows = tables.read(Path(tables.__file__).with_name("results.jsonl"))
    page = Path(tables.__file__).with_name("README.md").read_text()
    for part in (
        tables.order,
        tables.differences,
        tables.paired,
        tables.falling,
        tables.personal,
        tables.variants,
    ):
        assert part(rows).strip() in page, part.__name__
    # USplit's weights depend on the draw: the mean of 80.386705, 80.63493 and 79.64203 million.
    assert "| l-skew | usplit | 6.90 +- 1.68 | — | — | — | 80.22 | 322.0 |" in page


def test_sentences_about_digits_are_what_their_results_give(module: Any) -> None:
    folder = Path(module("tables").__file__).parents[1] / "digits_baseline"
    page = (folder / "README.md").read_text()
    by_guidance = json.loads((folder / "guidance.json").read_text())
    for scale, told in (("1.5", "0.29 +- 0.34"), ("2", "-0.28 +- 0.30")):
        less = [
            by_guidance[f"fedavg-{s}-{scale}"]["fd"] - by_guidance[f"central-{s}-{scale}"]["fd"]
            for s in range(3)
        ]
        assert module("tables").interval(less) == told and told in page
    rows = {r["case"]: r for r in map(json.loads, (folder / "results.jsonl").read_text().splitlines())}
    alone = [rows[f"local-{s}"]["mean_fd_all"] for s in range(3)]
    # 10.049, 11.947, 11.983: half-width 4.303 * 1.1065 / sqrt(3) = 2.749.
    assert module("tables").interval(alone) == "11.33 +- 2.75" and "11.3 +- 2.7 at guidance 2" in page


def test_the_table_of_planted_copies_says_what_its_rows_say() -> None:
    folder = FOLDER.parent / "near_copies"
    text = (folder / "README.md").read_text().partition("## Models made to copy")[0]
    rows = [json.loads(line) for line in (folder / "planted.jsonl").read_text().splitlines()]
    assert len(rows) == 2 * 15
    for row in rows:
        (line,) = [line for line in text.splitlines() if line.startswith(f"| {row['pool']} |")]
        assert f"| {100 * row['features']:.1f} / {100 * row['pixels']:.1f} | {row['fd']:.2f} |" in line
        assert f"{row['held_out_fd']:.2f} ({row['held_out_floor']:.2f})" in line


def test_the_table_of_models_made_to_copy_says_what_its_rows_say() -> None:
    folder = FOLDER.parent / "near_copies"
    text = (folder / "README.md").read_text()
    for row in map(json.loads, (folder / "models.jsonl").read_text().splitlines()):
        count = int(row["case"].removeprefix("central-"))
        found = row["near_copies"]
        start = f"| {count:,} | {row['images_seen'] / count:.0f} times | {100 * found['features']:.1f} %"
        assert (
            f"{start} | {100 * found['pixels']:.1f} % | {row['fd_at_floor']:.2f} | {row['fd_floor']:.2f} |"
            in text
        )
        assert loaded(row["arguments"]).data.max_images == count


@pytest.mark.slow
def test_a_shared_phase_0_gives_the_weights_of_ones_own(tmp_path: Path) -> None:
    """FedDDPM that takes the set another run was sent: equal bits, and equal costs once that run's phase 0 is added."""
    script = tmp_path / "shared.py"
    script.write_text(
        f"""
import json, sys
from pathlib import Path
sys.path[:0] = [{str(FOLDER.parent)!r}, {str(FOLDER.parent / "fedddpm")!r}]
import cases, study
small = dict(item.split("=", 1) for item in {SMALL!r}) | {{"model.network": "unet-8", "score.samples": 8}}
folder = Path({str(tmp_path)!r})
own = cases.correction(size=0.5, local_epochs=2.0)
alike = {{"run": folder / "own", "share": 1.0}}
shared = cases.correction("drawn-set", **alike)
if __name__ == "__main__":
    found = []
    for name, keys in (("own", own), ("shared", shared)):
        sets = Path(study.__file__).parent / "fedddpm" / "sets.py"
        found.append(study.one(study.arguments("fedavg", small, keys), folder / name, [sets]))
    from sets import costs
    more = costs(folder / "own", 1.0)
    assert found[0]["weights_sha256"] == found[1]["weights_sha256"], found
    assert found[0]["auxiliary"]["sha256"] == found[1]["auxiliary"]["sha256"]
    for key, value in more.items():
        assert value > 0 and found[0][key] == found[1][key] + value, (key, value)
    print("alike")
"""
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=600)
    assert done.stdout.strip().endswith("alike"), done.stderr


def test_what_is_said_of_membership_is_what_its_rows_say() -> None:
    folder = FOLDER.parent / "membership"
    rows = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    text = (folder / "README.md").read_text()
    assert sorted((row["passes"], row["seed"]) for row in rows) == [
        (p, s) for p in (30, 300) for s in range(3)
    ]
    for what in rows[0]["auc"]:
        means = {
            p: statistics.fmean(x for row in rows if row["passes"] == p for x in row["auc"][what])
            for p in (30, 300)
        }
        [line] = [line for line in text.splitlines() if line.startswith(f"| {what} |")]
        assert [cell.split()[0] for cell in line.split("|")[2:4]] == [f"{means[p]:.2f}" for p in (30, 300)]
    told = PIECES["correction"].reveals
    for what in ("local model", "images", "change of round 10", "global model"):
        mean = statistics.fmean(x for row in rows if row["passes"] == 300 for x in row["auc"][what])
        assert f"{mean:.2f} from" in told, what
