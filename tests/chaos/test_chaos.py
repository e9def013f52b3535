"""A sample of every kind of chaos; `make chaos` does all of it."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from . import damage, deaths, disk, kills, messages, packets, replies, runs, twice

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="files are found by /proc")


@pytest.fixture(scope="module")
def farm() -> Iterator[runs.Farm]:
    with runs.farm() as made:
        yield made


def some(cases: list, count: int) -> list:
    """A few of them, spread over all."""
    return [cases[(2 * i + 1) * len(cases) // (2 * count)] for i in range(count)]


@pytest.mark.parametrize("config, count", [("udec", 3), ("scaffold", 1), ("correction", 3)])
def test_a_death_anywhere_leaves_a_run_that_resumes_to_equal_files(
    farm: runs.Farm, config: str, count: int
) -> None:
    cases = [d for d in deaths.every(farm) if d.config == config]
    assert len(cases) > 150
    assert deaths.check(farm, some(cases, count)).wrong == []


def test_no_packet_does_more_than_to_be_refused() -> None:
    for codec in packets.CODECS:
        bombs = len(packets.bombs_of(codec))
        result = packets.check(codec, [*range(0, bombs, 7), *range(bombs, bombs + 200)])
        assert result.wrong == []
        assert 0 < result.taken < result.tried.total()


def test_no_packet_of_a_large_network_costs_more_than_an_honest_one() -> None:
    # Among them frames that come to 1 GiB.
    for codec in packets.CODECS:
        if codec not in packets.DESCRIBED_KINDS:
            assert packets.check_large(codec).wrong == []


@pytest.mark.parametrize(
    "kind",
    [
        "of an earlier round",
        "num_examples 10**5000",
        "a tensor with a surrogate in its name",
        "a value nan",
        "a head of nothing",
    ],
)
def test_a_bad_reply_is_one_failure_and_moves_no_bit(farm: runs.Farm, kind: str) -> None:
    assert replies.check(farm, [("udec", kind)]) == []


def test_of_two_processes_on_one_folder_one_works(farm: runs.Farm) -> None:
    pairs = [p for p in twice.pairs(farm) if p.config == "udec"]
    assert twice.check(farm, some(pairs, 2), races=0) == []


def test_a_full_disk_stops_a_run_that_then_goes_on_to_equal_files(farm: runs.Farm) -> None:
    assert disk.check(farm, some([f for f in disk.every(farm) if f.config == "udec"], 2)) == []


@pytest.mark.parametrize("kind", ["checkpoints swapped", "private states swapped", "a digit of the ledger"])
def test_damaged_files_are_never_taken_silently(farm: runs.Farm, kind: str) -> None:
    counted, wrong = damage.check(farm, [damage.Case("udec", "before the model", kind, 0)])
    assert wrong == []
    assert counted.total() == 1


def test_a_death_at_any_message_leaves_hub_and_sites_as_an_unbroken_run(farm: runs.Farm) -> None:
    pytest.importorskip("flwr", reason="flwr is not installed: pip install 'osmotic[flower]'")
    cases = [d for d in messages.every(farm) if d.config == "quantised"]
    assert len(cases) > 70
    # One of each way, at messages of several rounds.
    found = [
        next(d for d in some(cases, 12)[place:] + cases if d.way == way)
        for place, way in enumerate(messages.WAYS)
    ]
    assert messages.check(farm, found)[1] == []


@pytest.mark.slow
def test_signals_to_the_command_lose_nothing(farm: runs.Farm) -> None:
    assert kills.check(farm, range(1))[1] == []
