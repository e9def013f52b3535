"""Runs the study: main grid, variants, the paper's own network. Resumes where it was cut off. See README.md.

OSMOTIC_DATA=FOLDER python experiments/feddiffuse/study.py
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from cases import falling_rate, kept, main_grid, own_network, tiny, variants
from study import machine, run_all

if __name__ == "__main__":
    here = Path(__file__).parent
    wanted = main_grid() | variants() | tiny() | own_network() | falling_rate()
    run_all(here, wanted, jobs=2, more=kept)
    print(machine())
