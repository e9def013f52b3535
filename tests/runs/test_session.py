"""Starting a run: what comes before its first file."""

from __future__ import annotations

import os
import signal

import pytest

from osmotic.runs import session


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_waits_until_libraries_are_imported(number: int) -> None:
    done = []
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt), session.whole_imports():
        os.kill(os.getpid(), number)
        done.append("imported")
    assert done == ["imported"]
    assert signal.getsignal(number) is before


def test_a_second_signal_does_not_wait() -> None:
    done = []
    with pytest.raises(KeyboardInterrupt), session.whole_imports():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        done.append("imported")
    assert done == []
