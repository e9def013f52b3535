"""Is a model of one's own better than the global one, and than training alone? See README.md.

python experiments/personal/study.py pilot     # settings are chosen on seed 100 alone: pilot.jsonl
python experiments/personal/study.py main      # l-skew and q-skew, three seeds: results.jsonl
python experiments/personal/study.py rates     # of adapters, on seed 100: rates.jsonl
python experiments/personal/study.py adapters  # from Fashion-MNIST to MNIST, all weights against adapters: adapters.jsonl

Each skips what is finished and goes on with what was cut off; a case is done when its line is in the file.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import cases  # noqa: E402
from scores import figures  # noqa: E402
from study import run_all  # noqa: E402

# Run folders; one in memory is as good.
RUNS = Path(os.environ.get("RUNS", "runs/personal"))
STUDIES = {"pilot": cases.pilot, "main": cases.main}

if __name__ == "__main__":
    [which] = sys.argv[1:] or ["main"]
    if which in ("rates", "adapters"):
        seeds, ways = (
            ((cases.PILOT_SEED,), cases.RATES) if which == "rates" else (cases.SEEDS, cases.ADAPTERS)
        )
        run_all(HERE, cases.begun(seeds), RUNS, jobs=2, results=f"begun-{which}.jsonl")
        run_all(HERE, cases.adapters(seeds, RUNS, ways), RUNS, jobs=2, results=f"{which}.jsonl")
    else:
        results = "results.jsonl" if which == "main" else f"{which}.jsonl"
        run_all(HERE, STUDIES[which](), RUNS, jobs=2, more=figures, results=results)
