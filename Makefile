# Everything a newcomer needs: `make demo` and `make test` set up what they use in .venv.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INTEGRATIONS ?= .venv-integrations
ARGS ?=

CSRC := $(wildcard csrc/*.* csrc/*/*.*)
CXX_SOURCES := $(filter %.h %.cuh %.cu %.cpp,$(CSRC)) $(wildcard tests/csrc/*.*)

# `make UV=uv ...` takes uv instead of pip. It does not read pip's configuration.
UV ?=
install = $(if $(UV),$(UV) pip install --compile-bytecode --python $(1)/bin/python,$(1)/bin/python -m pip install)

.PHONY: help demo paper build test test-fast mutants test-integrations bench bench-pytest bench-integrations kernels-report docs hub lint format info clean
help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 20

# One stamp per extra: an install runs again only when the packaging files have changed.
$(VENV)/.has-%: pyproject.toml setup.py
	@echo "setting up $(VENV) for '$*': the first time this downloads PyTorch and takes some minutes"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(call install,$(VENV)) --quiet --editable '.[$*]'
	@touch $@

demo: $(VENV)/.has-demo  ## the main job on real images: train, evaluate, table, picture, huge batch
	$(BIN)/python -m examples.digits $(ARGS)

paper: $(VENV)/.has-paper  ## the paper's theory and experiments in small, about 20 minutes; its recipes: ARGS="stl10 --help"
	$(BIN)/python -m examples.paper $(ARGS)

BUILD := $(BIN)/python setup.py --quiet build_ext --inplace
# The CUDA extension where there is nvcc and a CUDA build of PyTorch (no GPU is needed), and its emulator for the tests.
$(VENV)/.built: $(VENV)/.has-test $(CSRC) setup.py
	@if command -v nvcc >/dev/null && $(BIN)/python -c 'import sys, torch; sys.exit(torch.version.cuda is None)'; \
	then cuda=1; else cuda=0; echo "no nvcc, or PyTorch without CUDA: the CUDA extension is left out"; fi; \
	if command -v c++ >/dev/null; then emulator=1; else emulator=0; echo "no C++ compiler: its emulator is left out"; fi; \
	echo "compiling the kernels: about two minutes"; \
	HYPERKERN_BUILD_CUDA=0 HYPERKERN_BUILD_EMULATOR=$$emulator $(BUILD) --build-temp build/emulator & beside=$$!; \
	trap 'kill $$beside' INT TERM; \
	HYPERKERN_BUILD_CUDA=$$cuda HYPERKERN_BUILD_EMULATOR=0 $(BUILD); built=$$?; wait $$beside && exit $$built
	@touch $@

build: $(VENV)/.built  ## compile the CUDA C++ kernels, and their emulator for the tests

test: $(VENV)/.built  ## the whole test suite
	$(BIN)/python -m pytest -n 2 --dist worksteal $(ARGS)

test-fast: $(VENV)/.built  ## the suite without the slow tests
	$(BIN)/python -m pytest -n 2 --dist worksteal -m 'not slow' $(ARGS)

mutants: $(VENV)/.built  ## whether the tests notice known faults, put into a copy of the code one at a time
	$(BIN)/python tests/mutants $(ARGS)

# The libraries whose losses hyperkern/integrations replaces, apart from the project's own environment: they bring a
# hundred packages, and need a release of PyTorch that all of them know.
$(INTEGRATIONS)/.ready: pyproject.toml setup.py
	@echo "setting up $(INTEGRATIONS): the first time this downloads PyTorch and the libraries, and takes some minutes"
	@test -x $(INTEGRATIONS)/bin/python || $(PYTHON) -m venv $(INTEGRATIONS)
	$(call install,$(INTEGRATIONS)) --quiet --editable '.[integrations]'
	@touch $@

test-integrations: $(INTEGRATIONS)/.ready  ## the drop-in replacements against the libraries that they replace
	HYPERKERN_REQUIRE_INTEGRATIONS=1 $(INTEGRATIONS)/bin/python -m pytest -n 2 --dist worksteal tests/integrations tests/bench/test_bench_gate.py $(ARGS)

# The peers bring a hundred packages, as the drop-ins' originals do: the same environment serves both.
$(INTEGRATIONS)/.peers: $(INTEGRATIONS)/.ready
	$(call install,$(INTEGRATIONS)) --quiet --editable '.[peers]'
	@touch $@

bench: $(INTEGRATIONS)/.peers  ## speed and memory of the losses beside every peer, in one run of under ten minutes
	$(INTEGRATIONS)/bin/python -m benchmarks $(ARGS)

bench-pytest: $(VENV)/.has-test  ## the same cases in pytest-benchmark
	$(BIN)/python -m pytest benchmarks --benchmark-only $(ARGS)

bench-integrations: $(INTEGRATIONS)/.ready  ## time and memory of the drop-ins beside the libraries' losses
	$(INTEGRATIONS)/bin/python -m benchmarks drop-ins $(ARGS)

kernels-report: $(VENV)/.built  ## what the compilers made of every kernel, Triton's and those in CUDA C++: no GPU needed
	$(BIN)/python -m tools.kernels $(ARGS)

docs: $(VENV)/.has-docs  ## the documentation and the reference of every function as pages, in build/docs
	$(BIN)/python -m sphinx -E -W --keep-going -q docs build/docs $(ARGS)

hub:  ## the package for the kernels hub, in build/hub/hyperkern
	$(PYTHON) -m tools.hub $(ARGS)

lint: $(VENV)/.has-lint  ## ruff (lint and format), mypy, clang-format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(CXX_SOURCES)

format: $(VENV)/.has-lint  ## rewrite the sources in the project's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_SOURCES)

info: $(VENV)/.has-demo  ## what is installed, which backends are usable, and why not
	$(BIN)/hyperkern info

clean:  ## remove the environments and all build products
	rm -rf $(VENV) $(INTEGRATIONS) build dist hyperkern/backends/cuda/*.so *.egg-info demo-out paper-out .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
