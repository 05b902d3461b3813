# Every target sets up what it needs; `make setup` only requires python3 and creates a local .venv.
PYTHON   ?= python3
BIN      := .venv/bin
READY    := .venv/.ready
DATASET  ?= music-avqa
BACKBONE ?= avst
METHOD   ?= rmm-avr
SEEDS    ?= 1
# Versions of Python, or paths of their programs, for make installed.
PYTHONS  ?= 3.11 3.12 3.13
# Runs of a sweep in parallel.
JOBS     ?= 1
DEMO     := build/demo
# Further arguments for the command of a target: make extract DATASET=music-avqa ARGS="--device cuda"
ARGS     ?=

.PHONY: help setup demo backbones methods dial tuning findings test nightly versions wheel installed lint lint-fast docs bench extract train clean
.DEFAULT_GOAL := help

help:  ## List the targets.
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## ?/  make \1\t/' | expand -t 24

setup: $(READY)  ## Create .venv and install mavqa into it with uv.

# uv, because pip may prefer a CPU-only torch wheel, which breaks torchvision, torchaudio and torchcodec. It also
# compiles bytecode: otherwise the first process that loads torchvision does (seven more seconds), or every process if
# .venv is read-only.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --compile-bytecode --editable '.[dev]'
	@touch $@

demo: $(READY)  ## The main job on synthetic videos: generate, extract, train, compare, report (SEEDS=1, JOBS=1).
	$(BIN)/mavqa-demo --out $(DEMO) --seeds $(SEEDS) --jobs $(JOBS)

backbones: $(READY) $(DEMO)/evaluation.json  ## Train the four backbones and the baseline on the demo's videos, three seeds each (JOBS=1).
	$(BIN)/mavqa-extract --manifest $(DEMO)/data --videos $(DEMO)/data/videos --store $(DEMO)/store.zarr --weights seeded \
	  --features clip-vit-b32,clip-vit-b32-sentence,clip-vit-b32-words
	$(BIN)/mavqa-sweep train/grids/backbones.toml --manifest $(DEMO)/data --store $(DEMO)/store.zarr --out $(DEMO)/backbones --jobs $(JOBS) \
	  --evaluation $(DEMO)/backbones/evaluation.json
	$(BIN)/mavqa-report $(DEMO)/backbones --out $(DEMO)/backbones/report

methods: $(READY) $(DEMO)/evaluation.json  ## Train every method on the demo's videos, five seeds each (JOBS=1).
	$(BIN)/mavqa-sweep train/grids/methods.toml --manifest $(DEMO)/data --store $(DEMO)/store.zarr --out $(DEMO)/methods --jobs $(JOBS) \
	  --evaluation $(DEMO)/methods/evaluation.json
	$(BIN)/mavqa-report $(DEMO)/methods --out $(DEMO)/methods/report

dial: $(READY)  ## Train the main methods from independent to redundant modalities, five seeds each (JOBS=1, ARGS).
	$(BIN)/python benchmarks/dial.py --train --out build/dial --jobs $(JOBS) $(ARGS)

tuning: $(READY)  ## Try the settings that papers leave open, on two datasets of their own (JOBS=1; two hours with 2).
	$(BIN)/python benchmarks/tuning.py --datasets 101 102 --jobs $(JOBS) $(ARGS)
	$(BIN)/python benchmarks/findings.py --page docs/tuning.md

# The settings that make tuning chose are in the grids.
findings: methods dial  ## Run all experiments of FINDINGS.md and write their tables into it (JOBS=1; four hours with 2).
	cp build/dial/dial.svg build/dial/groups.svg docs/images/
	$(BIN)/python benchmarks/findings.py

# The slow files come early in the order of their names; reordered by number of tests they would come last.
test: $(READY) lint-fast  ## Run the test suite and the fast part of lint.
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

nightly: $(READY)  ## Run the tests that are too long for every change, then make versions and make installed.
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m nightly $(ARGS)
	$(MAKE) versions installed

# Each in a new environment under build/, of about 7 GB.
versions: $(READY)  ## Run the test suite with the lowest and with the newest allowed versions of the dependencies.
	broken=0; for resolution in lowest-direct highest; do \
	  $(BIN)/uv venv --quiet --clear --python $(BIN)/python build/$$resolution && \
	  $(BIN)/uv pip install --quiet --python build/$$resolution/bin/python --resolution $$resolution --editable '.[dev]' && \
	  OMP_NUM_THREADS=1 build/$$resolution/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS) || broken=1; \
	done; exit $$broken

wheel: $(READY)  ## Build the source archive and the wheel in dist/, and check them.
	rm -rf dist
	$(BIN)/uv build --quiet
	$(BIN)/uv tool run --quiet twine check --strict dist/*.whl dist/*.tar.gz

installed: wheel  ## Install the wheel in an empty environment of each of PYTHONS, and run mavqa demo there.
	broken=0; for python in $(PYTHONS); do \
	  $(BIN)/uv venv --quiet --clear --python $$python build/installed && \
	  $(BIN)/uv pip install --quiet --python build/installed/bin/python --constraint constraints.txt dist/*.whl && \
	  (cd build/installed && start=$$(date +%s) && bin/mavqa demo --out demo && \
	   echo "$$(bin/python --version): mavqa demo in $$(($$(date +%s) - start)) s") || broken=1; \
	done; exit $$broken

lint: lint-fast  ## Check style, imports between layers and types.
	$(BIN)/mypy

lint-fast: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

docs: $(READY)  ## Build the documentation in build/docs; a warning is an error.
	$(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going --builder html docs build/docs

bench: $(READY) $(DEMO)/evaluation.json  ## Run all benchmarks on the output of make demo.
	broken=0; for program in $(filter-out %/tuning.py %/findings.py,$(wildcard benchmarks/*.py)); do $(BIN)/python $$program || broken=1; done; exit $$broken

$(DEMO)/evaluation.json:
	$(MAKE) demo

extract: $(READY)  ## Extract the features of DATASET=music-avqa into stores/.
	$(BIN)/mavqa-extract --dataset $(DATASET) $(ARGS)

train: $(READY)  ## Train BACKBONE=avst with METHOD=rmm-avr on DATASET=music-avqa.
	$(BIN)/mavqa-train --backbone $(BACKBONE) --method $(METHOD) --dataset $(DATASET) $(ARGS)

clean:  ## Remove build/, the output of the demo.
	rm -rf build
