# make demo    set up once, then show the whole method at work; goes on where it was stopped
# make test    set up once, then lint, types and tests
# make setup   only set up .venv (again when pyproject.toml or constraints.txt have changed)
# make clean   remove caches and build products; .venv and runs/ stay

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help demo test setup clean

BIN := .venv/bin
STAMP := .venv/.installed
UNFINISHED := .venv/.unfinished
PIP := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt

# What the commands and tests of today need beside the core: plots and optical flow (the extra `eval`), the server,
# tables and datasets of clips (`data`), TensorBoard and adapters, and the tools that `make test` runs.
TOOLS := tensorboard peft openai schemathesis playwright httpx pytest pytest-xdist pytest-timeout hypothesis ruff mypy types-PyYAML pre-commit

# Two test processes with one thread each: more threads would fight over the same cores.
WORKERS ?= 2

help:
	@sed -n 's/^# make/make/p' Makefile

demo: setup
	$(BIN)/aad1 demo --resume

test: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS)

setup: $(STAMP)

# An environment that this Makefile began and did not finish (the mark is still there), or one without a
# working pip, is begun anew; any other is brought up to date. torch goes first, so that nothing
# else can choose its version.
$(STAMP): pyproject.toml constraints.txt
	@if [ -e $(UNFINISHED) ] || ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
		for python in python3.11 python3 ""; do \
			if [ -z "$$python" ]; then \
				echo "aad1 needs Python 3.11 or later as python3.11 or python3 on the PATH" >&2; exit 1; \
			fi; \
			if "$$python" -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then break; fi; \
		done; \
		echo "making .venv with $$("$$python" --version)"; \
		"$$python" -m venv --clear .venv; \
		touch $(UNFINISHED); \
	fi
	$(PIP) torch
	$(PIP) -e ".[eval,serve,data]" $(TOOLS)
	@rm -f $(UNFINISHED)
	@touch $(STAMP)

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -path ./.venv -prune -o -path ./runs -prune -o -name __pycache__ -type d -exec rm -rf {} +
