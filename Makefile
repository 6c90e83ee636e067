# Everything runs in .venv, which the first target makes with PYTHON (3.11 or newer) and pip.
PYTHON ?= python3
DATA ?=
RECIPE ?= $(RECIPE_$(DATA))
SEEDS ?=
LOGGER ?= none
LAUNCHER ?= here
RATES ?= 0.02,0.04,0.08
METHODS ?= svd,rjsvd1,ljsvd,bijsvd
ARGS ?=

RECIPE_digits := short
RECIPE_fashion_mnist := fashion_mnist
RECIPE_cifar10 := paper_cifar
RECIPE_cifar100 := paper_cifar
RECIPE_imagenet := paper_imagenet
RECIPE_imagefolder := paper_imagenet

comma := ,
PY := .venv/bin/python
JOINTSVD := .venv/bin/jointsvd
DIGITS := outputs/resnet34-digits-short
FILE := s0-*/network.safetensors
BENCHMARKED := {dense:$(DIGITS)/dense-$(FILE),SVD:$(DIGITS)/svd-r0.04-$(FILE),RJSVD-1:$(DIGITS)/rjsvd1-r0.04-$(FILE),$\
LJSVD:$(DIGITS)/ljsvd-r0.04-$(FILE),ours:outputs/compressed-resnet34-digits/budget-params22-$(FILE),$\
Bi-JSVD_0.5:$(DIGITS)/bijsvd-r0.04-p0.5-$(FILE)}
# what is not given stays as the experiment has it
GIVEN = $(if $(DATA),data=$(DATA)) $(if $(RECIPE),recipe=$(RECIPE)) $(if $(SEEDS),'seed=range($(SEEDS))') logger=$(LOGGER) launcher=$(LAUNCHER) $(ARGS)

.PHONY: help install test test-slow lint reproduce-resnet34 compress-resnet34 reproduce-figure6 sweep-ranks tables speed benchmark clean
.DEFAULT_GOAL := help

help: ## list the targets
	@grep -hE '^[a-z0-9%-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 22
	@echo "variables: DATA RECIPE SEEDS LOGGER=$(LOGGER) LAUNCHER=$(LAUNCHER) RATES=$(RATES) METHODS=$(METHODS)"
	@echo "ARGS=... goes to jointsvd train as it is, for example ARGS='trainer.accelerator=cpu'"

install: .venv/installed ## make .venv with everything in it

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "set PYTHON=python3.11 or newer"'
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --upgrade pip
	$(PY) -m pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@

test: .venv/installed ## fast tests, offline, on a CPU
	OMP_NUM_THREADS=1 $(PY) -m pytest -q -n auto --maxprocesses 4

test-slow: .venv/installed ## all tests, the slow ones too
	$(PY) -m pytest -q -m ''

lint: .venv/installed ## ruff and mypy
	$(PY) -m ruff check . && $(PY) -m ruff format --check . && $(PY) -m mypy

reproduce-resnet34: .venv/installed ## ResNet-34 by every matrix method, on digits: table, results.csv, picture
	$(JOINTSVD) train experiment=reproduce_resnet34 $(GIVEN)

compress-resnet34: .venv/installed ## our own method: ResNet-34 on digits to a 22nd of its size, without training it again
	$(JOINTSVD) compress $(if $(SEEDS),-m) $(GIVEN)

reproduce-figure6: .venv/installed ## CPU latency, batch 1, one core
	$(JOINTSVD) latency $(ARGS)

reproduce-%: .venv/installed conf/experiment/%.yaml ## any of conf/experiment: table2 ... table8, figure3 ... figure6, ...
	set -e; for part in $(basename $(notdir $(wildcard conf/experiment/$*.yaml conf/experiment/$*.*.yaml))); do \
	  $(JOINTSVD) train experiment=$$part $(GIVEN); done

baseline-%: .venv/installed ## the dense network alone, for example baseline-resnet34 DATA=fashion_mnist
	$(JOINTSVD) train model=$* method=dense recipe.finetune.epochs=0 $(GIVEN)

sweep-ranks: .venv/installed ## METHODS at each of RATES
	$(JOINTSVD) train -m method=$(METHODS) method.rank_rate=$(RATES) $(GIVEN)

benchmark: .venv/installed ## networks of the two jobs above side by side in several engines, those missing trained first; goes on where it stopped
	$(MAKE) reproduce-resnet34 DATA=digits RECIPE=short SEEDS=1 \
	  ARGS='method=dense$(comma)svd$(comma)rjsvd1$(comma)ljsvd$(comma)bijsvd_0.5 method.rank_rate=0.04'
	$(MAKE) compress-resnet34 DATA=digits RECIPE=short SEEDS=1 ARGS=
	$(JOINTSVD) benchmark 'checkpoints=$(BENCHMARKED)' data=digits engines=[eager,channels_last,onnx,int8] $(ARGS)
	$(JOINTSVD) benchmark 'checkpoints=$(BENCHMARKED)' data=digits engines=[prepared,compile] batch_sizes=[1] threads=[1]

tables: .venv/installed ## experiments/RESULTS.md and the pictures, from the committed rows
	$(JOINTSVD) tables

speed: .venv/installed ## time decompositions and the training loop against plain ones, and layers in each engine
	$(PY) experiments/speed/decomposition.py
	$(PY) experiments/layer_times/measure.py
	$(PY) experiments/speed/training.py

clean: ## remove .venv and caches, not results
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache src/*.egg-info
