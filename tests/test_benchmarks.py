"""The benchmarks still run and say what they promise; their figures are never tested, a busy machine changes them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"


def quick(script: str) -> dict[str, Any]:
    """The record a benchmark prints with --quick: one JSON line, then one line for people."""
    done = subprocess.run(
        [sys.executable, str(FOLDER / script), "--quick"],
        capture_output=True,
        text=True,
        check=False,
        # Op threads that spin for each other on a busy machine would make this minutes long.
        env={**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"},
    )
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert second.strip() and not second.startswith("{")
    record: dict[str, Any] = json.loads(first)
    assert record["benchmark"] == Path(script).stem
    assert {"cpu", "cores", "memory_gib", "load_average", "python", "torch"} <= record["machine"].keys()
    return record


@pytest.mark.slow
def test_a_round_gives_the_weights_and_losses_of_rounds_written_by_hand() -> None:
    (row,) = quick("rounds.py")["results"]
    assert row["weights_agree"] is True
    off = row["distance_to_float64"]
    assert 0 < off["osmotic"] < off["slip"]
    # Two rounds each; the losses are rounded to five places, and the last one may fall on either side.
    for side in ("two_processes", "two_threads", "plain"):
        assert row["losses"]["osmotic"] == pytest.approx(row["losses"][side], abs=2e-5)
        assert row[f"ratio_to_{side}"] > 0


def test_weights_farther_from_float64_than_the_loops_by_hand_do_not_agree(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    import rounds

    def at(*values: float) -> dict[str, np.ndarray]:
        return {"w": np.array(values)}

    # A round moves the weights by 5. By hand they are 0.5 off at most, so 1 passes and more does not.
    others = {"initial": at(0, 0), "float64": at(3, 4), "slip": at(3, 6)}
    others |= {"two_processes": at(3, 4.25), "two_threads": at(3.5, 4), "plain": at(3, 4)}
    near = rounds.agreement({**others, "osmotic": at(2, 4)})
    assert near["weights_agree"]
    assert near["distance_to_float64"] == pytest.approx(
        {"osmotic": 0.2, "two_processes": 0.05, "two_threads": 0.1, "plain": 0.0, "slip": 0.4}
    )
    assert not rounds.agreement({**others, "osmotic": at(1.99, 4)})["weights_agree"]


def test_a_step_is_held_against_a_matrix_product() -> None:
    (row,) = quick("step.py")["results"]
    assert row["variant"] == "fp32" and "not_possible" not in row
    # Backward passes of convolutions and products are two more of the forward's size, but for the first layer's.
    assert 0.9 * row["step_gflop_three_forwards"] < row["step_gflop"] <= row["step_gflop_three_forwards"]
    assert row["share_of_gemm"] > 0 and row["fit_ms"] > 0


def test_images_per_second_stand_beside_those_of_diffusers_example() -> None:
    record = quick("gpu.py")
    assert record["device"] == "cpu"
    sides = {"diffusers", "diffusers_ema", "osmotic", "osmotic_deterministic", "osmotic_fit"}
    assert record["images_per_second"].keys() == sides
    assert all(rate > 0 for rate in record["images_per_second"].values())
    assert record["osmotic_over_diffusers"] > 0 and record["deterministic_over_fast"] > 0


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="peak memory is read from /proc")
def test_server_memory_does_not_grow_with_the_number_of_clients() -> None:
    record = quick("aggregate.py")
    fold, use = record["speed"], record["memory"]
    assert fold["add_gb_per_s"] > 0 and fold["gain_over_unchunked"] > 0
    assert [row["clients"] for row in use["rows"]] == [2, 8]
    # Six more replies that were kept would be six model sizes.
    assert use["growth_bytes"] < use["model_bytes"]
    assert use["within_bound"] is True


def test_codecs_are_timed_and_lose_no_more_the_more_bytes_they_take() -> None:
    record = quick("codecs.py")
    rows = {row["case"]: row for row in record["results"]}
    errors = [
        rows[case]["error"] for case in ("fp32", "fp16", "int8", "int4", "int2", "sparse 5 %", "sparse 1 %")
    ]
    factors = [
        rows[case]["factor"] for case in ("fp32", "fp16", "int8", "int4", "int2", "sparse 5 %", "sparse 1 %")
    ]
    assert errors == sorted(errors) and factors == sorted(factors) and errors[0] == 0 and errors[-1] < 1
    for row in rows.values():
        assert row["bytes"] <= row["bytes_at_most"] and row["encode_gb_s"] > 0 < row["decode_gb_s"]
    for found in record["lossless"].values():
        assert found["bytes"]["zstandard"] < found["bytes"]["plain"]


def test_clients_trained_as_one_are_held_against_one_after_another() -> None:
    rows = quick("batched.py")["results"]
    assert [row["way"] for row in rows] == ["grouped", "windows"]
    for row in rows:
        assert row["times_as_fast"] > 0
        assert row["largest_loss_gap"] < 1e-4  # one step from the same weights: rounding alone


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="peak memory is read from /proc")
def test_clients_that_are_not_asked_cost_no_file_and_little_memory() -> None:
    few, many = quick("scale.py")["rows"]
    assert (few["clients"], many["clients"]) == (20, 110)
    assert few["run_folder_files"] == many["run_folder_files"] and many["client_folders"] == 0
    # Ninety networks, or anything of their size, would be 250 MB.
    assert many["peak_training_bytes"] - few["peak_training_bytes"] < 60_000_000
    assert min(row["round_seconds"] for row in (few, many)) > 0
    # 110 clients are told as quantiles, and need no more room for that than 20 rows.
    assert 0 < many["report_bytes"] < few["report_bytes"] + 10_000


@pytest.mark.slow
def test_all_engines_and_flowers_own_take_the_same_steps() -> None:
    pytest.importorskip("flwr", reason="flwr is not installed: pip install 'osmotic[flower]'")
    (row,) = quick("engines.py")["results"]
    losses = row["losses"]
    assert losses["flower"] == losses["inprocess"]
    assert losses["flower_by_hand"] == pytest.approx(losses["inprocess"], abs=2e-5)
    assert all(row["mib"][side] > 100 and row["first"][side] > 0 for side in losses)
