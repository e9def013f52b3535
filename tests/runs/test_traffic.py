"""What a run sends against fp32 FedAvg and against the images; every figure by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from osmotic.data.compressed import Compressed
from osmotic.runs import plan, resolve, traffic

UNET_8 = 702_753


def test_the_two_yardsticks_by_hand() -> None:
    # 10 weights to 3 clients and back, 4 bytes each: 240. Sent were 60, and the images are 120.
    found = traffic.figures(60, 10, 3, Compressed(120, 40, "xz"))
    assert found == {
        "bytes": 60,
        "fp32_fedavg_bytes": 240,
        "factor": 4.0,
        "images_bytes": 120,
        "images_sampled": 40,
        "to_images": 0.5,
    }


def test_without_images_or_without_traffic_there_is_no_ratio() -> None:
    unread = traffic.figures(60, 10, 3, None)
    assert (unread["factor"], unread["images_bytes"], unread["to_images"]) == (4.0, None, None)
    still = traffic.figures(0, 10, 3, None)
    assert (still["fp32_fedavg_bytes"], still["factor"], still["to_images"]) == (240, None, None)
    assert traffic.figures(60, 10, 3, Compressed(0, 0, ""))["to_images"] is None


def test_clients_are_counted_that_were_asked_to_train_whatever_they_answered(tmp_path: Path) -> None:
    entries = [
        {"phase": "train", "direction": "down", "status": "counted"},
        {"phase": "train", "direction": "up", "status": "counted"},
        {"phase": "train", "direction": "down", "status": "failed"},
        {"phase": "score", "direction": "down", "status": "counted"},
        {"phase": "personalise", "direction": "down", "status": "counted"},
    ]
    (tmp_path / "ledger.jsonl").write_text("".join(json.dumps(e) + "\n" for e in entries))
    assert traffic.asked(tmp_path / "ledger.jsonl") == 2


def test_a_plan_counts_the_clients_of_its_rounds_and_reads_no_image() -> None:
    # Half of 10 clients in 4 rounds: 20 tasks; personalising after the rounds is none.
    sets = ["training.rounds=4", "training.fraction_train=0.5", "after.pieces=personalise"]
    found = plan.plan(resolve.load(sets=sets))
    assert found["traffic"]["fp32_fedavg_bytes"] == 20 * 2 * 4 * UNET_8
    assert found["traffic"]["bytes"] == found["bytes_up"] + found["bytes_down"]
    assert found["traffic"]["images_bytes"] is found["traffic"]["to_images"] is None


def test_the_plan_says_it_in_a_line_but_where_nothing_travels() -> None:
    told = plan.text(plan.plan(resolve.load(sets=["training.rounds=2"])))
    assert "  traffic      112 MB, as much as fp32 FedAvg\n" in told
    assert "  traffic" not in plan.text(plan.plan(resolve.load(preset="local")))


@pytest.mark.parametrize("preset", ["fedavg", "local"])
def test_a_timed_plan_reads_the_images_and_says_how_small_they_are(
    preset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from osmotic.runs import timing

    monkeypatch.setattr(timing, "network", lambda made: {"train": (2.0, 1), "draw": (3.0, 1)})
    monkeypatch.setattr(timing, "encoder", lambda made: {"encoder": (0.0, 1), "score": (0.5, 100)})
    sets = ["data.max_images=96", "data.clients=3", "data.partition=iid", "training.rounds=2"]
    figures = plan.plan(resolve.load(preset=preset, sets=sets), time=True)
    held = figures["traffic"]["images_bytes"]
    if preset == "local":
        assert held is None
    else:
        # Digits have 17 grey levels: never more than the 4.1 bits that tell these apart, and headers.
        assert 0 < held < 96 * 64 * 4.1 / 8 + 200
        assert "times the compressed training images" in plan.text(figures)
