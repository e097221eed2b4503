# demo · test · check · bench · bench-compare · calibrate · load-models: each sets up what it needs.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: setup demo test check bench bench-compare calibrate load-models clean

setup: $(READY) asr_data/sample/manifest.json

$(READY): requirements.txt requirements-server.txt requirements-dev.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	  { echo "Python 3.11 or newer is needed: name one with 'make PYTHON=/path/to/python3.12 ...'"; exit 2; }
	@$(PYTHON) -m venv .venv || \
	  { echo "No virtual environment could be made: install Python's venv (on Debian: apt-get install python3-venv)"; exit 2; }
	@$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[server,dev]' || \
	  { echo "pip could not install the packages named in requirements*.txt: see its message above"; exit 2; }
	@$(BIN)/python -m compileall -q asr_load asr_server locustfiles # pip does so for what is not editable
	@touch $@

asr_data/sample/manifest.json: $(READY) asr_data/sample/manifest.jsonl asr_load/audio/shard.py
	@$(BIN)/python scripts/prepare.py --dataset asr_data/sample --out asr_data/sample
	@touch $@

demo: setup
	@PATH="$(CURDIR)/$(BIN):$$PATH" scripts/demo.sh

test: setup
	@$(BIN)/python -m pytest -n 2

check: $(READY)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

bench: setup
	@$(BIN)/python -m benchmarks.run

# make bench-compare A=results/bench/COMMIT.json B=results/bench/OTHER.json
bench-compare: setup
	@$(BIN)/python -m benchmarks.compare $(A) $(B)

# The pictures of docs/load-models.md: one server under closed and open loop.
load-models: setup
	@$(BIN)/python scripts/load_models.py

calibrate: setup
	@$(BIN)/python scripts/calibrate.py

clean:
	rm -rf .venv results
