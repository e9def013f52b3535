"""The chain: names put before what is a piece's, hooks held to their form, phases numbered, replies shown to all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from osmotic.errors import ConfigError, RunStopped
from osmotic.methods import METHODS
from osmotic.pieces import PIECES
from osmotic.pieces.base import NOT_STATED, Piece
from osmotic.pieces.chain import Chain
from osmotic.protocol.messages import Client, Phase, Reply, Spec, Task
from osmotic.protocol.view import Extension, View
from osmotic.runs import resolve

VIEW = View(resolve.load(), {"w": (1,)}, {"encoder": [], "bottleneck": [], "decoder": ["w"]})
ROUND = Phase("train", 1)
ONE = np.ones(1, np.float32)


@dataclass(frozen=True, kw_only=True)
class Says(Piece):
    """Gives what it was made with, so that bad answers are easy to make."""

    answer: Any = None

    def change(self, view: Any, state: Any, gathered: Any, phase: Any, mean: Any) -> Any:
        return self.answer

    def extend(self, view: Any, state: Any, phase: Any, task: Any) -> Extension:
        return Extension(extras={"down": ONE}, expects={"up": Spec((1,))}, control={"k": 1})

    def gather(self, view: Any, gathered: Any, reply: Reply) -> Any:
        return [*(gathered or []), (dict(reply.tensors), dict(reply.change))]


def test_a_pieces_names_stand_before_what_is_its_own() -> None:
    chain = Chain({"a": Says(), "b": Says()})
    task = chain.extend(VIEW, {}, ROUND, Task(Client(0, "c", 1), "train"))
    assert set(task.extras) == {"a/down", "b/down"} and set(task.expects) == {"a/up", "b/up"}
    assert task.control == {"a": {"k": 1}, "b": {"k": 1}}


def test_every_piece_sees_its_own_extras_and_the_change() -> None:
    gathered: dict[str, Any] = {}
    reply = Reply(Task(Client(0, "c", 1), "train"), {"model/w": 3 * ONE, "a/up": ONE, "b/up": 2 * ONE}, 1, {})
    Chain({"a": Says(), "b": Says()}).gather(VIEW, gathered, reply)
    assert gathered == {"a": [({"up": ONE}, {"w": 3 * ONE})], "b": [({"up": 2 * ONE}, {"w": 3 * ONE})]}


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ({"w": ONE}, r"change must return \(change, state, metrics\), not dict"),
        (({"w": ONE}, {}), r"change must return \(change, state, metrics\), not tuple"),
        (({"w": torch.ones(1)}, {}, {}), r"change: 'w' must be a numpy array, not torch.Tensor"),
        (({"w": ONE}, {"m": torch.ones(1)}, {}), r"state: 'm' must be a numpy array"),
        (({"w": ONE}, None, {}), r"state must be a dict of arrays by name, not NoneType"),
        (({"w": ONE * np.float32(np.inf)}, {}, {}), r"would move w by a value that is not finite in train 1"),
    ],
)
def test_a_hook_that_answers_wrongly_is_named_in_one_line(answer: Any, told: str) -> None:
    with pytest.raises(ConfigError, match=f"^piece mine: {told}"):
        Chain({"mine": Says(answer=answer)}).change(VIEW, {}, {}, ROUND, {"w": ONE})


def test_phases_before_and_after_are_numbered_around_the_rounds() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Around(Piece):
        def phases(self, rounds: int) -> Any:
            yield Phase("first", -7)
            yield Phase("last", rounds + 9)

    chain = Chain({"a": Around(), "personalise": PIECES["personalise"]()})
    numbered = [(p.name, p.server_round) for p in chain.phases(METHODS["fedavg"](), 2)]
    assert numbered == [("first", -1), ("train", 1), ("train", 2), ("last", 3), ("personalise", 4)]


def test_who_returns_private_state_keeps_it_without_saying_so(make_server: Any, monkeypatch: Any) -> None:
    @dataclass(frozen=True, kw_only=True)
    class Counts(Piece):
        def client_end(self, step: Any, work: Any, state: Any) -> Any:
            return {}, {"rounds": state.get("rounds", np.zeros(1, np.int64)) + 1}

    monkeypatch.setitem(PIECES, "counts", Counts)
    server = make_server("local.pieces=counts", "training.rounds=3")
    server.run()
    for site in server.engine.sites.values():
        assert site.store.load(3)["piece/counts/rounds"].tolist() == [3]


def test_a_client_half_that_answers_wrongly_is_told_to_the_server(make_server: Any, monkeypatch: Any) -> None:
    @dataclass(frozen=True, kw_only=True)
    class Torch(Piece):
        def client_end(self, step: Any, work: Any, state: Any) -> Any:
            return {}, {"g": torch.zeros(1)}

    monkeypatch.setitem(PIECES, "torch", Torch)
    server = make_server("local.pieces=torch", "training.rounds=1")
    with pytest.raises(RunStopped, match=r"piece torch: state: 'g' must be a numpy array, not torch\.Tensor"):
        server.run()


def test_a_piece_that_does_not_say_what_leaves_is_not_told_as_sending_nothing() -> None:
    assert Says().left == NOT_STATED
    for name, cls in PIECES.items():
        assert cls.left != NOT_STATED, name
