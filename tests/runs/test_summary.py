"""What a run leaves behind: every file, and every field of the summary with its type (design section 7)."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from small_runs import SMALL

NUMBER = (int, float)
FIELDS: dict[str, Any] = {
    "schema": int,
    "version": str,
    "network": str,
    "image_shape": list,
    "preset": str,
    "method": str,
    "codec_up": str,
    "codec_down": str,
    "engine": str,
    "seed": int,
    "deterministic": bool,
    "rounds": int,
    "num_clients": int,
    "fraction_train": float,
    "local_epochs": float,
    "client_sizes": list,
    "parameters": int,
    "parameters_up": int,
    "parameters_down": int,
    "bytes_up": int,
    "bytes_down": int,
    "traffic": dict,
    "images_seen": int,
    "client_steps": int,
    "server_steps": int,
    "server_flops": int,
    "wall_seconds": float,
    "weights_sha256": str,
    "scored_weights_sha256": str,
    "auxiliary": type(None),
    "quality": dict,
    "failures": list,
}
QUALITY: dict[str, Any] = {
    "encoder": str,
    "encoder_sha256": str,
    "num_samples": int,
    "sampler": str,
    "nfe": int,
    "mean": dict,
    "weighted": dict,
    "worst": dict,
    "per_client": list,
}
GLOBAL = ("fd", "kid", "precision", "recall", "fd_floor", "held_out", "near_copies")
PER_CLIENT = (
    "client_id", "name", "num_examples", "stage", "fd_all", "fd_own", "kid_all", "kid_own",
    "fd_own_floor", "own_images", "own_samples", "held_out", "near_copies",
)  # fmt: skip


@pytest.fixture(scope="module", params=["fedavg", "local"])
def run(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any], str]:
    """A finished run of the real command, its summary as `--json` printed it."""
    from typer.testing import CliRunner

    from osmotic import cli

    out = tmp_path_factory.mktemp("summary") / "run"
    settings = [
        *SMALL,
        f"method.name={request.param}",
        "training.rounds=2",
        "score.every=1",
        "track.backends=[]",
    ]
    result = CliRunner().invoke(
        cli.app, ["run", *(p for s in settings for p in ("--set", s)), "--out", str(out), "--json"]
    )
    assert result.exit_code == 0, result.output
    return out, json.loads(result.stdout), request.param


def test_the_summary_has_every_field_with_its_type(run: tuple[Path, dict[str, Any], str]) -> None:
    out, summary, method = run
    assert json.loads((out / "summary.json").read_text()) == summary
    for name, kind in FIELDS.items():
        assert type(summary[name]) is kind, name
    quality = summary["quality"]
    for name, kind in QUALITY.items():
        assert type(quality[name]) is kind, name
    for name in GLOBAL:
        assert (quality[name] is None) == (method == "local"), (
            f"{name}: null exactly where no global model exists"
        )
    assert [c["client_id"] for c in quality["per_client"]] == [0, 1, 2]
    for client in quality["per_client"]:
        assert set(PER_CLIENT) <= set(client) and client["stage"] in ("before", "after")
        assert isinstance(client["fd_all"], NUMBER)
        for name in ("held_out", "near_copies"):
            assert (client[name] is None) == (method == "fedavg"), f"{name}: of a client's own model"
        assert client["fd_own"] is None, "own scores are null under 50 images"
    assert summary["parameters"] == 702_753
    traffic = summary["traffic"]
    assert traffic["bytes"] == summary["bytes_up"] + summary["bytes_down"]
    # Two rounds of three clients, 4 bytes a weight, both ways.
    assert traffic["fp32_fedavg_bytes"] == 2 * 3 * 2 * 4 * 702_753
    for name in ("factor", "images_bytes", "to_images"):
        assert (traffic[name] is None) == (method == "local"), f"{name}: null exactly where nothing travels"
    assert summary["images_seen"] == sum(summary["client_sizes"]) * 2
    assert len(summary["weights_sha256"]) == len(summary["scored_weights_sha256"]) == 64


def test_the_run_leaves_every_file(run: tuple[Path, dict[str, Any], str]) -> None:
    out, _, method = run
    assert all(
        (out / name).is_file()
        for name in ("config.toml", "metrics.jsonl", "ledger.jsonl", "summary.json", "report.html")
    )
    assert (out / "samples" / "real.png").is_file() and (out / "samples" / "nearest.png").is_file()
    models = [out / "model"] if method == "fedavg" else [out / "model" / f"client-{i:03d}" for i in range(3)]
    for model in models:
        assert (model / "model_index.json").is_file() and (model / "README.md").is_file()
    assert list((out / "samples").glob("round-0001*.png")) and list((out / "samples").glob("round-0002*.png"))
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["round"] for line in lines] == [1, 2]
    entries = [json.loads(line) for line in (out / "ledger.jsonl").read_text().splitlines()]
    asked = {(e["phase"], e["round"], e["client"], e["direction"]) for e in entries}
    assert len(asked) == len(entries), "nothing is booked twice"
    # Two rounds of three clients both ways; own models are drawn from after each, and fetched in the end.
    own = {} if method == "fedavg" else {"score": 2 * 3 * 2, "models": 3 * 2}
    assert Counter(e["phase"] for e in entries) == {"train": 2 * 3 * 2, **own}
    pickles = [p for p in out.rglob("*") if p.suffix in (".pt", ".pth", ".pkl", ".bin", ".ckpt")]
    assert not pickles


def test_the_plan_equals_the_ledger_to_the_byte(run: tuple[Path, dict[str, Any], str]) -> None:
    from osmotic.runs import plan, resolve

    out, summary, _ = run
    figures = plan.plan(resolve.load(out / "config.toml"))
    for name in (
        "parameters",
        "parameters_up",
        "parameters_down",
        "bytes_up",
        "bytes_down",
        "images_seen",
        "num_clients",
    ):
        assert figures[name] == summary[name], name
    for name in ("bytes", "fp32_fedavg_bytes", "factor"):
        assert figures["traffic"][name] == summary["traffic"][name], name


def test_the_resolved_file_repeats_the_run(run: tuple[Path, dict[str, Any], str], tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from osmotic import cli

    out, summary, _ = run
    again = CliRunner().invoke(
        cli.app, ["run", str(out / "config.toml"), "--out", str(tmp_path / "again"), "--json"]
    )
    repeated = json.loads(again.stdout)
    del repeated["wall_seconds"], summary["wall_seconds"]
    assert repeated == summary
    summary["wall_seconds"] = 0.0


def test_a_finished_run_resumed_has_the_summary_to_the_byte(run: tuple[Path, dict[str, Any], str]) -> None:
    from typer.testing import CliRunner

    from osmotic import cli

    file = run[0] / "summary.json"

    def lines() -> list[str]:
        return [line for line in file.read_text().splitlines() if "wall_seconds" not in line]

    before = lines()
    file.write_text("")
    assert CliRunner().invoke(cli.app, ["resume", str(run[0]), "--json"]).exit_code == 0
    assert lines() == before


def test_the_last_words_tell_the_traffic_where_something_travelled(
    run: tuple[Path, dict[str, Any], str], capsys: pytest.CaptureFixture[str]
) -> None:
    from osmotic.runs import commands
    from osmotic.storage.folder import RunDir

    out, _, method = run
    commands.publish(RunDir(out), json=False)
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("traffic  ")]
    assert len(told) == (method == "fedavg")
    assert all("as much as fp32 FedAvg; " in line for line in told)


def test_plain_diffusers_loads_the_model_in_a_fresh_process(run: tuple[Path, dict[str, Any], str]) -> None:
    out, _, method = run
    folder = out / "model" if method == "fedavg" else out / "model" / "client-001"
    script = (
        "import sys\nfrom diffusers import DiffusionPipeline\n"
        f"p = DiffusionPipeline.from_pretrained({str(folder)!r}, custom_pipeline={str(folder)!r}, trust_remote_code=True)\n"
        "image = p(class_labels=[3], num_inference_steps=2).images[0]\n"
        "assert image.size == (8, 8), image.size\nassert not any(m.split('.')[0] == 'osmotic' for m in sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd="/", capture_output=True)
