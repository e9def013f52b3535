"""The ledger: what is summed, what is left out, and an order of lines that does not depend on arrival."""

from __future__ import annotations

import itertools
import json
from typing import Any

from osmotic.federation.ledger import Entry, Totals, lines


def entry(client: str = "client-000", direction: Any = "up", **fields: Any) -> Entry:
    given = {"round": 1, "phase": "train", "parameters": 10, "bytes": 100, "status": "counted", "total": True}
    return Entry(client=client, direction=direction, **{**given, **fields})


def test_directions_are_summed_apart():
    totals = Totals()
    totals.add([entry(direction="up", bytes=7, parameters=2), entry(direction="down", bytes=5, parameters=3)])
    totals.add([entry(direction="up", bytes=1, parameters=1)])
    assert (totals.bytes_up, totals.bytes_down) == (8, 5)
    assert (totals.parameters_up, totals.parameters_down) == (3, 3)


def test_work_is_summed_over_entries():
    totals = Totals()
    totals.add([entry(images=180, steps=12, flops=1000), entry(images=20, steps=2, flops=10**18)])
    assert (totals.images_seen, totals.client_steps, totals.flops) == (200, 14, 10**18 + 1000)


def test_what_lies_outside_the_totals_leaves_them_alone():
    totals = Totals()
    totals.add([entry(total=False, images=5, steps=5, flops=5, phase="score")])
    assert totals == Totals()


def test_a_refused_reply_still_cost_its_bytes():
    totals = Totals()
    totals.add([entry(status="refused", parameters=0), entry(status="lost", bytes=0, parameters=0)])
    assert (totals.bytes_up, totals.parameters_up, totals.images_seen) == (100, 0, 0)


def test_lines_are_sorted_whatever_the_order_of_arrival():
    entries = [entry(c, d) for c in ("client-010", "client-002") for d in ("up", "down")]
    written = {lines(order) for order in itertools.permutations(entries)}
    assert len(written) == 1
    rows = [json.loads(line) for line in written.pop().splitlines()]
    assert [(r["client"], r["direction"]) for r in rows] == [
        ("client-002", "down"),
        ("client-002", "up"),
        ("client-010", "down"),
        ("client-010", "up"),
    ]


def test_a_line_holds_the_documented_fields():
    row = json.loads(lines([entry(images=3, steps=2, flops=1)]))
    documented = {"round", "phase", "client", "direction", "parameters", "bytes", "status"}
    assert documented | {"images", "steps", "flops"} <= set(row)
    assert (row["bytes"], row["images"]) == (100, 3)


def test_no_entries_are_no_lines():
    assert lines([]) == ""
