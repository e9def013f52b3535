"""Kills, damage and lies, and that a run comes out of them right: `make chaos`, and a sample of it in `make test`.

One file per kind of chaos; `python -m tests.chaos --help` lists the commands, each repeats one failure.
"""

from __future__ import annotations

import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]
if str(TESTS) not in sys.path:  # for `python -m tests.chaos`; pytest has put it there itself
    sys.path.insert(0, str(TESTS))
