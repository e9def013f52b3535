"""A private state of 400 MB: what Flower's own Context.state loses without a word (flwr 1.41) is a file of the site's here."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from osmotic.storage.store import Store, digest

pytestmark = pytest.mark.slow

WRITER = """
import sys
from pathlib import Path
import numpy as np
from osmotic.storage.store import Store

store = Store(Path(sys.argv[1]))
for server_round in (1, 2):
    rng = np.random.default_rng(server_round)
    state = {f"residual/{i}": rng.random(25_000_000, np.float32) for i in range(4)}
    print(store.save(state, server_round, 1), flush=True)
"""


def test_400_mb_survive_a_kill_in_the_middle_of_the_next_write(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(folder)], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    counted = writer.stdout.readline().strip()
    end = time.monotonic() + 120
    # The second version is under way, and not there yet.
    while not any(p.stat().st_size > 100e6 for p in folder.iterdir() if "000002" in p.name):
        assert time.monotonic() < end
        time.sleep(0.005)
    writer.kill()
    writer.wait()
    torn = [p for p in folder.iterdir() if "000002" in p.name]
    assert torn and all(p.stat().st_size < 400e6 for p in torn), "killed too late to show anything"

    store = Store(folder)
    state = store.load(1, counted)
    assert sum(t.nbytes for t in state.values()) == 400_000_000
    assert np.array_equal(
        state["residual/0"][:5], np.random.default_rng(1).random(25_000_000, np.float32)[:5]
    )
    assert store.save(state, 2, 2) == digest(state) == counted
    assert [p.name for p in folder.iterdir()] == ["state-+00000002.safetensors"]
