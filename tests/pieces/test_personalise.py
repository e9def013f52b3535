"""Personalise: a global model and one for each client, both kept and both scored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_runs import SMALL, Silent

from osmotic.errors import ConfigError
from osmotic.models.parts import PARTS
from osmotic.runs import launch, resolve


def test_the_global_model_stays_and_every_client_has_its_own(make_server: Any) -> None:
    plain = make_server(name="plain")
    plain.run()
    server = make_server("after.pieces=personalise", name="own")
    server.run()
    assert [p.name for p in server.phases] == ["train"] * 3 + ["personalise"]
    assert all(np.array_equal(w, server.state.weights[n]) for n, w in plain.state.weights.items())
    own = server.personal_models()
    assert sorted(own) == ["client-000", "client-001", "client-002"]
    name = next(iter(server.layout))
    assert len({m[name].tobytes() for m in [*own.values(), server.state.weights]}) == 4, "all differ"
    assert vars(server.state.totals) == vars(plain.state.totals), (
        "what follows the rounds is outside the totals"
    )


def test_half_participation_still_gives_everybody_a_model(make_server: Any) -> None:
    server = make_server("after.pieces=personalise", "training.fraction_train=0.34", "training.rounds=1")
    server.run()
    assert server.observer.lines[-1]["num_counted"] == 3 and len(server.personal_models()) == 3


def test_both_are_scored_saved_and_summed_up(tmp_path: Path) -> None:
    sets = [*SMALL, "after.pieces=personalise", "after.personalise.epochs=1", "training.rounds=1"]
    run = launch.start(resolve.load(sets=sets), tmp_path / "run", lambda r, c: Silent())
    summary = json.loads(run.summary.read_text())
    assert summary["pieces"] == ["personalise"] and summary["global_model"] and summary["personal"]
    quality = summary["quality"]
    assert quality["fd"] is not None and quality["personal"]["mean"]["fd_all"] is not None
    assert quality["personal"]["mean"]["fd_all"] != quality["mean"]["fd_all"]
    assert len(quality["personal"]["per_client"]) == 3
    assert (run.model / "model_index.json").is_file()
    assert len(list(run.personal.glob("*/model_index.json"))) == 3
    ledger = [json.loads(line) for line in run.log("ledger").read_text().splitlines()]
    fetched = [e for e in ledger if e["phase"] == "models" and e["direction"] == "up"]
    assert [e["parameters"] for e in fetched] == [summary["parameters"]] * 3, (
        "who gave a model away is on the ledger"
    )
    assert not any(e["total"] for e in fetched)


@pytest.mark.parametrize("method", ["central", "local", "udec"])
def test_where_nobody_could_be_personalised_it_is_refused_with_the_reason(method: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"after.pieces = 'personalise': cannot work with method {method}:"
    ):
        resolve.load(sets=["after.pieces=personalise", f"method.name={method}"])


def test_clients_keep_all_parts_after_it_and_none_before(make_server: Any) -> None:
    server = make_server("after.pieces=personalise", "training.rounds=1")
    server.run()
    site = next(iter(server.engine.sites.values()))
    names = {n for part in PARTS for n in server.part_names[part]}
    kept = {k.removeprefix("personal/") for k in site.store.load(2) if k.startswith("personal/")}
    assert kept == names
