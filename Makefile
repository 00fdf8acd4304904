# make demo    install, then try the bundled model
# make test    install, then lint, format check, types, tests
# make setup   only install (into .venv); does nothing when it is current
# make clean   remove caches and the environment; runs/ stays
#
# Another Python:       make setup PYTHON=python3.12
# Another torch build:  make setup TORCH_ARGS="--index-url <where the builds for your hardware are>"

PYTHON ?= python3
TORCH_ARGS ?=
BIN := .venv/bin
STAMP := .venv/.stamp

# Everything pip installs here is pinned, packages that only build ours included
# (older pip reads the first variable for those, newer pip the second).
export PIP_CONSTRAINT := constraints.txt
export PIP_BUILD_CONSTRAINT := constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help setup demo test clean

help:
	@sed -n '/^#/!q; s/^# \{0,1\}//p' Makefile

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "ladi needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) --version 2>&1)."; \
		echo "Name another one, for example: make $(or $(MAKECMDGOALS),setup) PYTHON=python3.12"; \
		exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "Installing ladi and its pinned dependencies into .venv (minutes the first time) ..."
	$(BIN)/python -m pip install --quiet torch $(TORCH_ARGS)
	$(BIN)/python -m pip install --quiet -e '.[dev]'
	@touch $(STAMP)

demo: setup
	$(BIN)/ladi quickstart

test: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal

clean:
	rm -rf .venv .pytest_cache .ruff_cache .hypothesis build dist src/*.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
