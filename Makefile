# Every target does its own set-up: a machine with Python >= 3.11, a C compiler and make is enough; test-nogpu wants a C++
# compiler.

# the first that runs and is new enough: a name on the path may be a shim for a version that is not chosen
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
  $$p -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEEPSPEED := $(VENV)/.deepspeed

.PHONY: help quickstart test test-heavy test-fast test-wheel test-gpu test-nogpu lint docs bench bench-gpu gpu-day \
  gpu-wheels clean

help:
	@echo "make quickstart   the whole job on this machine: text to a trained, exported, reported model (minutes)"
	@echo "make test         lint, types, import floors, generated docs and all tests but the heavy ones"
	@echo "make test-heavy   the tests with many ranks, and those of the DeepSpeed engine; PART=2/3 for the second third"
	@echo "make test-fast    the tests that take a moment each"
	@echo "make test-wheel   the package as a wheel in an empty environment, and the quickstart from there"
	@echo "make test-gpu     the tests on a GPU, with .venv or, without one, the python at hand"
	@echo "make test-nogpu   the same and the configs at their real size, on a driver that does nothing; PART, too"
	@echo "make bench-gpu    training speed on a GPU beside bare torch and transformers, into docs/benchmarks/"
	@echo "make gpu-day      what the first minutes on a GPU must tell, in order of worth; MINUTES=9, INTO=FILE"
	@echo "make gpu-wheels   packages that a GPU machine without network may lack, into gpu-wheels"
	@echo "make docs         write docs/config.md and docs/refinery-keys.md anew from the schema"
	@echo "make bench        training speed beside transformers, into docs/benchmarks/"
	@echo "make clean        remove the environment and caches (not runs)"

$(READY): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" \
	  || { echo "no Python 3.11 or newer found: install one, or make PYTHON=/path/to/python"; exit 1; }
	@test -x $(BIN)/python || { echo "creating $(VENV) with $(PYTHON)"; $(PYTHON) -m venv $(VENV); }
	@echo "installing internevo and its dependencies into $(VENV) (once)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

$(DEEPSPEED): $(READY)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,deepspeed,liger]'
	@touch $@

quickstart: $(READY)
	@$(BIN)/internevo quickstart

lint: $(READY)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/lint-imports --no-cache
	@$(BIN)/mypy
	@$(BIN)/python tools/config_reference.py --check

# a file of tests stays on one worker, with what it has built for itself; many tests start ranks of their own
WORKERS ?= 2

test: lint
	@$(BIN)/python -m pytest -m "not heavy" -n $(WORKERS) --dist loadfile

# DeepSpeed compiles operators at first use, under a lock that a killed process leaves for ever: others then wait without
# end. So tests have a folder of their own for them, and begin without locks.
EXTENSIONS := build/extensions
OWN_EXTENSIONS = mkdir -p $(EXTENSIONS) && find $(EXTENSIONS) -name lock -delete && TORCH_EXTENSIONS_DIR=$(CURDIR)/$(EXTENSIONS)

# K/N is the K-th of N parts, each of which has a bit of every file of tests
PART ?= 1/1

IN_PARTS = --splitting-algorithm least_duration \
  --group $(word 1,$(subst /, ,$(PART))) --splits $(word 2,$(subst /, ,$(PART)))

test-heavy: $(DEEPSPEED)
	@$(OWN_EXTENSIONS) $(BIN)/python -m pytest -m heavy $(IN_PARTS)

test-fast: $(READY)
	@$(BIN)/python -m pytest -m "not slow and not heavy"

# GPU machines often have their own torch and no network: nothing is installed for these
GPU_PYTHON = $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON))

test-wheel: $(READY)
	@rm -rf build/wheel build/lib build/bdist.* && tools/check_wheel.sh $(BIN)/python build/wheel

test-gpu:
	@$(GPU_PYTHON) -m pytest -rs tests/gpu

# torch's CUDA build on a driver that does nothing; installed once (5 GB) into a cache: tools/nogpu/run
test-nogpu:
	@$(OWN_EXTENSIONS) PYTHON=$(PYTHON) tools/nogpu/run python -m pytest tests/gpu tests/nogpu \
	  -n $(WORKERS) --dist loadfile $(IN_PARTS)

bench-gpu:
	@PYTHONPATH=. $(GPU_PYTHON) tools/bench_gpu.py --minutes $(or $(MINUTES),30) --out docs/benchmarks/gpu.json

# findings are added to the file, or to gpu-day.jsonl in a folder
INTO ?= docs/benchmarks/gpu-day.jsonl

gpu-day:
	@$(GPU_PYTHON) tools/gpu_day.py --minutes $(or $(MINUTES),9) --out $(INTO)

gpu-wheels:
	@$(GPU_PYTHON) tools/gpu_day.py --wheels

docs: $(READY)
	@$(BIN)/python tools/config_reference.py

bench: $(READY)
	@$(BIN)/python tools/bench_step.py --out docs/benchmarks/step.json

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis *.egg-info build dist
