# Everything a newcomer needs: `make demo` and `make test` set up what they use in .venv.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
ARGS ?=

.PHONY: help demo test test-fast bench kernels-report lint format info clean
help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

# One stamp per extra: an install runs again only when the packaging files have changed.
$(VENV)/.has-%: pyproject.toml setup.py
	@echo "setting up $(VENV) for '$*': the first time this downloads PyTorch and takes some minutes"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[$*]'
	@touch $@

demo: $(VENV)/.has-demo  ## the main job on real images: train, evaluate, table, picture, huge batch
	$(BIN)/hyperkern demo $(ARGS)

test: $(VENV)/.has-test  ## the whole test suite
	$(BIN)/python -m pytest -n 2 --dist worksteal $(ARGS)

test-fast: $(VENV)/.has-test  ## the suite without the slow tests
	$(BIN)/python -m pytest -n 2 --dist worksteal -m 'not slow' $(ARGS)

bench: $(VENV)/.has-test  ## speed and memory against every baseline, in one run
	$(BIN)/python -m pytest benchmarks --benchmark-only $(ARGS)

kernels-report: $(VENV)/.has-test  ## registers, spills and shared memory of every shipped kernel configuration
	$(BIN)/python -m hyperkern.backends.triton.report $(ARGS)

lint: $(VENV)/.has-lint  ## ruff (lint and format) and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.has-lint  ## rewrite the sources in the project's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

info: $(VENV)/.has-demo  ## what is installed, which backends are usable, and why not
	$(BIN)/hyperkern info

clean:  ## remove the environment and all build products
	rm -rf $(VENV) build dist *.egg-info demo-out .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
