# medjax on a machine that has Python 3.11 or newer, pip and make. Everything goes into .venv and .cache of this folder.
#
#   make demo          build, train, probe and report on the embedded data set -> runs/demo/report.html
#   make test          the quick tests
#   make test-slow     the tests that take longest; make test-long: the tests that do not fit into CI
#   make lint          ruff and mypy
#   make aot           compile for GPUs and TPUs that are not there, and compare with benchmarks/programs.json
#   make test-newest   the quick tests on PYTHON_NEWEST and the newest jax, in a second environment
#   make golden        rewrite tests/golden after a wanted change of a shipped config
#
# PYTHON=python3.12 make …   takes another Python for a new .venv.
# TORCH= make …              installs no torch; tests that compare with torch skip.

SHELL := /bin/sh
.DELETE_ON_ERROR:
.PHONY: help demo test test-slow test-long test-newest aot aot-environments lint format golden venv clean

CANDIDATES := python3 python3.13 python3.12 python3.11 python
USABLE := -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))'
PYTHON ?= $(shell for p in $(CANDIDATES); do "$$p" $(USABLE) 2>/dev/null && { echo "$$p"; break; }; done)
PYTHON_NEWEST ?= $(shell for p in python3.12 $(wildcard $(or $(PYENV_ROOT),$(HOME)/.pyenv)/versions/3.12*/bin/python); \
	do "$$p" $(USABLE) 2>/dev/null && { echo "$$p"; break; }; done)
# What touches the interfaces of jax most. Not in .ci/run: a second environment of a gigabyte for what rarely changes.
NEWEST_TESTS ?= tests/test_config.py tests/parallel/test_runtime.py tests/parallel/test_sharding.py \
	tests/models/test_vit.py tests/training/test_step.py
# Tests compare medjax with torch. Where pip finds a CPU build of this version, it takes that build. The build on PyPI for
# Linux brings gigabytes of CUDA: there, point pip to an index of CPU builds, or leave TORCH empty.
# timm and open_clip import torchvision. Its wheels are built for CUDA, and newer ones do not import beside a CPU build of
# torch; 0.16.2 does, without its compiled operators, which nothing here uses. So the three come without dependencies.
WITHOUT_DEPENDENCIES := torchvision==0.16.2 timm==1.0.31 open_clip_torch==3.3.0
TORCH ?= torch==2.13.0

BIN := .venv/bin
export JAX_COMPILATION_CACHE_DIR ?= $(CURDIR)/.cache/jax
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS ?= 0
export JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES ?= 0
PYTEST := $(BIN)/python -m pytest

help:
	@sed -n '2,/^$$/s/^# \{0,1\}//p' Makefile

venv: .venv/medjax

.venv/bin/python:
	@test -n "$(PYTHON)" || { echo "medjax needs Python 3.11 or newer and found none among: $(CANDIDATES)."; \
		echo "Install one, or name it: PYTHON=/path/to/python make …"; exit 1; }
	@"$(PYTHON)" $(USABLE) || { echo "$(PYTHON) is not Python 3.11 or newer; name another: PYTHON=… make …"; exit 1; }
	@# Debian's Python comes without ensurepip; its own pip can fill the environment then.
	"$(PYTHON)" -m venv .venv 2>/dev/null || { "$(PYTHON)" -m venv --clear --without-pip .venv \
		&& "$(PYTHON)" -m pip --python .venv/bin/python install -q pip; }

.venv/medjax: pyproject.toml | .venv/bin/python
	@echo 'Installing medjax and its packages into .venv (once; under a minute where the network is fast)'
	$(BIN)/python -m pip install -q --disable-pip-version-check -e .
	@touch $@

.venv/test: pyproject.toml .venv/medjax
	$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[test]'
	@if test -z '$(TORCH)'; then echo 'TORCH is empty: the tests that compare with torch skip.'; else \
		$(BIN)/python -m pip install -q --disable-pip-version-check '$(TORCH)' \
		&& $(BIN)/python -m pip install -q --disable-pip-version-check -e '.[parity]' \
		&& $(BIN)/python -m pip install -q --disable-pip-version-check ftfy regex \
		&& $(BIN)/python -m pip install -q --disable-pip-version-check --no-deps $(WITHOUT_DEPENDENCIES) \
		|| echo '$(TORCH), transformers, timm or open_clip could not be installed: the tests that compare with them skip.'; fi
	@touch $@

demo: .venv/medjax
	rm -rf data/demo runs/demo
	$(BIN)/medjax build phantom --records 2000 --size 64 --out data/demo
	$(BIN)/medjax train --config configs/demo.py --data data/demo --workdir runs/demo
	$(BIN)/medjax probe --run runs/demo --data data/demo
	$(BIN)/medjax report --run runs/demo
	@echo 'Look at runs/demo/report.html; the numbers are in runs/demo/probes and runs/demo/metrics.jsonl.'

test: .venv/test
	$(PYTEST) -n 2 --dist loadfile  # a file stays on one worker: its fixtures run once, its programs are traced once

test-slow: .venv/test
	$(PYTEST) --slow -n 2 --dist loadfile

test-long: .venv/test
	$(PYTEST) --long -n 2

lint: .venv/test
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: .venv/test
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

golden: .venv/test
	$(BIN)/python tests/test_config.py

test-newest:
	@test -n "$(PYTHON_NEWEST)" || { echo "No Python 3.12 found; name it: PYTHON_NEWEST=/path/to/python make test-newest"; \
		exit 1; }
	test -x .venv-newest/bin/python || "$(PYTHON_NEWEST)" -m venv .venv-newest
	.venv-newest/bin/python -m pip install -q --disable-pip-version-check --upgrade --upgrade-strategy eager -e . pytest
	.venv-newest/bin/python -m pytest $(NEWEST_TESTS)

# The compilers for GPUs and TPUs, each in an environment of its own: together they take 4 GB.
.venv-aot-%/ready: benchmarks/aot-%.txt pyproject.toml
	@test -n "$(PYTHON_NEWEST)" || { echo "No Python 3.12 found; name it: PYTHON_NEWEST=/path/to/python make aot"; exit 1; }
	test -x .venv-aot-$*/bin/python || "$(PYTHON_NEWEST)" -m venv .venv-aot-$*
	.venv-aot-$*/bin/python -m pip install -q --disable-pip-version-check -r $< -e .
	@touch $@

aot-environments: .venv-aot-gpu/ready .venv-aot-tpu/ready

aot: aot-environments
	.venv-aot-gpu/bin/python benchmarks/compile.py --ci --jobs 2  # a compiler takes little more than one core

clean:
	rm -rf .venv .venv-newest .venv-aot-gpu .venv-aot-tpu .cache data/demo runs/demo
