# demo · test · test-long · test-all · test-latest · check · check-deps · lock · bench · bench-compare · calibrate · load-models: each sets up what it needs.
# With another Python: make test PYTHON=python3.13 VENV=.venv-3.13
SHELL := bash
.SHELLFLAGS := -o pipefail -c
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
NATIVE := $(wildcard asr_load/*/*.c asr_server/*.c native/*.h)
READY := $(VENV)/.ready
DEV := $(VENV)/.ready-dev
RECOGNIZER := $(VENV)/.ready-recognizer
LONG := $(VENV)/.ready-long
SAMPLE := asr_data/sample/manifest.json
# Modules are compiled once, without the warnings of packages' own code: tests treat a warning as an error. The modules
# of pandas and numpy, which have none, would take 50 MB.
COMPILE := $(BIN)/python -W ignore -m compileall -qq -x '/(numpy|pandas|pip|setuptools|tests)/' $(VENV)/lib
INSTALL := PYTHONUNBUFFERED=1 $(BIN)/pip install --disable-pip-version-check --no-compile --log $(VENV)/pip.log
PROGRESS := 2>&1 | $(BIN)/python scripts/pip_progress.py
# The demo compiles only what it imports (3 s instead of 15 s), without these warnings as well.
QUIET := PYTHONWARNINGS=ignore

.PHONY: setup demo test test-long test-all test-latest check check-deps lock bench bench-compare calibrate load-models clean

setup: $(DEV) $(SAMPLE)

$(READY): requirements.txt requirements-server.txt pyproject.toml setup.py $(NATIVE)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	  { echo "asr-load needs Python 3.11 or newer: name one with 'make PYTHON=/path/to/python3.12 ...'"; exit 2; }
	@echo "Installing the packages of requirements.txt and requirements-server.txt into $(VENV): about a minute …"
	@$(PYTHON) -m venv $(VENV) || \
	  { echo "No virtual environment could be made: install Python's venv (on Debian: apt-get install python3-venv)"; exit 2; }
	@$(INSTALL) -r requirements.txt -r requirements-server.txt $(PROGRESS) && $(INSTALL) --no-deps --editable . $(PROGRESS) || \
	  { echo "pip could not install the packages: see $(VENV)/pip.log"; exit 2; }
	@rm $(VENV)/pip.log # 40 MB
	@$(BIN)/python -m compileall -q asr_load asr_server locustfiles # pip does so for what is not editable
	@touch $@

# Packages that only some targets need: requirements-dev.txt, requirements-recognizer.txt, requirements-long.txt.
$(VENV)/.ready-%: requirements-%.txt | $(READY)
	@echo "Installing the packages of $< into $(VENV) …"
	@$(INSTALL) -r $< $(PROGRESS) || { echo "pip could not install the packages of $<: see $(VENV)/pip.log"; exit 2; }
	@rm $(VENV)/pip.log
	@[ $* = recognizer ] || $(COMPILE) || true # some packages carry files that are not for this Python
	@touch $@

$(SAMPLE): $(READY) asr_data/sample/manifest.jsonl asr_load/audio/shard.py
	@echo "Preparing the sample: 15 short clips, and one that is left out because it is longer than 30 s …"
	@$(QUIET) $(BIN)/python scripts/prepare.py --dataset asr_data/sample --out asr_data/sample
	@touch $@

demo: $(READY) $(RECOGNIZER) $(SAMPLE)
	@$(QUIET) $(BIN)/asr-load demo

# The tests that take less than five seconds each. Four at once: many of them mostly wait.
test: setup
	@$(BIN)/python -m pytest -n 4 -m "not long" --durations 25

# The others: fleets, searches, the web UI in a browser, gateways, sanitizers, the recognizer, an installed wheel.
test-long: setup $(RECOGNIZER) $(LONG)
	@$(BIN)/python -m pytest -n 3 -m long --durations 25

# All of them, with five minutes of fuzz under each sanitizer, signals at more moments of each command (SIGNALS=60: at
# each tenth of a second), and the containers, with Docker or ENGINE=podman.
test-all: setup $(RECOGNIZER) $(LONG)
	@FUZZ_S=300 SIGNALS=6 $(BIN)/python -m pytest -n 2 --durations 25
	@scripts/container-test.sh

# With the newest releases that pyproject.toml allows, in a separate environment.
test-latest:
	@$(PYTHON) -m venv .venv-latest
	@.venv-latest/bin/pip install --quiet --disable-pip-version-check --upgrade --upgrade-strategy eager \
	  --editable '.[server]' $$(sed -E 's/ *(==|#).*//' requirements-dev.txt requirements-long.txt)
	@.venv-latest/bin/python scripts/prepare.py --dataset asr_data/sample --out asr_data/sample
	@.venv-latest/bin/python -m pytest -n 2 --durations 25

check: $(DEV)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

# The versions and hashes that the two images are made of.
LOCK := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
  --custom-compile-command "make lock"

lock: $(LONG)
	@$(LOCK) requirements.txt requirements-server.txt requirements-recognizer.txt --output-file requirements-server.lock
	@$(LOCK) requirements.txt --constraint requirements-server.lock --output-file requirements.lock

# Whether any of them has a known vulnerability.
check-deps: $(LONG)
	@$(BIN)/pip-audit --disable-pip --require-hashes --requirement requirements-server.lock

bench: setup
	@$(BIN)/python -m benchmarks.run

# make bench-compare A=results/bench/COMMIT.json B=results/bench/OTHER.json
bench-compare: setup
	@$(BIN)/python -m benchmarks.compare $(A) $(B)

# The pictures of docs/load-models.md: one server under closed and open loop.
load-models: setup $(LONG)
	@$(BIN)/python scripts/load_models.py

calibrate: setup
	@$(BIN)/python scripts/calibrate.py

clean:
	rm -rf .venv .venv-* results/*
