"""The benchmarks still run and say what they promise; their figures are never tested, a busy machine changes them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

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
def test_a_federated_round_gives_the_weights_of_a_hand_written_one() -> None:
    record = quick("overhead.py")
    assert record["weights_within_bound"] is True
    assert record["two_workers_same_bits_as_one"] is True
    # 3 clients, 20 images in batches of 16 are 2 steps, 1 epoch.
    assert record["steps"] == 6
    assert record["overhead_ratio"] > 0 and record["two_workers_over_two_threads"] > 0


def test_a_step_is_held_against_a_matrix_product() -> None:
    (row,) = quick("step.py")["results"]
    assert row["variant"] == "fp32" and "not_possible" not in row
    # Backward passes of convolutions and products are two more of the forward's size, but for the first layer's.
    assert 0.9 * row["step_gflop_three_forwards"] < row["step_gflop"] <= row["step_gflop_three_forwards"]
    assert row["share_of_gemm"] > 0 and row["fit_ms"] > 0


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="peak memory is read from /proc")
def test_server_memory_does_not_grow_with_the_number_of_clients() -> None:
    record = quick("aggregate.py")
    fold, use = record["speed"], record["memory"]
    assert fold["add_gb_per_s"] > 0 and fold["gain_over_unchunked"] > 0
    assert [row["clients"] for row in use["rows"]] == [2, 8]
    # Six more replies that were kept would be six model sizes.
    assert use["growth_bytes"] < use["model_bytes"]
    assert use["within_bound"] is True
