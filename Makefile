# Every target makes the environment that it needs (.venv, once) and says on stderr what it does.
#   make chat PYTHON=python3.12 TORCH="torch==2.13.0 --index-url ..." MODEL=path/to/model.gguf ARGS="--threads 4"
PYTHON ?= python3
TORCH ?= torch==2.13.0
MODEL ?= default
DEVICE ?= cuda
OUT ?= build/gpu-check
RUN := .venv/bin/python
SOURCES := exllama conversion exllama_ext tests examples benchmarks docs bootstrap.py setup.py
NATIVE := $(shell find kernels exllama_ext tests -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh' 2>/dev/null)

.PHONY: help setup build test lint fmt chat bench docs gpu-check clean environment environment-dev
.DEFAULT_GOAL := help

help:
	@echo "make chat | test | bench | setup | build | lint | fmt | docs | gpu-check | clean     (see CONTRIBUTING.md)"

environment environment-dev:
	@command -v "$(PYTHON)" >/dev/null || { echo "$(PYTHON) is not on PATH: install Python 3.10 to 3.13 or name one with make PYTHON=..." >&2; exit 1; }
	@"$(PYTHON)" bootstrap.py $(if $(findstring dev,$@),dev,run) --torch "$(TORCH)"

setup: environment-dev

build: environment
	@$(RUN) -m exllama_ext.build cpu

chat: environment
	@$(RUN) -m exllama.chat --model "$(MODEL)" $(ARGS)

bench: environment
	@$(RUN) -m exllama.bench --model "$(MODEL)" $(ARGS)

# The kernel tests open more emulator libraries than the loader has fast thread-local memory for by default.
test: environment-dev
	@GLIBC_TUNABLES=glibc.rtld.optional_static_tls=65536 $(RUN) -m pytest $(ARGS)

lint: environment-dev
	@$(RUN) -m ruff check $(SOURCES) && $(RUN) -m ruff format --check $(SOURCES) && $(RUN) -m mypy
	@.venv/bin/clang-format --dry-run --Werror $(NATIVE)

fmt: environment-dev
	@$(RUN) -m ruff check --fix $(SOURCES) && $(RUN) -m ruff format $(SOURCES)
	@.venv/bin/clang-format -i $(NATIVE)

# On a machine with a GPU and without a network: builds, tests and measures with the Python that is there.
gpu-check:
	@PYTHONPATH=. $(if $(wildcard .venv/bin/python),.venv/bin/python,"$(PYTHON)") -m benchmarks.gpu_check \
		--device "$(DEVICE)" --out "$(OUT)" $(if $(PART),--part "$(PART)")

docs: environment-dev
	@$(RUN) -m docs.generate

clean:
	@rm -rf .venv build dist *.egg-info exllama_ext/_C*.so .pytest_cache .mypy_cache .ruff_cache .hypothesis
