# Every target works in a fresh clone; PYTHON names the interpreter that the environment is made of.
PYTHON ?= python3
PROMPT ?= What is the capital of France?
BIN := .venv/bin

# What brings MLX's backend: macOS has Metal, elsewhere it is a package.
ifeq ($(shell uname -s),Darwin)
BACKEND :=
else ifneq ($(shell command -v nvidia-smi 2>/dev/null),)
BACKEND := cuda
else
BACKEND := cpu
endif

KERNELS := $(wildcard kernels/*.metal kernels/*.cuh kernels/*.h kernels/*/*.h kernels/*/*.cpp tests/cpu/*.cpp tests/cuda/*.h tests/msl/include/*.h tests/msl/runtime/*.h tests/msl/runtime/*.cpp bench/*.cpp)

.PHONY: setup demo test lint bench cuda-check backend

setup: .venv/installed

.venv/installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "error: Python 3.10 or later is needed, $(PYTHON) is " + sys.version)'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev$(BACKEND:%=,%)]'
	@touch $@

demo: setup
	@$(BIN)/python -m mlx_ferrum.generate --prompt '$(subst ','\'',$(value PROMPT))'

# Two to four processes: most tests keep one core busy.
test: setup
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
ifneq ($(KERNELS),)
	$(BIN)/clang-format --dry-run --Werror $(KERNELS)
endif

# LLAMA_BENCH=PATH compares with llama.cpp; MODELS names others than the catalog's.
bench: .venv/bench
	$(BIN)/python bench/speed.py $(MODELS) $(LLAMA_BENCH:%=--llama-bench %)
	$(BIN)/python bench/kernels.py
	@if [ "$$(uname)" = Darwin ]; then $(BIN)/python bench/metal_kernels.py; fi

# On a machine with an NVIDIA GPU; LLAMA_BENCH=PATH compares with llama.cpp's CUDA build.
cuda-check: .venv/bench
	$(BIN)/python -m pip install --quiet nvidia-cuda-sanitizer-api
	$(BIN)/python bench/cuda_check.py $(LLAMA_BENCH:%=--llama-bench %)

.venv/bench: .venv/installed
	$(BIN)/python -m pip install --quiet --editable '.[bench]'
	@touch $@

# The extra that installs the backend, for .ci/run.
backend:
	@echo $(BACKEND)
