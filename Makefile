# Needs Python 3.11 or newer, and nothing else: every verb makes and fills its own environment.
#
#   make demo      run the quickstart scenario
#   make test      lint, types and tests
#   make format    let ruff rewrite what it can
#   make clean     remove the environment, builds and caches; runs are kept
#
# On Linux, PyPI's torch brings CUDA, several gigabytes. For the CPU build, take the address of the CPU
# index from PyTorch's "Get Started" page and set it: PIP_EXTRA_INDEX_URL=<address> make test
# Another interpreter or place: make test PYTHON=python3.12 VENV=/tmp/fedhp

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

export FLWR_TELEMETRY_ENABLED ?= 0
export RAY_USAGE_STATS_ENABLED ?= 0
export FLWR_DISABLE_UPDATE_CHECK ?= 1

.PHONY: demo test lint types format clean

demo: $(VENV)/.sim
	$(BIN)/fedhp run

# Several tests at a time, one more than there are processors, since some wait for processes of their own, and
# four at most; each process takes a gigabyte.
test: lint types
	$(BIN)/python -m pytest --numprocesses=$$($(BIN)/python -c 'import os; print(min(4, 1 + os.cpu_count()))') --dist=worksteal

lint: $(VENV)/.dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(VENV)/.dev
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(VENV)/.dev
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

# One stamp per extra, so that nothing is installed again until these files change.
$(VENV)/.sim $(VENV)/.dev: $(VENV)/.%: pyproject.toml constraints.txt
	@echo "Installing fedhp[$*] into $(VENV); the first time takes some minutes."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[$*]'
	@touch $@

clean:
	rm -rf .venv build dist .pytest_cache .ruff_cache .hypothesis
	find clients fedhp strategies tests -name __pycache__ -prune -exec rm -rf {} +
