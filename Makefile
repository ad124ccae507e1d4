PYTHON ?= python3
PYTEST_ARGS ?= -n auto
# Which torch `make lock`, `make test-newest` and `make test-oldest` take: that of the lock unless said. Of any other
# version an index may have no CPU build, and then it brings several gigabytes of CUDA packages.
TORCH ?= $(shell sed -n 's/^torch==//p' constraints.txt)
# What another version of somebody else's package could break; QUICK=1 leaves out what takes minutes.
VERSION_TESTS := tests/test_modeling_*.py tests/test_library_conventions.py tests/test_generation.py
VERSION_TESTS += tests/test_saving.py tests/test_quickstart.py
VERSION_TESTS += $(if $(QUICK),,tests/test_hub.py tests/test_library_tools.py tests/test_encoders.py tests/test_training.py)

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
export PYTHON

.DEFAULT_GOAL := help
.PHONY: help install lock quickstart test test-all test-bare test-newest test-oldest newest oldest lint format clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 14

install: $(STAMP)  ## build .venv with the versions of the lock; instant when nothing changed

# constraints.txt, the lock, pins torch too; which build of it arrives is the package index's choice. On Linux, PyPI's
# own wheel brings several gigabytes of CUDA packages; for the CPU build,
#     PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make install
$(STAMP): pyproject.toml constraints.txt
	@.ci/environment $(VENV) constraints.txt
	@touch $(STAMP)

lock: newest  ## pin the newest versions in constraints.txt; TORCH=2.14.0 moves torch, which else stays
	@echo '# Made by `make lock`: the exact versions that the project is developed and tested with.' > build/lock.txt
	@.venv-newest/bin/python -m pip freeze -q --all --exclude pip --exclude hsvae_hf | sed 's/+.*//' >> build/lock.txt
	@mv build/lock.txt constraints.txt
	@echo "constraints.txt has $$(grep -c == constraints.txt) packages; look at the changes, then: make test-all"

newest:
	@mkdir -p build && echo "torch==$(TORCH)" > build/newest.txt
	@.ci/environment .venv-newest build/newest.txt

oldest:
	@mkdir -p build && echo "torch==$(TORCH)" > build/oldest.txt && $(PYTHON) .ci/floors.py >> build/oldest.txt
	@.ci/environment .venv-oldest build/oldest.txt train,dev  # the others want a newer scipy and numpy

quickstart: install  ## train a small model and look at its codes, without network
	$(BIN)/python scripts/quickstart.py --overwrite_output_dir true

test: install  ## the quick tests; PYTEST_ARGS adds options
	$(BIN)/python -m pytest $(PYTEST_ARGS)

test-all: install  ## the slow tests, and the bare install, too
	$(BIN)/python -m pytest -m "not gpu" $(PYTEST_ARGS)

test-bare: install  ## install the package without extras into an empty environment, and use it
	$(BIN)/python -m pytest -m install tests/test_install.py $(PYTEST_ARGS)

test-newest: newest  ## tests with the newest versions of all other packages, in .venv-newest
	.venv-newest/bin/python -m pytest -q $(PYTEST_ARGS) $(VERSION_TESTS)

test-oldest: oldest  ## tests with the oldest versions that pyproject.toml allows, in .venv-oldest
	.venv-oldest/bin/python -m pytest -q $(PYTEST_ARGS) $(VERSION_TESTS)

lint: install  ## style, formatting, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install  ## fix style and formatting in place
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

clean:  ## remove caches and build products; environments and runs/ stay
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .coverage .coverage.* htmlcov
	find . \( -name .git -o -name '.venv*' \) -prune -o -type d -name __pycache__ -exec rm -rf {} +
