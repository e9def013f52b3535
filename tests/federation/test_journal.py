"""The journal of a phase: an entry is found by its very question and by nothing else, and a damaged one is asked again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from osmotic.federation.journal import Journal
from osmotic.protocol.messages import Client, Packet, Sent, Task

TASK = Task(Client(0, "client-000", 10), "train")
HEADER = {"run": "a", "server_round": 3, "durable_round": 1, "learning_rate": 0.1}
ANSWER = Packet({"client": "client-000", "metrics": {"loss": 0.125, "steps": 7}}, (b"abc", memoryview(b"")))


def asked(*blobs: bytes, **header: Any) -> Sent:
    return Sent(TASK, Packet({**HEADER, **header}, blobs))


def test_an_answer_is_found_by_the_very_task(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    journal.begin(3)
    assert journal.answer(asked(b"x")) is None
    journal.keep_answer(asked(b"x"), ANSWER)
    again = Journal(tmp_path / "journal")
    again.begin(3)
    found = again.answer(asked(b"x"))
    assert found is not None and found.header == ANSWER.header and found.blobs == (b"abc", b"")
    assert again.answer(asked(b"x", durable_round=2)) is not None, (
        "which checkpoints there are is no part of it"
    )
    for other in (asked(b"y"), asked(b"x", b""), asked(b"x", run="b"), asked(b"x", learning_rate=0.2)):
        assert again.answer(other) is None


def test_the_next_phase_drops_what_is_there(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    journal.begin(-1)
    journal.keep_answer(asked(), ANSWER)
    journal.begin(1)
    assert journal.answer(asked()) is None
    journal.begin(-1)
    assert journal.answer(asked()) is None
    journal.clear()
    assert not (tmp_path / "journal").exists()


def test_a_damaged_entry_is_none(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    journal.begin(1)
    journal.keep_answer(asked(), ANSWER)
    [file] = (tmp_path / "journal").glob("*/*.safetensors")
    for damage in (file.read_bytes()[:-1], b"", file.read_bytes().replace(b"loss", b"lost")):
        file.write_bytes(damage)
        assert journal.answer(asked()) is None


def test_an_entry_under_the_name_of_another_is_none(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    journal.begin(1)
    journal.keep_answer(asked(b"x"), ANSWER)
    [first] = (tmp_path / "journal").glob("*/*.safetensors")
    journal.keep_answer(asked(b"y"), ANSWER)
    journal.keep("sample 1", {"images": np.zeros(2)})
    everything = set((tmp_path / "journal").glob("*/*.safetensors"))
    for other in everything - {first}:
        other.write_bytes(first.read_bytes())
    assert journal.answer(asked(b"x")) is not None
    assert journal.answer(asked(b"y")) is None and journal.find("sample 1") is None


def test_the_last_state_of_a_piece_of_work_is_found(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    journal.begin(1)
    assert journal.find("this") is None
    for step in range(3):
        journal.keep("this", {"a": np.array([step])})
    found = Journal(tmp_path / "journal")
    found.begin(1)
    kept = found.find("this")
    assert kept is not None and kept["a"].tolist() == [2] and found.find("that") is None
    assert len(list((tmp_path / "journal").glob("*/*"))) == 1, "what came before is not kept"
