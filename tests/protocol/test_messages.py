"""The contract that server and clients share, and what a packet weighs."""

from __future__ import annotations

from typing import Any

import pytest

from osmotic.protocol.messages import Client, Packet, contract_hash


def test_the_contract_does_not_depend_on_the_order_of_its_keys_but_on_every_value():
    contract = {"parameters": {"a": [1, 2], "b": [3]}, "norm_groups": 8, "process": {"target": "v"}}
    turned = dict(reversed(contract.items()))
    assert contract_hash(contract) == contract_hash(turned)
    others = [
        {**contract, "norm_groups": 16},
        {**contract, "process": {"target": "epsilon"}},
        {**contract, "parameters": {"a": [2, 1], "b": [3]}},
        {**contract, "parameters": {"a": [1, 2], "c": [3]}},
        {**contract, "extra": None},
    ]
    assert len({contract_hash(c) for c in (contract, *others)}) == 6


def test_a_packet_counts_its_blobs_alone():
    assert Packet({"long": "header"}, (b"abc", b"", b"de")).num_bytes == 5


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        ".hidden",
        "a/b",
        "a\\b",
        "c:d",
        "a\n",
        "\x1b[31m",
        "\u202e",
        "\ud800",
        "x" * 101,
        7,
        None,
    ],
)
def test_a_client_has_a_name_that_a_folder_and_a_page_can_have(name: Any) -> None:
    with pytest.raises(ValueError, match="client name") as caught:
        Client(0, name, 1)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", ["client-000", "Hôpital Nord", "a.b", "x" * 100])
def test_names_of_sites_may_be_words(name: str) -> None:
    assert Client(0, name, 1).name == name
