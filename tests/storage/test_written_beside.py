"""Work on a thread of its own: one piece at a time, its result and its error where it is awaited."""

from __future__ import annotations

import signal
import threading
import time

import pytest

from osmotic.storage.beside import Beside


def test_work_goes_on_beside_who_began_it_and_is_given_where_it_is_awaited() -> None:
    beside, go = Beside[str](), threading.Event()
    beside.begin(lambda: "written" if go.wait(10) else "nobody went on")
    go.set()  # never reached if `begin` waited
    assert beside.wait() == "written"
    assert beside.wait() is None


def test_a_second_piece_begins_when_the_first_has_ended() -> None:
    beside, seen = Beside[None](), []
    for number in range(3):
        beside.begin(lambda n=number: (time.sleep(0.02), seen.append(n))[1])  # type: ignore[misc]
    beside.wait()
    assert seen == [0, 1, 2]


def test_an_error_is_raised_once_by_who_waits_and_by_who_begins_the_next() -> None:
    beside, begun = Beside[object](), []

    def full() -> None:
        raise OSError(28, "No space left on device", "a file")

    for wait in (beside.wait, lambda: beside.begin(lambda: begun.append(1))):
        beside.begin(full)
        with pytest.raises(OSError, match="a file"):
            wait()
        assert beside.wait() is None
    assert not begun


def test_a_signal_waits_for_the_end_of_the_work() -> None:
    beside, done = Beside[None](), []
    # A shell starts what it runs in the background with SIGINT ignored, and Python then has no handler of its own.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    def work() -> None:
        time.sleep(0.1)  # until somebody waits
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        time.sleep(0.2)
        done.append(1)

    try:
        beside.begin(work)
        with pytest.raises(KeyboardInterrupt):
            beside.wait()
        assert done
    finally:
        signal.signal(signal.SIGINT, before)
