# `make demo` and `make test` do all the set-up; the others assume nothing more.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: demo test test-all chaos chaos-sites chaos-nightly check format benchmark clean

$(BIN)/python:
	$(PYTHON) -m venv .venv

# torch first and pinned: a range would fetch gigabytes of another build.
$(STAMP): pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

.venv/.installed-dev: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev,flower]"
	touch $@

demo: $(STAMP)
	$(BIN)/osmotic run --preset fedavg --data digits

check: .venv/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# One process per core, one operator thread each: two on a busy machine can be many times slower.
test: check
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto

test-all: check
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto -m ""

# Deaths, damage, lies and full disks, under an hour beside other work; writes its figures into docs/reliability.md.
chaos: .venv/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.chaos

# A hub and three sites with keys and TLS on this machine: each kind of process killed once, links cut, about 20 minutes.
chaos-sites: .venv/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.chaos.sites --kills 6
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.chaos.links --cuts 20

# All of it and more of it, for some hours: every bad reply over real processes, a hundred kills, a hundred cuts.
chaos-nightly: chaos
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.chaos.wire
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.chaos.sites --kills 100 --seed 1
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.chaos.links --cuts 100 --seed 1

format: .venv/.installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

benchmark: $(STAMP)
	for script in rounds step aggregate scale codecs; do $(BIN)/python benchmarks/$$script.py; done

clean:
	rm -rf .venv .pytest_cache .ruff_cache .mypy_cache .hypothesis build
