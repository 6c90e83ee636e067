# Everything runs in .venv, which the first target makes with PYTHON (3.11 or newer) and pip.
PYTHON ?= python3
DATA ?= digits
RECIPE ?= short
SEEDS ?= 3
LOGGER ?= none
RATES ?= 0.02,0.04,0.08
METHODS ?= svd,rjsvd1,ljsvd,bijsvd
ARGS ?=

PY := .venv/bin/python

.PHONY: help install test test-slow lint reproduce-resnet34 sweep-ranks speed clean
.DEFAULT_GOAL := help

help: ## list the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 22
	@echo "variables: DATA=$(DATA) RECIPE=$(RECIPE) SEEDS=$(SEEDS) LOGGER=$(LOGGER) RATES=$(RATES) METHODS=$(METHODS)"
	@echo "ARGS=... goes to python -m jointsvd.train as it is, for example ARGS='trainer.accelerator=cpu'"

install: .venv/installed ## make .venv with everything in it

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "set PYTHON=python3.11 or newer"'
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --upgrade pip
	$(PY) -m pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@

test: .venv/installed ## fast tests, offline, on a CPU
	$(PY) -m pytest -q

test-slow: .venv/installed ## all tests, the slow ones too
	$(PY) -m pytest -q -m ''

lint: .venv/installed ## ruff and mypy
	$(PY) -m ruff check . && $(PY) -m ruff format --check . && $(PY) -m mypy

reproduce-resnet34: .venv/installed ## ResNet-34 by every method of the paper: table, results.csv, picture
	$(PY) -m jointsvd.train experiment=reproduce_resnet34 data=$(DATA) recipe=$(RECIPE) logger=$(LOGGER) 'seed=range($(SEEDS))' $(ARGS)

sweep-ranks: .venv/installed ## METHODS at each of RATES
	$(PY) -m jointsvd.train -m data=$(DATA) recipe=$(RECIPE) logger=$(LOGGER) method=$(METHODS) method.rank_rate=$(RATES) 'seed=range($(SEEDS))' $(ARGS)

speed: .venv/installed ## time the decompositions and the training loop against plain ones
	$(PY) experiments/speed/decomposition.py
	$(PY) experiments/speed/training.py

clean: ## remove .venv and caches, not results
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache src/*.egg-info
