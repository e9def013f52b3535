"""What the server decides and a plan replays: the learning rate of a round."""

from __future__ import annotations

import pytest

from osmotic.config.schema import TrainingConfig
from osmotic.protocol.participation import learning_rate


def test_the_cosine_rate_by_hand() -> None:
    # 2 * (1 + cos(pi * (r - 1) / 4)) / 2: the whole rate in the first round, and not yet 0 in the last.
    training = TrainingConfig(rounds=4, learning_rate=2.0, lr_schedule="cosine")
    rates = [learning_rate(training, r) for r in (1, 2, 3, 4)]
    assert rates == pytest.approx([2.0, 1 + 0.5**0.5, 1.0, 1 - 0.5**0.5])
    # Phases before the rounds train at the first rate, those after them at the last.
    assert learning_rate(training, -1) == rates[0] and learning_rate(training, 5) == rates[-1]


def test_the_constant_rate_is_the_same_in_every_round() -> None:
    training = TrainingConfig(rounds=4, learning_rate=2.0)
    assert {learning_rate(training, r) for r in range(-1, 6)} == {2.0}
