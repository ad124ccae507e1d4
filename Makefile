PYTHON ?= python3
PYTEST_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
UNFINISHED := $(VENV)/.unfinished
# A first build that was cut short is started again; an update of a complete environment is not.
HALF_BUILT := $(if $(wildcard $(STAMP)),,$(wildcard $(UNFINISHED)))

.DEFAULT_GOAL := help
.PHONY: help install quickstart test test-all lint format clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 14

install: $(STAMP)  ## build .venv; instant when nothing changed

# constraints.txt pins torch; which build of it arrives is the package index's choice. On Linux, PyPI's own wheel
# brings several gigabytes of CUDA packages; for the CPU build,
#     PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make install
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version.split()[0]; sys.version_info >= (3, 11) or sys.exit( \
	"hsvae_hf needs Python 3.11 or later, got " + v + "; name one with: make install PYTHON=python3.11")'
	$(PYTHON) -m venv $(if $(HALF_BUILT),--clear) $(VENV)
	@touch $(UNFINISHED)
	$(BIN)/python -m pip install -c constraints.txt torch
	$(BIN)/python -m pip install -c constraints.txt -e '.[train,dev]'
	@mv $(UNFINISHED) $(STAMP)

quickstart: install  ## train a small model and look at its codes, without network
	$(BIN)/python scripts/quickstart.py --overwrite_output_dir true

test: install  ## the quick tests; PYTEST_ARGS adds options
	$(BIN)/python -m pytest $(PYTEST_ARGS)

test-all: install  ## the slow tests too
	$(BIN)/python -m pytest -m "not gpu" $(PYTEST_ARGS)

lint: install  ## style, formatting, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install  ## fix style and formatting in place
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

clean:  ## remove caches and build products; .venv and runs/ stay
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .coverage .coverage.* htmlcov
	find . \( -name .git -o -name $(VENV) \) -prune -o -type d -name __pycache__ -exec rm -rf {} +
